"""`spai test`: labelled CSVs and a model in, metrics and tables out."""

from pathlib import Path
from typing import Any

import click

from spai.cli import options


@options.command(name="test")
@options.test_csv_options
@click.option(
    "--output",
    type=options.PATH,
    default=Path("output"),
    show_default=True,
    help="The folder for the results.",
)
@options.model_options
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Images that a worker may decode ahead, unless DATA.TEST_BATCH_SIZE is set. Patches are "
    "batched across images anyway.",
)
@click.option(
    "--split",
    default="test",
    show_default=True,
    help="Rows to score of a CSV that has a `split` column.",
)
@click.option("--tag", default="spai", show_default=True, help="Name of the run.")
@click.option(
    "--update-csv",
    is_flag=True,
    help="Add the scores to each CSV, as a column <tag>_epoch_<N>; <tag> if the model file does "
    "not say its epoch.",
)
@click.option(
    "--perturb",
    multiple=True,
    metavar="NAME=LEVEL,...",
    help="Also test on degraded images, each level on its own: jpeg=85,70 (quality), webp=85,70 "
    "(quality), blur=3,5 (kernel, pixels), noise=1,3 (sigma of 255), scale=0.7,0.5; repeatable. "
    "paper: the published levels of all.",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    help="Of the noise that --perturb adds.  [default: SEED of the configuration]",
)
@options.image_options
def command(**chosen: Any) -> None:
    """Measure how well a model tells generated from real images.

    --model may also be a folder of ckpt_epoch_*.pth: each is tested, in natural order, into a
    folder of its own below --output, with a table of all beside them.

    Writes report.html and figures/, metrics.json, metrics.csv, scores.csv and report.md, with
    --perturb also robustness.csv and scores_perturbed.csv. An image that cannot be read is counted
    apart and enters no metric.
    """
    from spai.cli.evaluation import run_test

    run_test(**chosen)
