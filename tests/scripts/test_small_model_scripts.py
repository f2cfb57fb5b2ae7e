"""The tools behind docs/mini.md."""

import importlib.util
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from spai.checkpoint import read_model_file
from spai.detectors import load_detector
from spai.detectors.selfcheck import formula_image

SCRIPTS = Path(__file__).parents[2] / "scripts"


def load(name):
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(name, *arguments):
    return CliRunner().invoke(load(name).main, [str(argument) for argument in arguments])


@pytest.fixture
def data(tmp_path):
    """Return a CSV of real noise and generated smooth images of several sizes."""
    rng = np.random.default_rng(0)
    rows = []
    for index in range(16):
        pixels = rng.integers(0, 256, (130 + 10 * index, 200, 3), dtype=np.uint8)
        image = Image.fromarray(pixels)
        if index % 2:
            image = image.resize((40, 40)).resize(image.size)
        image.save(tmp_path / f"{index} ü.png")
        split = "train" if index < 8 else "test"
        rows.append((f"{index} ü.png", index % 2, split, f"s{index % 3}", f"gen/{index % 5}"))
    table = pd.DataFrame(rows, columns=["image", "class", "split", "source", "generator"])
    table.to_csv(tmp_path / "set.csv", index=False)
    return tmp_path / "set.csv"


def test_the_common_set_has_one_size_and_one_format(data, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    with data.open("a") as file:
        file.write("broken.png,0,test,s0,none\n")
    out = tmp_path / "common"
    result = run(
        "make_common_set",
        *("-i", data, "-o", out, "--side", 120, "--quality", 80),
        *("--group", "source", "--group", "generator"),
    )
    assert result.exit_code == 0
    assert "left out: broken.png" in result.stderr
    table = pd.read_csv(out / "all.csv")
    assert len(table) == 8 and set(table["split"]) == {"test"}
    for name in table["image"]:
        with Image.open(out / name) as image:
            assert (image.size, image.format) == ((120, 120), "JPEG")
    assert list(table["class"]) == [index % 2 for index in range(8, 16)]
    groups = {path.name for path in out.glob("*_*.csv")}
    assert groups == {"real_s0.csv", "real_s1.csv", "real_s2.csv"} | {
        f"fake_gen-{index % 5}.csv" for index in range(9, 16, 2)
    }
    total = sum(len(pd.read_csv(out / name)) for name in groups)
    assert total == 8


def test_images_smaller_than_the_square_are_not_enlarged(data, tmp_path):
    run("make_common_set", "-i", data, "-o", tmp_path / "c", "--split", "train", "--side", 180)
    first = pd.read_csv(tmp_path / "c/all.csv")["image"][0]
    with Image.open(tmp_path / "c" / first) as image:
        assert image.size == (130, 130)


def test_a_missing_column_is_named(data, tmp_path):
    result = run("make_common_set", "-i", data, "-o", tmp_path / "c", "--group", "colour")
    assert result.exit_code == 2
    assert "no column colour" in result.stderr


def test_the_spectrum_tells_noise_from_what_was_enlarged(data):
    result = run("spectrum_baseline", "--train-csv", data, "--test-csv", data)
    assert result.exit_code == 0
    assert "AUC 1.000" in result.stdout


def test_an_exported_model_scores_as_the_checkpoint(tiny_model, tmp_path):
    output = tmp_path / "out.safetensors"
    result = run("export_safetensors", "--model", tiny_model, "--output", output)
    assert result.exit_code == 0
    assert read_model_file(output).sha256 in result.stdout
    image = formula_image(240, 300)
    scores = [load_detector(p, device="cpu").score([image]).logits for p in (tiny_model, output)]
    assert torch.equal(*scores)


def test_false_positive_rates_are_those_of_the_scores(tmp_path):
    columns = ["dataset", "image", "class", "score", "error"]
    rows = [("d", f"{i}.png", i % 2, i / 10, "") for i in range(10)]
    pd.DataFrame(rows, columns=columns).to_csv(tmp_path / "scores.csv", index=False)
    degraded = pd.DataFrame(rows, columns=columns).assign(perturbation="jpeg", level=50)
    degraded["score"] += 0.2
    degraded.to_csv(tmp_path / "perturbed.csv", index=False)
    module = load("false_positives")
    threshold = type("T", (), {"threshold": 0.5, "target_fpr": 0.1})
    calibration = type("C", (), {"thresholds": (threshold,)})
    module.read_calibration = lambda path: type("F", (), {"calibration": calibration})
    result = CliRunner().invoke(
        module.main,
        [
            *("--scores", str(tmp_path / "scores.csv")),
            *("--perturbed", str(tmp_path / "perturbed.csv"), "--calibration", "c.json"),
        ],
    )
    assert "none 0: FPR 0.400 of 5, TPR 0.600 of 5" in result.stdout  # 0.6, 0.8; 0.5, 0.7, 0.9
    assert "jpeg 50: FPR 0.600 of 5, TPR 0.800 of 5" in result.stdout


def test_small_crops_have_the_asked_side_and_follow_the_seed():
    module = load("make_upscaled_set")
    pixels = np.random.default_rng(0).integers(0, 256, (300, 500, 3), dtype=np.uint8)
    first, again = (module.small_crop(pixels, 50, np.random.default_rng(3)) for _ in range(2))
    assert first.size == (50, 50)
    assert first.tobytes() == again.tobytes()
    assert module.small_crop(pixels[:30], 50, np.random.default_rng(3)).size == (50, 50)


def test_textures_are_written_with_their_classes(tmp_path):
    result = run("make_texture_dataset", *("--output", tmp_path / "t", "--train", 4, "--val", 2))
    assert result.exit_code == 0
    table = pd.read_csv(tmp_path / "t/textures.csv")
    assert list(table["class"]) == [0, 1] * 3
    assert list(table["split"]) == ["train"] * 4 + ["val"] * 2
    for row in table["image"]:
        with Image.open(tmp_path / "t" / row) as image:
            assert image.size == (112, 112)
