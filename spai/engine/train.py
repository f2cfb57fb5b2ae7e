"""The only training loop, for both stages: epochs, steps, validation, checkpoints, resume.

A `Task` says what is trained and on which loss; `fit` does the rest and yields what happened, so
that its caller can show it.
"""

import logging
import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch.optim import Optimizer

from spai.data.batches import TrainingBatch, ViewLoader
from spai.engine.distributed import Ranks
from spai.engine.optim import Schedule
from spai.engine.state import (
    Progress,
    Row,
    RunFolder,
    random_state,
    restore_model,
    restore_random_state,
    seed_everything,
)
from spai.engine.step import Stepper, Task

logger = logging.getLogger(__name__)

# Between two writes of `last.pt`, unless steps are counted.
SECONDS_BETWEEN_SAVES = 300


@dataclass(frozen=True)
class FitSettings:
    """How to train.

    Attributes:
        epochs: number of epochs.
        accumulation: batches whose gradients make one optimiser step.
        clip_norm: largest norm of the gradients, None for no limit.
        precision: "fp32", "bf16" or "fp16" of the forward pass.
        save_all: keep a checkpoint of every epoch, not only when validation improves.
        save_every_steps: optimiser steps between two writes of `last.pt` within an epoch; None
            for about five minutes.
        max_steps: stop after so many optimiser steps, counted from the start of training.
        seed: of dropout and whatever else is drawn in this process.
    """

    epochs: int
    accumulation: int = 1
    clip_norm: float | None = None
    precision: str = "fp32"
    save_all: bool = False
    save_every_steps: int | None = None
    max_steps: int | None = None
    seed: int = 0


class StepDone(NamedTuple):
    """An optimiser step was made.

    epoch: from 0.
    step: how many steps of this epoch are done.
    steps: how many there are.
    loss: mean over the step's images.
    lr: the learning rate that it used.
    grad_norm: of the gradients before clipping.
    images: of the step, over all ranks.
    """

    epoch: int
    step: int
    steps: int
    loss: float
    lr: float
    grad_norm: float
    images: int


class EpochDone(NamedTuple):
    """An epoch was trained, validated and saved.

    row: its row of `metrics.csv`.
    best_loss: lowest validation loss so far, None without validation.
    saved: a checkpoint was written.
    replaced: damaged images that others stood in for.
    waiting: share of the training time that was spent waiting for data, in this process.
    """

    row: Row
    best_loss: float | None
    saved: bool
    replaced: int
    waiting: float


def fit(
    task: Task,
    loader: ViewLoader,
    optimizer: Optimizer,
    schedule: Schedule,
    settings: FitSettings,
    folder: RunFolder,
    *,
    device: torch.device,
    ranks: Ranks | None = None,
    earlier: dict[str, Any] | None = None,
) -> Iterator[StepDone | EpochDone]:
    """Train, on all ranks alike.

    On the CPU a run that is killed at any moment and resumed gives the weights and rows of an
    uninterrupted one, bit for bit.

    Args:
        task: what is trained.
        loader: this rank's batches.
        optimizer: of the task's model.
        schedule: of its learning rate.
        settings: how.
        folder: where files go; claimed by the caller.
        device: where the model is.
        ranks: the processes that train together.
        earlier: what `folder.read_last` returned; None starts anew.

    Yields:
        Each optimiser step and each epoch.

    Raises:
        RuntimeError: the loss is not finite.
        OSError: a file cannot be written; the earlier files are intact.
    """
    loop = _Loop(task, loader, optimizer, schedule, settings, folder, device, ranks or Ranks())
    loop.start(earlier)
    for epoch in range(loop.progress.epoch, settings.epochs):
        yield from loop.train_epoch(epoch)
        if loop.progress.batch < len(loader):  # stopped by max_steps
            loop.save_last()
            return
        yield loop.end_epoch(epoch)
        if loop.out_of_steps():
            return


def steps_per_epoch(batches: int, accumulation: int) -> int:
    """Return the optimiser steps of an epoch: the last may have fewer batches than the others."""
    return math.ceil(batches / accumulation)


