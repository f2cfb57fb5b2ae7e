"""What the training loop trains: SPAI with labels, SPAI by contrast, and its backbone without."""

import copy
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from PIL import Image
from torch import Tensor, nn
from torch.distributed.nn.functional import all_gather
from torch.nn import functional as F
from torchvision.utils import make_grid

from spai.data.batches import ViewLoader
from spai.data.images import Source
from spai.data.loaders import LoadingOptions
from spai.data.records import ImageRecord
from spai.detectors import Detector
from spai.engine.distributed import Ranks
from spai.engine.metrics import Metrics, compute_metrics
from spai.engine.predict import predict
from spai.engine.state import Row
from spai.engine.step import StepLoss
from spai.files import replacing
from spai.models.losses import supervised_contrastive_loss, triplet_loss
from spai.models.mfm import MaskedFrequencyModel, denormalized
from spai.models.patches import PatchBatch
from spai.models.spai import ImageModel, ImageOutput, Spai

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvaluationSet:
    """Labelled images that are scored after each epoch.

    Attributes:
        name: of its columns: `<name>_loss`, `<name>_acc`, `<name>_ap`, `<name>_auc`.
        records: the images.
        source: where they come from.
        options: how they are decoded.
    """

    name: str
    records: Sequence[ImageRecord]
    source: Source
    options: LoadingOptions


class SupervisedTask:
    """Stage 2: binary cross-entropy on the logit, validated by scoring whole images."""

    def __init__(
        self,
        model: ImageModel,
        detector: Callable[[ImageModel], Detector],
        sets: Sequence[EvaluationSet],
        ranks: Ranks,
    ) -> None:
        """Describe the task.

        Args:
            model: on its device.
            detector: makes a detector of a model, which it may change.
            sets: what is scored after each epoch; the one named "val" chooses the best.
            ranks: the processes that share the scoring.
        """
        self.model, self._detector = model, detector
        self._sets, self._ranks = sets, ranks

    def loss(self, forward: nn.Module, images: Tensor, targets: Tensor) -> StepLoss:
        """Return the cross-entropy of views [B, V, 3, S, S] of images with these classes [B]."""
        output: ImageOutput = forward(PatchBatch.from_views(images))
        mean = F.binary_cross_entropy_with_logits(output.logits, targets.float())
        return StepLoss(mean, torch.tensor(len(targets), device=mean.device))

    def evaluate(self, epoch: int) -> Row:
        """Score each set at its original resolution, through the loop that users' images take."""
        # A copy, because a detector freezes its model and may round its weights.
        detector = self._detector(copy.deepcopy(self.model))
        row: Row = {}
        for evaluated in self._sets:
            metrics = measure(detector, evaluated, self._ranks)
            for key in ("loss", "acc", "ap", "auc"):
                row[f"{evaluated.name}_{key}"] = getattr(metrics, key)
        return row


class ContrastiveTask:
    """Stage 2 without a head: the views of images are compared by their vectors."""

    def __init__(
        self,
        model: ImageModel,
        validation: ViewLoader,
        *,
        margin: float | None,
        device: torch.device,
        ranks: Ranks,
    ) -> None:
        """Describe the task.

        Args:
            model: on its device; its head gets no gradient.
            validation: batches whose loss chooses the best epoch.
            margin: of the triplet loss; None for the supervised contrastive loss.
            device: of the model.
            ranks: the processes that train together.
        """
        self.model, self._validation, self._margin = model, validation, margin
        self._device, self._ranks = device, ranks
        # Not used, so that the ranks must not wait for their gradients.
        model.cls_head.requires_grad_(False)
        if isinstance(model, Spai):
            model.norm.requires_grad_(False)

    def loss(self, forward: nn.Module, images: Tensor, targets: Tensor) -> StepLoss:
        """Return the loss of views [B, V, 3, S, S], or of triplets [B, 3, V, 3, S, S]."""
        leading = images.shape[:-3]
        patches = images.flatten(0, -4)[:, None]  # each view is an image of one patch
        output: ImageOutput = forward(PatchBatch.from_views(patches))
        features = output.features.float().unflatten(0, leading)
        weight = torch.tensor(len(targets), device=images.device)
        if self._margin is not None:
            return StepLoss(triplet_loss(features, margin=self._margin), weight)
        features, targets = _from_all_ranks(features, targets, self._ranks)
        return StepLoss(supervised_contrastive_loss(features, targets), weight)

    def evaluate(self, epoch: int) -> Row:
        """Return the mean loss of the validation views, which are the same in each epoch."""
        self.model.eval()
        losses = []
        with torch.no_grad():
            for batch in self._validation.epoch(0):
                images, targets = batch.images.to(self._device), batch.targets.to(self._device)
                losses.append(self.loss(self.model, images, targets).mean.item())
        everywhere = [loss for part in self._ranks.gather(losses) for loss in part]
        return {"val_loss": sum(everywhere) / len(everywhere)}


