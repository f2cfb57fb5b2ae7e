"""Scores of images whose origin is known in, thresholds and a logistic calibration out.

An image is called generated when its score reaches the threshold (score >= threshold). n: real
images, k: those of them whose score reaches a threshold.

The threshold of a target FPR is the lowest score of a real image that at most the target's share of
the real images reach. In each draw of n real images from the same source, the FPR of "at least the
k-th highest score" on further images of that source then follows Beta(k, n - k + 1), whatever the
distribution of the scores: its mean k / (n + 1) is below the target.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import betaincinv
from sklearn.linear_model import LogisticRegression

from spai.engine.metrics import Floats, Interval, log_odds

VERDICTS = ("real", "inconclusive", "generated")
# Below this number of expected false positives a threshold is little more than an extreme value.
FEWEST_EXPECTED = 3
HIGHEST_TARGET = 0.5


@dataclass(frozen=True)
class Threshold:
    """The threshold of one target FPR; all but the counts are in [0, 1].

    target_fpr: what was asked for.
    threshold: an image is called generated from this score on.
    false_positives: k.
    fpr: k / n.
    fpr_interval: 95 % Clopper-Pearson interval of k of n.
    true_fpr_interval: where the FPR on further real images of the same source lies in 95 % of all
        calibrations. Of Beta(k, n - k + 1); where real images tie, the Clopper-Pearson interval,
        which contains it.
    true_positives: generated images whose score reaches the threshold; None without any.
    tpr: their share.
    tpr_interval: 95 % Clopper-Pearson interval of that share.
    """

    target_fpr: float
    threshold: float
    false_positives: int
    fpr: float
    fpr_interval: Interval
    true_fpr_interval: Interval
    true_positives: int | None = None
    tpr: float | None = None
    tpr_interval: Interval | None = None


@dataclass(frozen=True)
class Logistic:
    """Calibrated probability = sigmoid(logit / temperature + bias).

    It holds for the share of generated images among those it was fitted to.
    """

    temperature: float
    bias: float


@dataclass(frozen=True)
class Calibration:
    """What the scores of known images say about those of others.

    thresholds: by rising target FPR, so from the highest threshold to the lowest.
    real_median: of the real images' scores, in [0, 1].
    real: n.
    generated: how many generated images there were, 0 for none.
    logistic: None when it cannot be fitted.
    notes: what a user should know about these numbers.
    """

    thresholds: tuple[Threshold, ...]
    real_median: float
    real: int
    generated: int
    logistic: Logistic | None = None
    notes: tuple[str, ...] = ()

    def verdict(self, score: float) -> str:
        """Return which of VERDICTS a score in [0, 1] gets.

        "generated" from the threshold of the strictest target on; "real" below that of the loosest
        target, or with a single target below the median of the real images.
        """
        if score >= self.thresholds[0].threshold:
            return "generated"
        single = len(self.thresholds) == 1
        low = self.real_median if single else self.thresholds[-1].threshold
        return "real" if score < low else "inconclusive"


def calibrate(real: Floats, generated: Floats, target_fprs: Iterable[float]) -> Calibration:
    """Find the threshold of each target and, with both classes, fit the logistic calibration.

    Args:
        real: [n] scores in [0, 1] of real images.
        generated: scores in [0, 1] of generated images; may be empty.
        target_fprs: each in (0, 0.5].

    Raises:
        ValueError: a target that is out of range, or that so few real images, or so many with a
            score of 1, cannot support.

    Example:
        >>> scores = np.arange(100) / 100
        >>> calibrate(scores, np.array([]), [0.05]).thresholds[0].threshold
        0.95
    """
    thresholds = [find_threshold(real, target) for target in sorted(set(target_fprs))]
    if not thresholds:
        raise ValueError("no target FPR given; name at least one")
    logistic, reason = fit_logistic(real, generated)
    few = [
        f"{100 * target:g} % FPR: {len(real)} real images; use at least "
        f"{_at_least(FEWEST_EXPECTED / target)}, so that {FEWEST_EXPECTED} of them are above it"
        for target in (threshold.target_fpr for threshold in thresholds)
        if len(real) < _at_least(FEWEST_EXPECTED / target)
    ]
    return Calibration(
        thresholds=tuple(_with_tpr(threshold, generated) for threshold in thresholds),
        real_median=float(np.median(real)),
        real=len(real),
        generated=len(generated),
        logistic=logistic,
        notes=(*few, *([reason] if reason else [])),
    )


def find_threshold(real: Floats, target_fpr: float) -> Threshold:
    """Find the lowest score of a real image that at most `target_fpr` of the real images reach.

    Where too many share the highest score, it is the float64 just above that.

    Args:
        real: [n] scores in [0, 1].
        target_fpr: in (0, 0.5].

    Raises:
        ValueError: as for `calibrate`.
    """
    if not 0 < target_fpr <= HIGHEST_TARGET:
        raise ValueError(f"target FPR {target_fpr:g}: give a share above 0, at most 0.5")
    count = len(real)
    allowed = _allowed(count, target_fpr)
    if not allowed:
        raise ValueError(
            f"target FPR {target_fpr:g}: with {count} real images the threshold would lie above "
            f"every score; give at least {_at_least(1 / target_fpr)} real images "
            f"({_at_least(FEWEST_EXPECTED / target_fpr)} are better), or a larger target"
        )
    values, times = np.unique(real, return_counts=True)
    reaching = times[::-1].cumsum()[::-1]  # real images with at least this score
    low_enough = np.flatnonzero(reaching <= allowed)
    if len(low_enough):
        first = low_enough[0]
        threshold, reached = float(values[first]), int(reaching[first])
        tied = bool(times[first] > 1 or reached < allowed)
    else:
        threshold, reached, tied = float(np.nextafter(values[-1], np.inf)), 0, True
    if threshold > 1:
        raise ValueError(
            f"target FPR {target_fpr:g}: {times[-1]} of {count} real images have a score of 1, so "
            "no threshold keeps to it; give a larger target"
        )
    interval = clopper_pearson(reached, count)
    exact = interval if tied else _beta_interval(reached, count - reached + 1)
    return Threshold(target_fpr, threshold, reached, reached / count, interval, exact)


def clopper_pearson(successes: int, trials: int) -> Interval:
    """Return the exact 95 % interval of a binomial share.

    >>> low, high = clopper_pearson(0, 100)
    >>> low, round(high, 4)
    (0.0, 0.0362)
    """
    low = _beta_interval(successes, trials - successes + 1)[0] if successes else 0.0
    high = _beta_interval(successes + 1, trials - successes)[1] if successes < trials else 1.0
    return low, high


def fit_logistic(real: Floats, generated: Floats) -> tuple[Logistic | None, str]:
    """Fit a logistic regression on the logits by maximum likelihood, without regularisation.

    Args:
        real: scores in [0, 1].
        generated: the same.

    Returns:
        The fit, or None and why there is none.
    """
    if not len(generated):
        return None, "no logistic calibration: there are no generated images"
    if real.max() <= generated.min() or generated.max() <= real.min():
        # The likelihood then grows for ever with the slope.
        return None, "no logistic calibration: the scores of the two classes do not overlap"
    logits = log_odds(np.concatenate((real, generated)))
    labels = np.repeat((0, 1), (len(real), len(generated)))
    model = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-10, max_iter=1000)
    model.fit(logits[:, None], labels)
    slope, bias = float(model.coef_[0, 0]), float(model.intercept_[0])
    if slope <= 0:
        return None, (
            "no logistic calibration: generated images do not score higher than real ones"
        )
    return Logistic(1 / slope, bias), ""


def _allowed(count: int, target_fpr: float) -> int:
    """Return the highest k with k / count <= target_fpr, as float64 divides."""
    near = int(count * target_fpr)
    return max(k for k in (near - 1, near, near + 1) if k / max(count, 1) <= target_fpr)


def _at_least(number: float) -> int:
    """Round up, not counting what float64 adds to a whole number."""
    return math.ceil(round(number, 6))


def _with_tpr(threshold: Threshold, generated: Floats) -> Threshold:
    if not len(generated):
        return threshold
    reached = int(np.count_nonzero(generated >= threshold.threshold))
    return replace(
        threshold,
        true_positives=reached,
        tpr=reached / len(generated),
        tpr_interval=clopper_pearson(reached, len(generated)),
    )


def _beta_interval(first: float, second: float) -> Interval:
    """Return the 2.5 % and 97.5 % quantiles of Beta(first, second)."""
    return float(betaincinv(first, second, 0.025)), float(betaincinv(first, second, 0.975))
