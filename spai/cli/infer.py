"""`spai infer`: folders, CSVs and images in, score files out. What it does is in inference.py."""

from pathlib import Path
from typing import Any

import click

from spai.cli import options


@options.command(name="infer")
@click.option(
    "--input",
    "inputs",
    type=options.PATH,
    multiple=True,
    required=True,
    help="A folder, a CSV with an `image` column, or one image; repeatable.",
)
@click.option(
    "--output",
    type=options.PATH,
    default=Path("output"),
    show_default=True,
    help="Folder for one file of scores per input.",
)
@options.model_options
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Images that a worker may decode ahead. Patches are batched across images anyway.",
)
@click.option(
    "--input-csv-root-dir",
    "csv_root",
    type=options.PATH,
    help="What the paths in a CSV are relative to.  [default: the CSV's folder]",
)
@click.option(
    "--split",
    default="test",
    show_default=True,
    help="Rows to score of a CSV that has a `split` column.",
)
@click.option("--tag", default="spai", show_default=True, help="Name of the score column.")
@options.image_options
@click.option(
    "--max-patches",
    type=click.IntRange(min=1),
    help="Score at most N patches of an image, evenly spread.  [default: all]",
)
@click.option(
    "--recursive/--no-recursive", default=True, show_default=True, help="Descend into folders."
)
@click.option(
    "--resume",
    is_flag=True,
    help="Keep what an interrupted or earlier run with the same settings has scored.",
)
@click.option(
    "--report",
    "page",
    is_flag=True,
    help="Also write <output>/<name>.html: pictures and scores, to sort and filter in a browser.",
)
@click.option(
    "--format",
    "kind",
    type=click.Choice(["csv", "json", "parquet"]),
    default="csv",
    show_default=True,
    help="Of the output.",
)
@click.option(
    "--stability",
    is_flag=True,
    help="Also score each image after JPEG 80 and after resizing to 0.75.",
)
@click.option(
    "--calibration",
    type=options.FILE,
    help="Thresholds of `spai calibrate` for this model: adds <tag>_verdict (real, inconclusive, "
    "generated) and, with --stability, <tag>_stable.",
)
@click.option(
    "--attention-maps",
    is_flag=True,
    help="Draw which parts of each image counted, into <output>/<name>_maps.",
)
@click.option("--strict", is_flag=True, help="Exit with 1 if an image could not be scored.")
def command(**chosen: Any) -> None:
    """Score images: the probability, from 0 to 1, that each was generated.

    Writes <output>/<name of the input>.csv with a row for each image, and <name>.run.json with the
    facts of the run. An image that cannot be read costs its own row an error text, nothing else.
    """
    from spai.cli.inference import run_infer

    run_infer(**chosen)
