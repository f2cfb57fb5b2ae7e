"""Write images of one size and compression, for a test that sees neither; see docs/datasets.md."""

from pathlib import Path

import click

from spai.cli.options import FILE, PATH, command


@command()
@click.option("-i", "--input_csv", type=FILE, required=True, help="image, class, split, ...")
@click.option("-o", "--output", type=PATH, required=True, help="A folder.")
@click.option(
    "-r", "--csv_root_dir", type=PATH, help="Input paths are relative to it [the CSV's folder]."
)
@click.option("--split", default="test", show_default=True, help="Rows to take.")
@click.option("--side", type=click.IntRange(min=16), default=448, show_default=True)
@click.option("--quality", type=click.IntRange(1, 100), default=90, show_default=True)
@click.option(
    "--group",
    "groups",
    multiple=True,
    help="Also a CSV for each value of this column; given twice, the first is for real images, the "
    "second for generated ones.",
)
def main(
    input_csv: Path,
    output: Path,
    csv_root_dir: Path | None,
    split: str,
    side: int,
    quality: int,
    groups: tuple[str, ...],
) -> None:
    """Shrink each image to a shorter side of N pixels, cut the central square, save as JPEG.

    Writes <output>/images, all.csv and, with --group, a CSV for each group of either class.
    """
    from spai.data.common import write_common_set

    failed = write_common_set(
        *(input_csv, output),
        split=split,
        side=side,
        quality=quality,
        root=csv_root_dir,
        groups=groups,
    )
    for name, reason in failed.items():
        click.echo(f"left out: {name}: {reason}", err=True)
    click.echo(output / "all.csv")


if __name__ == "__main__":
    main()
