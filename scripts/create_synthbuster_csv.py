"""Write the CSV of Synthbuster and its RAISE-1k photographs; see docs/datasets.md."""

from pathlib import Path

import click

from spai.cli.options import PATH, command
from spai.data.manifests import MISSING_CHOICES, draw_samples, format_counts, synthbuster_samples
from spai.data.tables import write_samples


@command()
@click.option("--synthbuster_dir", type=PATH, required=True, help="Holds prompts.csv.")
@click.option("--raise_dir", type=PATH, help="Holds tiff; without it no real images are listed.")
@click.option("-o", "--output_csv", type=PATH, required=True, help="The CSV to write.")
@click.option(
    "-r", "--csv_root_dir", type=PATH, help="Paths are relative to it [the CSV's folder]."
)
@click.option("-d", "--csv_delimiter", default=",", show_default=True)
@click.option("-n", "--samples_num", type=int, help="Draw at most N images of each class.")
@click.option(
    "-f",
    "--filter",
    "names",
    multiple=True,
    help="Keep generated images with this name in their path, such as dalle3; repeatable.",
)
@click.option("--seed", default=0, show_default=True, help="Of the draw.")
@click.option(
    "--missing",
    type=click.Choice(MISSING_CHOICES),
    default="error",
    show_default=True,
    help="When real files do not exist: stop, or leave them out.",
)
def main(
    synthbuster_dir: Path,
    raise_dir: Path | None,
    output_csv: Path,
    csv_root_dir: Path | None,
    csv_delimiter: str,
    samples_num: int | None,
    names: tuple[str, ...],
    seed: int,
    missing: str,
) -> None:
    """List the generated images of Synthbuster and the photographs they imitate."""
    samples = synthbuster_samples(synthbuster_dir, raise_dir, names=names, missing=missing)
    samples = draw_samples(samples, samples_num, seed=seed)
    write_samples(samples, output_csv, root=csv_root_dir, delimiter=csv_delimiter)
    click.echo(format_counts(samples), err=True)


if __name__ == "__main__":
    main()
