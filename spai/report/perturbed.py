"""The scores of degraded images: their metrics, and the file that holds them."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from spai.data.scores import format_csv_row, format_number
from spai.engine.metrics import compute_metrics
from spai.files import replacing_text
from spai.report.robustness import UNPERTURBED, RobustnessRow
from spai.report.tables import dataset_metrics, scored_logits

PERTURBED_FILES = ("robustness.csv", "scores_perturbed.csv")
PERTURBED_COLUMNS = ("dataset", "image", "class", "perturbation", "level", "score", "error")
# Where each data set has one class only, AUC and AP are defined for all of them together.
POOLED = "all data sets"


class PerturbedScores(NamedTuple):
    """What came of all images under one degradation.

    perturbation: such as "jpeg", or "none" for the images as they are.
    level: its strength, as `--perturb` takes it; 0 with "none".
    rows: a row an image, as `spai.report.results.write_results` takes them, with logits.
    """

    perturbation: str
    level: float
    rows: pd.DataFrame


def write_perturbed(
    output: Path, unperturbed: pd.DataFrame, perturbed: Sequence[PerturbedScores]
) -> list[RobustnessRow]:
    """Write `scores_perturbed.csv`, a row an image and degradation, and compute the metrics.

    Args:
        output: a folder, made when missing.
        unperturbed: the rows of the images as they are.
        perturbed: those of each degradation; without any, nothing is written.

    Returns:
        The metrics of each data set, first as it is, then under each degradation. With several
        data sets, those of all images together follow as the data set "all data sets".
    """
    if not perturbed:
        return []
    with replacing_text(output / "scores_perturbed.csv", errors="surrogateescape") as file:
        file.write(format_csv_row(PERTURBED_COLUMNS))
        file.writelines(map(format_csv_row, _score_cells(perturbed)))
    versions = [PerturbedScores(UNPERTURBED, 0, unperturbed), *perturbed]
    return [row for version in versions for row in _metric_rows(version)]


def _score_cells(perturbed: Sequence[PerturbedScores]) -> Iterator[tuple[str, ...]]:
    for name, level, rows in perturbed:
        columns = (rows[column] for column in ("dataset", "image", "class", "score", "error"))
        for dataset, image, label, score, error in zip(*columns, strict=True):
            number = "" if error else format_number(score)
            yield dataset, image, str(label), name, f"{level:g}", number, error


def _metric_rows(version: PerturbedScores) -> Iterator[RobustnessRow]:
    name, level, rows = version
    found = dataset_metrics(rows)
    if len(found) > 1:
        found[POOLED] = compute_metrics(rows["class"].to_numpy(), scored_logits(rows))
    for dataset, metrics in found.items():
        yield RobustnessRow(dataset, name, level, metrics)
