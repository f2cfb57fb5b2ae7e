"""Does this installation compute what it should? Scores of the bundled model on formula images."""

from typing import NamedTuple

import torch
from torch import Tensor

from spai.detectors import load_detector

# Height and width in pixels: a grid of patches, five crops, reflected borders.
SIZES = ((400, 300), (150, 260), (64, 90))
# What the bundled model gives for them, in float32 on a CPU.
EXPECTED = (0.33342036, 0.35209217, 0.30598776)
TOLERANCE = 1e-3


class SelfCheck(NamedTuple):
    """Scores of the formula images and the largest difference from what was recorded."""

    scores: tuple[float, ...]
    difference: float

    @property
    def ok(self) -> bool:
        """Whether the difference is within `TOLERANCE`."""
        return self.difference <= TOLERANCE


def formula_image(height: int, width: int) -> Tensor:
    """Return a picture [3, H, W] uint8 that is the same on every machine."""
    rows, columns = torch.arange(height)[:, None], torch.arange(width)[None, :]
    texture = (rows * columns) // 5 + (rows * rows + columns * columns) // 40
    return torch.stack([(texture * factor + 3 * rows) % 256 for factor in (1, 2, 3)]).byte()


def check_installation() -> SelfCheck:
    """Score the formula images with the bundled model, in float32 on the CPU.

    Raises:
        ValueError: the bundled model is missing.
    """
    detector = load_detector("mini", device="cpu", precision="fp32", backend="torch")
    scores = tuple(detector.score([formula_image(*size) for size in SIZES]).probabilities.tolist())
    difference = max(abs(a - b) for a, b in zip(scores, EXPECTED, strict=True))
    return SelfCheck(scores, difference)