class _Loop:
    """The state of `fit`."""

    def __init__(
        self,
        task: Task,
        loader: ViewLoader,
        optimizer: Optimizer,
        schedule: Schedule,
        settings: FitSettings,
        folder: RunFolder,
        device: torch.device,
        ranks: Ranks,
    ) -> None:
        self.task, self.loader, self.schedule, self.settings = task, loader, schedule, settings
        self.folder, self.device, self.ranks = folder, device, ranks
        self.progress = Progress()
        self.stepper = Stepper(
            task,
            optimizer,
            precision=settings.precision,
            accumulation=settings.accumulation,
            clip_norm=settings.clip_norm,
            device=device,
            ranks=ranks,
        )
        self._saved = time.monotonic()
        self._waited, self._replaced = 0.0, 0
        self._warned: set[str] = set()

    def start(self, earlier: dict[str, Any] | None) -> None:
        """Begin anew, or where an earlier run was."""
        if earlier is None:
            seed_everything(self.settings.seed + self.ranks.rank)
            self.stepper.share()
            return
        restore_model(self.task.model, earlier["model"], self.folder.last)
        for name, parameter in self.task.model.named_parameters():
            parameter.requires_grad_(name not in earlier["frozen"])
        self.stepper.load_state(earlier)
        self.progress = Progress(**earlier["progress"])
        self.stepper.share()
        restore_random_state(earlier["random"][self.ranks.rank], self.device)
        if self.ranks.is_main:
            self.folder.write_metrics(self.progress)  # a kill may have come before it

    def out_of_steps(self) -> bool:
        limit = self.settings.max_steps
        return limit is not None and self.progress.step >= limit

    def train_epoch(self, epoch: int) -> Iterator[StepDone]:
        """Make the optimiser steps of an epoch that are left."""
        self.task.model.train()
        started, self._waited, self._replaced = time.monotonic(), 0.0, 0
        progress, accumulation = self.progress, self.settings.accumulation
        steps = steps_per_epoch(len(self.loader), accumulation)
        batches = self._timed(self.loader.epoch(epoch, progress.batch))
        images = 0
        for number, batch in enumerate(batches, start=progress.batch + 1):
            if self.out_of_steps():
                return
            complete = number % accumulation == 0 or number == len(self.loader)
            self.stepper.add(batch, complete=complete)
            self._report_replaced(batch)
            images += len(batch.images) * self.ranks.world
            if not complete:
                continue
            lr = self.schedule.at_step(progress.step)
            loss, norm = self.stepper.finish(lr)
            progress.advance(number, loss)
            if self._save_is_due():
                self.save_last()
            yield StepDone(epoch, math.ceil(number / accumulation), steps, loss, lr, norm, images)
            images = 0
        self._waited /= max(time.monotonic() - started, 1e-9)

    def end_epoch(self, epoch: int) -> EpochDone:
        """Validate, and write the checkpoint, `last.pt` and `metrics.csv`, in this order."""
        progress = self.progress
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices):  # starting workers draws from it
            evaluation = self.task.evaluate(epoch)
        lr = self.schedule.at_step(progress.step - 1)
        row: Row = {"epoch": epoch, "train_loss": progress.mean_loss, "lr": lr, **evaluation}
        save = progress.end_epoch(row, last=epoch == self.settings.epochs - 1)
        save = save or self.settings.save_all
        if save and self.ranks.is_main:
            self.folder.save_checkpoint(self.task.model, progress, epoch)
        self.save_last()
        if self.ranks.is_main:
            self.folder.write_metrics(progress)
        replaced = sum(self.ranks.gather(self._replaced))
        return EpochDone(row, progress.best_loss, save, replaced, self._waited)

    def save_last(self) -> None:
        """Write all that a resumed run needs."""
        states = self.ranks.gather(random_state(self.device))
        if self.ranks.is_main:
            parameters = self.task.model.named_parameters()
            state = {
                "model": dict(self.task.model.state_dict()),
                "frozen": [name for name, value in parameters if not value.requires_grad],
                **self.stepper.state(),
                "schedule": asdict(self.schedule),
                "random": states,
            }
            self.folder.save_last(state, self.progress)
        self._saved = time.monotonic()

    def _save_is_due(self) -> bool:
        every = self.settings.save_every_steps
        if every is not None:
            return self.progress.step % every == 0
        due = time.monotonic() - self._saved > SECONDS_BETWEEN_SAVES
        return self.ranks.gather(due)[0]

    def _report_replaced(self, batch: TrainingBatch) -> None:
        self._replaced += len(batch.replaced)
        for text in batch.replaced:
            if text not in self._warned:
                self._warned.add(text)
                logger.warning("another image stands in for %s", text)

    def _timed(self, batches: Iterable[TrainingBatch]) -> Iterator[TrainingBatch]:
        """Pass batches on and count the seconds that they were waited for."""
        iterator = iter(batches)
        while True:
            started = time.monotonic()
            batch = next(iterator, None)
            self._waited += time.monotonic() - started
            if batch is None:
                return
            yield batch
