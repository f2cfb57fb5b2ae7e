"""How the results of a run's checkpoints compare: a row a checkpoint and data set."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from spai.data.scores import format_csv_row
from spai.files import replacing_text
from spai.report.results import Results
from spai.report.tables import MISSING, markdown_table

SUMMARY_FILES = ("checkpoints.csv", "checkpoints.md")
METRICS = ("loss", "auc", "ap", "acc", "balanced_acc")
COLUMNS = ("checkpoint", "epoch", "dataset", "count", "errors", *METRICS, "mean_auc")
AVERAGE = "AVG"
NOTE = """\
Rates in per cent. Mean AUC is that of the cross table: a generator's mean over the real sources,
and in the row AVG the mean over the generators. All metrics of a checkpoint are in its folder.
"""


class CheckpointResults(NamedTuple):
    """What came of one checkpoint; `name` is that of its folder of results."""

    name: str
    epoch: int | None
    results: Results


def write_checkpoints(output: Path, checkpoints: Sequence[CheckpointResults]) -> None:
    """Write `checkpoints.csv` and `checkpoints.md`, in the order given; both are replaced."""
    rows = [row for checkpoint in checkpoints for row in _rows(checkpoint)]
    with replacing_text(output / "checkpoints.csv") as file:
        file.write(format_csv_row(COLUMNS))
        for row in rows:
            file.write(format_csv_row("" if value is None else str(value) for value in row))
    table = markdown_table(COLUMNS, [[_shown(*cell) for cell in enumerate(row)] for row in rows])
    with replacing_text(output / "checkpoints.md") as file:
        file.write(f"# SPAI results by checkpoint\n\n{NOTE}\n{table}\n")


def _rows(checkpoint: CheckpointResults) -> Iterator[tuple[str | float | None, ...]]:
    """Yield the cells of COLUMNS for each data set, and for the average of the cross table."""
    name, epoch, (metrics, cross) = checkpoint
    means = {} if cross is None else dict(zip(cross.generators, cross.mean, strict=True))
    for dataset, found in metrics.items():
        values = (getattr(found, metric) for metric in METRICS)
        yield name, epoch, dataset, found.count, found.errors, *values, means.get(dataset)
    if cross is not None:
        yield name, epoch, AVERAGE, None, None, *(None for _ in METRICS), cross.average


def _shown(place: int, value: str | float | None) -> str:
    if value is None:
        return MISSING
    if isinstance(value, float):
        return f"{value:.4f}" if COLUMNS[place] == "loss" else f"{100 * value:.1f}"
    return str(value)
