"""`spai validate-onnx`: ONNX files against the model. What it does is in onnx_files.py."""

from pathlib import Path
from typing import Any

import click

from spai.cli import options


@options.command(name="validate-onnx")
@options.model_file_options
@click.option(
    "--output",
    type=options.PATH,
    default=Path("output"),
    show_default=True,
    help="Folder that `spai export-onnx` wrote.",
)
@click.option("--tag", help="As given to `spai export-onnx`.")
@click.option(
    "--input",
    "inputs",
    type=options.PATH,
    multiple=True,
    help="A folder, a CSV or an image to compare scores on as well; repeatable.",
)
def command(**chosen: Any) -> None:
    """Run ONNX files through onnxruntime and compare them with the model.

    Exit code 1 means that a number differs by more than 0.0001.
    """
    from spai.cli.onnx_files import run_validate

    run_validate(**chosen)
