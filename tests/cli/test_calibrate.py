"""`spai calibrate`, and the verdicts of `spai infer --calibration`."""

import csv
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner

from spai.checkpoint import save_safetensors
from spai.cli import main
from spai.detectors.spai import SpaiFile
from spai.engine.calibration_file import read_calibration
from tests.helpers import formula_model


def spai(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def read(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def infer(tiny_model, photos, tmp_path):
    """Score the photos with the tiny model."""

    def run(*arguments, output="out", model=tiny_model, given=photos):
        fixed = ("--input", given, "--model", model, "--output", tmp_path / output)
        return spai("infer", *fixed, "--workers", 0, "--device", "cpu", *arguments)

    return run


@pytest.fixture
def scored(infer, tmp_path):
    """Return the score CSV of the photos."""
    assert infer().exit_code == 0
    return tmp_path / "out" / "photos.csv"


@pytest.fixture
def calibration(scored, tmp_path):
    """Return a calibration by the photos as real images: 1 and 3 of 7 are false positives."""
    path = tmp_path / "tiny.json"
    result = spai(
        *("calibrate", "--real", scored, "--target-fpr", 0.2, "--target-fpr", 0.5),
        *("--output", path),
    )
    assert result.exit_code == 0, result.output
    return path


# --- calibrate --------------------------------------------------------------------------------


def test_a_calibration_lies_beside_the_model_and_tells_what_it_is_for(scored, tiny_model, tmp_path):
    model = shutil.copy(tiny_model, tmp_path / "copy.safetensors")
    result = spai("calibrate", "--real", scored, "--target-fpr", 0.5, "--model", model)
    assert result.exit_code == 0, result.output
    path = tmp_path / "copy.calibration.json"
    assert result.stdout == f"{path}\n"
    run = json.loads((tmp_path / "out" / "photos.run.json").read_text())
    found = read_calibration(path)
    assert found.origin.sha256 == run["model"]["sha256"]
    assert found.origin.settings["configuration"] == run["settings"]["configuration"]
    assert str(tmp_path) not in path.read_text()
    scores = sorted(float(row["spai"]) for row in read(scored))
    assert found.calibration.thresholds[0].threshold == scores[-3]
    assert "3 of 7 real images reach it" in result.stderr
    assert "50 % FPR: 7 real images" not in result.stderr
    again = spai("calibrate", "--real", scored, "--target-fpr", 0.2, "--model", model)
    assert again.exit_code == 0
    assert "20 % FPR: 7 real images; use at least 15" in again.stderr


def test_both_classes_give_rates_and_a_logistic_calibration(scored, tmp_path):
    rows = read(scored)
    lines = [f"{row['image']},{n % 2},{row['spai']},\n" for n, row in enumerate(rows)]
    scored.write_text("image,class,spai,spai_error\n" + "".join(lines) + "bad,0,,broken\n")
    output = tmp_path / "c.json"
    result = spai("calibrate", "--scores", scored, "--target-fpr", 0.5, "--output", output)
    assert result.exit_code == 0, result.output
    assert "real images: 4, generated: 3, without a score: 1" in result.stderr
    content = json.loads(output.read_text())
    generated = np.array([float(row["spai"]) for row in rows[1::2]])
    (threshold,) = content["thresholds"]
    assert threshold["tpr"] == np.mean(generated >= threshold["threshold"])


def test_scores_of_spai_test_are_taken_too(tiny_model, photos, infer, tmp_path):
    table = tmp_path / "set.csv"
    table.write_text("image,class\n" + "".join(f"photos/img{n}.png,0\n" for n in range(1, 8)))
    fixed = ("--model", tiny_model, "--device", "cpu", "--workers", 0)
    tested = spai("test", "--test-csv", table, *fixed, "--output", tmp_path / "test")
    assert tested.exit_code == 0, tested.output
    output, scores = tmp_path / "c.json", tmp_path / "test" / "scores.csv"
    result = spai("calibrate", "--scores", scores, "--target-fpr", 0.5, "--output", output)
    assert result.exit_code == 0, result.output
    assert infer("--calibration", output).exit_code == 0
    # The scores of test have more digits; the threshold is a score as infer writes it.
    rows = read(tmp_path / "out" / "photos.csv")
    threshold = read_calibration(output).calibration.thresholds[0].threshold
    assert threshold == sorted(float(row["spai"]) for row in rows)[-3]
    assert [row["spai_verdict"] for row in rows].count("generated") == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--output"),
        (("--output", "c.json", "--target-fpr", 0.01), "give at least 100 real images"),
        (("--output", "c.json", "--target-fpr", 0), "0<x<=0.5"),
        (("--output", "c.json", "--score-column", "spai_error"), "score"),
        (("--output", "photos.run.json"), "is no calibration"),
        (("--output", "."), "is a folder"),
    ],
)
def test_a_users_mistake_exits_with_2_and_writes_nothing(scored, monkeypatch, arguments, message):
    monkeypatch.chdir(scored.parent)
    before = {path.name: path.read_bytes() for path in scored.parent.iterdir()}
    result = spai("calibrate", "--real", scored, *arguments)
    assert result.exit_code == 2, result.output
    assert message in result.output
    assert before == {path.name: path.read_bytes() for path in scored.parent.iterdir()}


