"""SPAI: patches -> spectral vectors -> one logit an image (Karageorgiou et al., CVPR 2025).

B: images, P: patches of all images, K: patches of one image, L: tokens of a patch, S: side of a
patch, N: blocks read, d: backbone width, D: projection width, V: length of a patch's vector
(6 N similarities, then D context features). Attribute names are those of the published checkpoint.
"""

from typing import NamedTuple

import torch
from timm.models.beit import Beit
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision.transforms.v2.functional import normalize

from spai.models.backbone import stream_blocks
from spai.models.features import FeaturesProcessor, PatchSummary, float32_on
from spai.models.patches import PatchBatch
from spai.models.spectral import LowPass, low_pass_mask, split_frequencies

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class ImageOutput(NamedTuple):
    """What the model says of B images.

    logits: [B] float32, the log-odds that the image is generated.
    features: [B, V] float32, the image's pooled vector, before the norm and the head.
    attention: [heads, K] for each image, a softmax over its patches; None in fixed resolution.
    """

    logits: Tensor
    features: Tensor
    attention: tuple[Tensor | None, ...]


class SpectralEncoder(nn.Module):
    """Spectral split, backbone and projectors: a patch in, its spectral vector out."""

    frequencies_mask: Tensor

    def __init__(
        self,
        vit: Beit,
        features_processor: FeaturesProcessor,
        *,
        size: int,
        radius: float,
        layers: list[int],
        use_checkpoint: bool = False,
    ) -> None:
        """Put the parts together.

        Args:
            vit: the backbone; frozen when its parameters do not require a gradient.
            features_processor: what is made of the backbone's tokens.
            size: S.
            radius: of the low band, in DFT bins.
            layers: the N blocks to read, increasing.
            use_checkpoint: recompute the projections in the backward pass instead of keeping them.
        """
        super().__init__()
        self.radius = radius
        self.layers = layers
        self.use_checkpoint = use_checkpoint
        mask = low_pass_mask(size, radius)
        # The mask is part of the published checkpoint; the filter made from it is not.
        self.register_buffer("frequencies_mask", mask)
        self.low_pass = LowPass(mask)
        self.vit = vit
        self.features_processor = features_processor

    def encode(self, patches: Tensor) -> Tensor:
        """Turn patches [P, 3, S, S], uint8 or float in [0, 1], into vectors [P, V] float32."""
        return self.features_processor.combine(self.summarise(self.spectral_views(patches)))

    def summarise(self, views: Tensor) -> PatchSummary:
        """Run the backbone and keep a few numbers of each block's tokens as soon as they are there.

        Args:
            views: what `spectral_views` makes of the patches.
        """
        reduce = self.features_processor.reduce
        kept: list[tuple[Tensor | None, Tensor | None]] = []
        for block, tokens in enumerate(stream_blocks(self.vit, views)):
            if block not in self.layers:
                continue
            if self.use_checkpoint and torch.is_grad_enabled():
                kept.append(checkpoint(reduce, len(kept), tokens, use_reentrant=False))
            else:
                kept.append(reduce(len(kept), tokens))
            if len(kept) == len(self.layers):
                break
        similarities = [part for part, _ in kept if part is not None]
        statistics = [part for _, part in kept if part is not None]
        return PatchSummary(
            torch.stack(similarities, dim=-1) if similarities else None,
            torch.stack(statistics, dim=1) if statistics else None,
        )

    def spectral_views(self, patches: Tensor) -> Tensor:
        """Split patches [P, 3, S, S], uint8 or float in [0, 1], and normalise the parts.

        Returns:
            The originals, the low and the high parts, one after the other, [3 P, 3, S, S] float32;
            only the originals, [P, 3, S, S], when nothing compares them.
        """
        with float32_on(patches.device):
            images = patches.float() / 255 if patches.dtype == torch.uint8 else patches.float()
            if self.features_processor.similarities:
                low, high = split_frequencies(images, self.low_pass)
                # The clamp removes the negative half of the zero-mean high-pass image.
                images = torch.cat([images, low.clamp(0, 1), high.clamp(0, 1)])
            return normalize(images, list(IMAGENET_MEAN), list(IMAGENET_STD))


class PatchEncoder(SpectralEncoder):
    """The encoder as a module of its own."""

    def forward(self, patches: Tensor) -> Tensor:
        """Return the vectors of patches, as `encode`."""
        return self.encode(patches)


