"""How metrics change when test images are degraded: a figure and a table."""

from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from spai.engine.metrics import Metrics
from spai.report.figures import Drawing, figure_style, finished, series_style, short_label
from spai.report.tables import percent

UNPERTURBED = "none"
# What each perturbation's level is, and whether a higher one is stronger.
PERTURBATIONS = {
    "jpeg": ("JPEG quality", False),
    "webp": ("WebP quality", False),
    "blur": ("blur kernel, pixels", True),
    "noise": ("noise sigma, levels", True),
    "scale": ("scale", False),
}
MEASURES = {"auc": "AUC, %", "acc": "ACC at 0.5, %"}


class RobustnessRow(NamedTuple):
    """The metrics of a data set whose images were degraded.

    dataset: its name.
    perturbation: a key of PERTURBATIONS, or "none" for the images as they are.
    level: as `--perturb` takes it; 0 with "none".
    metrics: of the degraded images.
    """

    dataset: str
    perturbation: str
    level: float
    metrics: Metrics


def robustness_table(rows: Sequence[RobustnessRow]) -> list[tuple[str, ...]]:
    """Return the cells under ROBUSTNESS_HEADING, in the order of the rows; rates in per cent."""
    return [
        (
            row.dataset,
            row.perturbation,
            "" if row.perturbation == UNPERTURBED else f"{row.level:g}",
            *(percent(value) for value in (row.metrics.auc, row.metrics.ap, row.metrics.acc)),
            f"{row.metrics.errors:,}",
        )
        for row in rows
    ]


def draw_robustness(rows: Sequence[RobustnessRow]) -> Drawing | None:
    """Draw the metrics against the strength of each perturbation; None without any level.

    A line of panels shows AUC (left out when no data set has one), another ACC at 0.5; a curve is
    a data set, and begins at its images as they are.
    """
    kinds = [kind for kind in PERTURBATIONS if any(row.perturbation == kind for row in rows)]
    if not kinds:
        return None
    measures = [m for m in MEASURES if any(getattr(row.metrics, m) is not None for row in rows)]
    datasets = list(dict.fromkeys(row.dataset for row in rows))
    with figure_style():
        size = (1.0 + 1.9 * max(len(kinds), 2), 0.9 + 1.9 * len(measures))
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(len(measures), len(kinds), squeeze=False, sharey=True)
        for line, measure in zip(grid, measures, strict=True):
            for axes, kind in zip(line, kinds, strict=True):
                _panel(axes, rows, kind, measure, datasets)
            line[0].set_ylabel(MEASURES[measure])
        handles, names = grid[0, 0].get_legend_handles_labels()
        figure.legend(
            handles, names, loc="outside lower center", ncols=4, fontsize=8, handlelength=4
        )
        return finished(figure, "robustness")


def _panel(
    axes: Axes, rows: Sequence[RobustnessRow], kind: str, measure: str, datasets: Sequence[str]
) -> None:
    label, rising = PERTURBATIONS[kind]
    levels = sorted({row.level for row in rows if row.perturbation == kind}, reverse=not rising)
    places = {level: place for place, level in enumerate(levels, 1)}
    for number, dataset in enumerate(datasets):
        points = {
            0 if row.perturbation == UNPERTURBED else places[row.level]: getattr(
                row.metrics, measure
            )
            for row in rows
            if row.dataset == dataset and row.perturbation in (kind, UNPERTURBED)
        }
        known = sorted((place, 100 * v) for place, v in points.items() if v is not None)
        axes.plot(
            [place for place, _ in known],
            [value for _, value in known],
            marker="o",
            markersize=3.5,
            label=short_label(dataset),
            **series_style(number),
        )
    axes.set_xticks(range(len(levels) + 1), ["none", *(f"{level:g}" for level in levels)])
    axes.set(xlabel=label, ylim=(0, 102))
