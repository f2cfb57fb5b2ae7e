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

from spai.engine.metrics import Floats, Interval, Metrics, compute_metrics

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


def scored_logits(rows: pd.DataFrame) -> Floats:
    """Return the logits [rows], NaN for rows with an error."""
    logits = rows["logit"].to_numpy(dtype=np.float64)
    return np.where(rows["error"] == "", logits, np.nan)


def markdown_report(
    metrics: Mapping[str, Metrics],
    cross: CrossTable | None,
    rows: pd.DataFrame,
    run: Mapping[str, object],
    further: Sequence[str] = (),
) -> str:
    """Write the tables as one Markdown page, `further` sections among them; rates in per cent."""
    sections = ["# SPAI results", "## Metrics", "Rates in per cent, with 95 % intervals."]
    sections += [markdown_table(_METRIC_HEADING, _metric_rows(metrics)), THRESHOLD_NOTE.strip()]
    if cross is not None:
        heading = ("Generator", *cross.sources, "Mean AUC", "ACC at 0.5")
        sections += ["## Cross table", CROSS_NOTE.strip()]
        sections.append(markdown_table(heading, _cross_rows(cross, metrics)))
    sections += further
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


def _metric_rows(metrics: Mapping[str, Metrics]) -> list[tuple[str, ...]]:
    return [
        (
            name,
            *(f"{count:,}" for count in (m.real, m.generated, m.errors)),
            _percent(m.auc) + _percent_interval(m.auc_interval),
            *(_percent(value) for value in (m.ap, m.tpr_at_1_fpr, m.tpr_at_5_fpr, m.eer)),
            _percent(m.acc) + _percent_interval(m.acc_interval),
            *(_percent(value) for value in (m.balanced_acc, m.acc_real, m.acc_generated, m.ece)),
            MISSING if m.loss is None else f"{m.loss:.4f}",
        )
        for name, m in metrics.items()
    ]


def _cross_rows(cross: CrossTable, metrics: Mapping[str, Metrics]) -> list[tuple[str, ...]]:
    rows = [
        (name, *(_percent(value) for value in (*row, mean, metrics[name].acc)))
        for name, row, mean in zip(cross.generators, cross.auc, cross.mean, strict=True)
    ]
    return [*rows, ("AVG", *("" for _ in cross.sources), _percent(cross.average), "")]


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


def _complete_mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


def _percent(value: float | None) -> str:
    return MISSING if value is None else f"{100 * value:.1f}"


def _percent_interval(interval: Interval | None) -> str:
    return "" if interval is None else f" ({_percent(interval[0])} to {_percent(interval[1])})"


def _markdown_text(text: str) -> str:
    return " ".join(text.split()).translate(ENTITIES)
