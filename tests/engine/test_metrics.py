import dataclasses
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, balanced_accuracy_score, roc_auc_score

from spai.engine.metrics import (
    Metrics,
    bootstrap_samples,
    compute_metrics,
    log_odds,
    sigmoid,
)

TWO_CLASS_FIELDS = (
    *("ap", "auc", "balanced_acc", "tpr_at_1_fpr", "tpr_at_5_fpr", "eer", "auc_interval"),
)
ONE_CLASS_FIELDS = ("loss", "acc", "ece", "acc_interval")

# A few values, so that ties are common.
labelled_logits = st.lists(
    st.tuples(st.integers(0, 1), st.integers(-4, 4).map(float)), min_size=2, max_size=30
).filter(lambda rows: len({label for label, _ in rows}) == 2)


def of(real: list[float], generated: list[float], bootstrap: int = 0) -> Metrics:
    labels = [0] * len(real) + [1] * len(generated)
    return compute_metrics(labels, [*real, *generated], bootstrap=bootstrap)


def random_images(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, count)
    return labels, rng.normal(labels, 1.5)


def test_small_case_equals_arithmetic_by_hand():
    metrics = of([-2.0, 0.5], [0.2, 3.0])
    # Generated above real: 0.2 > -2, 3 > -2, 3 > 0.5, not 0.2 > 0.5: 3 of 4 pairs.
    assert metrics.auc == 0.75
    # Falling logits: 3 (g), 0.5 (r), 0.2 (g), -2 (r). Precision 1/1 and 2/3, half the recall each.
    assert metrics.ap == pytest.approx(1 / 2 * 1 + 1 / 2 * 2 / 3)
    # Above a score of 0.5 (a logit of 0) are 0.5, 0.2 and 3: one real image is called generated.
    assert (metrics.acc, metrics.acc_real, metrics.acc_generated) == (3 / 4, 1 / 2, 2 / 2)
    assert metrics.balanced_acc == (1 / 2 + 1) / 2
    # ROC points (0, 0), (0, 1/2), (1/2, 1/2), (1/2, 1), (1, 1).
    assert (metrics.tpr_at_1_fpr, metrics.tpr_at_5_fpr) == (1 / 2, 1 / 2)
    assert metrics.eer == 1 / 2
    losses = [np.log(1 + np.exp(x)) for x in (-2.0, 0.5, -0.2, -3.0)]
    assert metrics.loss == pytest.approx(sum(losses) / 4)
    assert (metrics.count, metrics.real, metrics.generated, metrics.errors) == (4, 2, 2, 0)


def test_ranking_metrics_equal_scikit_learn():
    labels, logits = random_images(500)
    logits = logits.round(1)  # ties
    metrics = compute_metrics(labels, logits, bootstrap=0)
    assert metrics.auc == pytest.approx(roc_auc_score(labels, logits), abs=1e-12)
    assert metrics.ap == pytest.approx(average_precision_score(labels, logits), abs=1e-12)
    balanced = balanced_accuracy_score(labels, logits > 0)
    assert metrics.balanced_acc == pytest.approx(balanced, abs=1e-12)
    assert metrics.acc == pytest.approx(np.mean(labels == (logits > 0)), abs=1e-12)


def test_a_tie_counts_half_in_auc():
    # (1 > 0), (1 = 1: half): 1.5 of 2 pairs.
    assert of([0.0, 1.0], [1.0]).auc == 0.75


def test_constant_scores_rank_nothing():
    metrics = of([0.3] * 6, [0.3] * 2)
    assert (metrics.auc, metrics.eer) == (0.5, 0.5)
    assert metrics.ap == pytest.approx(2 / 8)
    assert (metrics.tpr_at_1_fpr, metrics.tpr_at_5_fpr) == (0, 0)


def test_tpr_is_of_a_threshold_whose_fpr_does_not_exceed_the_target():
    real = [float(value) for value in range(100)]
    generated = [200.0, 98.5, 97.5, 94.5, 93.5]
    metrics = of(real, generated)
    # 1 of 100 may lie above (99): 200 and 98.5 do. 5 may (95 to 99): 94.5 does, 93.5 does not.
    assert (metrics.tpr_at_1_fpr, metrics.tpr_at_5_fpr) == (2 / 5, 4 / 5)


def test_tpr_is_not_interpolated():
    # Above 39 no real image; from 39 on 1 of 40 (2.5 %) and everything generated.
    metrics = of([float(value) for value in range(40)], [100.0, 39.0])
    assert (metrics.tpr_at_1_fpr, metrics.tpr_at_5_fpr) == (1 / 2, 1)


