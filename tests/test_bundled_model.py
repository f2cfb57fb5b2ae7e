"""The bundled model, its sample images and `make demo`."""

import csv
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from spai import weights
from spai.cli import main
from spai.detectors import load_detector, selfcheck
from spai.files import file_sha256

ROOT = Path(__file__).parents[1]
SAMPLES = ROOT / "data" / "samples"
IMAGES = sorted(path for path in SAMPLES.iterdir() if path.suffix != ".md")
# Recorded in float32 on a CPU with `spai infer --input data/samples --model mini`.
SCORES = {
    "generated_flux.png": 0.581530371601,
    "generated_man.jpg": 0.631050750821,
    "generated_ovis.png": 0.587313564993,
    "generated_portrait.webp": 0.650869073038,
    "generated_small.jpg": 0.658732267976,
    "generated_woman.jpg": 0.658517778651,
    "photo_astronaut.png": 0.586224114083,
    "photo_cat.jpg": 0.489781429973,
    "photo_coffee.webp": 0.542110471992,
    "photo_flower.jpg": 0.54610016593,
    "photo_pagoda.jpg": 0.60766656608,
    "photo_rocket.jpg": 0.333888071961,
}


@pytest.fixture(autouse=True)
def no_other_copy(monkeypatch, tmp_path):
    """Work where only the package can have the model."""
    monkeypatch.setenv("SPAI_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


def test_the_file_is_the_registered_one_and_small_enough():
    path, entry = weights.find_weights("mini"), weights.REGISTRY["mini"]
    assert file_sha256(path) == entry.sha256
    assert path.stat().st_size == entry.size <= 12e6


def test_the_file_says_nothing_of_the_machine_that_made_it():
    head = weights.find_weights("mini").read_bytes()[:20000]
    assert b"/tmp" not in head and b"/work" not in head and b"/home" not in head


def test_the_samples_have_the_recorded_scores():
    assert [path.name for path in IMAGES] == sorted(SCORES)
    detector = load_detector("mini", device="cpu", precision="fp32")
    scores = detector.score(IMAGES).probabilities
    expected = torch.tensor([SCORES[path.name] for path in IMAGES], dtype=torch.float64)
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-3)


def test_every_sample_is_named_with_its_licence():
    readme = (SAMPLES / "README.md").read_text()
    for path in IMAGES:
        assert f"`{path.name}`" in readme
        with Image.open(path) as image:
            image.verify()


def test_verify_tells_an_installation_that_computes_something_else(monkeypatch):
    good = CliRunner().invoke(main, ["weights", "verify", "--model", "mini"])
    assert good.exit_code == 0
    assert good.stdout.count("OK  ") == 2
    monkeypatch.setattr(selfcheck, "EXPECTED", (0.1, 0.2, 0.3))
    bad = CliRunner().invoke(main, ["weights", "verify", "mini"])
    assert bad.exit_code == 1
    assert "BAD  scores of 3 computed images differ" in bad.stdout


def test_infer_without_a_model_uses_it_and_says_so(tmp_path):
    arguments = ["infer", "--input", str(SAMPLES / "photo_cat.jpg"), "--output", "out"]
    result = CliRunner().invoke(main, [*arguments, "--backend", "torch"])
    assert result.exit_code == 0
    assert "using 'mini'" in result.stderr and "not the published detector" in result.stderr
    with (tmp_path / "out" / "photo_cat.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert float(row["spai"]) == pytest.approx(SCORES["photo_cat.jpg"], abs=1e-3)
    assert "demonstration" in (tmp_path / "out" / "photo_cat.run.json").read_text()


def test_a_wheel_would_carry_it():
    setup = (ROOT / "setup.py").read_text()
    assert weights.REGISTRY["mini"].file_name in setup
    assert weights.BUNDLED[0].name == "bundled" and '"bundled"' in setup
