"""Labels and logits in, numbers out.

N: images with a finite logit, U: distinct logits among them. Label 0 is real, 1 is generated; the
score is sigmoid(logit), and an image is called generated when its score is above 0.5.
Ranking metrics read the logits: the scores of sure images round to 1 and would tie.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

Floats = NDArray[np.float64]
Interval = tuple[float, float]

THRESHOLD = 0.5
ECE_BINS = 15
INTERVAL_QUANTILES = (0.025, 0.975)


@dataclass(frozen=True)
class Metrics:
    """The numbers of one data set; all but counts and loss are in [0, 1].

    None where a number is not defined: what needs two classes on images of one class, everything
    but the counts on no images, the intervals when they were not asked for.

    count: images with a finite logit, N = `real` + `generated`. Only these enter the metrics.
    errors: images without a finite logit.
    loss: mean binary cross-entropy in nats.
    acc, acc_real, acc_generated, balanced_acc: share of right answers at a score of 0.5, and the
        mean of the two classes' shares.
    ap, auc: average precision, area under the ROC curve.
    tpr_at_1_fpr, tpr_at_5_fpr: highest true positive rate of a threshold whose false positive
        rate is at most 1 % (5 %), without interpolation.
    eer: equal error rate, where FPR = 1 - TPR on the linearly interpolated ROC curve.
    ece: expected calibration error: |mean score - share of generated images|, averaged over
        15 equal bins of the score, weighted by their images.
    auc_interval, acc_interval: 2.5 % and 97.5 % quantiles over bootstrap resamples.
    """

    count: int
    real: int
    generated: int
    errors: int
    loss: float | None
    acc: float | None
    ap: float | None
    auc: float | None
    balanced_acc: float | None
    acc_real: float | None
    acc_generated: float | None
    tpr_at_1_fpr: float | None
    tpr_at_5_fpr: float | None
    eer: float | None
    ece: float | None
    auc_interval: Interval | None
    acc_interval: Interval | None


def compute_metrics(
    labels: ArrayLike, logits: ArrayLike, *, bootstrap: int = 1000, seed: int = 0
) -> Metrics:
    """Compute every metric; the order of the images changes nothing.

    Args:
        labels: one number an image, 0 real or 1 generated.
        logits: one number an image, higher = more likely generated; not finite = no result.
        bootstrap: resamples for the intervals, 0 for no intervals.
        seed: seed of the resamples.

    Raises:
        ValueError: other labels than 0 and 1, or lengths that differ.

    Example:
        >>> compute_metrics([0, 0, 1, 1], [-2.0, 0.5, 0.2, 3.0]).auc
        0.75
    """
    labels, logits = np.asarray(labels), np.asarray(logits, dtype=np.float64)
    if labels.ndim != 1 or labels.shape != logits.shape:
        raise ValueError(f"{labels.shape} labels for {logits.shape} logits; give one of each")
    if not np.isin(labels, (0, 1)).all():
        found = sorted(set(labels.tolist()) - {0, 1})
        raise ValueError(f"labels must be 0 (real) or 1 (generated); found {found}")
    finite = np.isfinite(logits)
    # Sorted, so that the order of the images does not even change the last digit.
    real = np.sort(logits[finite & (labels == 0)])
    generated = np.sort(logits[finite & (labels == 1)])
    ranking = _rank(real, generated) if len(real) and len(generated) else Ranking()
    right_real = sigmoid(real) <= THRESHOLD
    right_generated = sigmoid(generated) > THRESHOLD
    acc_real, acc_generated = _mean(right_real), _mean(right_generated)
    balanced = None if acc_real is None or acc_generated is None else acc_real + acc_generated
    auc_interval, acc_interval = _intervals(real, generated, resamples=bootstrap, seed=seed)
    return Metrics(
        count=len(real) + len(generated),
        real=len(real),
        generated=len(generated),
        errors=int(np.count_nonzero(~finite)),
        loss=_mean(np.logaddexp(0, np.concatenate((real, -generated)))),
        acc=_mean(np.concatenate((right_real, right_generated))),
        balanced_acc=None if balanced is None else balanced / 2,
        acc_real=acc_real,
        acc_generated=acc_generated,
        ece=_calibration_error(real, generated),
        auc_interval=auc_interval,
        acc_interval=acc_interval,
        **ranking._asdict(),
    )


def sigmoid(logits: Floats) -> Floats:
    """Return scores in [0, 1], to full relative precision also near 0; 0.5 exactly for 0."""
    small = np.exp(-np.abs(logits))
    return np.where(logits >= 0, 1, small) / (1 + small)


def log_odds(scores: Floats) -> Floats:
    """Return the logits of scores in [0, 1]: finite, and with the sign of `score - 0.5`.

    Scores of exactly 0 or 1 are taken as the nearest float64 inside: -744.4 and 36.7.
    """
    inside = np.clip(scores, np.nextafter(0, 1), np.nextafter(1, 0))
    return np.log(inside / (1 - inside))


def bootstrap_samples(
    real: Floats, generated: Floats, *, resamples: int, seed: int
) -> tuple[Floats, Floats]:
    """Resample each class with replacement to its own size, and measure again.

    Per resample, `default_rng(seed)` draws the indices of the real logits, then of the generated.

    Args:
        real: logits of the real images; may be empty.
        generated: logits of the generated images; may be empty unless `real` is.
        resamples: how often, R.
        seed: seed of the draws.

    Returns:
        AUC [R], ties counted half (NaN when a class is empty), and accuracy at 0.5 [R].
    """
    values, codes = np.unique(np.concatenate((real, generated)), return_inverse=True)
    split = np.count_nonzero(sigmoid(values) <= THRESHOLD)  # values below it are called real
    rng = np.random.default_rng(seed)
    auc, acc = np.full(resamples, np.nan), np.empty(resamples)
    pairs = len(real) * len(generated)
    for index in range(resamples):
        reals = _resample(codes[: len(real)], len(values), rng)  # [U] images of each logit
        generateds = _resample(codes[len(real) :], len(values), rng)  # [U]
        if pairs:
            ranked_below = np.cumsum(reals) - 0.5 * reals  # [U] real images, equal ones half
            # Not `@`: BLAS starts threads for a vector this long, at ten times the cost.
            auc[index] = (generateds * ranked_below).sum() / pairs
        acc[index] = (reals[:split].sum() + generateds[split:].sum()) / len(codes)
    return auc, acc


class Ranking(NamedTuple):
    """The metrics that need both classes and no threshold."""

    ap: float | None = None
    auc: float | None = None
    tpr_at_1_fpr: float | None = None
    tpr_at_5_fpr: float | None = None
    eer: float | None = None


def _rank(real: Floats, generated: Floats) -> Ranking:
    logits = np.concatenate((real, generated))
    labels = np.repeat((0, 1), (len(real), len(generated)))
    fpr, tpr, _ = roc_curve(labels, logits, drop_intermediate=False)
    return Ranking(
        ap=float(average_precision_score(labels, logits)),
        auc=float(roc_auc_score(labels, logits)),
        tpr_at_1_fpr=float(tpr[fpr <= 0.01].max()),
        tpr_at_5_fpr=float(tpr[fpr <= 0.05].max()),
        eer=float(np.interp(0, fpr + tpr - 1, fpr)),  # rises strictly from -1 to 1
    )


def _mean(values: Floats | NDArray[np.bool_]) -> float | None:
    return float(np.mean(values)) if len(values) else None


def _calibration_error(real: Floats, generated: Floats) -> float | None:
    scores = sigmoid(np.concatenate((real, generated)))
    if not len(scores):
        return None
    excess = scores - np.repeat((0, 1), (len(real), len(generated)))
    bins = np.minimum((scores * ECE_BINS).astype(int), ECE_BINS - 1)  # bin k: [k/15, (k+1)/15)
    return float(np.abs(np.bincount(bins, weights=excess)).sum() / len(scores))


def _resample(codes: NDArray[np.intp], size: int, rng: np.random.Generator) -> NDArray[np.intp]:
    if not len(codes):
        return np.zeros(size, dtype=np.intp)
    return np.bincount(codes[rng.integers(len(codes), size=len(codes))], minlength=size)


def _intervals(
    real: Floats, generated: Floats, *, resamples: int, seed: int
) -> tuple[Interval | None, Interval | None]:
    if not resamples or not len(real) + len(generated):
        return None, None
    auc, acc = bootstrap_samples(real, generated, resamples=resamples, seed=seed)
    both = len(real) and len(generated)
    return _interval(auc) if both else None, _interval(acc)


def _interval(samples: Floats) -> Interval:
    low, high = np.quantile(samples, INTERVAL_QUANTILES)
    return float(low), float(high)
