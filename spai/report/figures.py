"""Figures of results, drawn without a display: the same bytes for the same results.

Real images are blue, generated ones orange, in every figure; data sets differ in colour and dashes.
"""

import contextlib
import io
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from sklearn.metrics import roc_curve

from spai.data.names import printable
from spai.engine.metrics import ECE_BINS, THRESHOLD, Floats, Interval, Metrics

REAL, GENERATED = "#2f6fae", "#b45309"
# Tol's vibrant and muted colours that can be read on white and on black.
SERIES = ("#0077bb", "#ee7733", "#009988", "#cc3311", "#ee3377", "#7a5fc7", "#8a8f00", "#777777")
DASHES = ("-", "--", ":", "-.")
INK, LINE, PAPER = "#1c2024", "#dcdfe3", "#ffffff"
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "spai",
    "svg.fonttype": "none",
    "text.parse_math": False,  # names of data sets may hold dollars
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.facecolor": "none",
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
}
# In a page the colours of text, lines and paper follow its light or dark theme.
THEMED = {
    INK: "currentColor",
    LINE: "var(--line)",
    PAPER: "var(--card)",
    REAL: "var(--real)",
    GENERATED: "var(--generated)",
}
HISTOGRAM_BINS = 20
MOST_PANELS = 24
LONGEST_LABEL = 28
LOG_TICKS = {0.001: "0.1 %", 0.01: "1 %", 0.1: "10 %", 1: "100 %"}


class Drawing(NamedTuple):
    """A finished figure.

    name: of its files, without extension.
    svg: a whole SVG file.
    png: a PNG file.
    """

    name: str
    svg: str
    png: bytes

    @property
    def inline(self) -> str:
        """The figure as part of an HTML page: themed, with identifiers of its own."""
        svg = self.svg[self.svg.index("<svg") :]
        for colour, themed in THEMED.items():
            svg = svg.replace(colour, themed)
        svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
        svg = re.sub(r'(<[^<>]* (?:id|xlink:href)="#?)', rf"\1{self.name}-", svg)
        return svg.replace("url(#", f"url(#{self.name}-")


class Bar(NamedTuple):
    """A value in [0, 1] with its 95 % interval; None where it is not defined."""

    value: float | None
    interval: Interval | None


@contextlib.contextmanager
def figure_style() -> Iterator[None]:
    """Draw as SPAI's figures look; fonts without a sign of a name are no news."""
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*[Gg]lyph.*")
        yield


def finished(figure: Figure, name: str) -> Drawing:
    """Return a figure as SVG and PNG; call it inside `figure_style`."""
    svg, png = io.BytesIO(), io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(svg, format="svg", facecolor="none", metadata={"Date": None})
    figure.set_layout_engine("none")  # settled: half of the time goes into it
    figure.savefig(png, format="png", dpi=144, facecolor=PAPER, metadata={"Software": None})
    return Drawing(name, svg.getvalue().decode(), png.getvalue())


def short_label(name: str) -> str:
    """Return the name of a data set as it fits a figure."""
    name = printable(name)
    if len(name) > LONGEST_LABEL:
        name = f"{name[: LONGEST_LABEL - 1]}…"
    return f" {name}" if name.startswith("_") else name  # matplotlib leaves those out of legends


def series_style(number: int) -> dict[str, Any]:
    """Return colour and dashes of the data set of that number: 32 that differ."""
    return {
        "color": SERIES[number % len(SERIES)],
        "linestyle": DASHES[number // len(SERIES) % len(DASHES)],
    }


def draw_roc(pairs: Mapping[str, tuple[Floats, Floats]]) -> Drawing:
    """Draw ROC curves, also over a logarithmic false positive rate.

    Args:
        pairs: name to the finite logits of real and of generated images, none empty.
    """
    with figure_style():
        figure = Figure(figsize=(8.4, 4.8), layout="constrained")
        grid = figure.add_gridspec(2, 2, width_ratios=(5, 3))
        # Beside the curves, not in them: it would hide those of a poor detector.
        axes, inset = figure.add_subplot(grid[:, 0]), figure.add_subplot(grid[1, 1])
        for number, (name, (real, generated)) in enumerate(pairs.items()):
            labels = np.repeat((0, 1), (len(real), len(generated)))
            fpr, tpr, _ = roc_curve(labels, np.concatenate((real, generated)))
            for axis in (axes, inset):
                axis.plot(fpr, tpr, label=short_label(name), **series_style(number))
        axes.plot((0, 1), (0, 1), color=INK, linewidth=0.8, linestyle=(0, (1, 3)))
        axes.set(xlabel="false positive rate", ylabel="true positive rate")
        axes.set(xlim=(0, 1), ylim=(0, 1.01), aspect="equal")
        inset.set(xscale="log", xlim=(min(LOG_TICKS), 1), ylim=(0, 1.01))
        inset.set_xticks(list(LOG_TICKS), list(LOG_TICKS.values()))
        inset.set_xlabel("false positive rate, logarithmic")
        legend = figure.add_subplot(grid[0, 1])
        legend.set_axis_off()
        handles, names = axes.get_legend_handles_labels()
        columns = 1 + (len(pairs) > 13)
        size = 8 if len(pairs) <= 20 else 6
        legend.legend(
            handles, names, loc="upper left", fontsize=size, ncols=columns, handlelength=3
        )
        return finished(figure, "roc")


def draw_histograms(rows: pd.DataFrame) -> Drawing:
    """Draw how the scores of each class are spread, over all images and for each data set.

    Args:
        rows: dataset, class, score; only images with a score.
    """
    codes, names = pd.factorize(rows["dataset"].to_numpy(dtype=object))
    panels = [("All images", rows)]
    if 1 < len(names) <= MOST_PANELS:
        panels += [(short_label(str(n)), rows[codes == code]) for code, n in enumerate(names)]
    across = min(len(panels), 4)
    down = math.ceil(len(panels) / across)
    with figure_style():
        size = (max(5.0, 2.4 * across), 1.0 + 1.7 * down if down > 1 else 3.0)
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True).flat
        for axes, (title, part) in zip(grid, panels, strict=False):
            _histogram(axes, part)
            axes.set_title(title)
        for axes in list(grid)[len(panels) :]:
            axes.set_axis_off()
        figure.supxlabel("score")
        figure.supylabel("% of the class")
        handles = [Patch(color=c, alpha=0.6) for c in (REAL, GENERATED)]
        figure.legend(handles, ["real", "generated"], loc="outside upper right", ncols=2)
        return finished(figure, "scores")


