"""Models with formula weights, for tests and the benchmark."""

from pathlib import Path

import numpy as np
import torch
from yacs.config import CfgNode

from spai.checkpoint import build_model
from spai.models.backbone import use_fused_attention
from spai.models.spai import ImageModel
from tests.recipe import reference_weight

REFERENCE = Path(__file__).parent / "reference"

# Two blocks of width 32: milliseconds a patch, and every part of the model is there.
TINY = {
    "MODEL.VIT.EMBED_DIM": 32,
    "MODEL.VIT.DEPTH": 2,
    "MODEL.VIT.NUM_HEADS": 2,
    "MODEL.VIT.INTERMEDIATE_LAYERS": [0, 1],
    "MODEL.VIT.PROJECTION_DIM": 16,
    "MODEL.PATCH_VIT.ATTN_EMBED_DIM": 24,
    "MODEL.PATCH_VIT.NUM_HEADS": 2,
}


def formula_model(config: CfgNode) -> ImageModel:
    """Build a model with the weights of `recipe.py`, ready to score on the CPU."""
    model = build_model(config).eval()
    model.load_state_dict(
        {
            name: torch.from_numpy(np.asarray(reference_weight(name, tuple(tensor.shape))))
            if tensor.is_floating_point()
            else tensor
            for name, tensor in model.state_dict().items()
        }
    )
    use_fused_attention(model.backbone, False)
    return model
