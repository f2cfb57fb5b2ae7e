"""Turn a checkpoint of `spai train` into a self-describing safetensors file for distribution."""

from pathlib import Path

import click

from spai.cli.options import FILE, PATH, command

# Where things lay on the machine that trained it is nobody's business.
PATHS = ("DATA.DATA_PATH", "DATA.CSV_ROOT", "PRETRAINED", "OUTPUT", "TAG")


@command()
@click.option("--model", type=FILE, required=True, help="A checkpoint with its configuration.")
@click.option("--output", type=PATH, required=True, help="Such as model.safetensors.")
def main(model: Path, output: Path) -> None:
    """Write the live tensors and the configuration of a checkpoint; print the SHA-256."""
    from spai.checkpoint import save_safetensors
    from spai.detectors.spai import SpaiFile
    from spai.files import file_sha256

    file = SpaiFile.read(model, overrides=[(key, "") for key in PATHS])
    save_safetensors(file.load_model(), file.config, output, epoch=file.file.epoch)
    click.echo(f"{output}: {output.stat().st_size:,} bytes, SHA-256 {file_sha256(output)}")


if __name__ == "__main__":
    main()
