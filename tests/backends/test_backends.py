"""The backends against torch: same vectors, same scores, whatever surrounds a patch."""

import json
import subprocess
import sys

import pytest
import torch

import spai
from spai.backends import BACKENDS, check_backend, cpu_threads
from spai.checkpoint import save_safetensors
from spai.config import load_config
from spai.detectors import open_detector
from spai.detectors.encoders import PATCHES_THAT_PAY
from tests.helpers import REFERENCE, TINY, formula_model
from tests.recipe import reference_image

CPU = torch.device("cpu")
LOGIT_TOLERANCE = 1e-4
# A patch's vector among others and alone: the products are cut up differently.
NEIGHBOUR_TOLERANCE = 2e-6

needs_openvino = pytest.mark.skipif(
    not BACKENDS["openvino"].installed, reason="openvino is not installed (extra `cpu`)"
)
needs_onnx = pytest.mark.skipif(
    not BACKENDS["onnxruntime"].installed, reason="onnxruntime is not installed (extra `onnx`)"
)
GRAPHS = [
    pytest.param("openvino", marks=needs_openvino),
    pytest.param("onnxruntime", marks=needs_onnx),
]
# The paper's ablations, and what else changes the graph.
VARIANTS = {
    "published": {},
    "shared projector": {"MODEL.VIT.PATCH_PROJECTION_PER_FEATURE": False},
    "no projector": {"MODEL.VIT.PATCH_PROJECTION": False},
    "gelu after the projector": {"MODEL.FRE.PROJECTOR_LAST_LAYER_ACTIVATION_TYPE": "gelu"},
    "no context": {"MODEL.FRE.ORIGINAL_IMAGE_FEATURES_BRANCH": False},
    "no similarities": {"MODEL.FRE.DISABLE_RECONSTRUCTION_SIMILARITY": True},
    "one block": {"MODEL.VIT.INTERMEDIATE_LAYERS": [0]},
    "wide band": {"MODEL.FRE.MASKING_RADIUS": 40},
    "fixed resolution": {"MODEL.RESOLUTION_MODE": "fixed"},
}


def needs_bf16(precision):
    """Skip where OpenVINO cannot multiply in bfloat16, and for no other reason."""
    from spai.backends.openvino import has_bf16

    if precision == "bf16" and not has_bf16():
        pytest.skip("this processor has no bfloat16 arithmetic")


def pixels(height, width, seed):
    return torch.from_numpy(reference_image(height, width, seed)).permute(2, 0, 1)


@pytest.fixture(scope="module")
def images():
    return [pixels(224, 224, 1), pixels(300, 500, 2), pixels(460, 700, 3), pixels(80, 100, 4)]


@pytest.fixture(scope="module")
def shared_home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(autouse=True)
def home(shared_home, monkeypatch):
    """Convert a model once for all tests of this file."""
    monkeypatch.setenv("SPAI_HOME", str(shared_home))


