"""`spai weights`: list, download, verify and convert model files.

Results go to stdout, the rest to stderr.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from spai import downloads, weights
from spai.cli import options


@click.group()
def command() -> None:
    """List, download, verify and convert model files."""


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
@click.argument("file", required=False)
@click.option("--model", help="The same as FILE.")
def verify(file: str | None, model: str | None) -> None:
    """Compare the SHA-256 of FILE, or of a model's local copy, with the known one.

    Of `mini` it also computes a few scores, which tells whether this installation computes what it
    should. Exit code 0 means that the file is the published one, or still the one once downloaded;
    1 that it is not, that nothing is known about it, or that scores are wrong.
    """
    if (file is None) == (model is None):
        raise click.UsageError("name one model: spai weights verify FILE")
    found = weights.verify(file or model or "")
    verdict = {True: "OK", False: "BAD", None: "UNKNOWN"}[found.ok]
    click.echo(f"{verdict}  {found.path}  {found.name or '-'}: {found.message}")
    click.echo(f"{found.size} bytes, SHA-256 {found.sha256}")
    if not found.ok:
        raise SystemExit(options.Failure.exit_code)
    if found.name == weights.FALLBACK:
        _check_scores()


def _check_scores() -> None:
    """Say whether the bundled model gives the recorded scores here; exit with 1 when not."""
    from spai.detectors.selfcheck import TOLERANCE, check_installation

    check = check_installation()
    verdict = "OK" if check.ok else "BAD"
    click.echo(
        f"{verdict}  scores of {len(check.scores)} computed images differ by at most "
        f"{check.difference:.1e} from what was recorded (tolerance {TOLERANCE:g})"
    )
    if not check.ok:
        raise SystemExit(options.Failure.exit_code)


@options.command(name="compile")
@click.argument("model", required=False)
@click.option("--cfg", type=options.FILE, help="As of `spai infer`.")
@options.config_override_option
@click.option(
    "--precision",
    type=click.Choice(["auto", "fp32", "bf16"]),
    default="auto",
    show_default=True,
    help="To try; what is kept serves every precision.",
)
@click.option(
    "--backend",
    type=click.Choice(["openvino", "onnxruntime"]),
    default="openvino",
    show_default=True,
    help="What will run the patch encoder.",
)
def compile_model(
    model: str | None,
    cfg: Path | None,
    overrides: Sequence[tuple[str, str]],
    precision: str,
    backend: str,
) -> None:
    """Convert MODEL for the CPU ahead of time, so that `spai infer` starts quickly.

    MODEL is a file or the name of a registered model; by default the one that `spai infer` takes.
    """
    from spai.detectors import open_detector, resolve_device, resolve_precision
    from spai.detectors.encoders import compiled_folder

    path = weights.chosen_weights(model)
    device = resolve_device("cpu")
    settings: dict[str, Any] = {"device": device, "precision": resolve_precision(precision, device)}
    file = open_detector(path, cfg=cfg, overrides=overrides)
    file.build(**settings, backend=file.choose_backend(backend, **settings))
    click.echo(compiled_folder())


@options.command(name="clean-cache")
@click.option("--yes", is_flag=True, help="Do not ask.")
def clean_cache(yes: bool) -> None:
    """List the converted models and, when confirmed, delete them; they can be made again."""
    from spai.backends.cache import list_entries, remove_entry
    from spai.detectors.encoders import compiled_folder

    entries = list_entries(compiled_folder())
    for entry in entries:
        model = str((entry.facts or {}).get("model_sha256", "unknown"))
        click.echo(f"{entry.folder.name}  {entry.size / 1e6:8.1f} MB  model {model[:16]}")
    total = sum(entry.size for entry in entries)
    click.echo(f"{compiled_folder()}: {len(entries)} converted models, {total / 1e6:.1f} MB")
    if not entries or not (yes or click.confirm("Delete them?", err=True)):
        return
    for entry in entries:
        remove_entry(entry)
    click.echo(f"deleted, {total / 1e6:.1f} MB freed")


for subcommand in (list_models, download, verify, compile_model, clean_cache):
    command.add_command(subcommand)
