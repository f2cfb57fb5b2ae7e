"""Where training starts: the context head fitted to the scale of what it reads."""

import torch
from torch import Tensor

from spai.data.views import LabelledViews
from spai.models.spai import ImageModel

# Images that the scale is measured on.
MEASURED = 128
# Statistics that hardly vary are not blown up.
LEAST_STD = 1e-3


@torch.no_grad()
def standardize_context(model: ImageModel, views: LabelledViews, device: torch.device) -> None:
    """Let the context head start as if the statistics it reads had mean 0 and deviation 1.

    The token statistics of a backbone differ little between images beside their offsets, which
    makes learning slow at first. Mean and deviation of each, over the first views of some images
    spread over the data set and over all blocks, are folded into the head's first layer.

    Args:
        model: with its backbone; its context head is changed.
        views: the training images.
        device: of the model.

    Raises:
        ValueError: the model has no context head.
    """
    encoder = model.encoder
    head = encoder.features_processor.original_features_processor
    if head is None:
        raise ValueError(
            "TRAIN.STANDARDIZE_CONTEXT needs the context branch; leave it out, or set "
            "MODEL.FRE.ORIGINAL_IMAGE_FEATURES_BRANCH True"
        )
    model.eval()
    found: list[Tensor] = []
    for index in range(0, len(views), max(1, len(views) // MEASURED)):
        images = encoder.spectral_views(views[0, index].images.to(device))
        statistics = encoder.summarise(images).statistics
        assert statistics is not None
        found.append(statistics.flatten(0, 1))
    everything = torch.cat(found)  # [images V N, 2 D]
    head.standardize(everything.mean(0), everything.std(0).clamp_min(LEAST_STD))
