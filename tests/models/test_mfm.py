import json
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from spai.checkpoint import backbone_settings
from spai.config import load_config
from spai.models.backbone import build_backbone, use_fused_attention
from spai.models.mfm import MaskedFrequencyModel, band_masks, denormalized, normalized
from tests.recipe import reference_image, reference_weight

REFERENCE = json.loads(
    (Path(__file__).parents[1] / "reference" / "mfm.json").read_text(encoding="utf-8")
)
DEAD = ("encoder.cls_blocks.", "encoder.cls_norm.", "encoder.cls_pos", "encoder.actual_cls")
KEPT = {"low_low": [1, 1], "high_high": [0, 0], "low_high": [1, 0]}


def build(size=32, radius=4, outer_radius=999.0, gamma=1.0, only_missing=False, width=16):
    encoder = build_backbone(
        image_size=size,
        patch_size=8,
        width=width,
        depth=1,
        heads=2,
        mlp_ratio=2,
        qkv_bias=True,
        layer_scale=None,
        absolute_positions=True,
        dropout=0.0,
        drop_path=0.0,
        final_norm=True,
    )
    return MaskedFrequencyModel(
        encoder,
        size=size,
        radius=radius,
        outer_radius=outer_radius,
        gamma=gamma,
        only_missing=only_missing,
    )


@pytest.fixture(scope="module")
def reference_model():
    layers = ("MODEL.VIT.INTERMEDIATE_LAYERS", "[0, 1, 2, 3]")
    config = load_config(overrides=[*REFERENCE["opts"].items(), layers])
    model = MaskedFrequencyModel(
        build_backbone(**backbone_settings(config), final_norm=True),
        size=224,
        radius=config.DATA.MASK_RADIUS1,
        outer_radius=config.DATA.MASK_RADIUS2,
        gamma=config.MODEL.FREQ_LOSS.LOSS_GAMMA,
        only_missing=False,
    )
    use_fused_attention(model.backbone, False)
    model.load_state_dict(
        {
            name: torch.from_numpy(reference_weight(name, tuple(tensor.shape)))
            for name, tensor in model.state_dict().items()
        }
    )
    return model.eval()


@pytest.fixture(scope="module")
def reference_images():
    images = [
        torch.from_numpy(reference_image(entry["height"], entry["width"], entry["seed"]))
        for entry in REFERENCE["images"]
    ]
    return torch.stack(images).permute(0, 3, 1, 2) / 255


@pytest.mark.parametrize("kept", KEPT)
def test_loss_equals_the_recorded_one(reference_model, reference_images, kept):
    keep_low = torch.tensor(KEPT[kept])
    with torch.no_grad():
        restored = reference_model(reference_model.corrupt(reference_images, keep_low))
        loss = reference_model.loss(restored, reference_images, keep_low)
    assert_close(loss.mean.item(), REFERENCE["loss"][kept], atol=1e-5, rtol=0)


def test_corrupted_images_have_the_recorded_means(reference_model, reference_images):
    corrupted = reference_model.corrupt(reference_images, torch.tensor([1, 0]))
    expected = torch.tensor(REFERENCE["loss"]["corrupted_mean"])
    assert_close(corrupted.mean(dim=(1, 2, 3)), expected, atol=1e-6, rtol=0)


def test_low_band_has_the_recorded_size_and_is_centred_on_dc():
    low, high = band_masks(224, 16, 999)
    assert low.sum() == REFERENCE["loss"]["mask_ones_low"]
    assert low[112, 112] == 1
    assert torch.equal(low[1:, 1:], low[1:, 1:].flip(0, 1))
    assert torch.equal(low + high, torch.ones(224, 224, dtype=torch.int64))


def test_state_dict_has_the_published_names_and_shapes(reference_model):
    published = {
        name: shape for name, shape in REFERENCE["state_dict"].items() if not name.startswith(DEAD)
    }
    ours = {name: list(tensor.shape) for name, tensor in reference_model.state_dict().items()}
    assert ours == published


def test_corruption_equals_masking_the_full_spectrum():
    model = build()
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    low, high = band_masks(32, 4, 999)
    spectra = torch.fft.fftshift(torch.fft.fft2(images), dim=(-2, -1))
    expected = [
        torch.fft.ifft2(torch.fft.ifftshift(spectrum * mask, dim=(-2, -1))).real.clamp(0, 1)
        for spectrum, mask in zip(spectra, (low, high), strict=True)
    ]
    found = model.corrupt(images, torch.tensor([1, 0]))
    assert_close(found, torch.stack(expected), atol=1e-6, rtol=0)


def test_outer_radius_bounds_the_high_band():
    low, high = band_masks(32, 4, 10)
    assert high[16, 16 + 9] == 1
    assert high[16, 16 + 10] == 0
    assert high[16, 16 + 3] == 0 and low[16, 16 + 3] == 1


def test_masked_target_counts_only_the_missing_bins_of_the_whole_batch():
    model = build(only_missing=True)
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    restored = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    keep_low = torch.tensor([1, 0])
    low, high = band_masks(32, 4, 999)
    spectra = torch.fft.fft2(restored - normalized(images), norm="ortho")
    distances = torch.fft.fftshift(spectra.abs(), dim=(-2, -1))
    total = (distances[0] * high).sum() + (distances[1] * low).sum()
    loss = model.loss(restored, images, keep_low)
    assert loss.bins == 3 * 32 * 32  # what one image lacks, the other has kept
    assert_close(loss.mean, total / loss.bins, atol=1e-5, rtol=0)


def test_gamma_is_the_exponent_of_the_distance():
    images, restored = torch.rand(1, 3, 32, 32), torch.randn(1, 3, 32, 32)
    spectra = torch.fft.fft2(restored - normalized(images), norm="ortho")
    loss = build(gamma=2.0).loss(restored, images, torch.tensor([1]))
    assert_close(loss.mean, spectra.abs().square().mean(), atol=1e-4, rtol=1e-4)


def test_gradient_is_finite_where_the_restoration_is_perfect():
    images = torch.rand(1, 3, 32, 32)
    restored = normalized(images).requires_grad_()
    build().loss(restored, images, torch.tensor([1])).mean.backward()
    assert torch.isfinite(restored.grad).all()


def test_denormalized_undoes_normalized():
    images = torch.rand(1, 3, 8, 8)
    assert_close(denormalized(normalized(images)), images, atol=1e-6, rtol=0)
