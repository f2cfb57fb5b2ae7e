"""`spai export-onnx`: a model as ONNX files. What it does is in onnx_files.py."""

from pathlib import Path
from typing import Any

import click

from spai.cli import options


@options.command(name="export-onnx")
@options.model_file_options
@click.option(
    "--output",
    type=options.PATH,
    default=Path("output"),
    show_default=True,
    help="Folder for the files.",
)
@click.option("--tag", help="Put the files into a folder of this name below --output.")
@click.option(
    "--exclude-preprocessing",
    is_flag=True,
    help="Leave the frequency filter and the normalisation to the caller: the encoder then takes "
    "x, x_low and x_high instead of patches.",
)
def command(**chosen: Any) -> None:
    """Write a model as patch_encoder.onnx and patch_aggregator.onnx.

    The encoder turns patches [P, 3, 224, 224], float32 in [0, 1], into vectors [P, V]; the
    aggregator the vectors [B, K, V] of images with K patches into logits [B, 1]. P, B and K vary.
    """
    from spai.cli.onnx_files import run_export

    run_export(**chosen)