class ClassificationHead(nn.Module):
    """The perceptron that turns an image's vector into its logit."""

    def __init__(self, width: int, *, ratio: float, dropout: float) -> None:
        super().__init__()
        hidden = int(width * ratio)
        self.head = nn.Sequential(
            nn.Linear(width, hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, 1),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Return the logits [B] of vectors [B, V]."""
        return self.head(features).squeeze(1).float()


class Spai(nn.Module):
    """SPAI at any resolution: spectral context attention (SCA) pools the patches of an image."""

    def __init__(
        self,
        encoder: PatchEncoder,
        *,
        attention_width: int,
        heads: int,
        head_ratio: float,
        dropout: float,
    ) -> None:
        super().__init__()
        width = encoder.features_processor.vector_size
        self.heads = heads
        self.mfvit = encoder
        self.patch_aggregator = nn.Parameter(torch.randn(heads, 1, attention_width // heads))
        self.to_kv = nn.Linear(width, 2 * attention_width, bias=False)
        self.attention_dropout = nn.Dropout(dropout)
        self.to_out = nn.Sequential(
            nn.Linear(attention_width, width, bias=False), nn.Dropout(dropout)
        )
        self.norm = nn.LayerNorm(width)
        self.cls_head = ClassificationHead(width, ratio=head_ratio, dropout=dropout)

    @property
    def encoder(self) -> SpectralEncoder:
        """The part that sees pixels."""
        return self.mfvit

    @property
    def backbone(self) -> Beit:
        """The vision transformer."""
        return self.mfvit.vit

    def encode(self, patches: Tensor) -> Tensor:
        """Turn patches [P, 3, S, S], uint8 or float in [0, 1], into vectors [P, V] float32."""
        return self.mfvit(patches)

    def pool(self, vectors: Tensor) -> ImageOutput:
        """Pool the patch vectors [B, K, V] of images with the same number of patches."""
        logits, features, weights = self.aggregate(vectors)
        return ImageOutput(logits, features, tuple(weights))

    def aggregate(self, vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits [B], features [B, V] and attention [B, heads, K] of vectors [B, K, V]."""
        batch, count, _ = vectors.shape
        keys_values = self.to_kv(vectors).reshape(batch, count, 2, self.heads, -1)
        keys, values = keys_values.permute(2, 0, 3, 1, 4)  # each [B, heads, K, width / heads]
        query = self.patch_aggregator  # [heads, 1, width / heads]
        weights = (query @ keys.transpose(-2, -1) * query.shape[-1] ** -0.5).softmax(dim=-1)
        pooled = self.attention_dropout(weights) @ values  # [B, heads, 1, width / heads]
        features = self.to_out(pooled.flatten(1))
        logits = self.cls_head(self.norm(features))
        return logits, features.float(), weights.squeeze(2).float()

    def forward(self, batch: PatchBatch) -> ImageOutput:
        """Score the images of a batch."""
        return _score_batch(self, batch)


class FixedResolutionSpai(SpectralEncoder):
    """SPAI on one view of fixed size: the head reads the patch vector directly."""

    def __init__(
        self,
        vit: Beit,
        features_processor: FeaturesProcessor,
        *,
        size: int,
        radius: float,
        layers: list[int],
        use_checkpoint: bool = False,
        head_ratio: float,
        dropout: float,
        reduction: str,
    ) -> None:
        """Add a head to the encoder, whose parts keep their names without a prefix.

        Args:
            vit: as for `SpectralEncoder`, like the arguments that follow.
            features_processor: the same.
            size: the same.
            radius: the same.
            layers: the same.
            use_checkpoint: the same.
            head_ratio: hidden width of the head over V.
            dropout: rate in the head.
            reduction: "mean" or "max" of the logits of several views of an image.
        """
        super().__init__(
            vit,
            features_processor,
            size=size,
            radius=radius,
            layers=layers,
            use_checkpoint=use_checkpoint,
        )
        self.cls_head = ClassificationHead(
            features_processor.vector_size, ratio=head_ratio, dropout=dropout
        )
        self.reduction = reduction

    @property
    def encoder(self) -> SpectralEncoder:
        """The part that sees pixels: this module itself."""
        return self

    @property
    def backbone(self) -> Beit:
        """The vision transformer."""
        return self.vit

    def pool(self, vectors: Tensor) -> ImageOutput:
        """Reduce the views [B, K, V] of images to one logit each."""
        logits, features = self.aggregate(vectors)
        return ImageOutput(logits, features, (None,) * len(vectors))

    def aggregate(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits [B] and features [B, V] of the vectors [B, K, V] of views."""
        logits = self.cls_head(vectors.flatten(0, 1)).reshape(vectors.shape[:2])
        reduced = logits.mean(dim=1) if self.reduction == "mean" else logits.amax(dim=1)
        return reduced, vectors.mean(dim=1)

    def forward(self, batch: PatchBatch) -> ImageOutput:
        """Score the images of a batch."""
        return _score_batch(self, batch)


ImageModel = Spai | FixedResolutionSpai


def _score_batch(model: ImageModel, batch: PatchBatch) -> ImageOutput:
    """Encode all patches at once, then pool the images: together where they have as many."""
    vectors = model.encode(batch.patches)
    if len({len(members) for members in batch.members}) == 1:
        return model.pool(vectors[torch.stack(batch.members)])
    outputs = [model.pool(vectors[members][None]) for members in batch.members]
    return ImageOutput(
        torch.cat([output.logits for output in outputs]),
        torch.cat([output.features for output in outputs]),
        tuple(output.attention[0] for output in outputs),
    )
