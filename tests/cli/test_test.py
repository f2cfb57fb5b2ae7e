"""`spai test` on labelled CSVs: what is written, what is refused before a model is built."""

import csv
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from sklearn.metrics import roc_auc_score

import spai
from spai.checkpoint import save_pickle
from spai.cli.test import command
from spai.config import config_to_yaml
from spai.data.packing import list_entries, pack_files
from spai.detectors.spai import SpaiFile
from spai.engine.metrics import log_odds
from spai.report.results import RESULT_FILES
from tests.helpers import formula_model
from tests.pages import Page
from tests.recipe import reference_image

REFERENCE_COMMAND = r"""
python -m spai test --cfg ./configs/spai.yaml --batch-size 8 --model ./output/train/finetune/spai/<epoch>.pth \
  --output ./output/spai/test --tag spai --opt MODEL.PATCH_VIT.MINIMUM_PATCHES 4 --opt DATA.NUM_WORKERS 8 \
  --opt MODEL.FEATURE_EXTRACTION_BATCH 400 --opt DATA.TEST_PREFETCH_FACTOR 1 --test-csv <csv>
"""  # noqa: E501


def run(*arguments: object):
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


@pytest.fixture
def evaluate(tiny_model, tmp_path):
    """Run the command in this process on the tiny model, unless another is given."""

    def call(*arguments: object, output: Path | None = None, model: Path = tiny_model):
        fixed = ("--model", model, "--output", output or tmp_path / "out", "--device", "cpu")
        return run(*fixed, "--workers", 0, *arguments)

    return call


@pytest.fixture
def sets(tmp_path: Path) -> Path:
    """Return a folder with a CSV of each class, 4 images each, and one of both."""
    (tmp_path / "data").mkdir()
    for seed in range(8):
        image = Image.fromarray(reference_image(200 + seed, 224, seed + 1))
        image.save(tmp_path / "data" / f"{seed}.png")
    for name, seeds in (("real", range(4)), ("fake", range(4, 8)), ("both", range(8))):
        lines = [f"{seed}.png,{int(seed > 3)},test\n" for seed in seeds]
        text = "image,class,split\n" + "".join(lines) + "gone.png,1,train\n"
        (tmp_path / "data" / f"{name}.csv").write_text(text)
    return tmp_path / "data"


@pytest.fixture
def checkpoint(tiny_config):
    """Save the tiny model as training does, with an epoch or without."""

    def save(path: Path, epoch: int | None) -> Path:
        content = {
            "model": formula_model(tiny_config).state_dict(),
            "config": config_to_yaml(tiny_config),
        }
        save_pickle(content if epoch is None else {**content, "epoch": epoch}, path)
        return path

    return save


@pytest.fixture
def no_model_is_built(monkeypatch):
    def build(*_, **__):
        raise AssertionError("a model was built")

    monkeypatch.setattr(SpaiFile, "build", build)


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def record(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text())


# --- results ----------------------------------------------------------------------------------


def test_the_reference_command_works_word_for_word(
    sets, tiny_config, checkpoint, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/spai.yaml").write_text(config_to_yaml(tiny_config))
    checkpoint(tmp_path / "output/train/finetune/spai/ckpt_epoch_3.pth", 3)
    text = REFERENCE_COMMAND.replace("<epoch>", "ckpt_epoch_3").replace("<csv>", "data/both.csv")
    words = shlex.split(text.replace("\\\n", ""))
    assert words[:4] == ["python", "-m", "spai", "test"]
    result = run(*words[4:])
    assert result.exit_code == 0, result.output
    written = {path.name for path in (tmp_path / "output/spai/test").iterdir()}
    assert written == {*RESULT_FILES, "figures"}
    found = record(tmp_path / "output/spai/test")["datasets"]["both"]
    assert (found["real"], found["generated"], found["errors"]) == (4, 4, 0)
    assert result.stdout == f"{Path('output/spai/test/report.md')}\n"


def test_scores_and_metrics_are_those_of_the_detector(evaluate, sets, tiny_model, tmp_path):
    result = evaluate("--test-csv", sets / "both.csv")
    assert result.exit_code == 0, result.output
    images = [sets / f"{seed}.png" for seed in range(8)]
    expected = spai.load_detector(tiny_model, device="cpu").score(images)
    rows = read(tmp_path / "out/scores.csv")
    assert [row["image"] for row in rows] == [image.name for image in images]
    written = [float(row["score"]) for row in rows]
    np.testing.assert_allclose(written, expected.probabilities, rtol=0, atol=1e-6)
    metrics = record(tmp_path / "out")["datasets"]["both"]
    labels, logits = np.repeat((0, 1), 4), log_odds(np.array(written))
    assert metrics["auc"] == roc_auc_score(labels, written)
    assert metrics["acc"] == np.mean((np.array(written) > 0.5) == labels)
    loss = np.logaddexp(0, np.where(labels == 1, -logits, logits)).mean()
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-9)
    assert f"AUC {metrics['auc']:.4f} over 8 images" in result.stderr


