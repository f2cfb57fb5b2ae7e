"""From the tokens of each block to the spectral vector of a patch: projectors, SRS and SCV.

P: patches, L: tokens of a patch, N: blocks read, d: backbone width, D: projection width, V: length
of a patch's vector (6 N similarities, then D context features). Attribute names are those of the
published checkpoint.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class PatchSummary(NamedTuple):
    """What is kept of the tokens of P patches.

    similarities: [P, 3, 2, N], mean and std of the three similarities in each block, or None.
    statistics: [P, N, 2 D], mean and std of the projected original tokens, or None.
    """

    similarities: Tensor | None
    statistics: Tensor | None


class Projector(nn.Module):
    """Two linear layers, normalised after and, when asked, before."""

    def __init__(
        self,
        width_in: int,
        width_out: int,
        *,
        dropout: float,
        input_norm: bool,
        last_activation: bool,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width_in) if input_norm else nn.Identity()
        self.projector = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(width_in, width_out),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(width_out, width_out),
            nn.GELU() if last_activation else nn.Identity(),
            nn.Dropout(dropout),
        )
        self.norm2 = nn.LayerNorm(width_out)

    def forward(self, features: Tensor) -> Tensor:
        """Project [..., width_in] to [..., width_out]."""
        return self.norm2(self.projector(self.norm1(features)))


class BlockProjectors(nn.Module):
    """One projector for each block."""

    def __init__(self, projectors: list[Projector]) -> None:
        super().__init__()
        self.projectors = nn.ModuleList(projectors)


class ContextProcessor(nn.Module):
    """Spectral context vector (SCV): the blocks' statistics of the original image in one vector."""

    def __init__(self, blocks: int, width_in: int, width: int, *, dropout: float) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.randn(1, blocks, width))
        # A GELU after the second linear layer and no input norm: as the weights were trained.
        self.proj1 = Projector(
            2 * width_in, width, dropout=dropout, input_norm=False, last_activation=True
        )
        self.proj2 = Projector(
            width, width, dropout=dropout, input_norm=False, last_activation=True
        )

    @torch.no_grad()
    def standardize(self, mean: Tensor, std: Tensor) -> None:
        """Change the first layer so that it sees (statistics - mean) / std; both [2 D].

        What it computes of standardised statistics stays what it computed of raw ones before.
        """
        first = self.proj1.projector[1]
        assert isinstance(first, nn.Linear)
        first.weight.div_(std)
        first.bias.sub_(first.weight @ mean)

    def forward(self, statistics: Tensor) -> Tensor:
        """Combine token statistics [P, N, 2 D] into [P, D]."""
        blocks = self.proj1(statistics)  # [P, N, D]
        return self.proj2((blocks * self.alpha.softmax(dim=1)).sum(dim=1))


class FeaturesProcessor(nn.Module):
    """Turn the tokens of each block into the numbers that are kept of it."""

    def __init__(
        self,
        *,
        blocks: int,
        width: int,
        projection_dim: int,
        dropout: float,
        project: bool,
        project_per_block: bool,
        last_activation: bool,
        similarities: bool,
        context: bool,
    ) -> None:
        super().__init__()
        self.similarities = similarities

        def projector() -> Projector:
            return Projector(
                width,
                projection_dim,
                dropout=dropout,
                input_norm=True,
                last_activation=last_activation,
            )

        self.patch_projector: nn.Module
        if not project:
            self.patch_projector = nn.Identity()
        elif project_per_block:
            self.patch_projector = BlockProjectors([projector() for _ in range(blocks)])
        else:
            self.patch_projector = projector()
        self.original_features_processor = (
            ContextProcessor(
                blocks, projection_dim if project else width, projection_dim, dropout=dropout
            )
            if context
            else None
        )
        self.vector_size = 6 * blocks * similarities + projection_dim * context

    def reduce(self, index: int, tokens: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Reduce the tokens of one block to what is kept of it.

        Args:
            index: which of the N blocks.
            tokens: [3 P, L, d], those of the original, low and high images (or [P, L, d], of the
                original alone, without similarities).

        Returns:
            [P, 3, 2] mean and std of the three similarities, or None; [P, 2 D] mean and std of
            the projected original tokens, or None.
        """
        projector = self.patch_projector
        if isinstance(projector, BlockProjectors):
            projector = projector.projectors[index]
        projected = projector(tokens)
        with float32_on(tokens.device):
            projected = projected.float()
            if not self.similarities:
                return None, _token_statistics(projected)
            similarities = _similarity_statistics(projected)
            if self.original_features_processor is None:
                return similarities, None
            return similarities, _token_statistics(_versions(projected)[0])

    def combine(self, summary: PatchSummary) -> Tensor:
        """Turn what was kept of each patch into its vector, [P, V]."""
        parts = []
        if summary.similarities is not None:
            parts.append(summary.similarities.flatten(1))  # [P, 6 N]
        if self.original_features_processor is not None:
            assert summary.statistics is not None
            # Statistics differ between images by less than bfloat16 resolves beside their offsets.
            with float32_on(summary.statistics.device):
                parts.append(self.original_features_processor(summary.statistics.float()))
        return torch.cat(parts, dim=1)


def float32_on(device: torch.device) -> AbstractContextManager[Any]:
    """Switch autocast off on a device that has it."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def _versions(tokens: Tensor) -> tuple[Tensor, ...]:
    """Return the original, low and high parts of [3 P, ...], each [P, ...].

    `chunk` would do the same, but an exported graph then holds for one number of patches.
    """
    return tokens.unflatten(0, (3, -1)).unbind()


def _similarity_statistics(tokens: Tensor) -> Tensor:
    """Compare the three versions of each image token by token (SRS).

    The cosine is written as a product of unit vectors, which every graph format can express.

    Args:
        tokens: [3 P, L, D] float32, the originals, then the low, then the high parts.

    Returns:
        [P, 3, 2]: mean and sample standard deviation over the tokens of the cosine similarities
        (original, low), (original, high), (low, high).
    """
    original, low, high = _versions(nn.functional.normalize(tokens, dim=-1, eps=1e-8))
    pairs = ((original, low), (original, high), (low, high))
    similarities = torch.stack([(a * b).sum(dim=-1) for a, b in pairs], dim=1)  # [P, 3, L]
    return torch.stack([similarities.mean(dim=-1), similarities.std(dim=-1)], dim=-1)


def _token_statistics(tokens: Tensor) -> Tensor:
    """Return mean and sample standard deviation over the tokens [P, L, D] as [P, 2 D]."""
    return torch.cat([tokens.mean(dim=1), tokens.std(dim=1)], dim=1)