def _histogram(axes: Axes, rows: pd.DataFrame) -> None:
    edges = np.linspace(0, 1, HISTOGRAM_BINS + 1)
    for label, colour in ((0, REAL), (1, GENERATED)):
        scores = rows["score"].to_numpy(np.float64)[rows["class"].to_numpy() == label]
        if len(scores):
            heights = 100 * np.histogram(scores, edges)[0] / len(scores)
            axes.stairs(heights, edges, fill=True, color=colour, alpha=0.35)
            axes.stairs(heights, edges, color=colour, linewidth=1.3)
    axes.axvline(THRESHOLD, color=INK, linewidth=0.8, linestyle=":")
    axes.set(xlim=(0, 1), xticks=(0, 0.5, 1))


def draw_reliability(labels: Floats, scores: Floats) -> Drawing:
    """Draw the share of generated images against the score, and how many images there are.

    Args:
        labels: 0 real, 1 generated; both occur.
        scores: in [0, 1].
    """
    bins = np.minimum((scores * ECE_BINS).astype(int), ECE_BINS - 1)
    counts = np.bincount(bins, minlength=ECE_BINS)
    filled = counts > 0
    share, mean = (
        np.bincount(bins, weights=values, minlength=ECE_BINS)[filled] / counts[filled]
        for values in (labels, scores)
    )
    with figure_style():
        figure = Figure(figsize=(4.8, 5.0), layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        upper.plot((0, 1), (0, 1), color=INK, linewidth=0.8, linestyle=(0, (1, 3)))
        upper.plot(mean, share, color=GENERATED, marker="o", markersize=4)
        upper.set(xlim=(0, 1), ylim=(-0.02, 1.02), ylabel="share of generated images")
        lower.stairs(counts, np.linspace(0, 1, ECE_BINS + 1), fill=True, color=INK, alpha=0.45)
        lower.set(xlabel="score", ylabel="images")
        return finished(figure, "reliability")


def draw_datasets(auc: Mapping[str, Bar], metrics: Mapping[str, Metrics]) -> Drawing:
    """Draw AUC and, beside it, accuracy at 0.5 of each data set, with 95 % intervals.

    Args:
        auc: the ranking of each data set that has one.
        metrics: of every data set, in order.
    """
    names = list(metrics)
    ranking = [auc.get(name, Bar(None, None)) for name in names]
    threshold = [Bar(m.acc, m.acc_interval) for m in metrics.values()]
    colours = [
        REAL if not m.generated else GENERATED if not m.real else SERIES[-1]
        for m in metrics.values()
    ]
    with figure_style():
        figure = Figure(figsize=(8.4, 0.9 + 0.27 * len(names)), layout="constrained")
        panels = figure.subplots(1, 2, sharey=True)
        for axes, bars, title in zip(
            panels,
            (ranking, threshold),
            ("AUC (ranking), %", "ACC at 0.5 (threshold), %"),
            strict=True,
        ):
            _bars(axes, bars, colours)
            axes.set_title(title)
        panels[0].set_yticks(range(len(names)), [short_label(name) for name in names])
        panels[0].set_ylim(len(names) - 0.4, -0.6)
        return finished(figure, "datasets")


def _bars(axes: Axes, bars: Sequence[Bar], colours: Sequence[str]) -> None:
    for place, (bar, colour) in enumerate(zip(bars, colours, strict=True)):
        if bar.value is None:
            axes.text(1, place, "not defined", va="center", fontsize=8, alpha=0.7)
            continue
        axes.barh(place, 100 * bar.value, height=0.62, color=colour, alpha=0.75)
        if bar.interval is not None:
            low, high = (100 * end for end in bar.interval)
            axes.plot((low, high), (place, place), color=INK, linewidth=1.4, marker="|")
    axes.axvline(50, color=INK, linewidth=0.8, linestyle=":")
    axes.set(xlim=(0, 101), xticks=(0, 25, 50, 75, 100))
    axes.grid(axis="y", visible=False)
