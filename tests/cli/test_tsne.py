"""`spai tsne`: vectors of the one inference loop, what a model lacks, what is refused."""

import csv
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from spai.checkpoint import save_safetensors
from spai.cli.tsne import command
from spai.config import load_config
from spai.data.images import FileSource
from spai.data.loaders import LoadingOptions
from spai.data.records import read_folder
from spai.detectors import open_detector
from spai.detectors.spai import SpaiFile
from spai.engine.predict import predict
from tests.helpers import TINY, formula_model

ALL = ["tsne_image", "tsne_patch", "tsne_patch_scv", "tsne_patch_srs"]


@pytest.fixture
def sets(photos, tmp_path):
    """Return two CSVs over the photos: 4 real, 3 generated and one that is missing."""
    paths = []
    for name, label, numbers in (("real", 0, (1, 2, 3, 4)), ("fake", 1, (5, 6, 7, 8))):
        path = tmp_path / f"{name}.csv"
        lines = [f"photos/img{number}.png,{label}\n" for number in numbers]
        path.write_text("image,class\n" + "".join(lines))
        paths += ["--test-csv", path]
    return paths


@pytest.fixture
def tsne(tiny_model, tmp_path):
    def run(*arguments, output="out", model=tiny_model):
        fixed = ("--model", model, "--output", tmp_path / output, "--device", "cpu")
        given = [str(part) for part in (*fixed, "--workers", 0, *arguments)]
        return CliRunner().invoke(command, given)

    return run


def read(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def kinds(folder):
    return sorted(path.stem for path in folder.glob("*.csv"))


def variant(tmp_path, **changes):
    """Save a tiny model of another configuration."""
    keys = {key.replace("__", "."): value for key, value in changes.items()}
    config = load_config(overrides=list({**TINY, **keys}.items()))
    path = tmp_path / "variant.safetensors"
    save_safetensors(formula_model(config), config, path, epoch=None)
    return path


def test_each_kind_has_a_picture_and_a_row_a_point(tsne, sets, tmp_path):
    result = tsne(*sets)
    assert result.exit_code == 0, result.output
    folder = tmp_path / "out"
    assert kinds(folder) == ALL
    assert sorted(path.stem for path in folder.glob("*.png")) == ALL
    images = read(folder / "tsne_image.csv")
    assert list(images[0]) == ["dataset", "image", "class", "x", "y"]
    assert [(row["dataset"], row["class"]) for row in images] == [("real", "0")] * 4 + [
        ("fake", "1")
    ] * 3
    patches = read(folder / "tsne_patch.csv")
    assert list(patches[0]) == ["dataset", "image", "class", "patch", "top", "left", "x", "y"]
    # 1 + 5 + 1 + 4 patches of the real images, 4 + 1 + 6 of the generated ones
    assert len(patches) == 22
    last = [row for row in patches if row["image"] == "photos/img7.png"]
    assert [(row["patch"], row["top"], row["left"]) for row in last] == [
        ("0", "0", "0"), ("1", "0", "224"), ("2", "0", "448"),
        ("3", "224", "0"), ("4", "224", "224"), ("5", "224", "448"),
    ]  # fmt: skip
    assert "fake: images that could not be scored: 1" in result.stderr
    assert "perplexity lowered from 30 to 2 for 7 points" in result.stderr


def test_a_seed_and_any_number_of_workers_give_the_same_points(tsne, sets, tmp_path):
    for output, arguments in {"a": (), "b": ("--workers", 2), "c": ("--seed", 1)}.items():
        assert tsne(*sets, "--perplexity", 5, *arguments, output=output).exit_code == 0
    for kind in ALL:
        a, b, c = ((tmp_path / folder / f"{kind}.csv").read_bytes() for folder in "abc")
        assert a == b
    a, c = (json.loads((tmp_path / name / "tsne.run.json").read_text()) for name in "ac")
    assert (a["tsne"]["seed"], c["tsne"]["seed"]) == (0, 1)
    assert a["tsne"]["perplexity"]["image"] == 2 and a["tsne"]["perplexity"]["patch"] == 5
    assert len(a["model"]["sha256"]) == 64


@pytest.mark.parametrize(
    ("changes", "left_out"),
    [
        ({"MODEL__FRE__ORIGINAL_IMAGE_FEATURES_BRANCH": False}, "patch_scv"),
        ({"MODEL__FRE__DISABLE_RECONSTRUCTION_SIMILARITY": True}, "patch_srs"),
        ({"MODEL__RESOLUTION_MODE": "fixed"}, "image"),
    ],
)
def test_kinds_that_a_model_lacks_are_left_out(tsne, sets, tmp_path, changes, left_out):
    result = tsne(*sets, model=variant(tmp_path, **changes))
    assert result.exit_code == 0, result.output
    assert kinds(tmp_path / "out") == [kind for kind in ALL if kind != f"tsne_{left_out}"]
    assert "left out, this model has none" in result.stderr


def test_vectors_are_those_of_the_model_and_cost_nothing_unless_asked(tiny_model, photos):
    file = open_detector(tiny_model)
    settings = {"device": torch.device("cpu"), "precision": "fp32"}
    plain, keeping = (file.build(**settings, keep_features=keep) for keep in (False, True))
    records = read_folder(photos).records
    without = {p.record.name: p for p in predict(plain, records, FileSource(), LoadingOptions())}
    for prediction in predict(keeping, records, FileSource(), LoadingOptions()):
        other = without[prediction.record.name]
        assert other.features is None and other.logits == prediction.logits
        pooled, patches, similarities = prediction.features
        assert similarities == 12 and patches.shape == (len(prediction.layout.corners), 12 + 16)
        members = patches[list(prediction.layout.members)]
        model = keeping._model
        with torch.no_grad():
            again = model.pool(members[None])
            logit = model.cls_head(model.norm(pooled[None]))
        torch.testing.assert_close(again.features[0], pooled, rtol=0, atol=1e-6)
        np.testing.assert_allclose(logit.item(), prediction.logits[0], rtol=0, atol=1e-5)


def test_too_few_points_are_said(tsne, photos, tmp_path):
    table = tmp_path / "one.csv"
    table.write_text("image,class\nphotos/img1.png,0\n")
    result = tsne("--test-csv", table)
    assert result.exit_code == 2
    assert "at least 3 images or patches" in result.stderr
    table.write_text("image,class\nphotos/img7.png,0\n")
    result = tsne("--test-csv", table)
    assert result.exit_code == 0, result.output
    assert "pooled vector: left out, 1 points are too few" in result.stderr
    assert "tsne_image" not in kinds(tmp_path / "out")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image\nphotos/img1.png\n", "no column 'class'"),
        ("image,class\nno.png,0\n", "none of its 1 images can be read"),
    ],
)
def test_a_users_mistake_is_found_before_the_model_is_built(
    tsne, tmp_path, photos, monkeypatch, text, message
):
    monkeypatch.delattr(SpaiFile, "build")
    (tmp_path / "set.csv").write_text(text)
    result = tsne("--test-csv", tmp_path / "set.csv")
    assert result.exit_code == 2, result.output
    assert message in result.stderr


def test_it_does_not_run_under_torchrun(tsne, sets, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = tsne(*sets)
    assert result.exit_code == 2 and "without torchrun" in result.stderr


def test_help_imports_no_heavy_library():
    code = (
        "import sys, spai.cli.tsne; "
        "heavy = {'torch', 'pandas', 'numpy', 'sklearn', 'matplotlib'} & set(sys.modules); "
        "sys.exit(str(heavy) if heavy else 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