def test_the_page_shows_the_worst_mistakes(evaluate, sets, tmp_path):
    result = evaluate("--test-csv", sets / "real.csv", "--test-csv", sets / "fake.csv")
    assert result.exit_code == 0, result.output
    page = Page(tmp_path / "out" / "report.html")
    scores = read(tmp_path / "out" / "scores.csv")
    wrong = [row for row in scores if (float(row["score"]) > 0.5) == (row["class"] == "0")]
    assert wrong and page.count("img") == len(wrong)
    assert sorted(page.texts["bdi"]) == sorted(row["image"] for row in wrong)
    page.check_self_contained()


def test_one_class_csvs_give_a_cross_table_and_null_instead_of_numbers(evaluate, sets, tmp_path):
    result = evaluate("--test-csv", sets / "real.csv", "--test-csv", sets / "fake.csv")
    assert result.exit_code == 0, result.output
    found = record(tmp_path / "out")
    assert found["datasets"]["real"]["auc"] is None
    assert found["datasets"]["fake"]["ap"] is None
    cross = found["cross_table"]
    assert (cross["generators"], cross["sources"]) == (["fake"], ["real"])
    rows = read(tmp_path / "out/scores.csv")
    auc = roc_auc_score([int(r["class"]) for r in rows], [float(r["score"]) for r in rows])
    np.testing.assert_allclose(cross["average"], auc)


def test_the_run_is_described_with_model_configuration_versions_and_command(
    evaluate, sets, tiny_model, tmp_path, monkeypatch
):
    monkeypatch.setattr(sys, "argv", ["/opt/bin/spai", "test", "--tag", "my tag"])
    evaluate("--test-csv", sets / "both.csv", "--tag", "mine", "--resize-to", 100)
    facts = record(tmp_path / "out")["run"]
    digest = hashlib.sha256(tiny_model.read_bytes()).hexdigest()
    assert facts["model_sha256"] == facts["model"]["sha256"] == digest
    assert facts["model"]["configuration"]["MODEL"]["VIT"]["EMBED_DIM"] == 32
    assert facts["versions"]["torch"] == version("torch")
    assert {"spai", "python", "scikit-learn"} <= facts["versions"].keys()
    assert (facts["device"], facts["precision"], facts["ranks"]) == ("cpu", "fp32", 1)
    assert (facts["tag"], facts["split"]) == ("mine", "test")
    assert facts["settings"]["resize_to"] == 100
    assert facts["command"] == "spai test --tag 'my tag'"
    (given,) = facts["inputs"]
    assert given["sha256"] == hashlib.sha256((sets / "both.csv").read_bytes()).hexdigest()
    report = (tmp_path / "out/report.md").read_text()
    assert digest in report and "- precision: fp32" in report


def test_images_that_cannot_be_read_are_error_rows_and_enter_no_metric(evaluate, sets, tmp_path):
    evaluate("--test-csv", sets / "both.csv", output=tmp_path / "sound")
    (sets / "bad.png").write_bytes(b"no image")
    with (sets / "both.csv").open("a") as file:
        file.write("bad.png,0,test\nmissing.png,1,test\n")
    result = evaluate("--test-csv", sets / "both.csv")
    assert result.exit_code == 0, result.output
    *_, bad, missing = read(tmp_path / "out/scores.csv")
    assert (bad["score"], missing["score"]) == ("", "")
    assert "not an image" in bad["error"] and missing["error"] == "file not found"
    found, sound = (record(tmp_path / n)["datasets"]["both"] for n in ("out", "sound"))
    assert found.pop("errors") == 2 and sound.pop("errors") == 0
    assert found == sound
    assert "both: images without a score: 2" in result.stderr


def test_the_split_chooses_the_rows(evaluate, sets, tmp_path):
    shutil.copy(sets / "0.png", sets / "gone.png")
    evaluate("--test-csv", sets / "both.csv", "--split", "train")
    assert [row["image"] for row in read(tmp_path / "out/scores.csv")] == ["gone.png"]


