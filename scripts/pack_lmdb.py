"""Pack the images of a folder or CSV into an LMDB store for --lmdb; see docs/datasets.md."""

from pathlib import Path

import click

from spai.cli.options import PATH, command


@command()
@click.option("-i", "--input", "source", type=PATH, required=True, help="A folder, or a CSV.")
@click.option("-o", "--output", type=PATH, required=True, help="The store to make, a single file.")
@click.option(
    "-r",
    "--csv_root_dir",
    type=PATH,
    help="What the paths in the CSV, and the keys, are relative to [the CSV's folder].",
)
@click.option(
    "--missing",
    type=click.Choice(["error", "skip"]),
    default="error",
    show_default=True,
    help="What to do about listed files that do not exist.",
)
def main(source: Path, output: Path, csv_root_dir: Path | None, missing: str) -> None:
    """Copy the bytes of image files into one store, under their paths relative to a root.

    The same CSV and root then find them: spai infer --input CSV --lmdb STORE.
    """
    from spai.data.packing import list_entries, pack_files

    entries = list_entries(source, root=csv_root_dir)
    count = pack_files(entries, output, missing=missing)
    click.echo(f"{output}: {count} images", err=True)


if __name__ == "__main__":
    main()