def test_eer_is_interpolated_on_the_roc():
    # ROC (0, 0), (0, 1/2), (1/2, 1), (1, 1): between the second and third, FPR = t / 2 and
    # 1 - TPR = 1/2 - t / 2 meet at t = 1/2.
    assert of([0.0, 1.0], [1.0, 2.0]).eer == pytest.approx(1 / 4)


@pytest.mark.parametrize(("real", "generated", "eer"), [([0.0], [1.0], 0), ([1.0], [0.0], 1)])
def test_eer_of_perfect_and_inverted_ranking(real, generated, eer):
    assert of(real, generated).eer == eer


def test_ece_equals_arithmetic_by_hand():
    # Bin 1 (0.067 to 0.133): 0.10 and 0.12, both real: |0.11 - 0|, half of the images.
    # Bin 13 (0.867 to 0.933): 0.90 generated, 0.92 real: |0.91 - 1/2|, the other half.
    real, generated = log_odds(np.array([0.10, 0.12, 0.92])), log_odds(np.array([0.90]))
    metrics = of(real.tolist(), generated.tolist())
    assert metrics.ece == pytest.approx(0.11 / 2 + 0.41 / 2, abs=1e-12)


def test_ece_has_15_bins():
    # 1/15 = 0.067 parts 0.05 (real) from 0.08 (generated): |0.05 - 0| and |0.08 - 1|, half each.
    real, generated = log_odds(np.array([0.05])), log_odds(np.array([0.08]))
    assert of(real.tolist(), generated.tolist()).ece == pytest.approx((0.05 + 0.92) / 2)


def test_ece_puts_a_score_of_one_in_the_last_bin():
    # 1 (real) and 0.95 (generated) share bin 14: |0.975 - 0.5|.
    assert of([800.0], log_odds(np.array([0.95])).tolist()).ece == pytest.approx(0.475)


def test_a_score_of_one_half_is_real():
    assert of([0.0], [0.0]).acc_real == 1
    assert of([0.0], [0.0]).acc_generated == 0


def test_saturated_scores_do_not_tie():
    real, generated = [50.0, 60.0], [55.0, 70.0]
    assert sigmoid(np.array(real)).tolist() == sigmoid(np.array(generated)).tolist() == [1, 1]
    assert of(real, generated).auc == 3 / 4


def test_loss_is_finite_for_extreme_logits():
    assert of([1000.0], [1000.0]).loss == 500  # 1000 for the real image, 0 for the other
    assert of([0.0], [0.0]).loss == pytest.approx(np.log(2), abs=1e-15)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_logit_that_is_not_finite_is_counted_apart(bad):
    clean = compute_metrics([0, 1, 0, 1], [-1, 1, 2, 3], bootstrap=20)
    marred = compute_metrics([0, 1, 1, 0, 1, 0], [-1, 1, bad, 2, 3, bad], bootstrap=20)
    assert marred == dataclasses.replace(clean, errors=2)


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_has_no_two_class_metric(label):
    metrics = compute_metrics([label] * 4, [-1.0, 1.0, 2.0, 3.0])
    assert all(getattr(metrics, field) is None for field in TWO_CLASS_FIELDS)
    assert all(getattr(metrics, field) is not None for field in ONE_CLASS_FIELDS)
    right = (1 / 4, 3 / 4)[label]  # above 0: three of four
    assert metrics.acc == right
    assert (metrics.acc_real, metrics.acc_generated) == ((right, None), (None, right))[label]


def test_without_a_finite_logit_only_the_counts_are_there():
    metrics = compute_metrics([0, 1], [np.nan, np.nan])
    assert (metrics.count, metrics.errors) == (0, 2)
    others = set(vars(metrics)) - {"count", "real", "generated", "errors"}
    assert all(getattr(metrics, field) is None for field in others)
    assert compute_metrics([], []).count == 0


def test_bootstrap_equals_scikit_learn_in_every_resample():
    labels, logits = random_images(120)
    logits = logits.round(1)  # ties
    real, generated = np.sort(logits[labels == 0]), np.sort(logits[labels == 1])
    auc, acc = bootstrap_samples(real, generated, resamples=50, seed=3)
    rng = np.random.default_rng(3)
    for index in range(50):
        reals = real[rng.integers(len(real), size=len(real))]
        generateds = generated[rng.integers(len(generated), size=len(generated))]
        drawn = np.concatenate((reals, generateds))
        truth = np.repeat((0, 1), (len(reals), len(generateds)))
        assert auc[index] == pytest.approx(roc_auc_score(truth, drawn), abs=1e-12)
        assert acc[index] == pytest.approx(np.mean(truth == (drawn > 0)), abs=1e-12)