def test_scores_of_generated_images_alone_are_refused(scored, tmp_path):
    result = spai("calibrate", "--generated", scored, "--output", tmp_path / "c.json")
    assert result.exit_code == 2 and "no real image with a score" in result.stderr


def test_scores_of_no_known_model_are_refused(scored, tmp_path):
    (scored.parent / "photos.run.json").unlink()
    result = spai("calibrate", "--real", scored, "--output", tmp_path / "c.json")
    assert result.exit_code == 2 and "which model made these scores?" in result.stderr


def test_scores_of_another_model_than_named_are_refused(scored, reduced_model, tmp_path):
    result = spai(
        *("calibrate", "--real", scored, "--target-fpr", 0.5),
        *("--model", reduced_model, "--output", tmp_path / "c.json"),
    )
    assert result.exit_code == 2
    assert "tiny.safetensors" in result.stderr and str(reduced_model) in result.stderr


def test_scores_made_with_different_settings_are_not_mixed(scored, infer, tmp_path):
    assert infer("--resize-to", 230, output="small").exit_code == 0
    small = shutil.copy(tmp_path / "small" / "photos.csv", tmp_path / "small" / "b.csv")
    shutil.copy(tmp_path / "small" / "photos.run.json", tmp_path / "small" / "b.run.json")
    result = spai("calibrate", "--real", scored, "--real", small, "--output", tmp_path / "c.json")
    assert result.exit_code == 2
    assert "resize_to None and 230" in result.stderr


