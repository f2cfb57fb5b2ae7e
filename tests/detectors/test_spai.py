"""The detector: what surrounds an image does not change its score."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import spai
from spai.checkpoint import save_pickle, save_safetensors
from spai.config import load_config
from spai.data.images import to_pixels
from spai.detectors import open_detector, resolve_device, resolve_precision
from spai.detectors.spai import SpaiDetector, build_cutter
from tests.helpers import TINY, formula_model
from tests.recipe import reference_image

SIZES = ((224, 224), (300, 500), (80, 100), (448, 470), (460, 700), (1, 1), (230, 900))


@pytest.fixture(scope="module")
def images():
    return [reference_image(height, width, seed) for seed, (height, width) in enumerate(SIZES)]


def make_detector(chunk=8, **changes):
    keys = {key.replace("__", "."): value for key, value in changes.items()}
    config = load_config(overrides=list({**TINY, **keys}.items()))
    return SpaiDetector(
        formula_model(config),
        build_cutter(config),
        {"precision": "fp32"},
        device=torch.device("cpu"),
        chunk=chunk,
    )


@pytest.fixture(scope="module")
def expected(images):
    return make_detector().score(images).logits


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(chunk=st.integers(1, 40), order=st.permutations(range(len(SIZES))))
def test_chunk_size_order_and_neighbours_do_not_change_a_bit(images, expected, chunk, order):
    scores = make_detector(chunk).score([images[i] for i in order])
    assert torch.equal(scores.logits, expected[list(order)])


def test_an_image_alone_scores_as_among_others(images, expected):
    detector = make_detector()
    alone = torch.cat([detector.score([image]).logits for image in images])
    assert torch.equal(alone, expected)


def test_crops_that_coincide_cost_one_patch(images):
    detector, encoded = make_detector(), []
    original = detector.backend.encode
    detector.backend.encode = lambda patches: encoded.append(len(patches)) or original(patches)
    scores = detector.score([images[0]])
    assert sum(encoded) == 1 and scores.attention[0].shape == (2, 5)


def test_repeated_crops_equal_scoring_five_copies(images):
    detector = make_detector()
    once = detector.score([images[0]]).logits
    patch = torch.from_numpy(images[0]).permute(2, 0, 1)[None]
    vectors = detector.backend.encode(patch).expand(5, -1)
    with torch.no_grad():
        five = detector._model.pool(vectors[None]).logits
    torch.testing.assert_close(once, five, rtol=0, atol=1e-6)


def test_paths_images_arrays_and_tensors_score_alike(images, tmp_path):
    path = tmp_path / "image.png"
    Image.fromarray(images[1]).save(path)
    kinds = [
        path,
        str(path),
        Image.open(path),
        images[1],
        torch.from_numpy(images[1]).permute(2, 0, 1),
    ]
    logits = make_detector().score(kinds).logits
    assert torch.equal(logits, logits[:1].expand(5))


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((3, 224, 224), np.uint8),
        np.zeros((224, 224, 3), np.float32),
        torch.zeros(224, 224, 3, dtype=torch.uint8),
        torch.zeros(3, 224, 224),
        torch.zeros(3, 0, 5, dtype=torch.uint8),
        b"bytes",
        None,
        "/nowhere/image.png",
    ],
)
def test_what_is_no_image_is_refused_with_what_was_found(wrong):
    with pytest.raises(ValueError, match="found|cannot score"):
        make_detector().score([wrong])


def test_no_images_give_no_scores():
    scores = make_detector().score([])
    assert scores.logits.shape == (0,) and scores.attention == ()


def test_a_forgotten_image_leaves_the_others_as_they_are(images, expected):
    detector = make_detector(chunk=3)

    def pieces():
        for key in (0, 1, 3):
            for piece in detector.cutter(to_pixels(images[key])):
                yield key, piece
                if key == 1:
                    yield key, None

    found = dict(detector.stream(pieces()))
    assert found[1] is None
    assert found[0].logit == expected[0].item() and found[3].logit == expected[3].item()


def test_scores_are_probabilities_of_the_logits(images):
    scores = make_detector().score(images)
    torch.testing.assert_close(scores.probabilities, scores.logits.double().sigmoid())


def test_bf16_encoder_keeps_pooling_and_head_in_float32(images):
    config = load_config(overrides=list(TINY.items()))
    detector = SpaiDetector(
        formula_model(config),
        build_cutter(config),
        {"precision": "bf16"},
        device=torch.device("cpu"),
    )
    model = detector._model
    assert model.to_kv.weight.dtype == model.cls_head.head[0].weight.dtype == torch.float32
    assert model.mfvit.vit.blocks[0].mlp.fc1.weight.dtype == torch.bfloat16
    exact = make_detector().score(images).probabilities
    assert (detector.score(images).probabilities - exact).abs().max() < 0.02


def test_fixed_resolution_and_ten_crops_score(images):
    for views in (None, "tencrop"):
        detector = make_detector(
            MODEL__RESOLUTION_MODE="fixed", TEST__VIEWS_GENERATION_APPROACH=views
        )
        scores = detector.score(images)
        assert torch.isfinite(scores.logits).all() and scores.attention == (None,) * len(images)


def test_ten_crops_of_a_mirrored_image_score_alike(images):
    detector = make_detector(
        MODEL__RESOLUTION_MODE="fixed", TEST__VIEWS_GENERATION_APPROACH="tencrop"
    )
    mirrored = np.ascontiguousarray(images[4][:, ::-1])
    logits = detector.score([images[4], mirrored]).logits
    torch.testing.assert_close(logits[0], logits[1], rtol=0, atol=1e-5)


def test_the_configuration_in_our_file_is_used_and_opt_wins(tmp_path):
    config = load_config(overrides=[*TINY.items(), ("MODEL.PATCH_VIT.MINIMUM_PATCHES", 1)])
    path = tmp_path / "own.safetensors"
    save_safetensors(formula_model(config), config, path, epoch=7)
    assert open_detector(path).config.MODEL.PATCH_VIT.MINIMUM_PATCHES == 1
    opt = [("MODEL.PATCH_VIT.MINIMUM_PATCHES", "3")]
    assert open_detector(path, overrides=opt).config.MODEL.PATCH_VIT.MINIMUM_PATCHES == 3


def test_what_belongs_to_the_training_machine_is_not_taken_over(tmp_path):
    places = [("DATA.LMDB_PATH", "/training/store"), ("DATA.NUM_WORKERS", 64)]
    config = load_config(overrides=[*TINY.items(), *places])
    path = tmp_path / "own.safetensors"
    save_safetensors(formula_model(config), config, path, epoch=1)
    assert open_detector(path).config.DATA.LMDB_PATH is None
    assert open_detector(path).config.DATA.NUM_WORKERS is None
    assert open_detector(path, overrides=places[1:]).config.DATA.NUM_WORKERS == 64


def test_a_foreign_pickles_configuration_is_not_used_but_named_when_it_fits(tmp_path):
    config = load_config(overrides=list(TINY.items()))
    path = tmp_path / "foreign.pth"
    save_pickle({"model": formula_model(config).state_dict(), "config": dict(config)}, path)
    file = open_detector(path)
    assert file.config.MODEL.VIT.EMBED_DIM == 768
    with pytest.raises(ValueError, match="has shape .* would fit") as caught:
        file.build(device=torch.device("cpu"), precision="fp32")
    assert "foreign.pth" in str(caught.value)


def test_load_detector_gives_the_scores_of_the_model(tiny_model, images, expected):
    detector = spai.load_detector(tiny_model, device="cpu")
    assert torch.equal(detector.score(images).logits, expected)
    assert detector.facts["name"] == "tiny.safetensors" and detector.facts["backend"] == "torch"


def test_half_precision_files_run_in_float32(tmp_path, images, expected):
    config = load_config(overrides=list(TINY.items()))
    path = tmp_path / "half.safetensors"
    save_safetensors(formula_model(config).half(), config, path, epoch=None)
    detector = spai.load_detector(path, device="cpu")
    assert detector._model.to_kv.weight.dtype == torch.float32
    torch.testing.assert_close(detector.score(images).logits, expected, rtol=0, atol=0.05)


def test_unknown_devices_and_precisions_are_refused():
    for name in ("toaster", "cuda:99", "meta"):
        with pytest.raises(ValueError, match="device"):
            resolve_device(name)
    with pytest.raises(ValueError, match="bf16"):
        resolve_precision("int4", torch.device("cpu"))


def test_auto_precision_is_half_on_cuda_and_full_elsewhere():
    assert resolve_precision("auto", torch.device("cuda")) == "fp16"
    assert resolve_precision("auto", torch.device("cpu")) == "fp32"
    assert resolve_precision("auto", torch.device("mps")) == "fp32"


def test_auto_device_prefers_cuda_then_mps(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("auto", local_rank=1) == torch.device("cuda:1")
    assert resolve_device("cuda:0", local_rank=1) == torch.device("cuda:0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert resolve_device("auto").type == "mps"


@pytest.mark.slow
def test_a_compiled_encoder_gives_the_same_scores(tiny_model, images, expected):
    file = open_detector(tiny_model)
    detector = file.build(device=torch.device("cpu"), precision="fp32", compile_model=True)
    logits = detector.score(images[:2]).logits
    torch.testing.assert_close(logits, expected[:2], rtol=0, atol=1e-4)
