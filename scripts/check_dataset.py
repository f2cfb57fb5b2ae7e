"""Check the images of a data set's CSVs before training or testing; see docs/datasets.md."""

import json
from dataclasses import asdict
from pathlib import Path

import click

from spai.cli.options import FILE, PATH, command


@command()
@click.option(
    "--csv",
    "csvs",
    type=FILE,
    multiple=True,
    required=True,
    help="With columns image, class and split; repeatable: the CSVs are checked as one data set.",
)
@click.option("--root", type=PATH, help="Folder of the image paths [each CSV's own folder].")
@click.option("--lmdb", type=PATH, help="Read the images from this store instead of files.")
@click.option("-d", "--csv_delimiter", default=",", show_default=True)
@click.option("--output", type=PATH, help="Also write everything that was found as JSON.")
def main(
    csvs: tuple[Path, ...],
    root: Path | None,
    lmdb: Path | None,
    csv_delimiter: str,
    output: Path | None,
) -> None:
    """Report missing, broken and duplicate images, their sizes and formats, and shortcuts.

    Exit code 1 when images are missing or broken.
    """
    from spai.data.images import LmdbSource
    from spai.data.inspection import check_samples, format_report
    from spai.data.tables import read_samples
    from spai.files import replacing_text

    samples = [
        sample for csv in csvs for sample in read_samples(csv, root=root, delimiter=csv_delimiter)
    ]
    roots = {root or csv.parent for csv in csvs}
    if lmdb and len(roots) > 1:
        raise click.UsageError("CSVs of several folders and one --lmdb store: give their --root")
    report = check_samples(samples, source=LmdbSource(lmdb, roots.pop()) if lmdb else None)
    if output:
        with replacing_text(output) as file:
            file.write(json.dumps(asdict(report), indent=2, ensure_ascii=False) + "\n")
    click.echo(format_report(report))
    if report.missing or report.broken:
        raise RuntimeError(f"{len(report.missing)} images missing, {len(report.broken)} broken")


if __name__ == "__main__":
    main()
