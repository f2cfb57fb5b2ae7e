"""The options of `train` and `pretrain`, without what they start."""

import functools
from collections.abc import Callable
from typing import Any

import click

from spai.cli import options


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
