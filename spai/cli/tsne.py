"""`spai tsne`: what the vectors of images and patches look like in the plane."""

from pathlib import Path
from typing import Any

import click

from spai.cli import options


@options.command(name="tsne")
@options.test_csv_options
@click.option(
    "--output",
    type=options.PATH,
    default=Path("output"),
    show_default=True,
    help="The folder for the pictures and CSVs.",
)
@options.model_options
@click.option(
    "--split",
    default="test",
    show_default=True,
    help="Rows to take of a CSV that has a `split` column.",
)
@click.option(
    "--max-patches",
    type=click.IntRange(min=1),
    help="Take at most N patches of an image, evenly spread.  [default: all]",
)
@click.option(
    "--perplexity",
    type=click.FloatRange(min=1),
    default=30,
    show_default=True,
    help="How many neighbours count, roughly; lowered where there are few points.",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0, max=2**32 - 1),
    default=0,
    show_default=True,
    help="Of the sample and of t-SNE.",
)
@options.image_options
def command(**chosen: Any) -> None:
    """Draw images and patches by their vectors, near ones near each other.

    One t-SNE each of the images' pooled vectors and of the patches' SRS, SCV and whole vectors, of
    at most 5,000 points: tsne_<kind>.png, coloured by class and by data set, and tsne_<kind>.csv.
    """
    from spai.cli.projection import run_tsne

    run_tsne(**chosen)