def test_intervals_are_the_percentiles_of_the_resamples():
    labels, logits = random_images(200)
    metrics = compute_metrics(labels, logits, bootstrap=300, seed=7)
    real, generated = np.sort(logits[labels == 0]), np.sort(logits[labels == 1])
    auc, acc = bootstrap_samples(real, generated, resamples=300, seed=7)
    assert metrics.auc_interval == tuple(np.percentile(auc, (2.5, 97.5)))
    assert metrics.acc_interval == tuple(np.percentile(acc, (2.5, 97.5)))
    assert metrics.auc_interval[0] < metrics.auc < metrics.auc_interval[1]


def test_intervals_depend_on_the_seed_alone():
    labels, logits = random_images(200)
    first, again, other = (compute_metrics(labels, logits, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first.auc_interval != other.auc_interval
    assert first.auc == other.auc


def test_interval_width_agrees_with_the_formula_of_hanley_and_mcneil():
    labels, logits = random_images(2000)
    metrics = compute_metrics(labels, logits)
    auc, reals, generateds = metrics.auc, metrics.real, metrics.generated
    q1, q2 = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    variance = auc * (1 - auc) + (generateds - 1) * (q1 - auc**2) + (reals - 1) * (q2 - auc**2)
    expected = 2 * 1.96 * np.sqrt(variance / (reals * generateds))
    low, high = metrics.auc_interval
    assert high - low == pytest.approx(expected, rel=0.15)


def test_no_bootstrap_gives_no_interval():
    metrics = of([0.0], [1.0], bootstrap=0)
    assert metrics.auc_interval is None
    assert metrics.acc_interval is None


def test_bootstrap_of_20000_images_takes_seconds():
    labels, logits = random_images(20_000)
    start = time.process_time()
    compute_metrics(labels, logits)
    assert time.process_time() - start < 5


@pytest.mark.parametrize("labels", [[0, 2], [0, -1], [0, 0.5], [0, np.nan]])
def test_a_label_that_is_not_0_or_1_is_refused(labels):
    with pytest.raises(ValueError, match="labels must be 0 .* found"):
        compute_metrics(labels, [1.0, 2.0])


def test_lengths_that_differ_are_refused():
    with pytest.raises(ValueError, match="one of each"):
        compute_metrics([0, 1], [1.0])


def test_log_odds_invert_sigmoid():
    logits = np.linspace(-300, 30, 1001)
    np.testing.assert_allclose(log_odds(sigmoid(logits)), logits, rtol=1e-3, atol=1e-12)
    np.testing.assert_allclose(sigmoid(log_odds(np.array([1e-300, 0.2]))), [1e-300, 0.2])


def test_log_odds_keep_the_side_of_one_half():
    above, below = np.nextafter(0.5, 1), np.nextafter(0.5, 0)
    scores = np.array([below, 0.5, above])
    assert np.sign(log_odds(scores)).tolist() == [-1, 0, 1]
    assert (sigmoid(log_odds(scores)) > 0.5).tolist() == [False, False, True]


def test_log_odds_of_0_and_1_are_finite_and_outermost():
    odds = log_odds(np.array([0.0, 1e-320, 1 - 1e-15, 1.0]))
    assert np.isfinite(odds).all()
    assert (np.diff(odds) > 0).all()


@given(labelled_logits, st.randoms(use_true_random=False))
def test_row_order_changes_no_number(rows, random):
    shuffled = list(rows)
    random.shuffle(shuffled)
    first, second = (compute_metrics(*zip(*r, strict=True), bootstrap=10) for r in (rows, shuffled))
    assert first == second


@given(labelled_logits)
def test_monotone_transforms_change_no_ranking_metric(rows):
    labels, logits = (np.array(column) for column in zip(*rows, strict=True))
    first = compute_metrics(labels, logits, bootstrap=10)
    for transformed in (logits**3 - 7, np.exp(logits), sigmoid(logits)):
        second = compute_metrics(labels, transformed, bootstrap=10)
        for field in ("auc", "ap", "tpr_at_1_fpr", "tpr_at_5_fpr", "eer", "auc_interval"):
            assert getattr(second, field) == getattr(first, field)


@given(labelled_logits)
def test_swapping_the_classes_and_signs_keeps_auc_and_eer(rows):
    labels, logits = (np.array(column) for column in zip(*rows, strict=True))
    first = compute_metrics(labels, logits, bootstrap=0)
    mirrored = compute_metrics(1 - labels, -logits, bootstrap=0)
    assert mirrored.auc == pytest.approx(first.auc, abs=1e-12)
    assert mirrored.eer == pytest.approx(first.eer, abs=1e-12)
    assert mirrored.loss == pytest.approx(first.loss, abs=1e-12)
