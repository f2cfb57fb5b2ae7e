"""What users see of backends: ONNX files, `infer --backend`, and the cache of converted models."""

import json

import pandas as pd
import pytest
from click.testing import CliRunner

from spai.backends import BACKENDS
from spai.cli import main

onnx = pytest.importorskip("onnx", reason="onnx is not installed (extra `onnx`)")
pytestmark = pytest.mark.skipif(
    not (BACKENDS["openvino"].installed and BACKENDS["onnxruntime"].installed),
    reason="openvino or onnxruntime is not installed (extras `cpu`, `onnx`)",
)


def spai(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("SPAI_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def infer(model, photos, output, *options):
    return spai(
        *("infer", "--model", model, "--input", photos, "--output", output, "--device", "cpu"),
        *("--workers", 0, *options),
    )


@pytest.mark.slow
@pytest.mark.parametrize("extra", [(), ("--exclude-preprocessing",)])
def test_exported_files_agree_with_the_model_and_say_where_they_are_from(
    extra, tiny_model, photos, tmp_path
):
    where = ("--model", tiny_model, "--output", tmp_path, "--tag", "v1")
    exported = spai("export-onnx", *where, *extra)
    assert exported.exit_code == 0, exported.output
    encoder = onnx.load(tmp_path / "v1" / "patch_encoder.onnx")
    aggregator = onnx.load(tmp_path / "v1" / "patch_aggregator.onnx")

    def axes(value):
        return [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]

    inputs = {value.name: axes(value) for value in encoder.graph.input}
    names = ("x", "x_low", "x_high") if extra else ("patches",)
    assert inputs == {name: ["P", 3, 224, 224] for name in names}
    assert axes(aggregator.graph.input[0]) == ["B", "K", 28]
    assert axes(aggregator.graph.output[0]) == ["B", 1]
    said = {entry.key: entry.value for entry in encoder.metadata_props}
    assert json.loads(said["spai.configuration"])["MODEL"]["VIT"]["EMBED_DIM"] == 32
    validated = spai("validate-onnx", *where, "--input", photos)
    assert validated.exit_code == 0, validated.output
    assert "images: logits" in validated.stdout and "     7  " in validated.stdout


@pytest.mark.slow
def test_files_that_differ_fail_and_files_of_another_model_are_refused(
    tiny_model, reduced_model, tmp_path
):
    where = ("--output", tmp_path)
    assert "export-onnx" in spai("validate-onnx", "--model", tiny_model, *where).output
    assert spai("export-onnx", "--model", tiny_model, *where).exit_code == 0
    other = spai("validate-onnx", "--model", reduced_model, *where)
    assert other.exit_code == 2 and "was made from the model" in other.output
    path = tmp_path / "patch_aggregator.onnx"
    changed = onnx.load(path)
    last = next(entry for entry in changed.graph.initializer if entry.name.endswith("head.6.bias"))
    values = onnx.numpy_helper.to_array(last) + 0.01
    last.CopyFrom(onnx.numpy_helper.from_array(values, last.name))
    onnx.save(changed, path)
    differs = spai("validate-onnx", "--model", tiny_model, *where)
    assert differs.exit_code == 1 and "DIFFERS" in differs.output
    path.write_bytes(b"no onnx")
    assert spai("validate-onnx", "--model", tiny_model, *where).exit_code == 2


@pytest.mark.slow
def test_backends_give_the_same_scores_and_the_run_says_which(tiny_model, photos, tmp_path, home):
    scores = {}
    for backend in BACKENDS:
        result = infer(tiny_model, photos, tmp_path / backend, "--backend", backend)
        assert result.exit_code == 0, result.output
        scores[backend] = pd.read_csv(tmp_path / backend / "photos.csv").spai
        facts = json.loads((tmp_path / backend / "photos.run.json").read_text())
        assert facts["settings"]["backend"] == facts["model"]["backend"] == backend
        assert facts["model"]["backend_version"] == BACKENDS[backend].version
        assert facts["model"]["precision"] == "fp32"
    for backend in ("openvino", "onnxruntime"):
        assert (scores[backend] - scores["torch"]).abs().max() < 1e-5


def test_a_resumed_run_keeps_its_backend_and_refuses_another(tiny_model, photos, tmp_path, home):
    assert infer(tiny_model, photos, tmp_path / "out").exit_code == 0  # auto: few patches, torch
    assert spai("weights", "compile", tiny_model).exit_code == 0  # from now on auto is openvino
    (photos / "img1.png").touch()
    resumed = infer(tiny_model, photos, tmp_path / "out", "--resume")
    assert resumed.exit_code == 0, resumed.output
    facts = json.loads((tmp_path / "out" / "photos.run.json").read_text())
    assert facts["settings"]["backend"] == "torch"
    assert facts["counts"]["kept_from_earlier_run"] == 6
    refused = infer(tiny_model, photos, tmp_path / "out", "--resume", "--backend", "openvino")
    assert refused.exit_code == 2
    assert "backend was 'torch', now 'openvino'" in refused.output
    assert infer(tiny_model, photos, tmp_path / "new").exit_code == 0
    facts = json.loads((tmp_path / "new" / "photos.run.json").read_text())
    assert facts["settings"]["backend"] == "openvino"


def test_test_runs_on_a_backend(tiny_model, photos, tmp_path, home):
    csv = tmp_path / "set.csv"
    csv.write_text("image,class\nimg1.png,0\nimg2.png,1\n")
    result = spai(
        *("test", "--model", tiny_model, "--test-csv", csv, "--test-csv-root-dir", photos),
        *("--output", tmp_path / "out", "--workers", 0, "--backend", "openvino"),
    )
    assert result.exit_code == 0, result.output
    facts = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert "openvino" in json.dumps(facts)


@pytest.mark.slow
def test_much_to_score_pays_the_conversion(tiny_model, photos, tmp_path, home, monkeypatch):
    monkeypatch.setattr("spai.detectors.encoders.PATCHES_THAT_PAY", 20)
    few = infer(tiny_model, photos / "img1.png", tmp_path / "few")
    many = infer(tiny_model, photos, tmp_path / "many")
    assert few.exit_code == many.exit_code == 0
    found = [
        json.loads((tmp_path / name).read_text())["settings"]["backend"]
        for name in ("few/img1.run.json", "many/photos.run.json")
    ]
    assert found == ["torch", "openvino"]


def test_the_cache_is_listed_and_emptied(tiny_model, home):
    assert "0 converted" in spai("weights", "clean-cache", "--yes").stdout
    assert spai("weights", "compile", tiny_model, "--precision", "fp32").exit_code == 0
    other = home / "compiled" / "notes.txt"
    other.write_text("mine")
    asked = CliRunner().invoke(main, ["weights", "clean-cache"], input="n\n")
    assert "1 converted models" in asked.stdout and len(list(home.rglob("encoder.xml"))) == 1
    emptied = spai("weights", "clean-cache", "--yes")
    assert emptied.exit_code == 0 and "MB freed" in emptied.stdout
    assert [path.name for path in (home / "compiled").iterdir()] == ["notes.txt"]


def test_precisions_and_devices_that_a_backend_lacks_are_mistakes(tiny_model, photos, tmp_path):
    for options in (
        ("--backend", "onnxruntime", "--precision", "bf16"),
        ("--backend", "openvino", "--precision", "fp16"),
        ("--backend", "openvino", "--compile"),
    ):
        result = infer(tiny_model, photos, tmp_path / "out", *options)
        assert result.exit_code == 2 and "--" in result.output
