"""How training goes: a bar or lines on stderr, curves in files."""

import importlib.util
import logging
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from spai.engine.train import EpochDone, StepDone
from spai.report.plots import save_training_curves

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 30


def show_training(
    events: Iterable[StepDone | EpochDone], *, total: int, done: int
) -> Iterator[StepDone | EpochDone]:
    """Pass events on while showing loss, learning rate, images per second and time left.

    A bar on a terminal, a line every 30 seconds elsewhere; in both a line an epoch.

    Args:
        events: what `fit` yields.
        total: optimiser steps of the whole training.
        done: steps that an earlier run made.
    """
    started = last_line = time.monotonic()
    on_terminal = sys.stderr is not None and sys.stderr.isatty()
    images, steps = 0, done
    with tqdm(total=total, initial=done, unit="step", disable=not on_terminal) as bar:
        for event in events:
            if isinstance(event, EpochDone):
                bar.clear()
                logger.info("%s", _describe_epoch(event))
                yield event
                continue
            images, steps, now = images + event.images, steps + 1, time.monotonic()
            elapsed = max(now - started, 1e-9)
            text = (
                f"epoch {event.epoch}, step {event.step}/{event.steps}: loss {event.loss:.4f}, "
                f"lr {event.lr:.2e}, {images / elapsed:.1f} images/s"
            )
            bar.set_postfix_str(text, refresh=False)
            bar.update()
            if not on_terminal and now - last_line >= SECONDS_BETWEEN_LINES:
                last_line = now
                left = elapsed / (steps - done) * (total - steps)
                logger.info("%s, %s left", text, tqdm.format_interval(left))
            yield event


def _describe_epoch(event: EpochDone) -> str:
    figures = [
        f"{name} {'-' if value is None else f'{value:.4g}'}"
        for name, value in event.row.items()
        if name != "epoch"
    ]
    if event.best_loss is not None:
        figures.append(f"best val_loss {event.best_loss:.4g}")
    if event.replaced:
        figures.append(f"{event.replaced} damaged images replaced")
    figures.append(f"{event.waiting:.1%} of the time waiting for data")
    if event.saved:
        figures.append("saved")
    return f"epoch {event.row['epoch']}: {', '.join(figures)}"


class Curves:
    """`curves.png` beside `metrics.csv`, and TensorBoard's files where it is installed."""

    def __init__(self, metrics: Path, *, every: int, step: int) -> None:
        """Begin to record.

        Args:
            metrics: the CSV with a row an epoch, which `fit` writes.
            every: optimiser steps between two points of TensorBoard's step curves.
            step: optimiser steps that are done.
        """
        self._metrics, self._every, self._step = metrics, every, step
        self._writer: Any = None
        if importlib.util.find_spec("tensorboard"):
            from torch.utils.tensorboard import SummaryWriter

            folder = str(metrics.parent / "tensorboard")
            self._writer = SummaryWriter(folder, purge_step=step)
        self._draw()  # an earlier run may have been killed before it did

    def add(self, event: StepDone | EpochDone) -> None:
        """Record a step or an epoch."""
        if isinstance(event, EpochDone):
            self._draw()
            points = {f"epoch/{name}": value for name, value in event.row.items()}
        else:
            self._step += 1
            if self._step % self._every:
                return
            points = {"step/loss": event.loss, "step/lr": event.lr, "step/norm": event.grad_norm}
        for name, value in points.items():
            if self._writer is not None and value is not None:
                self._writer.add_scalar(name, value, self._step)

    def close(self) -> None:
        """Write what is buffered."""
        if self._writer is not None:
            self._writer.close()

    def _draw(self) -> None:
        if self._metrics.exists():
            save_training_curves(self._metrics, self._metrics.with_name("curves.png"))
