"""What a training run keeps: where it is, its files, and how it goes on after a kill.

`last.pt` holds all that a resumed run needs; `ckpt_epoch_N.pth` is a model in the published
layout. Both hold plain containers and tensors only, and a name always means a complete file.
"""

import csv
import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import torch
from torch import Tensor, nn

from spai.checkpoint import describe_mismatch, read_pickle, save_pickle
from spai.files import replacing_text

Row = dict[str, float | int | None]


@dataclass
class Progress:
    """Where a run is, between two optimiser steps.

    Attributes:
        epoch: the current one, from 0.
        batch: the next batch of it.
        step: optimiser steps done since the start.
        loss_sum: sum of the losses of this epoch's steps.
        losses: their number.
        best_loss: lowest validation loss, None before the first.
        best_accuracy: highest validation accuracy, 0 before the first.
        history: a row an epoch that is done.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    losses: int = 0
    best_loss: float | None = None
    best_accuracy: float = 0.0
    history: list[Row] = field(default_factory=list)

    @property
    def mean_loss(self) -> float:
        """Mean loss of this epoch's steps, each counted alike."""
        return self.loss_sum / max(1, self.losses)

    def advance(self, batch: int, loss: float) -> None:
        """Count an optimiser step after which `batch` comes next."""
        self.batch = batch
        self.step += 1
        self.loss_sum += loss
        self.losses += 1

    def end_epoch(self, row: Row, *, last: bool) -> bool:
        """Go on to the next epoch; tell whether this one deserves a checkpoint.

        It does when its validation loss is the lowest; without validation, when it is the last.
        """
        self.history.append(row)
        self.epoch, self.batch = self.epoch + 1, 0
        self.loss_sum, self.losses = 0.0, 0
        self.best_accuracy = max(self.best_accuracy, row.get("val_acc") or 0.0)
        if "val_loss" not in row:
            return last
        loss = row["val_loss"]
        if loss is None or (self.best_loss is not None and loss >= self.best_loss):
            return False
        self.best_loss = loss
        return True


class RunFolder:
    """The folder of one training run."""

    def __init__(self, path: Path, *, config: str, settings: Mapping[str, Any]) -> None:
        """Name the folder.

        Args:
            path: the folder; it need not exist.
            config: the configuration as YAML, kept in every model file.
            settings: flat, plain values; what determines the result. A resumed run must agree.
        """
        self.path, self.config, self.settings = path, config, dict(settings)
        self._lock = filelock.FileLock(path / ".lock", timeout=0)

    @property
    def last(self) -> Path:
        """Everything that a resumed run needs."""
        return self.path / "last.pt"

    @property
    def metrics(self) -> Path:
        """A row an epoch."""
        return self.path / "metrics.csv"

    def checkpoint(self, epoch: int) -> Path:
        """The model after an epoch."""
        return self.path / f"ckpt_epoch_{epoch}.pth"

    def claim(self) -> None:
        """Make sure that no other run writes here, and remove what a killed one left half written.

        Raises:
            ValueError: another run writes here, or the folder cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
            for partial in self.path.glob(".*.partial"):
                partial.unlink()
        except filelock.Timeout as error:
            raise ValueError(
                f"{self.path}: another run is writing here; wait for its end, or choose another "
                "--tag"
            ) from error
        except OSError as error:
            raise ValueError(
                f"{self.path}: output cannot be written: {error.strerror or error}"
            ) from error

    def release(self) -> None:
        """Let other runs write here."""
        self._lock.release()

    def read_last(self, *, resume: bool) -> dict[str, Any] | None:
        """Return what `last.pt` holds, None to start anew.

        Raises:
            ValueError: there is a run that is not to be resumed, its file is damaged, or it had
                other settings; the message names them.
        """
        if not self.last.exists():
            return None
        if not resume:
            raise ValueError(
                f"{self.last}: a training run is here; continue it with --resume, or choose "
                "another --tag or --output"
            )
        content = read_pickle(self.last)
        if "progress" not in content or "settings" not in content:
            raise ValueError(f"{self.last}: not the state of a training run; remove it")
        before = content["settings"]
        differing = [
            f"{key} was {before.get(key)!r}, now {self.settings.get(key)!r}"
            for key in sorted(before.keys() | self.settings.keys())
            if before.get(key) != self.settings.get(key)
        ]
        if differing:
            raise ValueError(
                f"{self.last}: --resume needs the settings of the earlier run: "
                f"{'; '.join(differing[:8])}. Repeat them, or start anew with another --tag"
            )
        return content

    def save_last(self, state: Mapping[str, Any], progress: Progress) -> None:
        """Replace `last.pt`; a kill or a full disk leaves the previous one."""
        content = {
            **state,
            "progress": asdict(progress),
            "epoch": progress.epoch,
            "max_accuracy": progress.best_accuracy,
            "config": self.config,
            "settings": self.settings,
        }
        self._save(content, self.last)

    def save_checkpoint(self, model: nn.Module, progress: Progress, epoch: int) -> None:
        """Write the model after an epoch."""
        content = {
            "model": dict(model.state_dict()),
            "epoch": epoch,
            "max_accuracy": progress.best_accuracy,
            "config": self.config,
        }
        self._save(content, self.checkpoint(epoch))

    def write_metrics(self, progress: Progress) -> None:
        """Write the rows of all epochs that are done, at once."""
        if not progress.history:
            return
        with replacing_text(self.metrics) as file:
            writer = csv.DictWriter(file, list(progress.history[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(progress.history)

    def _save(self, content: Mapping[str, Any], path: Path) -> None:
        try:
            save_pickle(content, path)
        except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
            reason = str(error).strip().split("\n", 1)[0]
            raise OSError(
                f"{path}: cannot be saved ({reason}). What was saved before is intact: make room "
                "and continue with --resume"
            ) from error


def random_state(device: torch.device) -> dict[str, Any]:
    """Return the states of all random generators as plain numbers and tensors."""
    _, keys, position, has_gauss, gauss = np.random.get_state()
    version, words, next_gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "device": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "numpy": [torch.from_numpy(np.asarray(keys, dtype=np.int64)), position, has_gauss, gauss],
        "python": [version, torch.tensor(words, dtype=torch.int64), next_gauss],
    }


def restore_random_state(state: Mapping[str, Any], device: torch.device) -> None:
    """Set all random generators to what `random_state` returned."""
    torch.set_rng_state(state["torch"].clone())
    if device.type == "cuda":
        torch.cuda.set_rng_state(state["device"].clone(), device)
    keys, *rest = state["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), *rest))
    version, words, next_gauss = state["python"]
    random.setstate((version, tuple(words.tolist()), next_gauss))


def seed_everything(seed: int) -> None:
    """Seed torch on all devices, numpy and random."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def restore_model(model: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Load a model's tensors.

    Raises:
        ValueError: a tensor is missing, unexpected or of another shape.
    """
    mismatch = describe_mismatch(model.state_dict(), tensors)
    if mismatch:
        raise ValueError(f"{path}: does not fit the configuration: {mismatch}")
    model.load_state_dict(tensors)


def in_memory(content: Any) -> Any:
    """Return containers with copies of their tensors, which may be mapped from a file."""
    if isinstance(content, Tensor):
        return content.clone()
    if isinstance(content, Mapping):
        return {key: in_memory(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return type(content)(in_memory(value) for value in content)
    return content
