"""From scores and a calibration to what the output says of each image.

A verdict is a function of the score as it is written, so it is never kept for --resume but found
anew from the rows.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from spai.data.scores import ScoreColumns, ScoreRow
from spai.engine.calibration import VERDICTS, Calibration
from spai.engine.calibration_file import CalibrationFile

# What --stability scores besides the image as it is, by the ends of the columns' names.
VERSIONS = ("jpeg80", "scale075")


class Judged(NamedTuple):
    """Rows with verdicts, their columns, and what `.run.json` says of the verdicts."""

    rows: dict[int, ScoreRow]
    columns: ScoreColumns
    facts: dict[str, Any]


def add_verdicts(
    rows: Mapping[int, ScoreRow], columns: ScoreColumns, calibration: CalibrationFile
) -> Judged:
    """Add the cells of `verdict_columns` to rows.

    `<tag>_stable` is yes when all versions of an image have its verdict, else no; empty where one
    has no score. A row without a score gets empty cells.

    Args:
        rows: with the cells of `columns`.
        columns: of the rows, without those that are added.
        calibration: gives the verdicts.
    """
    versions = _versions(columns)
    numbers = calibration.calibration
    judged = {
        key: replace(row, extras=(*row.extras, *_cells(row, versions, numbers)))
        for key, row in rows.items()
    }
    counts = Counter(row.extras[len(columns.extras)] for row in judged.values())
    facts = {
        "calibration": {"file": str(calibration.path), "sha256": calibration.sha256},
        "verdicts": {verdict: counts[verdict] for verdict in VERDICTS},
    }
    extras = (*columns.extras, *verdict_columns(columns))
    return Judged(judged, replace(columns, extras=extras), facts)


def verdict_columns(columns: ScoreColumns) -> tuple[str, ...]:
    """Name what is added: the verdict and, where versions of images are scored, if it is stable."""
    verdict, stable = f"{columns.tag}_verdict", f"{columns.tag}_stable"
    return (verdict, stable) if _versions(columns) else (verdict,)


def _versions(columns: ScoreColumns) -> list[int]:
    """Return where the scores of an image's versions are among the further cells."""
    names = {f"{columns.tag}_{version}" for version in VERSIONS}
    return [place for place, name in enumerate(columns.extras) if name in names]


def _cells(row: ScoreRow, versions: list[int], calibration: Calibration) -> tuple[str | None, ...]:
    if row.score is None:
        return (None, None) if versions else (None,)
    verdict = calibration.verdict(row.score)
    if not versions:
        return (verdict,)
    scores = [score for place in versions if isinstance(score := row.extras[place], float)]
    if len(scores) < len(versions):
        return (verdict, None)
    same = all(calibration.verdict(score) == verdict for score in scores)
    return (verdict, "yes" if same else "no")
