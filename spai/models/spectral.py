"""Splitting an image into its low and high spatial frequencies.

S: side of a square image; bins are those of its centre-shifted two-dimensional DFT.
"""

import torch
from torch import Tensor


def low_pass_mask(size: int, radius: float) -> Tensor:
    """Return the circular mask of the low band, as the released weights were trained with it.

    Args:
        size: S, even.
        radius: in bins; a bin is kept when its distance to the centre is below it.

    Returns:
        [S, S] int64, 1 where a centre-shifted bin is kept. Row and column i are at distance
        `S/2 - 1 - i` for i < S/2 and `i - S/2` from there, so the disc lies half a bin off DC.
    """
    # On the CPU even where models are built without memory: nothing fills it in later.
    half = torch.arange(size // 2, device="cpu")
    distance = torch.cat([half.flip(0), half])  # [S]: S/2 - 1 .. 0, 0 .. S/2 - 1
    square = distance.square()
    return (square[:, None] + square[None, :] < radius**2).long()


def half_plane_filter(mask: Tensor) -> Tensor:
    """Return the real filter that equals masking the full DFT and keeping the real part.

    The real part of `ifft2(mask * fft2(x))` for a real x is x filtered with
    `(mask(k) + mask(-k)) / 2`, which is symmetric, so half of the plane is enough.

    Args:
        mask: [S, S], on centre-shifted bins.

    Returns:
        [S, S/2 + 1] float32, on the bins of `rfft2`.
    """
    plane = torch.fft.ifftshift(mask.float())
    mirrored = plane.flip((0, 1)).roll((1, 1), (0, 1))  # value at -k
    return ((plane + mirrored) / 2)[:, : mask.shape[1] // 2 + 1].contiguous()


def split_frequencies(images: Tensor, low_pass: Tensor) -> tuple[Tensor, Tensor]:
    """Split images into their low- and high-frequency parts.

    Args:
        images: [B, 3, S, S] float32 in [0, 1].
        low_pass: [S, S/2 + 1], the filter of `half_plane_filter`.

    Returns:
        low, high: [B, 3, S, S] float32; unclamped, they sum to `images`.
    """
    low = torch.fft.irfft2(torch.fft.rfft2(images) * low_pass, s=images.shape[-2:])
    return low, images - low
