"""`spai weights`: list, download and verify model files. Results on stdout, the rest on stderr."""

from pathlib import Path

import click

from spai import downloads, weights
from spai.cli import options


@click.group()
def command() -> None:
    """List, download and verify model files."""


@options.command(name="list")
def list_models() -> None:
    """Show the models that can be named, and where their local copies are."""
    rows = [("NAME", "SIZE", "LOCAL COPY", "WHAT IT IS")]
    for entry in weights.REGISTRY.values():
        size = f"{entry.minimum_size / 1e6:.0f} MB"
        if entry.size is None:
            size = f"> {size}"
        copy = weights.local_copy(entry)
        rows.append((entry.name, size, str(copy or "not downloaded"), entry.description))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo("  ".join(cells).rstrip())


@options.command(name="download")
@click.argument("name")
@click.option(
    "--destination",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for the file.  [default: $SPAI_HOME, else the user's cache folder]",
)
def download(name: str, destination: Path | None) -> None:
    """Download the model NAME, verify it and print where it is.

    A file that is already there and intact is not downloaded again; an interrupted download
    continues.
    """
    click.echo(downloads.download(name, destination=destination, check=_check_encoder))


def _check_encoder(path: Path) -> None:
    """Load a backbone without a published checksum strictly into the published architecture."""
    from spai.checkpoint import backbone_settings, load_mfm_encoder
    from spai.config import default_config
    from spai.models.backbone import build_backbone

    load_mfm_encoder(path, build_backbone(**backbone_settings(default_config()), final_norm=False))


@options.command(name="verify")
@click.argument("file")
def verify(file: str) -> None:
    """Compare the SHA-256 of FILE, or of a model's local copy, with the known one.

    Exit code 0 means that the file is the published one, or still the one once downloaded; 1 that
    it is not, or that nothing is known about it.
    """
    found = weights.verify(file)
    verdict = {True: "OK", False: "BAD", None: "UNKNOWN"}[found.ok]
    click.echo(f"{verdict}  {found.path}  {found.name or '-'}: {found.message}")
    click.echo(f"{found.size} bytes, SHA-256 {found.sha256}")
    if not found.ok:
        raise SystemExit(options.Failure.exit_code)


for subcommand in (list_models, download, verify):
    command.add_command(subcommand)
