"""Losses of the contrastive modes, on features without a head.

B: images, V: views of an image, D: length of a feature vector.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

TEMPERATURE = 0.07


def supervised_contrastive_loss(
    features: Tensor, labels: Tensor, *, temperature: float = TEMPERATURE
) -> Tensor:
    """Pull the views of a class together and push other classes away (Khosla et al., 2020).

    Every view is an anchor; its positives are the other views of its image and all views of the
    other images of its class.

    Args:
        features: [B, V, D], normalised in here.
        labels: [B], the class of each image.
        temperature: what similarities are divided by.

    Returns:
        The mean over the anchors that have a positive, 0 when none has; float32.
    """
    views = features.shape[1]
    vectors = F.normalize(features.flatten(0, 1).float(), dim=1)  # [B V, D]
    classes = labels.repeat_interleave(views)
    itself = torch.eye(len(vectors), dtype=torch.bool, device=vectors.device)
    similarities = vectors @ vectors.T / temperature
    others = similarities.masked_fill(itself, float("-inf"))
    log_probabilities = similarities - others.logsumexp(dim=1, keepdim=True)
    positives = (classes[:, None] == classes) & ~itself
    counts = positives.sum(dim=1)
    per_anchor = -(log_probabilities * positives).sum(dim=1) / counts.clamp(min=1)
    return per_anchor.sum() / (counts > 0).sum().clamp(min=1)


def triplet_loss(features: Tensor, *, margin: float) -> Tensor:
    """Keep an anchor nearer to an image of its class than to one of another, by a margin.

    Args:
        features: [B, 3, V, D], those of anchor, positive and negative, view by view.
        margin: of the Euclidean distances.

    Returns:
        The mean over images and views, float32.
    """
    anchor, positive, negative = features.float().unbind(dim=1)  # each [B, V, D]
    return F.triplet_margin_loss(
        anchor.flatten(0, 1), positive.flatten(0, 1), negative.flatten(0, 1), margin=margin
    )
