"""Write one training view of each image of a CSV as a file; see docs/datasets.md."""

from pathlib import Path

import click

from spai.cli.options import FILE, PATH, command, config_override_option


@command()
@click.option("-i", "--input_csv", type=FILE, required=True, help="With a column `image`.")
@click.option("-o", "--output_csv", type=PATH, required=True, help="The CSV of the views.")
@click.option("--output_dir", type=PATH, required=True, help="The folder of the views.")
@click.option(
    "-r", "--csv_root_dir", type=PATH, help="Input paths are relative to it [the CSV's folder]."
)
@click.option("--cfg", type=FILE, help="A YAML with AUG keys [the published configuration].")
@config_override_option
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option(
    "--quality",
    type=click.IntRange(1, 100),
    default=95,
    show_default=True,
    help="Of JPEG and WebP files.",
)
def main(
    input_csv: Path,
    output_csv: Path,
    output_dir: Path,
    csv_root_dir: Path | None,
    cfg: Path | None,
    overrides: tuple[tuple[str, str], ...],
    seed: int,
    quality: int,
) -> None:
    """Apply the training augmentations once to each row and write new images and a new CSV.

    Images keep their names and extensions below the output folder. One that cannot be read is
    reported and left out of the new CSV.
    """
    from spai.config import load_config
    from spai.data.augment import ViewSettings
    from spai.data.augmented import write_views

    config = load_config(cfg, overrides)
    keys = {name.lower(): value for name, value in config.AUG.items()}
    settings = ViewSettings(**keys, size=config.DATA.IMG_SIZE)
    report = write_views(
        *(input_csv, output_csv, output_dir, settings),
        root=csv_root_dir,
        seed=seed,
        quality=quality,
    )
    for name, reason in report.unreadable.items():
        click.echo(f"left out: {name}: {reason}", err=True)
    left_out = len(report.unreadable)
    click.echo(f"{output_csv}: {report.written} images written, {left_out} left out", err=True)


if __name__ == "__main__":
    main()
