"""Pictures of results, drawn without a display."""

from pathlib import Path

import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from spai.files import replacing

PANELS = {"loss": "Loss", "auc": "AUC"}


def save_training_curves(metrics_csv: Path, png: Path) -> None:
    """Draw loss and validation AUC against the epoch.

    Args:
        metrics_csv: a row an epoch; a column `epoch`, and columns whose names end in `loss` or
            `auc` (`train_loss`, `val_loss`, `val_auc`), each of which becomes a curve. Empty
            cells are gaps. A panel without a column is left out.
        png: the picture, replaced at once.

    Raises:
        ValueError: the CSV cannot be read, or has no epochs or nothing to draw.
    """
    table = _read_epochs(metrics_csv)
    panels = {
        title: columns
        for ending, title in PANELS.items()
        if (columns := [str(name) for name in table if str(name).endswith(ending)])
    }
    if not panels:
        found = ", ".join(map(str, table.columns))
        raise ValueError(f"{metrics_csv}: no column ends in loss or auc; found {found}")
    figure = Figure(figsize=(5 * len(panels), 4), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (title, columns) in zip(axes, panels.items(), strict=True):
        for column in columns:
            # Dots, because a line through a single epoch would not show.
            axis.plot(table["epoch"], table[column], marker=".", label=column)
        axis.set(xlabel="epoch", title=title)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
        axis.legend()
    _save(figure, png)


def _read_epochs(metrics_csv: Path) -> pd.DataFrame:
    try:
        table = pd.read_csv(metrics_csv)
    except (pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError) as error:
        raise ValueError(f"{metrics_csv}: cannot be read as a CSV of epochs: {error}") from error
    if "epoch" not in table or table.empty:
        found = ", ".join(map(str, table.columns))
        raise ValueError(f"{metrics_csv}: needs a column epoch and a row; found {found}")
    return table


def _save(figure: Figure, png: Path) -> None:
    FigureCanvasAgg(figure)
    with replacing(png) as partial:
        figure.savefig(partial, format="png", dpi=120)