def test_resizing_and_perturbation_keys_change_the_scores(evaluate, sets, tmp_path):
    options = ([], ["--resize-to", 90], ["--opt", "TEST.GAUSSIAN_NOISE", "True"])
    for number, extra in enumerate(options):
        result = evaluate(*("--test-csv", sets / "both.csv", *extra), output=tmp_path / str(number))
        assert result.exit_code == 0, result.output
    first, *others = (read(tmp_path / str(n) / "scores.csv") for n in range(3))
    for other in others:
        assert all(a["score"] != b["score"] for a, b in zip(first, other, strict=True))


def test_a_store_gives_the_results_of_the_files(evaluate, sets, tmp_path):
    csvs = ("--test-csv", sets / "real.csv", "--test-csv", sets / "fake.csv")
    evaluate(*csvs, output=tmp_path / "files")
    pack_files(list_entries(sets), tmp_path / "store.lmdb")
    for image in sets.glob("*.png"):
        image.unlink()
    result = evaluate(*csvs, "--lmdb", tmp_path / "store.lmdb")
    assert result.exit_code == 0, result.output
    for name in ("scores.csv", "metrics.csv"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "files" / name).read_bytes()


def test_csvs_of_one_stem_are_told_apart_by_their_folder(evaluate, sets, tmp_path):
    for name in ("real", "fake"):
        (sets / name).mkdir()
        shutil.copy(sets / f"{name}.csv", sets / name / "test.csv")
    csvs = ("--test-csv", sets / "real/test.csv", "--test-csv", sets / "fake/test.csv")
    result = evaluate(*csvs, "--test-csv-root-dir", sets)
    assert result.exit_code == 0, result.output
    assert list(record(tmp_path / "out")["datasets"]) == ["real/test", "fake/test"]


# --- update-csv and folders of checkpoints ----------------------------------------------------


def test_update_csv_adds_the_scores_under_tag_and_epoch(evaluate, sets, checkpoint, tmp_path):
    model = checkpoint(tmp_path / "model.pth", 12)
    result = evaluate("--test-csv", sets / "both.csv", "--update-csv", "--tag", "x", model=model)
    assert result.exit_code == 0, result.output
    rows = read(sets / "both.csv")
    assert list(rows[0]) == ["image", "class", "split", "x_epoch_12"]
    scores = [float(row["score"]) for row in read(tmp_path / "out/scores.csv")]
    added = [row["x_epoch_12"] for row in rows]
    np.testing.assert_allclose([float(text) for text in added[:8]], scores, rtol=1e-11)
    assert added[8] == ""  # of another split


def test_a_model_without_epoch_adds_a_column_named_by_the_tag(evaluate, sets):
    evaluate("--test-csv", sets / "both.csv", "--update-csv")
    assert list(read(sets / "both.csv")[0]) == ["image", "class", "split", "spai"]


@pytest.mark.usefixtures("no_model_is_built")
def test_a_column_that_is_there_already_is_refused(evaluate, sets, checkpoint, tmp_path):
    text = "image,class,spai_epoch_2\n0.png,0,mine\n"
    (sets / "both.csv").write_text(text)
    model = checkpoint(tmp_path / "model.pth", 2)
    result = evaluate("--test-csv", sets / "both.csv", "--update-csv", model=model)
    assert result.exit_code == 2
    assert "already has the column 'spai_epoch_2'; choose another --tag" in result.stderr
    assert (sets / "both.csv").read_text() == text


def test_a_folder_is_tested_checkpoint_by_checkpoint_in_natural_order(
    evaluate, sets, checkpoint, tmp_path
):
    folder = tmp_path / "trained"
    for epoch in (10, 2):
        checkpoint(folder / f"ckpt_epoch_{epoch}.pth", epoch)
    (folder / "last.pt").write_bytes(b"something else")
    csvs = ("--test-csv", sets / "real.csv", "--test-csv", sets / "fake.csv")
    result = evaluate(*csvs, "--update-csv", model=folder)
    assert result.exit_code == 0, result.output
    names = ["ckpt_epoch_2", "ckpt_epoch_10"]
    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == sorted(
        [*names, "checkpoints.csv", "checkpoints.md"]
    )
    rows = read(out / "checkpoints.csv")
    assert [(row["checkpoint"], row["dataset"]) for row in rows] == [
        (name, dataset) for name in names for dataset in ("real", "fake", "AVG")
    ]
    for row in rows:
        found = record(out / row["checkpoint"])
        assert row["epoch"] == str(found["run"]["epoch"])
        if row["dataset"] == "AVG":
            assert float(row["mean_auc"]) == found["cross_table"]["average"]
        else:
            assert float(row["acc"]) == found["datasets"][row["dataset"]]["acc"]
            assert row["auc"] == ""  # of one class
    columns = ["image", "class", "split", "spai_epoch_2", "spai_epoch_10"]
    assert list(read(sets / "real.csv")[0]) == columns
    assert "ckpt_epoch_10" in (out / "checkpoints.md").read_text()


