"""Splitting an image into its low and high spatial frequencies.

S: side of a square image; bins are those of its centre-shifted two-dimensional DFT.
"""

import torch
from torch import Tensor, nn


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


class LowPass(nn.Module):
    """Filter images with a mask of the DFT, as products with cosines and sines.

    It gives the real part of `ifft2(mask * fft2(x))`. The band is narrow, so this costs less than
    a transform, and every graph format can express it. A: frequencies of one axis that are kept.
    """

    waves: Tensor
    same: Tensor
    crossed: Tensor

    def __init__(self, mask: Tensor, *, dtype: torch.dtype = torch.float32) -> None:
        """Prepare the products for a mask [S, S] on centre-shifted bins; S is even."""
        super().__init__()
        size = mask.shape[0]
        plane = torch.fft.ifftshift(mask.double())
        plane = (plane + plane.flip((0, 1)).roll((1, 1), (0, 1))) / 2  # the filter at k and at -k
        kept = plane[: size // 2 + 1].any(dim=1) | plane[:, : size // 2 + 1].any(dim=0)
        bins = torch.arange(int(kept.nonzero().max()) + 1, device=mask.device)  # [A]
        angles = bins[:, None] * torch.arange(size, device=mask.device) % size
        angles = angles.double() * (2 * torch.pi / size)
        # A frequency that is its own mirror image counts once, not twice.
        weight = torch.where(bins % (size // 2) == 0, 1.0, 2.0).double() / size
        along, against = plane[bins][:, bins], plane[bins][:, -bins]  # at (a, b) and at (a, -b)
        weights = weight[:, None] * weight / 2
        same = ((along + against) * weights).T.contiguous()
        crossed = ((along - against) * weights).T.contiguous()
        # Rows are the cosines, then the sines of each axis.
        signs = torch.tensor([[-1.0, 1.0], [1.0, -1.0]], device=mask.device)
        for name, values in (
            ("waves", torch.cat([angles.cos(), angles.sin()])),  # [2 A, S]
            ("same", same.repeat(2, 2)),  # [2 A, 2 A]: columns of the image, then rows
            ("crossed", torch.kron(signs.double(), crossed)),  # the same
        ):
            self.register_buffer(name, values.to(dtype), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return the low band of images [..., S, S]."""
        bins = (images @ self.waves.T).mT @ self.waves.T  # [..., 2 A, 2 A]
        # What multiplies cosine by cosine also gives sine by sine, and so on.
        half = bins.shape[-1] // 2
        bins = self.same * bins + self.crossed * bins.roll((half, half), (-2, -1))
        return (bins @ self.waves).mT @ self.waves


def split_frequencies(images: Tensor, low_pass: LowPass) -> tuple[Tensor, Tensor]:
    """Split images into their low- and high-frequency parts.

    Args:
        images: [B, 3, S, S] float32 in [0, 1].
        low_pass: the filter of the low band.

    Returns:
        low, high: [B, 3, S, S] float32; unclamped, they sum to `images`.
    """
    low = low_pass(images)
    return low, images - low
