"""Points in the plane as a CSV and as a picture, coloured by class and by data set."""

from pathlib import Path

import pandas as pd
from matplotlib import colormaps
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from spai.data.scores import format_csv_row, format_number
from spai.files import replacing, replacing_text

CLASSES = {0: "real", 1: "generated"}
COLOURS = [*colormaps["tab10"].colors]  # type: ignore[attr-defined]
MARKERS = "o^sDvP"  # beyond ten data sets colours come again, with another marker
LONGEST_LABEL, MOST_LABELS = 40, 24


def write_points(output: Path, name: str, title: str, points: pd.DataFrame) -> None:
    """Write `<name>.csv` and `<name>.png`, each replaced at once.

    Args:
        output: the folder, made when missing.
        name: of the files.
        title: over the picture.
        points: a row a point; columns dataset, image, class (0 real, 1 generated), x, y, and
            others that the CSV repeats.
    """
    with replacing_text(output / f"{name}.csv") as file:
        file.write(format_csv_row(map(str, points.columns)))
        for cells in points.itertuples(index=False, name=None):
            file.write(format_csv_row(map(_text, cells)))
    figure = Figure(figsize=(13, 5.5), layout="constrained")
    figure.suptitle(f"{title} (t-SNE, {len(points)} points)")
    by_class, by_dataset = figure.subplots(1, 2)
    _scatter(by_class, points, points["class"].map(CLASSES), [*CLASSES.values()], "class")
    _scatter(by_dataset, points, points["dataset"], [*points["dataset"].unique()], "data set")
    with replacing(output / f"{name}.png") as partial:
        figure.savefig(partial, format="png", dpi=120)


def _scatter(
    axis: Axes, points: pd.DataFrame, groups: "pd.Series[str]", names: list[str], title: str
) -> None:
    """Draw the points of each name in its own colour, whichever names occur."""
    handles: list[Artist] = []
    labels: list[str] = []
    for number, name in enumerate(names):
        part = points[groups == name]
        handles.append(
            axis.scatter(
                part["x"],
                part["y"],
                s=9,
                alpha=0.6,
                linewidths=0,
                color=COLOURS[number % len(COLOURS)],
                marker=MARKERS[number // len(COLOURS) % len(MARKERS)],
            )
        )
        # The number first: matplotlib leaves labels out that begin with an underscore.
        labels.append(f"{len(part)} {name[:LONGEST_LABEL]}")
    axis.set(title=f"by {title}", xticks=[], yticks=[])  # distances mean little, directions nothing
    if len(labels) > MOST_LABELS:
        labels[MOST_LABELS] = f"and {len(labels) - MOST_LABELS} more"
        handles[MOST_LABELS] = Line2D([], [], linestyle="")
    shown = MOST_LABELS + 1
    legend = axis.legend(
        handles[:shown], labels[:shown], loc="upper left", bbox_to_anchor=(1, 1), fontsize=8
    )
    for text in legend.get_texts():
        text.set_parse_math(False)  # a $ in a name is a $


def _text(value: object) -> str:
    return format_number(value) if isinstance(value, float) else str(value)
