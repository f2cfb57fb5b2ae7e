"""A trivial detector to beat: logistic regression on the radial power spectrum of an image."""

from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tqdm import tqdm

from spai.data.images import FileSource, open_image
from spai.data.training_records import read_labelled
from spai.engine.metrics import compute_metrics

SIDE = 112  # of the blocks, pixels
RINGS = 40


def radial_spectrum(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the logarithm of the mean power in RINGS rings of frequency, over all blocks.

    Args:
        pixels: [H, W, 3].
    """
    grey = pixels.astype(np.float64).mean(axis=2)
    pad = [(0, max(0, SIDE - side)) for side in grey.shape]
    grey = np.pad(grey, pad, mode="reflect")
    rows, columns = (side // SIDE for side in grey.shape)
    blocks = grey[: rows * SIDE, : columns * SIDE].reshape(rows, SIDE, columns, SIDE)
    blocks = blocks.swapaxes(1, 2).reshape(-1, SIDE, SIDE)
    blocks -= blocks.mean(axis=(1, 2), keepdims=True)
    window = np.hanning(SIDE)
    power = (np.abs(np.fft.fft2(blocks * window[:, None] * window)) ** 2).mean(axis=0)
    frequency = np.fft.fftfreq(SIDE)
    radius = np.hypot(frequency[:, None], frequency[None, :])
    ring = np.minimum((radius / 0.5 * RINGS).astype(int), RINGS - 1)
    sums = np.bincount(ring.ravel(), power.ravel(), RINGS)
    return np.log(sums / np.bincount(ring.ravel(), minlength=RINGS) + 1e-6)


def spectra(
    csv: Path, split: str, root: Path | None
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the spectra [N, RINGS] and classes [N] of a split."""
    records = read_labelled(csv, split=split, root=root).records
    found = []
    for record in tqdm(records, unit="image", disable=None):
        with open_image(record.path, FileSource()) as opened:
            found.append(radial_spectrum(opened.decode().tensor().permute(1, 2, 0).numpy()))
    return np.array(found), np.array([record.label for record in records])


@click.command()
@click.option("--train-csv", type=click.Path(path_type=Path), required=True, help="Split train.")
@click.option("--test-csv", type=click.Path(path_type=Path), required=True, help="Split test.")
@click.option("--train-root", type=click.Path(path_type=Path))
@click.option("--test-root", type=click.Path(path_type=Path))
def main(train_csv: Path, test_csv: Path, train_root: Path | None, test_root: Path | None) -> None:
    """Fit on one CSV and print the metrics on another, with 95 % bootstrap intervals."""
    model = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced"))
    model.fit(*spectra(train_csv, "train", train_root))
    pixels, labels = spectra(test_csv, "test", test_root)
    metrics = compute_metrics(labels, model.decision_function(pixels))
    low, high = metrics.auc_interval or (None, None)
    click.echo(f"AUC {metrics.auc:.3f} ({low:.3f} to {high:.3f}), ACC {metrics.acc:.3f}")


if __name__ == "__main__":
    main()
