"""Write the CSV of labelled folders (0_real / 1_fake or real / fake); see docs/datasets.md."""

from pathlib import Path

import click

from spai.cli.options import PATH, command
from spai.data.manifests import LABELS, directory_samples, draw_samples, format_counts
from spai.data.tables import write_samples


@command()
@click.option("--train_dir", type=PATH, multiple=True, help="Rows get split train; repeatable.")
@click.option("--val_dir", type=PATH, multiple=True, help="Rows get split val; repeatable.")
@click.option("--test_dir", type=PATH, multiple=True, help="Rows get split test; repeatable.")
@click.option(
    "--label",
    type=click.Choice(["real", "fake"]),
    help="Class of every image; without it folders called 0_real, real, 1_fake or fake tell.",
)
@click.option("-o", "--output_csv", type=PATH, required=True, help="The CSV to write.")
@click.option(
    "-r", "--csv_root_dir", type=PATH, help="Paths are relative to it [the CSV's folder]."
)
@click.option("-d", "--csv_delimiter", default=",", show_default=True)
@click.option("-n", "--samples_num", type=int, help="Draw at most N images a class and split.")
@click.option(
    "-f",
    "--filter",
    "names",
    multiple=True,
    help="Keep images with this file or folder name in their path; repeatable.",
)
@click.option("--seed", default=0, show_default=True, help="Of the draw.")
def main(
    train_dir: tuple[Path, ...],
    val_dir: tuple[Path, ...],
    test_dir: tuple[Path, ...],
    label: str | None,
    output_csv: Path,
    csv_root_dir: Path | None,
    csv_delimiter: str,
    samples_num: int | None,
    names: tuple[str, ...],
    seed: int,
) -> None:
    """List the images below folders, at any depth."""
    split_dirs = {"train": train_dir, "val": val_dir, "test": test_dir}
    if not any(split_dirs.values()):
        raise click.UsageError("give at least one of --train_dir, --val_dir and --test_dir")
    samples = directory_samples(split_dirs, names=names, label=LABELS[label] if label else None)
    samples = draw_samples(samples, samples_num, seed=seed)
    write_samples(samples, output_csv, root=csv_root_dir, delimiter=csv_delimiter)
    click.echo(format_counts(samples), err=True)


if __name__ == "__main__":
    main()
