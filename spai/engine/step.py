"""One optimiser step: precision, gradients of several batches and processes, clipping."""

import contextlib
import math
from typing import Any, NamedTuple, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from spai.data.batches import TrainingBatch
from spai.detectors import PRECISIONS
from spai.engine.distributed import Ranks
from spai.engine.optim import gradient_norm
from spai.engine.state import Row, in_memory


class StepLoss(NamedTuple):
    """The loss of a batch on this rank: a mean, and what it weighs among the ranks' means."""

    mean: Tensor
    weight: Tensor


class Task(Protocol):
    """What is trained."""

    @property
    def model(self) -> nn.Module:
        """The model, on its device."""
        ...

    def loss(self, forward: nn.Module, images: Tensor, targets: Tensor) -> StepLoss:
        """Return the loss of a batch; `forward` is the model or what synchronises it."""
        ...

    def evaluate(self, epoch: int) -> Row:
        """Return columns for `metrics.csv`, the same on all ranks; `val_loss` chooses the best.

        May set the model to evaluation; must not change its weights.
        """
        ...


class Stepper:
    """Makes the optimiser steps of a task."""

    def __init__(
        self,
        task: Task,
        optimizer: Optimizer,
        *,
        precision: str,
        accumulation: int,
        clip_norm: float | None,
        device: torch.device,
        ranks: Ranks,
    ) -> None:
        """Describe the steps; call `share` before the first.

        Args:
            task: what is trained.
            optimizer: of its model.
            precision: "fp32", "bf16" or "fp16" of the forward pass.
            accumulation: batches whose losses, divided by their number, make a step.
            clip_norm: largest norm of the gradients, None for no limit.
            device: of the model.
            ranks: the processes that train together.
        """
        self.optimizer = optimizer
        self._task, self._ranks, self._device = task, ranks, device
        self._accumulation, self._clip_norm = accumulation, clip_norm
        self._dtype = PRECISIONS[precision]
        scaled = device.type == "cuda" and self._dtype == torch.float16
        self._scaler = GradScaler(device.type, enabled=scaled)
        self._forward: nn.Module = task.model
        self._losses: list[Tensor] = []

    def share(self) -> None:
        """Let the ranks share the model, whose weights are those of rank 0 from now on."""
        if self._ranks.world > 1:
            self._forward = DistributedDataParallel(self._task.model, broadcast_buffers=False)

    def add(self, batch: TrainingBatch, *, complete: bool) -> None:
        """Add the gradients of a batch; `complete` with the last one of a step."""
        images = batch.images.to(self._device, non_blocking=True)
        targets = batch.targets.to(self._device, non_blocking=True)
        forward = self._forward
        mixed = self._dtype != torch.float32
        with contextlib.ExitStack() as stack:
            if isinstance(forward, DistributedDataParallel) and not complete:
                stack.enter_context(forward.no_sync())
            with torch.autocast(self._device.type, self._dtype if mixed else None, enabled=mixed):
                loss = self._task.loss(forward, images, targets)
            share, mean = self._over_ranks(loss)
            self._losses.append(mean)
            scaled: Tensor = self._scaler.scale(loss.mean * (share / self._accumulation))
            scaled.backward()

    def finish(self, lr: float) -> tuple[float, float]:
        """Update the weights.

        Args:
            lr: the learning rate.

        Returns:
            The mean loss of the step's batches over all ranks, and the norm of the gradients
            before clipping.

        Raises:
            RuntimeError: the loss is not finite.
        """
        loss = torch.stack(self._losses).mean().item()
        self._losses = []
        if not math.isfinite(loss):
            raise RuntimeError(
                f"the loss is {loss}; continue with --resume and a lower --learning-rate, "
                "TRAIN.CLIP_GRAD 1.0 or --precision fp32"
            )
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        self._scaler.unscale_(self.optimizer)
        norm = gradient_norm(self._task.model, self._clip_norm)
        self._scaler.step(self.optimizer)
        self._scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return loss, norm

    def state(self) -> dict[str, Any]:
        """Return what a resumed run needs of optimiser and gradient scaler."""
        return {"optimizer": self.optimizer.state_dict(), "scaler": self._scaler.state_dict()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over what `state` returned."""
        # The file it was read from is mapped, and is about to be replaced.
        self.optimizer.load_state_dict(in_memory(state["optimizer"]))
        self._scaler.load_state_dict(state["scaler"])

    def _over_ranks(self, loss: StepLoss) -> tuple[Tensor | float, Tensor]:
        """Return the factor that makes the ranks' average gradient exact, and the mean loss."""
        mean, world = loss.mean.detach(), self._ranks.world
        if world == 1:
            return 1.0, mean
        sums = torch.stack([mean.double() * loss.weight, loss.weight.double()])
        dist.all_reduce(sums)
        return loss.weight * world / sums[1], sums[0] / sums[1]
