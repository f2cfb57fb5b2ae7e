"""Thresholds keep to their target, and say truthfully how well they do on further images."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta, binomtest
from sklearn.metrics import log_loss

from spai.engine.calibration import (
    calibrate,
    clopper_pearson,
    find_threshold,
    fit_logistic,
)
from spai.engine.metrics import log_odds, sigmoid

NOTHING = np.array([])
SHARE = st.floats(0, 1, exclude_max=True)
REPETITIONS, FRESH = 1000, 200_000

# How scores of real images may be distributed; rounded ones tie.
SOURCES = {
    "uniform": lambda rng, n: rng.random(n),
    "sure": lambda rng, n: sigmoid(rng.normal(-8, 4, n)),
    "unsure": lambda rng, n: sigmoid(rng.normal(0, 0.3, n)),
    "two kinds": lambda rng, n: rng.beta(*np.where(rng.random(n) < 0.9, [[1], [30]], [[8], [2]])),
    "rounded": lambda rng, n: rng.beta(1, 8, n).round(2),
}


def scores_of(seed, n, location):
    return sigmoid(np.random.default_rng(seed).normal(location, 2, n))


# --- the false positive rate ------------------------------------------------------------------


@pytest.mark.parametrize("target", [0.01, 0.05, 0.2])
@pytest.mark.parametrize("source", SOURCES)
def test_the_fpr_on_fresh_images_lies_in_its_interval(source, target):
    """In at least 93 % of the calibrations; 95 +- 0.7 % are expected of a 95 % interval."""
    rng = np.random.default_rng(0)
    fresh = np.sort(SOURCES[source](rng, FRESH))
    inside = 0
    for _ in range(REPETITIONS):
        found = find_threshold(SOURCES[source](rng, 400), target)
        achieved = 1 - np.searchsorted(fresh, found.threshold) / FRESH
        low, high = found.true_fpr_interval
        inside += bool(low <= achieved <= high)
    assert inside >= 0.93 * REPETITIONS


def test_the_interval_of_scores_without_ties_is_neither_too_narrow_nor_too_wide():
    """2,000 times on uniform scores, whose true FPR is known: 1 - threshold."""
    rng = np.random.default_rng(0)
    below = above = 0
    for _ in range(2000):
        found = find_threshold(rng.random(300), 0.02)
        below += 1 - found.threshold < found.true_fpr_interval[0]
        above += 1 - found.threshold > found.true_fpr_interval[1]
    # 50 +- 7 each
    assert 29 <= below <= 71 and 29 <= above <= 71


def test_the_mean_fpr_on_fresh_images_is_below_the_target():
    """k / (n + 1) on uniform scores; the float above the next lower score would give more."""
    rng = np.random.default_rng(0)
    achieved = [1 - find_threshold(rng.random(100), 0.05).threshold for _ in range(4000)]
    error = np.std(achieved) / np.sqrt(len(achieved))
    assert abs(np.mean(achieved) - 5 / 101) < 3 * error
    assert np.mean(achieved) < 0.05


def test_intervals_are_those_of_scipys_distributions():
    found = find_threshold(np.arange(300) / 300, 0.02)
    assert found.false_positives == 6
    expected = beta(6, 295).ppf([0.025, 0.975])
    np.testing.assert_allclose(found.true_fpr_interval, expected, rtol=1e-9)
    plain = binomtest(6, 300).proportion_ci(0.95, "exact")
    np.testing.assert_allclose(found.fpr_interval, plain, rtol=1e-9)


@pytest.mark.parametrize(("successes", "trials"), [(0, 1), (1, 1), (0, 50), (50, 50), (3, 300)])
def test_clopper_pearson_is_that_of_scipy(successes, trials):
    plain = binomtest(successes, trials).proportion_ci(0.95, "exact")
    np.testing.assert_allclose(clopper_pearson(successes, trials), plain, rtol=1e-9, atol=1e-12)


@settings(deadline=None)
@given(st.lists(SHARE, min_size=1, max_size=60), st.floats(0.001, 0.5))
def test_the_target_is_kept_and_no_lower_score_of_a_real_image_would_do(scores, target):
    real = np.array(scores)
    if 1 / len(real) > target:
        with pytest.raises(ValueError, match="above every score"):
            find_threshold(real, target)
        return
    found = find_threshold(real, target)
    assert found.false_positives == np.count_nonzero(real >= found.threshold)
    assert found.fpr == found.false_positives / len(real) <= target
    lower = real[real < found.threshold]
    assert np.mean(real >= lower.max()) > target
    (plain_low, plain_high), (low, high) = found.fpr_interval, found.true_fpr_interval
    assert plain_low <= low < high <= plain_high
    assert low <= found.fpr


@pytest.mark.parametrize(
    ("count", "target", "allowed"), [(300, 0.01, 3), (100, 0.29, 29), (100, 0.07, 7), (99, 0.02, 1)]
)
def test_the_number_of_false_positives_is_not_off_by_rounding(count, target, allowed):
    assert find_threshold(np.arange(count) / count, target).false_positives == allowed


def test_tied_real_images_are_on_one_side_of_the_threshold():
    real = np.repeat((0.1, 0.5, 0.9), (80, 15, 5))
    assert find_threshold(real, 0.19).threshold == 0.9
    assert find_threshold(real, 0.2).threshold == 0.5
    tied = find_threshold(real, 0.2)
    assert tied.true_fpr_interval == tied.fpr_interval


def test_real_images_that_all_score_alike_are_below_the_threshold():
    calibration = calibrate(np.full(100, 0.3), NOTHING, [0.05])
    assert calibration.thresholds[0].threshold == np.nextafter(0.3, 1)
    assert calibration.thresholds[0].false_positives == 0
    assert calibration.verdict(0.3) == "inconclusive"
    assert calibration.verdict(0.29) == "real"
    assert calibration.verdict(0.31) == "generated"


def test_a_score_of_one_can_be_a_threshold_until_too_many_real_images_have_it():
    few = np.concatenate((np.linspace(0, 0.5, 98), [1, 1]))
    assert find_threshold(few, 0.02).threshold == 1
    with pytest.raises(ValueError, match="2 of 100 real images have a score of 1"):
        find_threshold(few, 0.01)


@pytest.mark.parametrize("target", [0, -0.1, 0.51, float("nan")])
def test_a_target_that_makes_no_sense_is_refused(target):
    with pytest.raises(ValueError, match="at most 0.5"):
        find_threshold(np.arange(100) / 100, target)


# --- both classes -----------------------------------------------------------------------------


def test_tpr_counts_the_generated_images_that_reach_the_threshold():
    real, generated = np.arange(100) / 100, np.array([0.94, 0.95, 0.96, 1.0])
    found = calibrate(real, generated, [0.05]).thresholds[0]
    assert (found.threshold, found.true_positives, found.tpr) == (0.95, 3, 0.75)
    assert found.tpr_interval == clopper_pearson(3, 4)


def test_real_images_alone_give_thresholds_and_say_what_is_missing():
    calibration = calibrate(scores_of(0, 400, -2), NOTHING, [0.01])
    assert calibration.logistic is None
    assert calibration.notes == ("no logistic calibration: there are no generated images",)
    assert calibration.thresholds[0].tpr is None


def test_the_logistic_calibration_finds_the_true_one():
    """Normal logits of equal width: the log-likelihood ratio is linear in the logit."""
    fit, _ = fit_logistic(scores_of(1, 20_000, -1), scores_of(2, 40_000, 3))
    assert fit.temperature == pytest.approx(1, abs=0.03)
    assert fit.bias == pytest.approx(np.log(2) - 1, abs=0.05)


def test_the_logistic_calibration_has_the_highest_likelihood():
    real, generated = scores_of(3, 60, -1), scores_of(4, 30, 2)
    labels, logits = np.repeat((0, 1), (60, 30)), log_odds(np.concatenate((real, generated)))
    fit, _ = fit_logistic(real, generated)

    def loss(temperature, bias):
        return log_loss(labels, sigmoid(logits / temperature + bias))

    best = loss(fit.temperature, fit.bias)
    for step in (0.99, 1.01):
        assert loss(fit.temperature * step, fit.bias) > best
        assert loss(fit.temperature, fit.bias * step) > best


@pytest.mark.parametrize(
    ("real", "generated", "reason"),
    [
        ([0.1, 0.2], [0.3, 0.4], "do not overlap"),
        ([0.1, 0.3], [0.3, 0.4], "do not overlap"),
        ([0.3, 0.4], [0.1, 0.2], "do not overlap"),
        ([0.5, 0.5], [0.5, 0.5], "do not overlap"),
        ([0.4, 0.2, 0.5], [0.1, 0.3, 0.2], "do not score higher"),
    ],
)
def test_what_has_no_logistic_calibration_is_said(real, generated, reason):
    fit, why = fit_logistic(np.array(real), np.array(generated))
    assert fit is None and reason in why


def test_scores_of_exactly_zero_and_one_leave_the_fit_finite():
    real = np.append(scores_of(5, 50, -2), (0, 1))
    fit, _ = fit_logistic(real, np.append(scores_of(6, 50, 2), (0, 1)))
    assert np.isfinite((fit.temperature, fit.bias)).all()


# --- verdicts ---------------------------------------------------------------------------------


def test_two_targets_leave_what_lies_between_inconclusive():
    calibration = calibrate(np.arange(400) / 400, NOTHING, [0.05, 0.01])
    strict, loose = (found.threshold for found in calibration.thresholds)
    assert strict == 0.99 and loose == 0.95
    verdicts = [calibration.verdict(score) for score in (strict, np.nextafter(strict, 0))]
    assert verdicts == ["generated", "inconclusive"]
    assert calibration.verdict(loose) == "inconclusive"
    assert calibration.verdict(np.nextafter(loose, 0)) == "real"


def test_a_single_target_leaves_the_upper_half_of_the_real_images_inconclusive():
    calibration = calibrate(np.arange(101) / 101, NOTHING, [0.05])
    assert calibration.real_median == 50 / 101
    assert calibration.verdict(50 / 101) == "inconclusive"
    assert calibration.verdict(49 / 101) == "real"


def test_too_few_real_images_are_a_note_and_far_too_few_an_error():
    notes = calibrate(scores_of(0, 299, -2), scores_of(1, 10, -2), [0.01, 0.05]).notes
    assert [note for note in notes if "FPR" in note] == [
        "1 % FPR: 299 real images; use at least 300, so that 3 of them are above it"
    ]
    assert not any("FPR" in note for note in calibrate(scores_of(0, 300, 0), NOTHING, [0.01]).notes)
    with pytest.raises(ValueError, match=r"give at least 100 real images \(300 are better\)"):
        calibrate(scores_of(0, 99, -2), NOTHING, [0.01])
    with pytest.raises(ValueError, match="with 0 real images"):
        calibrate(NOTHING, NOTHING, [0.01])
