"""Make a small task with the structure of the real one, to try training without any download.

Real images are dead leaves with fine grain: overlapping discs of all sizes, whose edges and 1/f
spectrum are those of photographs. Generated images are such textures after what image generators
do to spectra: half are shrunk and enlarged again, half carry a weak periodic grid.
"""

from pathlib import Path

import click
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image, ImageDraw

DISCS = 400
RADII = (4.0, 80.0)  # pixels; small ones are frequent, as for objects seen at all distances
GRAINS = (6.0, 9.0)  # standard deviation of the grain, grey levels
FINER = 2  # drawn so many times as large, for smooth edges
SCALES = (0.15, 0.3)  # of the shrunk textures; latent diffusion works at an eighth
PERIODS = (4, 8)  # of the grid, pixels
STRENGTHS = (8.0, 14.0)  # of the grid, grey levels


def make_texture(size: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return a texture [size, size, 3] of overlapping discs with 1/f grain."""
    image = Image.new("RGB", (FINER * size, FINER * size))
    draw = ImageDraw.Draw(image)
    smallest, largest = (radius**-2 for radius in RADII)
    for _ in range(DISCS):
        radius = FINER * rng.uniform(largest, smallest) ** -0.5  # density falls like r^-3
        x, y = rng.uniform(0, FINER * size, 2)
        grey = rng.uniform(40, 215)
        colour = (grey + rng.uniform(-25, 25, 3)).round().astype(int)
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=tuple(colour.tolist()))
    leaves = np.asarray(image.resize((size, size), Image.Resampling.BOX), dtype=np.float64)
    grain = rng.uniform(*GRAINS) * make_grain(size, rng)[..., None]
    return (leaves + grain).round().clip(0, 255).astype(np.uint8)


def make_grain(size: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return noise [size, size] of unit deviation whose amplitude spectrum falls like 1/sqrt(f)."""
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None, :])
    frequency[0, 0] = 1 / size
    grain = np.fft.irfft2(
        np.fft.rfft2(rng.standard_normal((size, size))) / np.sqrt(frequency), s=(size, size)
    )
    return (grain - grain.mean()) / grain.std()


def add_traces(texture: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return the texture after a chain of shrinking and enlarging, or with a periodic grid."""
    size = len(texture)
    if rng.random() < 0.5:
        small = round(size * rng.uniform(*SCALES))
        shrunk = Image.fromarray(texture).resize((small, small), Image.Resampling.BICUBIC)
        return np.asarray(shrunk.resize((size, size), Image.Resampling.BICUBIC))
    period, strength = rng.choice(PERIODS), rng.uniform(*STRENGTHS)
    wave = np.cos(2 * np.pi * (np.arange(size) + 0.5) / period)  # the same when flipped
    grid = strength * (wave[:, None, None] + wave[None, :, None])
    return (texture + grid).round().clip(0, 255).astype(np.uint8)


@click.command()
@click.option("--output", type=click.Path(path_type=Path), required=True, help="A new folder.")
@click.option("--train", default=1200, show_default=True, help="Training images.")
@click.option("--val", default=200, show_default=True, help="Validation images.")
@click.option("--size", default=112, show_default=True, help="Side of an image, pixels.")
@click.option("--seed", default=0, show_default=True)
def main(output: Path, train: int, val: int, size: int, seed: int) -> None:
    """Write <output>/textures.csv, and images to <output>/real and <output>/generated."""
    for folder in ("real", "generated"):
        (output / folder).mkdir(parents=True, exist_ok=True)
    rows = []
    for index in range(train + val):
        rng = np.random.default_rng((seed, index))
        label = index % 2
        pixels = make_texture(size, rng)
        if label:
            pixels = add_traces(pixels, rng)
        name = f"{('real', 'generated')[label]}/{index:05}.png"
        Image.fromarray(pixels).save(output / name)
        rows.append((name, label, "train" if index < train else "val"))
    table = pd.DataFrame(rows, columns=["image", "class", "split"])
    table.to_csv(output / "textures.csv", index=False)
    click.echo(output / "textures.csv")


if __name__ == "__main__":
    main()
