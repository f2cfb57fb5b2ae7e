"""`spai pretrain`: real images in, a backbone out. What it does is in pretraining.py."""

from typing import Any

import click

from spai.cli import options
from spai.cli.training_options import training_options


@options.command(name="pretrain")
@click.option("--cfg", type=options.FILE, required=True, help="Such as configs/mfm.yaml.")
@training_options
def command(**given: Any) -> None:
    """Pre-train the backbone on real images, without labels.

    --data-path is a folder of images or a CSV with a column image. Of a CSV with the column split
    the rows of `train` are used, of one with the column class the rows of class 0.

    Writes to <output>/<MODEL.NAME>/<tag>: ckpt_epoch_N.pth after the last epoch (each with
    --save-all), last.pt for --resume, metrics.csv, curves.png, and a picture each epoch. Under
    torchrun, all processes train together.
    """
    from spai.cli.pretraining import run_pretrain

    run_pretrain(**given)
