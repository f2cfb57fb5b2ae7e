"""What `train` and `pretrain` share: from options to configuration and precision."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from yacs.config import CfgNode

from spai.config import load_config
from spai.detectors import resolve_device
from spai.engine.distributed import local_rank

# Options that set a configuration key.
KEYS = {
    "batch_size": "DATA.BATCH_SIZE",
    "learning_rate": "TRAIN.BASE_LR",
    "pretrained": "PRETRAINED",
    "output": "OUTPUT",
    "tag": "TAG",
    "data_path": "DATA.DATA_PATH",
    "csv_root": "DATA.CSV_ROOT",
    "lmdb": "DATA.LMDB_PATH",
    "accumulation_steps": "TRAIN.ACCUMULATION_STEPS",
    "amp_opt_level": "AMP_OPT_LEVEL",
    "data_workers": "DATA.NUM_WORKERS",
    "data_prefetch_factor": "DATA.PREFETCH_FACTOR",
    "seed": "SEED",
    "use_checkpoint": "TRAIN.USE_CHECKPOINT",
    "pin_memory": "DATA.PIN_MEMORY",
}


@dataclass(frozen=True)
class RunOptions:
    """The options that no configuration key stands for.

    Attributes:
        device: where to train.
        precision: "fp32", "bf16" or "fp16".
        resume: go on with an earlier run.
        compile_model: run the model through torch.compile.
        max_steps: stop after so many optimiser steps, None for no limit.
        save_all: keep a checkpoint of every epoch.
        save_every_steps: steps between two writes of the resume state, None for minutes.
        skip_missing: leave out images that do not exist.
    """

    device: torch.device
    precision: str
    resume: bool
    compile_model: bool
    max_steps: int | None
    save_all: bool
    save_every_steps: int | None
    skip_missing: bool


def configure(
    cfg: Path | None, given: dict[str, Any], overrides: Sequence[tuple[str, str]]
) -> tuple[CfgNode, RunOptions]:
    """Settle the configuration and what else the options say.

    Args:
        cfg: a configuration file.
        given: the values of the command's options by name; None where one was not given.
        overrides: of single keys, applied last.
    """
    keys: list[tuple[str, Any]] = [
        (key, str(given[name]) if isinstance(given[name], Path) else given[name])
        for name, key in KEYS.items()
        if given.get(name) is not None
    ]
    config = load_config(cfg, [*keys, *overrides])
    device = resolve_device(given["device"], local_rank=local_rank())
    return config, RunOptions(
        device=device,
        precision=training_precision(given["precision"], config.AMP_OPT_LEVEL, device),
        resume=given["resume"],
        compile_model=given["compile_model"],
        max_steps=given["max_steps"],
        save_all=given["save_all"],
        save_every_steps=given["save_every_steps"],
        skip_missing=given["missing"] == "skip",
    )


def training_precision(precision: str | None, amp_opt_level: str, device: torch.device) -> str:
    """Return "fp32", "bf16" or "fp16".

    Args:
        precision: one of these or "auto"; None when it was not said.
        amp_opt_level: the published name: "O0" for fp32, "O1" and "O2" for auto, "" for nothing.
        device: what must be able to do it.

    Raises:
        ValueError: the two contradict each other.
    """
    if amp_opt_level and precision is not None and (amp_opt_level == "O0") != (precision == "fp32"):
        raise ValueError(
            f"--amp-opt-level {amp_opt_level} contradicts --precision {precision}; leave one out"
        )
    if amp_opt_level and precision is None:
        precision = "fp32" if amp_opt_level == "O0" else "auto"
    if precision is None:
        precision = "auto" if device.type == "cuda" else "fp32"
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    if device.type == "cpu" and torch.cpu._is_avx512_bf16_supported():
        return "bf16"
    return "fp32"