def model_file(folder, changes):
    config = load_config(overrides=list({**TINY, **changes}.items()))
    path = folder / "model.safetensors"
    save_safetensors(formula_model(config), config, path, epoch=None)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("backend", GRAPHS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_scores_as_with_torch(backend, variant, tmp_path, images):
    path = model_file(tmp_path, VARIANTS[variant])
    expected = spai.load_detector(path, device="cpu", backend="torch").score(images)
    found = spai.load_detector(path, device="cpu", backend=backend).score(images)
    torch.testing.assert_close(found.logits, expected.logits, rtol=0, atol=LOGIT_TOLERANCE)
    for one, other in zip(found.attention, expected.attention, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=0, atol=LOGIT_TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("backend", GRAPHS)
def test_the_reduced_model_gives_the_recorded_logits(backend, reduced_model, reference):
    case = reference("logits.json")["reduced"]["images"]
    detector = spai.load_detector(reduced_model, device="cpu", backend=backend)
    logits = detector.score([pixels(i["height"], i["width"], i["seed"]) for i in case]).logits
    expected = torch.tensor([image["logit"] for image in case])
    torch.testing.assert_close(logits, expected, rtol=0, atol=LOGIT_TOLERANCE)


@pytest.mark.slow
@needs_openvino
def test_bf16_stays_near_float32(reduced_model, reference):
    case = reference("logits.json")["reduced"]["images"]
    file = open_detector(reduced_model)
    needs_bf16("bf16")
    detector = file.build(device=CPU, precision="bf16", backend="openvino")
    scores = detector.score([pixels(i["height"], i["width"], i["seed"]) for i in case])
    expected = torch.tensor([i["logit"] for i in case], dtype=torch.float64).sigmoid()
    assert (scores.probabilities - expected).abs().max() < 0.01
    assert detector.facts["backend"] == "openvino" and detector.facts["precision"] == "bf16"


@pytest.mark.parametrize("backend", GRAPHS)
def test_neighbours_and_chunk_do_not_change_a_vector(backend, tiny_model):
    detector = spai.load_detector(tiny_model, device="cpu", backend=backend)
    patches = torch.stack([pixels(224, 224, seed) for seed in range(7)])
    alone = torch.cat([detector.backend.encode(patch[None]) for patch in patches])
    for chunk in (2, 3, 7):
        together = torch.cat([detector.backend.encode(part) for part in patches.split(chunk)])
        torch.testing.assert_close(together, alone, rtol=0, atol=NEIGHBOUR_TOLERANCE)
    again = torch.cat([detector.backend.encode(part) for part in patches.flip(0).split(7)])
    assert torch.equal(again.flip(0), together)  # places within a chunk are alike to the last bit


@pytest.mark.parametrize("backend", GRAPHS)
def test_the_graph_replaces_the_weights_of_the_encoder(backend, tiny_model, images):
    detector = spai.load_detector(tiny_model, device="cpu", backend=backend)
    held = [name for name, value in detector._model.named_parameters() if not value.is_meta]
    assert held and not any(".vit." in name or "features_processor" in name for name in held)
    assert torch.isfinite(detector.score(images).logits).all()


@needs_openvino
def test_auto_is_openvino_when_the_model_was_converted_or_it_pays(
    tiny_model, tmp_path, monkeypatch
):
    monkeypatch.setenv("SPAI_HOME", str(tmp_path))
    file = open_detector(tiny_model)
    choose = {"device": CPU, "precision": "fp32"}
    asked = []

    def enough(patches):
        asked.append(patches)
        return False

    assert file.choose_backend("auto", **choose, enough=enough) == "torch"
    assert asked == [PATCHES_THAT_PAY]
    assert file.choose_backend("auto", **choose, enough=lambda patches: True) == "openvino"
    assert file.choose_backend("auto", **choose, compile_model=True, enough=enough) == "torch"
    assert file.choose_backend("auto", device=CPU, precision="fp16", enough=enough) == "torch"
    assert file.choose_backend("auto", device=torch.device("cuda"), precision="fp32") == "torch"
    file.build(**choose, backend="openvino")
    assert file.choose_backend("auto", **choose) == "openvino"
    other = open_detector(tiny_model, overrides=[("MODEL.PATCH_VIT.MINIMUM_PATCHES", "2")])
    assert other.choose_backend("auto", **choose) == "openvino"  # the same graph
    assert spai.load_detector(tiny_model, device="cpu").facts["backend"] == "openvino"


def test_without_the_package_auto_is_torch_and_asking_for_it_says_how(tiny_model, monkeypatch):
    import importlib.util

    find = importlib.util.find_spec
    gone = set(BACKENDS["openvino"].packages + BACKENDS["onnxruntime"].packages)
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *rest: None if name in gone else find(name, *rest)
    )
    file = open_detector(tiny_model)
    choose = {"device": CPU, "precision": "fp32"}
    assert file.choose_backend("auto", **choose, enough=lambda patches: True) == "torch"
    for name, extra in (("openvino", "cpu"), ("onnxruntime", "onnx")):
        with pytest.raises(ValueError, match=rf"{name}: is not installed; .*spai\[{extra}\]"):
            file.choose_backend(name, **choose)


@pytest.mark.parametrize(
    ("name", "device", "precision", "message"),
    [
        ("tvm", "cpu", "fp32", "use auto, torch, openvino"),
        ("openvino", "cuda", "fp32", "not on cuda"),
        ("openvino", "cpu", "fp16", "no --precision fp16; use fp32 or bf16"),
        ("onnxruntime", "cpu", "bf16", "use fp32"),
    ],
)
def test_what_cannot_run_is_refused_with_the_remedy(name, device, precision, message):
    with pytest.raises(ValueError, match=message):
        check_backend(name, device=device, precision=precision)


def test_torch_compile_and_another_backend_exclude_each_other(tiny_model):
    with pytest.raises(ValueError, match="openvino"):
        open_detector(tiny_model).choose_backend(
            "openvino", device=CPU, precision="fp32", compile_model=True
        )


def test_threads_are_limited_to_what_the_process_may_use(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(8)), raising=False)
    assert cpu_threads() is None
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {1, 2, 3})
    assert cpu_threads() == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert cpu_threads() == 1


@pytest.mark.slow
@needs_openvino
def test_openvino_does_not_report_its_use():
    code = (
        "import spai.backends.openvino, sys; from openvino.tools import ovc; "
        "print(sys.modules['openvino_telemetry'], type(ovc.telemetry).__module__)"
    )
    said = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True).stdout
    assert said.split() == ["None", "openvino.tools.ovc.telemetry_stub"]


@pytest.mark.slow
@needs_openvino
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("bf16", 0.05)])
def test_the_full_size_model_gives_the_recorded_logits(precision, tolerance, full_model):
    case = json.loads((REFERENCE / "logits.json").read_text())["full"]["images"]
    file = open_detector(full_model)
    needs_bf16(precision)
    detector = file.build(device=CPU, precision=precision, backend="openvino")
    scores = detector.score([pixels(i["height"], i["width"], i["seed"]) for i in case])
    expected = torch.tensor([image["logit"] for image in case])
    torch.testing.assert_close(scores.logits, expected, rtol=0, atol=tolerance)
    assert (scores.probabilities - expected.double().sigmoid()).abs().max() < 0.01


@pytest.fixture(scope="module")
def full_model(tmp_path_factory):
    from spai.config import default_config

    path = tmp_path_factory.mktemp("full") / "full.safetensors"
    save_safetensors(formula_model(default_config()), default_config(), path, epoch=None)
    return path