class PretrainingTask:
    """Stage 1: restore images from one of their frequency bands."""

    def __init__(
        self, model: MaskedFrequencyModel, *, shown: Tensor, folder: Path, ranks: Ranks
    ) -> None:
        """Describe the task.

        Args:
            model: on its device.
            shown: uint8 [n, 3, S, S], images whose restoration is saved as a picture each epoch.
            folder: for the pictures.
            ranks: the processes that train together; the first writes.
        """
        self.model, self._shown, self._folder, self._ranks = model, shown, folder, ranks

    def loss(self, forward: nn.Module, images: Tensor, targets: Tensor) -> StepLoss:
        """Return the frequency loss of images [B, 3, S, S]; targets [B] say which band is kept."""
        with torch.autocast(images.device.type, enabled=False):
            pixels = images.float() / 255
            corrupted = self.model.corrupt(pixels, targets)
        return StepLoss(*self.model.loss(forward(corrupted), pixels, targets))

    def evaluate(self, epoch: int) -> Row:
        """Save input, corrupted and restored images side by side; there is nothing to measure."""
        if self._ranks.is_main:
            self._save_picture(self._folder / f"reconstruction_epoch_{epoch}.png")
        return {}

    @torch.no_grad()
    def _save_picture(self, path: Path) -> None:
        self.model.eval()
        pixels = self._shown.float() / 255
        keep_low = torch.arange(len(pixels), device=pixels.device) % 2  # high, low, high, low
        corrupted = self.model.corrupt(pixels, keep_low)
        restored = denormalized(self.model(corrupted))
        rows = torch.stack([pixels, corrupted, restored], dim=1).flatten(0, 1)
        grid = (make_grid(rows, nrow=3) * 255).round().byte().permute(1, 2, 0)
        with replacing(path) as partial:
            Image.fromarray(grid.cpu().numpy()).save(partial, format="png")


def measure(detector: Detector, evaluated: EvaluationSet, ranks: Ranks) -> Metrics:
    """Score a set, shared by the ranks, and compute its metrics on each.

    Raises:
        RuntimeError: no image could be scored.
    """
    share = evaluated.records[ranks.rank :: ranks.world]
    scored: list[tuple[int | None, float]] = []
    for prediction in predict(detector, share, evaluated.source, evaluated.options):
        logit = prediction.logits[0] if prediction.error is None else float("nan")
        scored.append((prediction.record.label, logit))
        if prediction.error is not None:
            logger.warning("%s: %s", prediction.record.path, prediction.error)
    labels, logits = zip(*(item for part in ranks.gather(scored) for item in part), strict=True)
    metrics = compute_metrics(labels, logits, bootstrap=0)
    if not metrics.count:
        raise RuntimeError(f"none of the {len(labels)} images of {evaluated.name} has a score")
    return metrics


def _from_all_ranks(features: Tensor, targets: Tensor, ranks: Ranks) -> tuple[Tensor, Tensor]:
    """Join the ranks' features, through which gradients flow back, and classes."""
    if ranks.world == 1:
        return features, targets
    parts = list(all_gather(features)) if features.requires_grad else _gathered(features, ranks)
    return torch.cat(parts), torch.cat(_gathered(targets, ranks))


def _gathered(tensor: Tensor, ranks: Ranks) -> list[Tensor]:
    parts = [torch.empty_like(tensor) for _ in range(ranks.world)]
    dist.all_gather(parts, tensor)
    return parts
