"""Samples that do not depend on the order of arrival; points that do not depend on chance."""

import numpy as np
import pytest

from spai.engine.projection import VectorSample, fit_perplexity, project


def vectors_of(dataset, row, count):
    return np.random.default_rng((dataset, row)).normal(size=(count, 4)).astype(np.float32)


def collect(order, *, seed=0, limit=20):
    sample = VectorSample(seed=seed, limit=limit)
    for dataset, row in order:
        count = 1 + (3 * dataset + row) % 5
        corners = [(0, 8 * patch) for patch in range(count)]
        sample.add(dataset, row, corners, vectors_of(dataset, row, count))
    return sample


IMAGES = [(dataset, row) for dataset in range(2) for row in range(15)]


def test_the_sample_does_not_depend_on_the_order_of_images():
    places, vectors = collect(IMAGES).collect()
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(IMAGES).tolist()
        other_places, other_vectors = collect(order).collect()
        assert other_places == places
        np.testing.assert_array_equal(other_vectors, vectors)


def test_the_sample_holds_the_vectors_of_its_places():
    sample = collect(IMAGES)
    places, vectors = sample.collect()
    assert len(sample) == len(places) == len(set(places)) == 20 < sample.seen
    assert places == sorted(places)
    for place, vector in zip(places, vectors, strict=True):
        count = 1 + (3 * place.dataset + place.row) % 5
        expected = vectors_of(place.dataset, place.row, count)[place.patch]
        np.testing.assert_array_equal(vector, expected)
        assert (place.top, place.left) == (0, 8 * place.patch)


def test_another_seed_gives_another_sample_and_a_large_limit_everything():
    assert collect(IMAGES, seed=1).collect()[0] != collect(IMAGES).collect()[0]
    everything = collect(IMAGES, limit=1000)
    assert len(everything) == everything.seen


def test_each_vector_is_as_likely_as_any_other():
    times = np.zeros(10)
    for seed in range(600):
        sample = VectorSample(seed=seed, limit=3)
        for row in range(2):
            sample.add(0, row, [(0, 0)] * 5, np.zeros((5, 1), dtype=np.float32))
        for place in sample.collect()[0]:
            times[5 * place.row + place.patch] += 1
    # 180 +- 11 each
    assert times.sum() == 1800 and 135 < times.min() <= times.max() < 225


@pytest.mark.parametrize(
    ("count", "given", "used"), [(91, 30, 30), (90, 30, 89 / 3), (3, 30, 1), (5000, 50, 50)]
)
def test_the_perplexity_is_lowered_for_few_points(count, given, used):
    assert fit_perplexity(count, given) == used


def test_clusters_stay_apart_and_a_seed_gives_the_same_points():
    rng = np.random.default_rng(0)
    centres = np.repeat(np.eye(8, dtype=np.float32)[:2] * 20, 20, axis=0)
    vectors = centres + rng.normal(size=(40, 8)).astype(np.float32)
    points = project(vectors, perplexity=10, seed=3)
    np.testing.assert_array_equal(points, project(vectors, perplexity=10, seed=3))
    spread = points.reshape(2, 20, 2).std(axis=1).max()
    assert np.linalg.norm(points[:20].mean(axis=0) - points[20:].mean(axis=0)) > 2 * spread


@pytest.mark.parametrize("count", [3, 4, 10])
@pytest.mark.parametrize("alike", [False, True])
def test_few_and_equal_vectors_give_finite_points(count, alike):
    vectors = np.ones((count, 5), np.float32) if alike else vectors_of(0, 0, count)
    points = project(vectors, perplexity=fit_perplexity(count, 30), seed=0)
    assert points.shape == (count, 2) and np.isfinite(points).all()