@pytest.mark.usefixtures("no_model_is_built")
def test_two_checkpoints_of_one_epoch_cannot_both_update(evaluate, sets, checkpoint, tmp_path):
    for name in ("1", "2"):
        checkpoint(tmp_path / f"trained/ckpt_epoch_{name}.pth", 1)
    result = evaluate(
        *("--test-csv", sets / "both.csv", "--update-csv"), model=tmp_path / "trained"
    )
    assert result.exit_code == 2
    assert "both would add the column 'spai_epoch_1'" in result.stderr


# --- what is refused --------------------------------------------------------------------------


@pytest.mark.usefixtures("no_model_is_built")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing option '--test-csv'"),
        (["--test-csv", "data/no.csv"], "data/no.csv: no such file"),
        (["--test-csv", "data/bad.csv"], "row 1 (0.png): class 'x'"),
        (["--test-csv", "data/both.csv", "--split", "dev"], "no rows with split='dev'"),
        (["--test-csv", "data/both.csv", "--test-csv", "data/both.csv"], "given twice"),
        (
            ["--test-csv", "data/both.csv", *["--test-csv-root-dir", "data"] * 2],
            "2 root folders for 1 CSVs",
        ),
        (["--test-csv", "data/both.csv", "--test-csv-root-dir", "."], "is the root folder right?"),
        (["--test-csv", "data/both.csv", "--model", "data"], "no ckpt_epoch_*.pth in this folder"),
        (["--test-csv", "data/both.csv", "--model", "data/0.png"], "0.png"),
        (["--test-csv", "data/both.csv", "--model", "no.pth"], "no.pth: no such file or model"),
        (["--test-csv", "data/both.csv", "--opt", "MODEL.X", "1"], "unknown configuration key"),
        (["--test-csv", "data/both.csv", "--tag", " "], "--tag"),
        (["--test-csv", "data/both.csv", "--lmdb", "data/0.png"], "no LMDB store"),
        (["--test-csv", "data/both.csv", "--output", "data/0.png"], "cannot be written"),
        (["--test-csv", "data/scores.csv", "--output", "data"], "would be overwritten"),
    ],
)
def test_a_mistake_is_named_in_one_line_before_a_model_is_built(
    evaluate, sets, tmp_path, monkeypatch, arguments, message
):
    monkeypatch.chdir(tmp_path)
    (sets / "bad.csv").write_text("image,class\n0.png,x\n")
    shutil.copy(sets / "both.csv", sets / "scores.csv")
    result = evaluate(*arguments)
    assert result.exit_code == 2, result.output
    assert message in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out" / "metrics.json").exists()


# --- several processes ------------------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_give_the_same_files_as_one(evaluate, sets, tiny_model, tmp_path):
    (sets / "bad.png").write_bytes(b"no image")
    with (sets / "both.csv").open("a") as file:
        file.write("bad.png,0,test\n")
    csvs = [part for name in ("both", "real") for part in ("--test-csv", sets / f"{name}.csv")]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as torchrun's processes: sums may be split over threads
    try:
        assert evaluate(*csvs).exit_code == 0
    finally:
        torch.set_num_threads(threads)
    driver = tmp_path / "driver.py"
    driver.write_text("from spai.cli.test import command\n\ncommand()\n")
    options = ("--model", tiny_model, "--device", "cpu", "--workers", 0, *csvs)
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone")
    package = str(Path(spai.__file__).parents[1])
    done = subprocess.run(
        [*launcher, "--nproc-per-node=2", driver, *map(str, options), "--output", tmp_path / "two"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": package},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for name in ("scores.csv", "metrics.csv"):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
    one, two = record(tmp_path / "out"), record(tmp_path / "two")
    assert one["datasets"] == two["datasets"]
    assert (one["run"]["ranks"], two["run"]["ranks"]) == (1, 2)
    assert done.stderr.count("both: images without a score: 1") == 1
