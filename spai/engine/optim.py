"""The optimiser and the learning rate of each step."""

import bisect
import math
from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

SCHEDULES = ("cosine", "linear", "step", "multistep")
OPTIMIZERS = ("adamw", "sgd")


@dataclass(frozen=True)
class OptimizerSettings:
    """Which optimiser.

    Attributes:
        name: "adamw" or "sgd" (with Nesterov momentum).
        weight_decay: of matrices; biases and one-dimensional parameters have none.
        betas: of AdamW.
        eps: of AdamW.
        momentum: of SGD.
        exempt: last parts of the names of further parameters without weight decay.
    """

    name: str = "adamw"
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    momentum: float = 0.9
    exempt: tuple[str, ...] = ()


def parameter_groups(
    model: nn.Module,
    weight_decay: float,
    exempt: Collection[str] = (),
    *,
    scaled: nn.Module | None = None,
    scale: float = 1.0,
) -> list[dict[str, object]]:
    """Return the parameters with weight decay and those without, as two optimiser groups.

    With a `scale` other than 1 the parameters of the module `scaled` make two groups of their own,
    whose learning rate is multiplied by `lr_scale`.

    Frozen parameters are in them too: without a gradient no optimiser touches them.
    """
    own = set() if scaled is None or scale == 1 else set(map(id, scaled.parameters()))
    groups: dict[tuple[bool, bool], list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        last = name.rpartition(".")[2]
        matrix = parameter.ndim > 1 and last != "bias" and last not in exempt
        groups.setdefault((id(parameter) in own, matrix), []).append(parameter)
    return [
        {
            "params": groups[in_scaled, matrix],
            "weight_decay": weight_decay if matrix else 0.0,
            "lr_scale": scale if in_scaled else 1.0,
        }
        for in_scaled, matrix in sorted(groups, key=lambda key: (key[0], not key[1]))
    ]


def build_optimizer(
    model: nn.Module,
    settings: OptimizerSettings,
    *,
    scaled: nn.Module | None = None,
    scale: float = 1.0,
) -> Optimizer:
    """Build the optimiser of a model that is on its device; `fit` sets its learning rate.

    Args:
        model: what is trained.
        settings: of the optimiser.
        scaled: a part of the model with a learning rate of its own.
        scale: that rate as a multiple of the others'.

    Raises:
        ValueError: unknown name.
    """
    groups = parameter_groups(
        model, settings.weight_decay, settings.exempt, scaled=scaled, scale=scale
    )
    if settings.name == "adamw":
        fused = next(model.parameters()).device.type in ("cpu", "cuda")
        return AdamW(groups, lr=0.0, betas=settings.betas, eps=settings.eps, fused=fused)
    if settings.name == "sgd":
        return SGD(groups, lr=0.0, momentum=settings.momentum, nesterov=True)
    raise ValueError(f"optimiser {settings.name!r}; choose from {', '.join(OPTIMIZERS)}")


@dataclass(frozen=True)
class Schedule:
    """The learning rate as a function of the optimiser step, without any state.

    As timm's schedulers with `t_in_epochs=False` and no warm-up prefix: the warm-up replaces the
    first part of the curve instead of preceding it.

    Attributes:
        name: "cosine", "linear" (both end at `min_lr`), "step" or "multistep".
        base_lr: at the end of the warm-up.
        warmup_lr: at its start.
        min_lr: at the end of training.
        steps: optimiser steps of the whole training.
        warmup_steps: of the warm-up.
        decay_steps: "step" multiplies the rate by `decay_rate` each so many steps.
        decay_rate: of "step" and "multistep".
        milestones: "multistep" multiplies the rate by `decay_rate` at these steps, increasing.
    """

    name: str
    base_lr: float
    warmup_lr: float
    min_lr: float
    steps: int
    warmup_steps: int
    decay_steps: int = 1
    decay_rate: float = 0.1
    milestones: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.name not in SCHEDULES:
            raise ValueError(f"schedule {self.name!r}; choose from {', '.join(SCHEDULES)}")

    def at_step(self, step: int) -> float:
        """Return the rate that optimiser step `step`, from 0, uses.

        The update for a step is applied after it, so steps 0 and 1 use the same rate.
        """
        return self.after_update(max(0, step - 1))

    def after_update(self, update: int) -> float:
        """Return the rate after the update for step `update`, from 0."""
        if update < self.warmup_steps:
            rise = (self.base_lr - self.warmup_lr) / self.warmup_steps
            return self.warmup_lr + update * rise
        if self.name == "step":
            return self.base_lr * self.decay_rate ** (update // self.decay_steps)
        if self.name == "multistep":
            return self.base_lr * self.decay_rate ** bisect.bisect_right(self.milestones, update)
        if update >= self.steps:
            return self.min_lr
        if self.name == "linear":
            done = (update - self.warmup_steps) / (self.steps - self.warmup_steps)
            return self.base_lr - done * (self.base_lr - self.min_lr)
        wave = 0.5 * (1 + math.cos(math.pi * update / self.steps))
        return self.min_lr + wave * (self.base_lr - self.min_lr)


def gradient_norm(model: nn.Module, clip: float | None) -> float:
    """Return the Euclidean norm of all gradients, and scale them down to `clip` if it is above."""
    parameters = [parameter for parameter in model.parameters() if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if clip is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, clip, norm)
    return norm.item()
