"""Write the CSV of the latent diffusion training set (DMimageDetection); see docs/datasets.md."""

from pathlib import Path

import click

from spai.cli.options import PATH, command
from spai.data.manifests import MISSING_CHOICES, draw_samples, format_counts, ldm_samples
from spai.data.tables import write_samples


@command()
@click.option("--train_dir", type=PATH, help="Unpacked train folder; rows get split train.")
@click.option("--val_dir", type=PATH, help="Unpacked val or valid folder; rows get split val.")
@click.option("--coco_dir", type=PATH, required=True, help="COCO folder, holds train2017.")
@click.option("--lsun_dir", type=PATH, required=True, help="CNNDetection folder, holds train.")
@click.option("--real_coco_filename", default="real_coco.txt", show_default=True)
@click.option("--real_lsun_filename", default="real_lsun.txt", show_default=True)
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
    help="Keep generated images with this file or folder name in their path; repeatable.",
)
@click.option("--seed", default=0, show_default=True, help="Of the draw.")
@click.option(
    "--missing",
    type=click.Choice(MISSING_CHOICES),
    default="error",
    show_default=True,
    help="When listed real files do not exist: stop, or leave them out.",
)
def main(
    train_dir: Path | None,
    val_dir: Path | None,
    coco_dir: Path,
    lsun_dir: Path,
    real_coco_filename: str,
    real_lsun_filename: str,
    output_csv: Path,
    csv_root_dir: Path | None,
    csv_delimiter: str,
    samples_num: int | None,
    names: tuple[str, ...],
    seed: int,
    missing: str,
) -> None:
    """List generated images, COCO and LSUN images of the latent diffusion training set."""
    given = {"train": train_dir, "val": val_dir}
    split_dirs = {split: folder for split, folder in given.items() if folder}
    if not split_dirs:
        raise click.UsageError("give --train_dir, --val_dir or both")
    samples = ldm_samples(
        split_dirs,
        coco_dir=coco_dir,
        lsun_dir=lsun_dir,
        real_coco_filename=real_coco_filename,
        real_lsun_filename=real_lsun_filename,
        names=names,
        missing=missing,
    )
    samples = draw_samples(samples, samples_num, seed=seed)
    write_samples(samples, output_csv, root=csv_root_dir, delimiter=csv_delimiter)
    click.echo(format_counts(samples), err=True)


if __name__ == "__main__":
    main()