def test_help_imports_no_heavy_library():
    code = (
        "import sys, spai.cli.calibrate; "
        "heavy = {'torch', 'pandas', 'numpy', 'sklearn', 'scipy'} & set(sys.modules); "
        "sys.exit(str(heavy) if heavy else 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


# --- verdicts ---------------------------------------------------------------------------------


def test_verdicts_follow_from_the_scores(infer, calibration, photos, tmp_path):
    (photos / "img0.png").write_bytes(b"no image")
    result = infer("--calibration", calibration)
    assert result.exit_code == 0, result.output
    rows = read(tmp_path / "out" / "photos.csv")
    assert list(rows[0]) == ["image", "spai", "spai_verdict", "spai_error"]
    assert rows[0]["spai_verdict"] == "" and rows[0]["spai_error"]
    ranked = sorted(rows[1:], key=lambda row: -float(row["spai"]))
    expected = ["generated"] + ["inconclusive"] * 2 + ["real"] * 4
    assert [row["spai_verdict"] for row in ranked] == expected
    counts = {"real": 4, "inconclusive": 2, "generated": 1}
    run = json.loads((tmp_path / "out" / "photos.run.json").read_text())
    assert run["verdicts"] == counts
    assert run["calibration"]["file"] == str(calibration)
    assert "verdicts: 4 real, 2 inconclusive, 1 generated" in result.stderr


def test_a_calibration_changes_no_score(infer, scored, calibration, tmp_path):
    before = {row["image"]: row["spai"] for row in read(scored)}
    assert infer("--calibration", calibration, output="b").exit_code == 0
    assert {row["image"]: row["spai"] for row in read(tmp_path / "b" / "photos.csv")} == before


@pytest.mark.parametrize("kind", ["csv", "json", "parquet"])
def test_resume_finds_verdicts_anew(infer, calibration, photos, tmp_path, kind, monkeypatch):
    assert infer("--format", kind, output="b").exit_code == 0
    monkeypatch.setattr(SpaiFile, "build", _scores_nothing(SpaiFile.build))
    result = infer("--format", kind, "--calibration", calibration, "--resume", output="b")
    assert result.exit_code == 0, result.output
    text = (tmp_path / "b" / f"photos.{kind}").read_bytes()
    assert text.count(b"generated") >= 1 and b"inconclusive" in text
    again = infer("--format", kind, "--resume", output="b")
    assert again.exit_code == 0, again.output
    assert b"verdict" not in (tmp_path / "b" / f"photos.{kind}").read_bytes()


def _scores_nothing(build):
    """Build a detector that refuses to encode a patch."""

    def built(*arguments, **settings):
        detector = build(*arguments, **settings)
        detector._encode = None
        return detector

    return built


def test_stability_with_a_calibration_tells_if_the_verdict_holds(
    infer, calibration, photos, tmp_path
):
    (photos / "img0.png").write_bytes(b"no image")
    result = infer("--calibration", calibration, "--stability")
    assert result.exit_code == 0, result.output
    judge = read_calibration(calibration).calibration.verdict
    error, *rows = read(tmp_path / "out" / "photos.csv")
    assert list(rows[0])[2:6] == ["spai_jpeg80", "spai_scale075", "spai_verdict", "spai_stable"]
    assert error["spai_verdict"] == error["spai_stable"] == ""
    for row in rows:
        versions = {judge(float(row[name])) for name in ("spai", "spai_jpeg80", "spai_scale075")}
        assert row["spai_stable"] == ("yes" if len(versions) == 1 else "no")
        assert row["spai_verdict"] in versions


def test_another_model_is_refused_before_it_is_built(
    infer, calibration, tiny_config, tmp_path, monkeypatch
):
    other = tmp_path / "other.safetensors"
    save_safetensors(formula_model(tiny_config), tiny_config, other, epoch=7)
    monkeypatch.delattr(SpaiFile, "build")
    result = infer("--calibration", calibration, model=other, output="b")
    assert result.exit_code == 2, result.output
    for part in (str(calibration), "tiny.safetensors", "other.safetensors"):
        assert part in result.stderr
    assert not (tmp_path / "b" / "photos.csv").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--resize-to", 230), "resize_to None and 230"),
        (("--max-patches", 2), "max_patches None and 2"),
        (("--precision", "bf16"), "precision 'fp32' and 'bf16'"),
        (("--opt", "MODEL.PATCH_VIT.MINIMUM_PATCHES", 1), "MINIMUM_PATCHES 4 and 1"),
    ],
)
def test_other_settings_are_refused_before_the_model_is_built(
    infer, calibration, monkeypatch, arguments, message
):
    monkeypatch.delattr(SpaiFile, "build")
    result = infer("--calibration", calibration, *arguments, output="b")
    assert result.exit_code == 2, result.output
    assert message in result.stderr


def test_a_chunk_size_is_no_other_setting(infer, calibration):
    changed = ("--opt", "MODEL.FEATURE_EXTRACTION_BATCH", 2)
    assert infer("--calibration", calibration, *changed, output="b").exit_code == 0


def test_a_file_that_is_no_calibration_is_refused(infer, scored, monkeypatch):
    monkeypatch.delattr(SpaiFile, "build")
    result = infer("--calibration", scored)
    assert result.exit_code == 2 and "cannot be read as a calibration" in result.stderr


def test_a_csv_that_has_verdicts_is_not_overwritten_unawares(infer, calibration, photos, tmp_path):
    table = tmp_path / "list.csv"
    table.write_text("image,spai_verdict\nphotos/img1.png,mine\n")
    result = infer("--calibration", calibration, given=table)
    assert result.exit_code == 2 and "'spai_verdict'" in result.stderr
    assert infer(given=table).exit_code == 0
