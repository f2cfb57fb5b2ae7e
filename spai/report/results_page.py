"""The page of `spai test` and `spai report`, and its figures."""

import base64
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from markupsafe import Markup

from spai.data.names import printable
from spai.engine.metrics import THRESHOLD, Metrics
from spai.files import replacing, replacing_text
from spai.report.figures import (
    DASHES,
    SERIES,
    Bar,
    Drawing,
    draw_datasets,
    draw_histograms,
    draw_reliability,
    draw_roc,
)
from spai.report.pages import run_facts, run_summary, write_page
from spai.report.robustness import RobustnessRow, draw_robustness, robustness_table
from spai.report.tables import (
    ERROR_ROWS,
    ROBUSTNESS_HEADING,
    CrossTable,
    cross_intervals,
    cross_rows,
    metric_rows,
    ranked_pairs,
)

FIGURE_NAMES = ("datasets", "roc", "scores", "reliability", "robustness")
MOST_CURVES = len(SERIES) * len(DASHES)
WORST = 12
Pictures = Callable[[Sequence[int]], Mapping[int, bytes]]


class Mistake(NamedTuple):
    """An image on the wrong side of 0.5.

    dataset, name: whose it is.
    score: in [0, 1].
    picture: a WebP file in base64, empty where there is none.
    """

    dataset: str
    name: str
    score: float
    picture: str


def write_results_page(
    output: Path,
    rows: pd.DataFrame,
    metrics: Mapping[str, Metrics],
    cross: CrossTable | None,
    run: Mapping[str, Any],
    *,
    robustness: Sequence[RobustnessRow] = (),
    pictures: Pictures | None = None,
) -> None:
    """Write `report.html`, and `figures/` with each figure as SVG and PNG.

    Args:
        output: the folder.
        rows: dataset, image, class, score, logit, error (empty without one), numbered from 0.
        metrics: of each data set.
        cross: of one-class data sets.
        run: facts to show.
        robustness: metrics of degraded images.
        pictures: returns small pictures of the images in some rows; None shows names only.
    """
    drawings = draw_figures(rows, metrics, cross, robustness)
    _write_figures(output / "figures", drawings)
    false_alarms, misses = (_worst(rows, kind, pictures) for kind in (0, 1))
    failed = rows[rows["error"] != ""]
    reasons = Counter(zip(failed["dataset"], failed["error"], strict=True))
    write_page(
        output / "report.html",
        "results.html",
        title=_title(run),
        images=len(rows),
        failed=len(failed),
        datasets=len(metrics),
        metric_rows=metric_rows(metrics),
        sources=() if cross is None else cross.sources,
        cross_rows=[] if cross is None else cross_rows(cross, metrics),
        cross_cells=[] if cross is None else cross.auc,
        figures={drawing.name: Markup(drawing.inline) for drawing in drawings},
        robustness_heading=ROBUSTNESS_HEADING,
        robustness_rows=robustness_table(robustness),
        mistakes=(
            ("Real images called generated", "highest", false_alarms),
            ("Generated images called real", "lowest", misses),
        ),
        reasons=reasons.most_common(ERROR_ROWS),
        more_reasons=max(0, len(reasons) - ERROR_ROWS),
        summary=run_summary(run),
        facts=run_facts(run),
    )


def _title(run: Mapping[str, Any]) -> str:
    """Name the model file: checkpoints of one training have a page each."""
    file = run.get("model_file")
    return "Results" if file is None else f"Results of {printable(Path(str(file)).name)}"


def draw_figures(
    rows: pd.DataFrame,
    metrics: Mapping[str, Metrics],
    cross: CrossTable | None,
    robustness: Sequence[RobustnessRow] = (),
) -> list[Drawing]:
    """Return the figures that these results allow, in the order of FIGURE_NAMES."""
    scored = rows[rows["error"] == ""]
    drawings: list[Drawing | None] = []
    if len(scored):
        drawings.append(draw_datasets(_auc_bars(rows, metrics, cross), metrics))
    pairs = ranked_pairs(rows)
    if 0 < len(pairs) <= MOST_CURVES:
        drawings.append(draw_roc(pairs))
    if len(scored):
        drawings.append(draw_histograms(scored))
    labels = scored["class"].to_numpy(np.float64)
    if len(np.unique(labels)) == 2:
        drawings.append(draw_reliability(labels, scored["score"].to_numpy(np.float64)))
    drawings.append(draw_robustness(robustness))
    return [drawing for drawing in drawings if drawing is not None]


def _auc_bars(
    rows: pd.DataFrame, metrics: Mapping[str, Metrics], cross: CrossTable | None
) -> dict[str, Bar]:
    bars = {name: Bar(m.auc, m.auc_interval) for name, m in metrics.items() if m.auc is not None}
    if cross is not None:
        intervals = cross_intervals(rows)
        bars |= {
            name: Bar(mean, intervals.get(name))
            for name, mean in zip(cross.generators, cross.mean, strict=True)
        }
    return bars


def _write_figures(folder: Path, drawings: Sequence[Drawing]) -> None:
    """Write the figures; those of an earlier run that this one has not are removed."""
    for name in set(FIGURE_NAMES) - {drawing.name for drawing in drawings}:
        for kind in ("svg", "png"):
            (folder / f"{name}.{kind}").unlink(missing_ok=True)
    for drawing in drawings:
        with replacing_text(folder / f"{drawing.name}.svg") as file:
            file.write(drawing.svg)
        with replacing(folder / f"{drawing.name}.png") as partial:
            partial.write_bytes(drawing.png)


def _worst(rows: pd.DataFrame, kind: int, pictures: Pictures | None) -> list[Mistake]:
    """Return the images of a class that are furthest on the wrong side of 0.5."""
    above = rows["score"] > THRESHOLD
    wrong = rows[(rows["error"] == "") & (rows["class"] == kind) & (above == (kind == 0))]
    worst = wrong.sort_values("logit", ascending=kind == 1, kind="stable").head(WORST)
    found: Mapping[int, bytes] = {}
    if pictures is not None and len(worst):
        found = pictures([int(place) for place in worst.index])
    return [
        Mistake(
            printable(row.dataset),
            printable(row.image),
            float(row.score),
            base64.b64encode(found.get(int(row.Index), b"")).decode(),
        )
        for row in _named_tuples(worst)
    ]


def _named_tuples(rows: pd.DataFrame) -> list[Any]:
    return list(rows[["dataset", "image", "score"]].itertuples())
