"""Vectors of images and patches in, points in the plane out (t-SNE).

N: vectors, V: their length.
"""

import heapq
import logging
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.manifold import TSNE

from spai.engine.predict import Prediction

logger = logging.getLogger(__name__)

Vectors = NDArray[np.float32]

MOST_POINTS = 5000
FEWEST_POINTS = 3


class Place(NamedTuple):
    """Where a vector comes from.

    dataset, row, patch: numbers of the data set, of the input row and of the patch, from 0.
    top, left: corner of the patch on the padded image, pixels; 0 for a whole image.
    """

    dataset: int
    row: int
    patch: int
    top: int
    left: int


class VectorSample:
    """At most so many of all vectors, each as likely as any other.

    A vector is in the sample or not by its place and the seed alone, so that images may come in any
    order. Memory does not grow with the number of vectors.
    """

    def __init__(self, *, seed: int, limit: int = MOST_POINTS) -> None:
        self._seed, self._limit = seed, limit
        self._kept: list[tuple[float, Place, Vectors]] = []  # a heap, the first to go on top
        self.seen = 0

    def add(
        self, dataset: int, row: int, corners: Sequence[tuple[int, int]], vectors: Vectors
    ) -> None:
        """Offer the vectors [N, V] of one image's N patches, whose corners are (top, left)."""
        self.seen += len(vectors)
        priorities = np.random.default_rng((self._seed, dataset, row)).random(len(vectors))
        for patch, (corner, priority) in enumerate(zip(corners, priorities, strict=True)):
            full = len(self._kept) == self._limit
            if full and priority < self._kept[0][0]:
                continue
            # A copy, or a single vector would keep all patches of its image in memory.
            kept = (priority, Place(dataset, row, patch, *corner), vectors[patch].copy())
            (heapq.heapreplace if full else heapq.heappush)(self._kept, kept)

    def __len__(self) -> int:
        return len(self._kept)

    def collect(self) -> tuple[list[Place], Vectors]:
        """Return the places in their order, and their vectors [N, V]."""
        ordered = sorted(self._kept, key=lambda kept: kept[1])
        vectors = [vector for _, _, vector in ordered]
        stacked = np.stack(vectors) if vectors else np.empty((0, 0), dtype=np.float32)
        return [place for _, place, _ in ordered], stacked


class Kind(NamedTuple):
    """Vectors [N, V] that are projected together; `name` is for files, `title` for people."""

    name: str
    title: str
    places: list[Place]
    vectors: Vectors

    @property
    def of_patches(self) -> bool:
        """Whether these are vectors of patches; else of images."""
        return self.name != "image"


class FeatureSamples:
    """Samples of the vectors of images and of those of patches."""

    def __init__(self, *, seed: int, limit: int = MOST_POINTS) -> None:
        self._images = VectorSample(seed=seed, limit=limit)
        self._patches = VectorSample(seed=seed, limit=limit)
        self._similarities = 0

    def add(self, dataset: int, prediction: Prediction) -> None:
        """Offer the vectors of one scored image, of a detector that keeps them."""
        features, layout, row = prediction.features, prediction.layout, prediction.record.row
        assert features is not None and layout is not None
        self._similarities = features.similarities
        if features.pooled is not None:
            self._images.add(dataset, row, [(0, 0)], features.pooled[None].numpy())
        self._patches.add(dataset, row, layout.corners, features.patches.numpy())

    def kinds(self) -> list[Kind]:
        """Return what there is to project; what the model lacks is left out, and logged."""
        places, vectors = self._patches.collect()
        srs, scv = np.split(vectors, [self._similarities], axis=1)
        found = [
            Kind("image", "Images: pooled vector", *self._images.collect()),
            Kind("patch_srs", "Patches: SRS", places, srs),
            Kind("patch_scv", "Patches: SCV", places, scv),
            Kind("patch", "Patches: whole vector", places, vectors),
        ]
        for kind in found:
            if not kind.vectors.size:
                logger.info("%s: left out, this model has none", kind.title)
        for sample, what in ((self._images, "images"), (self._patches, "patches")):
            if sample.seen > len(sample):
                logger.info("%s: a sample of %d of %d", what, len(sample), sample.seen)
        return [kind for kind in found if kind.vectors.size]


def fit_perplexity(count: int, perplexity: float) -> float:
    """Return the perplexity to use for at least FEWEST_POINTS points: the one given, or less.

    t-SNE looks at three times as many neighbours as the perplexity says.
    """
    return min(perplexity, max(1.0, (count - 1) / 3))


def project(vectors: Vectors, *, perplexity: float, seed: int) -> Vectors:
    """Lay vectors [N, V] out in the plane, [N, 2]: near ones near each other.

    Args:
        vectors: at least FEWEST_POINTS.
        perplexity: as `fit_perplexity` returns.
        seed: the same gives the same points on one machine.
    """
    # Equal vectors have no principal components to start from.
    start = "pca" if np.ptp(vectors, axis=0).any() else "random"
    tsne = TSNE(n_components=2, perplexity=perplexity, init=start, random_state=seed)
    points: Vectors = tsne.fit_transform(vectors)
    return points
