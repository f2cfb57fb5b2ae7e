"""The model's variants, names and gradients."""

import pytest
import torch

from spai.checkpoint import build_model
from spai.config import default_config, load_config
from spai.models.patches import PatchBatch
from spai.models.spai import FixedResolutionSpai, Spai
from tests.helpers import TINY, formula_model


def tiny(**changes):
    keys = {key.replace("__", "."): value for key, value in changes.items()}
    return load_config(overrides=list({**TINY, **keys}.items()))


def patches(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, 224, 224), dtype=torch.uint8, generator=generator)


PROCESSOR = "mfvit.features_processor."
VARIANTS = {
    "published": ({}, 12 + 16, PROCESSOR + "patch_projector.projectors.1.norm1.weight", None),
    "shared projector": (
        {"MODEL__VIT__PATCH_PROJECTION_PER_FEATURE": False},
        12 + 16,
        PROCESSOR + "patch_projector.projector.4.bias",
        PROCESSOR + "patch_projector.projectors.0.norm1.weight",
    ),
    "no projector": (
        {"MODEL__VIT__PATCH_PROJECTION": False},
        12 + 16,
        PROCESSOR + "original_features_processor.proj1.projector.1.weight",
        PROCESSOR + "patch_projector.projectors.0.norm1.weight",
    ),
    "no SCV": (
        {"MODEL__FRE__ORIGINAL_IMAGE_FEATURES_BRANCH": False},
        12,
        PROCESSOR + "patch_projector.projectors.0.norm1.weight",
        PROCESSOR + "original_features_processor.alpha",
    ),
    "no SRS": (
        {"MODEL__FRE__DISABLE_RECONSTRUCTION_SIMILARITY": True},
        16,
        PROCESSOR + "original_features_processor.alpha",
        None,
    ),
    "one layer": ({"MODEL__VIT__INTERMEDIATE_LAYERS": [1]}, 6 + 16, None, None),
    "gelu": ({"MODEL__FRE__PROJECTOR_LAST_LAYER_ACTIVATION_TYPE": "gelu"}, 28, None, None),
    "layer scale": ({"MODEL__VIT__INIT_VALUES": 0.1}, 28, "mfvit.vit.blocks.0.gamma_1", None),
    "no positions": ({"MODEL__VIT__USE_APE": False}, 28, None, "mfvit.vit.pos_embed"),
    "radius": ({"MODEL__FRE__MASKING_RADIUS": 40}, 28, None, None),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_each_variant_has_its_vector_and_names_and_scores(name):
    changes, width, present, absent = VARIANTS[name]
    model = formula_model(tiny(**changes))
    with torch.no_grad():
        vectors = model.encode(patches(2))
        output = model.pool(vectors[None])
    assert vectors.shape == (2, width) and torch.isfinite(output.logits).all()
    names = model.state_dict()
    assert present is None or present in names
    assert absent is None or absent not in names


def test_without_projector_the_context_reads_the_backbone_width():
    model = build_model(tiny(MODEL__VIT__PATCH_PROJECTION=False))
    weight = model.state_dict()[PROCESSOR + "original_features_processor.proj1.projector.1.weight"]
    assert weight.shape == (16, 2 * 32)


def test_variants_that_change_the_numbers_change_the_score():
    logits = set()
    for name in ("published", "gelu", "radius", "no SRS", "one layer"):
        model = formula_model(tiny(**VARIANTS[name][0]))
        with torch.no_grad():
            logits.add(round(model.pool(model.encode(patches(3))[None]).logits.item(), 4))
    assert len(logits) == 5


def test_both_branches_off_is_a_configuration_error():
    with pytest.raises(ValueError, match="no features"):
        tiny(
            MODEL__FRE__ORIGINAL_IMAGE_FEATURES_BRANCH=False,
            MODEL__FRE__DISABLE_RECONSTRUCTION_SIMILARITY=True,
        )


def test_attention_is_a_distribution_over_the_patches_of_each_image():
    model = formula_model(tiny())
    batch = PatchBatch(patches(5), (torch.tensor([0, 1, 1]), torch.tensor([2, 3, 4, 0])))
    with torch.no_grad():
        attention = model(batch).attention
    assert [tuple(weights.shape) for weights in attention] == [(2, 3), (2, 4)]
    for weights in attention:
        torch.testing.assert_close(weights.sum(dim=1), torch.ones(2))


def test_patch_order_does_not_change_the_logit():
    model = formula_model(tiny())
    with torch.no_grad():
        vectors = model.encode(patches(6))
        logit = model.pool(vectors[None]).logits
        shuffled = model.pool(vectors[torch.randperm(6)][None]).logits
    torch.testing.assert_close(shuffled, logit, rtol=0, atol=1e-5)


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("use_checkpoint", [True, False])
def test_gradients_reach_the_heads_and_an_unfrozen_backbone(frozen, use_checkpoint):
    model = formula_model(tiny(TRAIN__USE_CHECKPOINT=use_checkpoint))
    model.backbone.requires_grad_(not frozen)
    views = patches(4).reshape(2, 2, 3, 224, 224)
    model(PatchBatch.from_views(views)).logits.sum().backward()
    with_gradient = {name for name, p in model.named_parameters() if p.grad is not None}
    everything = {name for name, _ in model.named_parameters()}
    backbone = {name for name in everything if name.startswith("mfvit.vit.")}
    assert with_gradient == (everything - backbone if frozen else everything)


def test_recomputation_does_not_change_gradients():
    gradients = []
    for use_checkpoint in (False, True):
        model = formula_model(tiny(TRAIN__USE_CHECKPOINT=use_checkpoint))
        model(PatchBatch.from_views(patches(4).reshape(2, 2, 3, 224, 224))).logits.sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


def test_frozen_backbone_keeps_drop_path_in_train_mode():
    different = {}
    for rate in (0.0, 0.5):
        config = tiny(MODEL__DROP_PATH_RATE=rate, MODEL__SID_DROPOUT=0.0)
        model = formula_model(config).train()
        model.backbone.requires_grad_(False)
        torch.manual_seed(0)
        with torch.no_grad():
            statistics = [model.mfvit.encode(patches(1)) for _ in range(8)]
        different[rate] = len({tuple(values.flatten().tolist()) for values in statistics})
    assert different[0.0] == 1 and different[0.5] > 1


def test_several_views_in_fixed_resolution_are_averaged_or_maximised():
    logits = {}
    for reduction in ("mean", "max"):
        model = formula_model(
            tiny(MODEL__RESOLUTION_MODE="fixed", TEST__VIEWS_REDUCTION_APPROACH=reduction)
        )
        assert isinstance(model, FixedResolutionSpai)
        with torch.no_grad():
            vectors = model.encode(patches(3))
            each = model.pool(vectors[:, None]).logits
            logits[reduction] = model.pool(vectors[None]).logits.item()
    assert logits["mean"] == pytest.approx(each.mean().item(), abs=1e-6)
    assert logits["max"] == pytest.approx(each.max().item(), abs=1e-6)


def test_a_model_on_the_meta_device_has_shapes_and_the_real_mask():
    with torch.device("meta"):
        model = build_model(default_config())
    assert isinstance(model, Spai)
    assert model.mfvit.frequencies_mask.sum() == 856 and not model.mfvit.low_pass.waves.is_meta
    assert sum(tensor.numel() for tensor in model.state_dict().values()) == 132_667_673
    output = model.to("meta")(PatchBatch.from_views(torch.empty(2, 4, 3, 224, 224, device="meta")))
    assert output.logits.shape == (2,) and output.attention[0].shape == (12, 4)
