"""What `train` and `pretrain` share: options, configuration, precision."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
from yacs.config import CfgNode

from spai.cli import options
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


def training_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of both stages."""
    positive = click.IntRange(min=1)
    decorators = (
        click.option("--data-path", type=options.PATH, help="The images; see above."),
        click.option(
            "--csv-root-dir",
            "csv_root",
            type=options.PATH,
            help="What the paths in the CSV are relative to.  [default: the CSV's folder]",
        ),
        click.option("--lmdb", type=options.PATH, help="Read images from an LMDB store."),
        click.option(
            "--missing",
            type=click.Choice(["error", "skip"]),
            default="error",
            show_default=True,
            help="What to do about images that do not exist.",
        ),
        click.option(
            "--output", type=options.PATH, help="Folder of all runs.  [default: output/train]"
        ),
        click.option("--tag", help="Name of this run.  [default: default]"),
        click.option("--batch-size", type=positive, help="Images a process and batch."),
        click.option("--learning-rate", type=click.FloatRange(min=0), help="TRAIN.BASE_LR."),
        click.option("--accumulation-steps", type=positive, help="Batches that make one step."),
        click.option("--seed", type=click.IntRange(min=0), help="Of everything random."),
        click.option("--resume", is_flag=True, help="Go on with the run in the output folder."),
        click.option("--save-all", is_flag=True, help="Keep a checkpoint of every epoch."),
        click.option(
            "--save-every-steps",
            type=positive,
            help="Steps between two saves of what --resume needs.  [default: about 5 minutes]",
        ),
        click.option("--max-steps", type=positive, help="Stop after N steps; --resume goes on."),
        click.option(
            "--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or mps."
        ),
        click.option(
            "--precision",
            type=click.Choice(["auto", "fp32", "bf16", "fp16"]),
            help="auto is bf16 where the device has it, else fp16 on CUDA and fp32 elsewhere.  "
            "[default: auto on CUDA, fp32 elsewhere]",
        ),
        click.option(
            "--amp-opt-level",
            type=click.Choice(["O0", "O1", "O2"]),
            help="Published name: O0 is --precision fp32, O1 and O2 are --precision auto.",
        ),
        click.option("--compile", "compile_model", is_flag=True, help="Use torch.compile."),
        click.option(
            "--data-workers", type=click.IntRange(min=0), help="Decoding processes, 0 for none."
        ),
        click.option(
            "--data-prefetch-factor", type=positive, help="Batches that each worker is ahead."
        ),
        click.option(
            "--disable-pin-memory",
            "pin_memory",
            flag_value=False,
            default=None,
            type=bool,
            help="Do not keep batches in page-locked memory.",
        ),
        options.config_override_option,
    )
    return functools.reduce(lambda wrapped, add: add(wrapped), reversed(decorators), function)


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
