"""How metrics change when test images are degraded."""

from collections.abc import Sequence
from typing import NamedTuple

from spai.engine.metrics import Metrics

UNPERTURBED = "none"
MISSING = "–"
HEADING = ("Data set", "Perturbation", "Level", "AUC", "AP", "ACC at 0.5", "No score")


class RobustnessRow(NamedTuple):
    """The metrics of a data set whose images were degraded.

    dataset: its name.
    perturbation: such as "jpeg", or "none" for the images as they are.
    level: as `--perturb` takes it; 0 with "none".
    metrics: of the degraded images.
    """

    dataset: str
    perturbation: str
    level: float
    metrics: Metrics


def robustness_table(rows: Sequence[RobustnessRow]) -> list[tuple[str, ...]]:
    """Return the cells under HEADING, in the order of the rows; rates in per cent."""
    return [
        (
            row.dataset,
            row.perturbation,
            "" if row.perturbation == UNPERTURBED else f"{row.level:g}",
            *(_percent(value) for value in (row.metrics.auc, row.metrics.ap, row.metrics.acc)),
            f"{row.metrics.errors:,}",
        )
        for row in rows
    ]


def _percent(value: float | None) -> str:
    return MISSING if value is None else f"{100 * value:.1f}"
