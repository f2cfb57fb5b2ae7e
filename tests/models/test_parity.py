"""Parity with numbers recorded from the published implementation, float32 on the CPU."""

import numpy as np
import pytest
import torch

from spai.config import load_config
from spai.data.images import RowImage
from spai.detectors.spai import SpaiDetector, build_cutter
from spai.models.backbone import stream_blocks
from spai.models.patches import PatchBatch, PatchCutter
from spai.models.spectral import split_frequencies
from tests.helpers import REFERENCE, formula_model
from tests.recipe import reference_image

LOGIT_TOLERANCE = 1e-5
ARRAY_TOLERANCE = 1e-5  # of the array's largest magnitude


def pixels(height, width, seed):
    return torch.from_numpy(reference_image(height, width, seed)).permute(2, 0, 1)


def detector_of(opts):
    config = load_config(overrides=list(opts.items()))
    return SpaiDetector(
        formula_model(config),
        build_cutter(config),
        {"precision": "fp32"},
        device=torch.device("cpu"),
    )


def check_logits(detector, images):
    scores = detector.score([pixels(i["height"], i["width"], i["seed"]) for i in images])
    expected = torch.tensor([image["logit"] for image in images])
    torch.testing.assert_close(scores.logits, expected, rtol=0, atol=LOGIT_TOLERANCE)


def test_reduced_model_gives_the_recorded_logits(reference):
    case = reference("logits.json")["reduced"]
    check_logits(detector_of(case["opts"]), case["images"])


@pytest.mark.slow
def test_full_size_model_gives_the_recorded_logits(reference):
    case = reference("logits.json")["full"]
    check_logits(detector_of(case["opts"]), case["images"])


def test_fixed_resolution_gives_the_recorded_logits_and_names(reference):
    case = reference("modes.json")["fixed_resolution"]
    detector = detector_of(case["opts"])
    check_logits(detector, case["images"])
    names = detector._model.state_dict().keys()
    dead = ("vit.head.", "vit.cls_", "vit.actual_", "vit.fc_norm.", "vit.intermediate_fc_norm.")
    live = [n for n in case["state_dict"] if not n.startswith(dead) or n == "vit.cls_token"]
    unlisted = ("vit.blocks.", "features_processor.patch_projector.")
    assert sorted(n for n in names if not n.startswith(unlisted)) == sorted(live)


def test_every_recorded_array_is_reproduced(reference):
    expected = np.load(REFERENCE / "reduced_intermediate.npz")
    config = load_config(overrides=list(reference("logits.json")["reduced"]["opts"].items()))
    model = formula_model(config)
    pieces = list(PatchCutter()(pixels(512, 512, 3)))
    batch = torch.cat([piece.patches for piece in pieces])
    found = {}
    with torch.no_grad():
        images = batch.float() / 255
        low, high = split_frequencies(images, model.mfvit.low_pass)
        views = model.mfvit.spectral_views(batch)
        blocks = [tokens.chunk(3) for tokens in stream_blocks(model.backbone, views)]
        vectors = model.encode(batch)
        output = model.pool(vectors[None])
    found["patches_mean"] = images.mean(dim=(1, 2, 3))
    found["low"] = low[0, :, ::16, ::16]
    found["high"] = high[0, :, ::16, ::16]
    found["backbone_original_token0"] = torch.stack([block[0][:, 0] for block in blocks], 1)
    found["backbone_low_token_mean"] = torch.stack([block[1].mean(1) for block in blocks], 1)
    found["backbone_high_token_mean"] = torch.stack([block[2].mean(1) for block in blocks], 1)
    found["patch_features"] = vectors
    found["attention"] = output.attention[0]
    found["image_vector"] = output.features[0]
    found["logit"] = output.logits
    assert found.keys() == set(expected.files)
    for name, values in found.items():
        allowed = ARRAY_TOLERANCE * np.abs(expected[name]).max()
        worst = np.abs(values.numpy() - expected[name]).max()
        assert values.shape == expected[name].shape and worst <= allowed, f"{name}: {worst}"


def test_rows_of_a_file_and_a_tensor_give_the_same_patches():
    from PIL import Image

    array = reference_image(500, 700, 5)
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    by_tensor = [piece.patches for piece in PatchCutter()(tensor)]
    by_rows = [piece.patches for piece in PatchCutter()(RowImage(Image.fromarray(array)))]
    assert torch.equal(torch.cat(by_tensor), torch.cat(by_rows))


def test_a_mixed_batch_scores_as_its_images_alone(tiny_config):
    model = formula_model(tiny_config)
    images = [pixels(300, 500, 7), pixels(448, 448, 2), pixels(224, 224, 1)]
    with torch.no_grad():
        alone, patches, members, start = [], [], [], 0
        for image in images:
            pieces = list(PatchCutter()(image))
            own = torch.cat([piece.patches for piece in pieces])
            index = torch.tensor(pieces[0].layout.members)
            alone.append(model(PatchBatch(own, (index,))).logits)
            patches.append(own)
            members.append(index + start)
            start += len(own)
        together = model(PatchBatch(torch.cat(patches), tuple(members))).logits
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-5)
