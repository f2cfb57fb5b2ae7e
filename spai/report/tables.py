"""From rows of scores to metrics, the cross table and readable Markdown.

The rows are a DataFrame, one row an image: dataset, image, class (0 real, 1 generated), score in
[0, 1], logit, error (empty, or why there is no score). G: generators, S: real sources.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from spai.engine.metrics import (
    INTERVAL_QUANTILES,
    Floats,
    Interval,
    Metrics,
    compute_metrics,
)

MISSING = "–"
ERROR_ROWS = 20
THRESHOLD_NOTE = """\
Ranking metrics (AUC, AP, TPR, EER) need no threshold; threshold metrics (ACC) ask whether a score
is above 0.5. The default threshold of 0.5 is badly calibrated: accuracy with the published weights
ranges from 38 % (SD3) to 100 % (SD1.4). Read the two side by side, and choose a threshold on images
whose origin is known (`spai calibrate`) before giving verdicts.
"""
CROSS_NOTE = """\
AUC of each generator against each source of real images. The figure of a generator is the mean
over the real sources; AVG is the mean over the generators. Beside it, the share of the generator's
images with a score above 0.5.
"""
ROBUSTNESS_NOTE = """\
The same images after one degradation each; `none` are the images as they are. Rates in per cent.
An image that a degradation cannot be applied to has no score at that level only.
"""
ROBUSTNESS_HEADING = (
    *("Data set", "Perturbation", "Level"),
    *("AUC", "AP", "ACC at 0.5", "No score"),
)
# Markdown and HTML read these as markup; an entity is text in every reader.
ENTITIES = str.maketrans({mark: f"&#{ord(mark)};" for mark in "&<>|\\`*[]~$"})


@dataclass(frozen=True)
class CrossTable:
    """AUC of generators against real sources, the published protocol.

    A mean is None when one of its cells is: over fewer cells it would not compare.

    generators: G names of data sets with generated images only.
    sources: S names of data sets with real images only.
    auc: G rows of S values; None when a data set has no scored image.
    mean: G values, each the mean of a row.
    average: the mean of `mean`.
    """

    generators: tuple[str, ...]
    sources: tuple[str, ...]
    auc: tuple[tuple[float | None, ...], ...]
    mean: tuple[float | None, ...]
    average: float | None


def dataset_metrics(rows: pd.DataFrame) -> dict[str, Metrics]:
    """Compute the metrics of each data set, in the order in which they appear."""
    return {
        name: compute_metrics(part["class"].to_numpy(), scored_logits(part))
        for name, part in _datasets(rows)
    }


def cross_table(rows: pd.DataFrame) -> CrossTable | None:
    """Compare every data set of generated images with every data set of real ones.

    Data sets that hold both classes are left out; None without at least one of either kind.
    """
    generated, real = ({n: scored_logits(p) for n, p in _datasets(rows, kind)} for kind in (1, 0))
    if not generated or not real:
        return None
    auc = tuple(
        tuple(_auc(fakes, reals) for reals in real.values()) for fakes in generated.values()
    )
    mean = tuple(_complete_mean(row) for row in auc)
    return CrossTable(tuple(generated), tuple(real), auc, mean, _complete_mean(mean))


def cross_intervals(
    rows: pd.DataFrame, *, resamples: int = 1000, seed: int = 0
) -> dict[str, Interval]:
    """Return the 95 % bootstrap interval of each generator's mean AUC in the cross table.

    Each resample draws the generator's images and those of every real source anew, with
    replacement; generators that have no mean are left out.
    """
    generated, real = (
        {name: np.sort(_finite(part)) for name, part in _datasets(rows, kind)} for kind in (1, 0)
    )
    sources = list(real.values())
    if not sources or not all(map(len, sources)):
        return {}
    intervals = {}
    for name, fakes in generated.items():
        if len(fakes):
            samples = _mean_auc_samples(fakes, sources, resamples=resamples, seed=seed)
            low, high = np.quantile(samples, INTERVAL_QUANTILES)
            intervals[name] = (float(low), float(high))
    return intervals


def ranked_pairs(rows: pd.DataFrame) -> dict[str, tuple[Floats, Floats]]:
    """Return what ROC curves are made of: name to logits of real and of generated images.

    A data set of both classes is compared with itself; one of generated images only with the real
    images of all data sets that hold nothing else.
    """
    reals = [_finite(part) for _, part in _datasets(rows, 0)]
    pooled = np.concatenate(reals) if reals else np.empty(0)
    pairs = {}
    for name, part in _datasets(rows):
        logits, labels = scored_logits(part), part["class"].to_numpy()
        fakes, own = (logits[np.isfinite(logits) & (labels == kind)] for kind in (1, 0))
        against = own if (labels == 0).any() else pooled
        if len(fakes) and len(against):
            pairs[name] = (against, fakes)
    return pairs


def scored_logits(rows: pd.DataFrame) -> Floats:
    """Return the logits [rows], NaN for rows with an error."""
    logits = rows["logit"].to_numpy(dtype=np.float64)
    return np.where(rows["error"] == "", logits, np.nan)


def markdown_report(
    metrics: Mapping[str, Metrics],
    cross: CrossTable | None,
    rows: pd.DataFrame,
    run: Mapping[str, object],
    *,
    robustness: Sequence[Sequence[str]] = (),
) -> str:
    """Write the tables as one Markdown page; rates in per cent."""
    sections = ["# SPAI results", "## Metrics", "Rates in per cent, with 95 % intervals."]
    sections += [markdown_table(_METRIC_HEADING, metric_rows(metrics)), THRESHOLD_NOTE.strip()]
    if cross is not None:
        heading = ("Generator", *cross.sources, "Mean AUC", "ACC at 0.5")
        sections += ["## Cross table", CROSS_NOTE.strip()]
        sections.append(markdown_table(heading, cross_rows(cross, metrics)))
    if robustness:
        sections += [
            "## Robustness",
            ROBUSTNESS_NOTE.strip(),
            markdown_table(ROBUSTNESS_HEADING, robustness),
        ]
    sections += ["## Images without a score", *_error_section(rows)]
    facts = {key: str(run[key]) for key in run if isinstance(run[key], str | int | float | Path)}
    if facts:
        lines = (f"- {_markdown_text(key)}: {_markdown_text(fact)}" for key, fact in facts.items())
        sections += ["## Run", "\n".join(lines)]
    return "\n\n".join(sections) + "\n"


def markdown_table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out a Markdown table; the first column is aligned left, the others right.

    Whatever a cell holds (bars, line breaks, markup) is shown as text on one line.
    """
    cells = [[_markdown_text(cell) for cell in row] for row in (heading, *rows)]
    widths = [max(3, *(len(cell) for cell in column)) for column in zip(*cells, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = []
    for first, *others in (cells[0], rule, *cells[1:]):
        aligned = (cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))
        lines.append("| " + " | ".join((first.ljust(widths[0]), *aligned)) + " |")
    return "\n".join(lines)


_METRIC_HEADING = (
    *("Data set", "Real", "Generated", "No score"),
    *("AUC", "AP", "TPR at 1 % FPR", "TPR at 5 % FPR", "EER"),
    *("ACC at 0.5", "Balanced ACC", "ACC real", "ACC generated", "ECE", "Loss"),
)


def metric_rows(metrics: Mapping[str, Metrics]) -> list[tuple[str, ...]]:
    """Return the cells of the table of metrics, a row a data set; rates in per cent."""
    return [
        (
            name,
            *(f"{count:,}" for count in (m.real, m.generated, m.errors)),
            percent(m.auc) + _percent_interval(m.auc_interval),
            *(percent(value) for value in (m.ap, m.tpr_at_1_fpr, m.tpr_at_5_fpr, m.eer)),
            percent(m.acc) + _percent_interval(m.acc_interval),
            *(percent(value) for value in (m.balanced_acc, m.acc_real, m.acc_generated, m.ece)),
            MISSING if m.loss is None else f"{m.loss:.4f}",
        )
        for name, m in metrics.items()
    ]


def cross_rows(cross: CrossTable, metrics: Mapping[str, Metrics]) -> list[tuple[str, ...]]:
    """Return the cells of the cross table, a row a generator and AVG; rates in per cent."""
    rows = [
        (name, *(percent(value) for value in (*row, mean, metrics[name].acc)))
        for name, row, mean in zip(cross.generators, cross.auc, cross.mean, strict=True)
    ]
    return [*rows, ("AVG", *("" for _ in cross.sources), percent(cross.average), "")]


def _error_section(rows: pd.DataFrame) -> list[str]:
    failed = rows[rows["error"] != ""]
    counts = Counter(zip(failed["dataset"], failed["error"], strict=True))
    section = [f"{len(failed):,} of {len(rows):,} images have no score and enter no metric."]
    if len(failed):
        table = [(name, reason, f"{n:,}") for (name, reason), n in counts.most_common(ERROR_ROWS)]
        section.append(markdown_table(("Data set", "Reason", "Images"), table))
    if len(counts) > ERROR_ROWS:
        section.append(f"{len(counts) - ERROR_ROWS} more reasons are in `scores.csv`.")
    return section


def _datasets(rows: pd.DataFrame, only: int | None = None) -> Iterator[tuple[str, pd.DataFrame]]:
    # Not groupby: its index cannot hold names that are not UTF-8.
    codes, names = pd.factorize(rows["dataset"].to_numpy(dtype=object))
    for code, name in enumerate(names):
        part = rows[codes == code]
        if only is None or (part["class"] == only).all():
            yield str(name), part


def _auc(generated: Floats, real: Floats) -> float | None:
    logits = np.concatenate((real, generated))
    labels = np.repeat((0, 1), (len(real), len(generated)))
    finite = np.isfinite(logits)
    if len(np.unique(labels[finite])) < 2:
        return None
    return float(roc_auc_score(labels[finite], logits[finite]))


def _finite(rows: pd.DataFrame) -> Floats:
    logits = scored_logits(rows)
    return logits[np.isfinite(logits)]


def _mean_auc_samples(
    generated: Floats, sources: Sequence[Floats], *, resamples: int, seed: int
) -> Floats:
    """Return the mean over the sources of AUC [R], ties counted half."""
    values, codes = np.unique(np.concatenate((generated, *sources)), return_inverse=True)
    fakes, *reals = np.split(codes, np.cumsum([len(generated), *map(len, sources)])[:-1])
    rng = np.random.default_rng(seed)
    samples = np.empty(resamples)
    for index in range(resamples):
        drawn = np.bincount(fakes[rng.integers(len(fakes), size=len(fakes))], minlength=len(values))
        total = 0.0
        for real in reals:
            counts = np.bincount(
                real[rng.integers(len(real), size=len(real))], minlength=len(values)
            )
            ranked_below = np.cumsum(counts) - 0.5 * counts
            total += (drawn * ranked_below).sum() / (len(fakes) * len(real))
        samples[index] = total / len(reals)
    return samples


def _complete_mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


def percent(value: float | None) -> str:
    """Return a rate in per cent with one decimal."""
    return MISSING if value is None else f"{100 * value:.1f}"


def _percent_interval(interval: Interval | None) -> str:
    return "" if interval is None else f" ({percent(interval[0])} to {percent(interval[1])})"


def _markdown_text(text: str) -> str:
    return " ".join(text.split()).translate(ENTITIES)
