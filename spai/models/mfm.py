"""Masked frequency modelling (MFM): restore an image from one of its frequency bands.

Xie et al., "Masked Frequency Modeling for Self-Supervised Visual Pre-Training", ICLR 2023.

B: images, S: side of an image, L: patch tokens, d: backbone width. Bins are those of the DFT; the
low band is a disc around DC (not the disc of SPAI's spectral split, which lies half a bin off).
"""

from typing import NamedTuple

import torch
from timm.models.beit import Beit
from torch import Tensor, nn
from torchvision.transforms.v2.functional import normalize

from spai.models.backbone import stream_blocks
from spai.models.spai import IMAGENET_MEAN, IMAGENET_STD
from spai.models.spectral import half_plane_filter

# Keeps the gradient of a distance finite where it is zero.
EPSILON = 1e-12


def band_masks(size: int, radius: float, outer_radius: float) -> tuple[Tensor, Tensor]:
    """Return the masks of the low and the high band.

    Args:
        size: S, even.
        radius: in bins; the low band is what is nearer to DC.
        outer_radius: in bins; the high band ends below it.

    Returns:
        low, high: [S, S] int64, 1 where a centre-shifted bin belongs to the band.
    """
    distance = torch.arange(size) - size // 2
    square = distance[:, None].square() + distance[None, :].square()
    low = square < radius**2
    return low.long(), ((square < outer_radius**2) & ~low).long()


class FrequencyLoss(NamedTuple):
    """A mean distance, and the number of bins (times channels) that it is the mean of."""

    mean: Tensor
    bins: Tensor


class MaskedFrequencyModel(nn.Module):
    """Backbone and decoder; the state dict is `encoder.*` and `decoder.0.*`, as published."""

    band_filters: Tensor
    missing: Tensor

    def __init__(
        self,
        encoder: Beit,
        *,
        size: int,
        radius: float,
        outer_radius: float,
        gamma: float,
        only_missing: bool,
    ) -> None:
        """Add the decoder to a backbone.

        Args:
            encoder: a backbone with its final norm.
            size: S.
            radius: of the low band, bins.
            outer_radius: where the high band ends, bins.
            gamma: exponent of the distance of two bins.
            only_missing: compare the bins that the corruption removed, not all.
        """
        super().__init__()
        self.encoder = encoder
        patch = encoder.patch_embed.patch_size[0]
        self.decoder = nn.Sequential(
            nn.Conv2d(encoder.embed_dim, 3 * patch**2, kernel_size=1), nn.PixelShuffle(patch)
        )
        self.gamma = gamma
        self.only_missing = only_missing
        high_low = tuple(reversed(band_masks(size, radius, outer_radius)))
        filters = torch.stack([half_plane_filter(mask) for mask in high_low])
        self.register_buffer("band_filters", filters, persistent=False)  # [2, S, S / 2 + 1]
        missing = torch.stack([torch.fft.ifftshift(1 - mask) for mask in high_low])
        self.register_buffer("missing", missing, persistent=False)  # [2, S, S], unshifted bins

    @property
    def backbone(self) -> Beit:
        """The vision transformer."""
        return self.encoder

    def corrupt(self, images: Tensor, keep_low: Tensor) -> Tensor:
        """Keep one band of each image.

        Args:
            images: [B, 3, S, S] float32 in [0, 1].
            keep_low: [B] int64, 1 to keep the low band, 0 the high.

        Returns:
            [B, 3, S, S] float32, clamped to [0, 1].
        """
        spectra = torch.fft.rfft2(images) * self.band_filters[keep_low][:, None]
        return torch.fft.irfft2(spectra, s=images.shape[-2:]).clamp(0, 1)

    def forward(self, corrupted: Tensor) -> Tensor:
        """Restore corrupted images [B, 3, S, S] in [0, 1]; the result is in normalised units."""
        for tokens in stream_blocks(self.encoder, normalized(corrupted)):
            last = tokens  # [B, L, d]
        grid = self.encoder.patch_embed.grid_size
        features = self.encoder.norm(last).transpose(1, 2).unflatten(2, grid)
        restored: Tensor = self.decoder(features)
        return restored

    def loss(self, restored: Tensor, images: Tensor, keep_low: Tensor) -> FrequencyLoss:
        """Compare restored and original images bin by bin.

        Args:
            restored: [B, 3, S, S], what the model gives.
            images: [B, 3, S, S] float32 in [0, 1], the originals.
            keep_low: [B] int64, as for `corrupt`.

        Returns:
            The mean of `|F(restored) - F(normalised original)| ** gamma` over all bins and
            channels of the batch, or over the missing bins; F is the orthonormal DFT.
        """
        with torch.autocast(images.device.type, enabled=False):
            # The transform is linear: one of the difference is the difference of two.
            spectra = torch.fft.fft2(restored.float() - normalized(images), norm="ortho")
            square = spectra.real.square() + spectra.imag.square() + EPSILON
            distances = square.sqrt() ** self.gamma  # [B, 3, S, S]
            if not self.only_missing:
                bins = torch.tensor(distances.numel(), device=images.device)
                return FrequencyLoss(distances.mean(), bins)
            missing = self.missing[keep_low][:, None]  # [B, 1, S, S]
            bins = missing.sum() * distances.shape[1]
            return FrequencyLoss((distances * missing).sum() / bins, bins)


def normalized(images: Tensor) -> Tensor:
    """Return images [B, 3, S, S] in [0, 1] with the mean and deviation of ImageNet."""
    return normalize(images, list(IMAGENET_MEAN), list(IMAGENET_STD))


def denormalized(images: Tensor) -> Tensor:
    """Return normalised images [B, 3, S, S] as pixels in [0, 1]."""
    mean, std = images.new_tensor(IMAGENET_MEAN), images.new_tensor(IMAGENET_STD)
    return (images * std[:, None, None] + mean[:, None, None]).clamp(0, 1)
