"""`spai train`: labelled images in, a SPAI model out. What it does is in finetuning.py."""

from typing import Any

import click

from spai.cli import options
from spai.cli.training_options import training_options


@options.command(name="train")
@click.option("--cfg", type=options.FILE, help="A YAML configuration.  [default: the published]")
@click.option(
    "--pretrained",
    type=options.FILE,
    help="The backbone: a checkpoint of `spai pretrain` or of MFM. It stays frozen. "
    "[default: a random one, which is trained too]",
)
@click.option("--use-checkpoint", is_flag=True, default=None, help="Less memory, more time.")
@click.option(
    "--test-csv",
    "test_csvs",
    type=options.PATH,
    multiple=True,
    help="A CSV whose `test` rows are scored after each epoch, for information; repeatable.",
)
@click.option(
    "--test-csv-root-dir",
    "test_roots",
    type=options.PATH,
    multiple=True,
    help="What the paths in it are relative to: one for all, or one each.",
)
@training_options
def command(**given: Any) -> None:
    """Train SPAI on labelled images.

    --data-path is a CSV with the columns image, class (0 real, 1 generated) and split; the rows of
    split `train` are trained on, those of `val` choose the best epoch.

    Writes to <output>/<MODEL.NAME>/<tag>: ckpt_epoch_N.pth whenever validation improves, last.pt
    for --resume, metrics.csv, curves.png. Under torchrun, all processes train together.
    """
    from spai.cli.finetuning import run_train

    run_train(**given)
