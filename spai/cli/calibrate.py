"""`spai calibrate`: scores of known images in, thresholds for verdicts out."""

from typing import Any

import click

from spai.cli import options


@options.command(name="calibrate")
@options.score_file_options
@click.option(
    "--target-fpr",
    "targets",
    type=click.FloatRange(min=0, max=0.5, min_open=True),
    multiple=True,
    default=(0.01, 0.05),
    show_default=True,
    help="Share of real images that may be called generated; repeatable.",
)
@click.option(
    "--model",
    help="The model file or registered name that the scores must be of.",
)
@click.option(
    "--output",
    type=options.PATH,
    help="The file to write.  [default: <model>.calibration.json beside --model]",
)
def command(**chosen: Any) -> None:
    """Find the scores from which images are to be called generated.

    Real images are enough; with generated ones too, the file also tells how many of them the
    thresholds find, and a logistic calibration. `spai infer --calibration FILE` then gives
    verdicts. The CSVs must lie beside the .run.json or metrics.json that were written with them:
    they tell the model and settings, and verdicts are given for no others.
    """
    from spai.cli.calibration import run_calibrate

    run_calibrate(**chosen)
