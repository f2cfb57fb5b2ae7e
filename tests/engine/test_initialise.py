import numpy as np
import pytest
import torch
from PIL import Image

from spai.config import load_config
from spai.data.augment import ViewSettings
from spai.data.images import FileSource
from spai.data.records import ImageRecord
from spai.data.views import LabelledViews
from spai.engine.initialise import standardize_context
from tests.helpers import TINY, formula_model


@pytest.fixture
def views(tmp_path):
    records = []
    for index in range(6):
        pixels = np.random.default_rng(index).integers(0, 256, (240, 240, 3), dtype=np.uint8)
        path = tmp_path / f"{index}.png"
        Image.fromarray(pixels).save(path)
        records.append(ImageRecord(path, path.name, index % 2, index))
    return LabelledViews(records, FileSource(), ViewSettings(), views=1, seed=0)


def test_the_first_layer_sees_standardised_statistics(views):
    model = formula_model(load_config(overrides=list(TINY.items()))).eval()
    head = model.encoder.features_processor.original_features_processor
    layer = head.proj1.projector[1]
    weight, bias = layer.weight.clone(), layer.bias.clone()
    with torch.no_grad():
        images = torch.cat([views[0, index].images for index in range(6)])
        summary = model.encoder.summarise(model.encoder.spectral_views(images))
        statistics = summary.statistics.flatten(0, 1)
    standardize_context(model, views, torch.device("cpu"))
    std = statistics.std(0).clamp_min(1e-3)
    expected = (statistics - statistics.mean(0)) / std @ weight.T + bias
    torch.testing.assert_close(layer(statistics), expected, rtol=1e-3, atol=1e-3)


def test_a_model_without_context_is_refused(views):
    without = {**TINY, "MODEL.FRE.ORIGINAL_IMAGE_FEATURES_BRANCH": False}
    model = formula_model(load_config(overrides=list(without.items())))
    with pytest.raises(ValueError, match="STANDARDIZE_CONTEXT needs the context branch"):
        standardize_context(model, views, torch.device("cpu"))
