"""`--perturb` of `spai test`: what it accepts, and what each level is tested on."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import spai
from spai.cli.perturbations import NAMES, PAPER, Level, parse_levels
from spai.cli.scoring import ImageChoices
from spai.cli.test import command
from spai.config import load_config
from spai.data.perturb import Perturbation
from spai.engine.metrics import compute_metrics, log_odds
from tests.cli.test_infer_interrupted import torchrun
from tests.recipe import reference_image

# --- what is accepted -------------------------------------------------------------------------


def test_levels_come_in_the_order_in_which_they_are_applied():
    found = parse_levels(["scale=0.85,0.5", "noise=3,1.5", "blur=5", "webp=70", "jpeg=85,50"])
    assert [str(level) for level in found] == [
        *("jpeg=85", "jpeg=50", "webp=70", "blur=5", "noise=3", "noise=1.5"),
        *("scale=0.85", "scale=0.5"),
    ]
    assert NAMES == ("jpeg", "webp", "blur", "noise", "scale")


def test_paper_means_the_published_levels_and_repeats_count_once():
    single = [f"{name}={','.join(map(str, values))}" for name, values in PAPER.items()]
    assert parse_levels(["paper"]) == parse_levels(single)
    assert parse_levels(["paper", "jpeg=85", "jpeg=85,85"]) == parse_levels(["paper"])
    assert len(parse_levels(["paper"])) == 15
    assert parse_levels([]) == ()


def test_a_level_is_one_step_of_a_perturbation():
    assert [level.applied() for level in parse_levels(["jpeg=85", "noise=2", "scale=0.5"])] == [
        Perturbation(jpeg=85),
        Perturbation(noise=2),
        Perturbation(scale=0.5),
    ]


BAD = [
    *("jpeg=0", "jpeg=101", "jpeg=85.5", "jpeg=1e400", "webp=-1", "blur=4", "blur=1", "blur=5.5"),
    *("noise=-1", "noise=256", "noise=nan", "scale=0", "scale=-1", "scale=inf", "scale=5"),
    *("foo=1", "jpeg", "jpeg=", "jpeg=85,", "jpeg=,", "jpeg=85;70", "=85", "", " ", "JPEG=85"),
    *("paper=1", "jpeg=high", "jpeg==85", "Paper"),
]


@pytest.mark.parametrize("spec", BAD)
def test_a_bad_spec_is_one_clear_line_before_anything_is_read(spec, tmp_path, monkeypatch):
    def explode(*_, **__):
        raise AssertionError("a file was read")

    monkeypatch.setattr("spai.cli.evaluation.read_test_csvs", explode)
    result = CliRunner().invoke(command, ["--test-csv", "none.csv", "--perturb", spec])
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert f"--perturb {spec!r}: " in line and "give" in line


def test_with_degrading_keys_in_the_configuration_it_is_refused():
    config = load_config(overrides=[("TEST.GAUSSIAN_BLUR", True)])
    assert len(ImageChoices().preparations(config)) == 1
    with pytest.raises(ValueError, match="--perturb: the configuration already degrades"):
        ImageChoices(levels=parse_levels(["jpeg=85"])).preparations(config)


def test_every_level_is_one_preparation_besides_the_image_itself():
    config = load_config(overrides=[("SEED", 7)])
    levels = parse_levels(["noise=3", "jpeg=85"])
    found = ImageChoices(levels=levels, resize_to=300).preparations(config)
    assert [step.perturbation for step in found] == [
        None,
        Perturbation(jpeg=85),
        Perturbation(noise=3),
    ]
    assert {(step.resize_to, step.seed) for step in found} == {(300, 7)}
    assert ImageChoices(levels=levels, seed=0).preparations(config)[1].seed == 0


# --- what is tested ---------------------------------------------------------------------------


@pytest.fixture
def sets(tmp_path):
    """Return a folder with a CSV of real and one of generated images, 4 each, and one of both."""
    folder = tmp_path / "data"
    folder.mkdir()
    for seed in range(8):
        image = Image.fromarray(reference_image(230 + seed, 300, seed + 1))
        image.save(folder / f"{seed}.png")
    for name, seeds in (("real", range(4)), ("fake", range(4, 8)), ("both", range(8))):
        lines = [f"{seed}.png,{int(seed > 3)}\n" for seed in seeds]
        (folder / f"{name}.csv").write_text("image,class\n" + "".join(lines))
    return folder


@pytest.fixture
def evaluate(tiny_model, sets, tmp_path):
    """Test the tiny model in this process; return the results folder."""

    def call(*arguments, names=("both",), output="out", workers=0):
        csvs = [word for name in names for word in ("--test-csv", sets / f"{name}.csv")]
        fixed = ("--model", tiny_model, "--output", tmp_path / output, "--device", "cpu")
        words = (*csvs, *fixed, "--workers", workers, *arguments)
        result = CliRunner().invoke(command, [str(word) for word in words])
        assert result.exit_code == 0, result.output
        return tmp_path / output

    return call


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def scores_at(folder: Path, perturbation: str, level: str) -> list[float]:
    return [
        float(row["score"])
        for row in read(folder / "scores_perturbed.csv")
        if (row["perturbation"], row["level"]) == (perturbation, level)
    ]


def test_each_level_has_the_scores_of_the_images_degraded_by_it_alone(evaluate, sets, tiny_model):
    given = ("--perturb", "scale=0.5", "--perturb", "noise=3", "--perturb", "jpeg=85,50")
    folder = evaluate(*given, "--seed", 11)
    detector = spai.load_detector(tiny_model, device="cpu")
    images = [
        np.ascontiguousarray(np.asarray(Image.open(sets / f"{seed}.png"))) for seed in range(8)
    ]
    for level in parse_levels(["jpeg=85,50", "noise=3", "scale=0.5"]):
        degraded = [
            level.applied()(_tensor(image), seed=11, row=row) for row, image in enumerate(images)
        ]
        expected = detector.score(degraded).probabilities
        found = scores_at(folder, level.perturbation, f"{level.value:g}")
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    plain = [float(row["score"]) for row in read(folder / "scores.csv")]
    np.testing.assert_allclose(plain, detector.score(images).probabilities, rtol=0, atol=1e-6)


def _tensor(image):
    import torch

    return torch.from_numpy(image.copy()).permute(2, 0, 1).contiguous()


def test_the_tables_hold_the_metrics_of_each_level_after_those_of_the_images_as_they_are(evaluate):
    folder = evaluate("--perturb", "blur=3,7", "--perturb", "webp=50")
    found = json.loads((folder / "metrics.json").read_text())
    order = [("none", 0), ("webp", 50), ("blur", 3), ("blur", 7)]
    rows = found["robustness"]
    assert [(row["perturbation"], row["level"]) for row in rows] == order
    assert {row["dataset"] for row in rows} == {"both"}
    assert rows[0]["metrics"] == found["datasets"]["both"]
    labels = np.repeat((0, 1), 4)
    logits = log_odds(np.array(scores_at(folder, "blur", "7")))
    assert rows[3]["metrics"]["auc"] == compute_metrics(labels, logits).auc
    table = read(folder / "robustness.csv")
    assert [(row["perturbation"], float(row["level"])) for row in table] == order
    assert [float(row["auc"]) for row in table] == [row["metrics"]["auc"] for row in rows]
    assert found["run"]["perturb"] == ["webp=50", "blur=3", "blur=7"]
    report = (folder / "report.md").read_text()
    assert "## Robustness" in report and "| both" in report and "blur" in report


def test_one_class_sets_are_also_measured_together(evaluate):
    folder = evaluate("--perturb", "scale=0.7", names=("real", "fake"))
    rows = json.loads((folder / "metrics.json").read_text())["robustness"]
    assert [(row["dataset"], row["perturbation"]) for row in rows] == [
        *(("real", "none"), ("fake", "none"), ("all data sets", "none")),
        *(("real", "scale"), ("fake", "scale"), ("all data sets", "scale")),
    ]
    assert [row["metrics"]["auc"] is None for row in rows] == [True, True, False] * 2
    assert rows[5]["metrics"]["count"] == 8


def test_without_levels_nothing_is_said_of_robustness(evaluate):
    folder = evaluate()
    assert json.loads((folder / "metrics.json").read_text())["robustness"] == []
    assert not (folder / "robustness.csv").exists()
    assert not (folder / "scores_perturbed.csv").exists()
    assert "Robustness" not in (folder / "report.md").read_text()


def test_an_image_that_cannot_be_degraded_keeps_its_other_scores(evaluate, sets):
    Image.new("RGB", (17_000, 4)).save(sets / "0.png")
    folder = evaluate("--perturb", "webp=85", "--perturb", "noise=1")
    rows = [row for row in read(folder / "scores_perturbed.csv") if row["image"] == "0.png"]
    errors = {row["perturbation"]: row["error"] for row in rows}
    assert "16383 pixels a side" in errors["webp"] and errors["noise"] == ""
    assert [bool(row["score"]) for row in rows] == [False, True]
    assert read(folder / "scores.csv")[0]["score"]
    found = json.loads((folder / "metrics.json").read_text())["robustness"]
    assert [row["metrics"]["errors"] for row in found] == [0, 1, 0]


def test_noise_is_the_same_for_any_number_of_workers_and_another_with_another_seed(evaluate):
    alone = evaluate("--perturb", "noise=5", "--seed", 1, output="alone")
    several = evaluate("--perturb", "noise=5", "--seed", 1, output="several", workers=2)
    other = evaluate("--perturb", "noise=5", "--seed", 2, output="other")
    first = scores_at(alone, "noise", "5")
    np.testing.assert_allclose(scores_at(several, "noise", "5"), first, rtol=0, atol=1e-6)
    assert np.abs(np.subtract(scores_at(other, "noise", "5"), first)).max() > 1e-5


@pytest.mark.slow
def test_noise_is_the_same_for_several_processes(evaluate, sets, tiny_model, tmp_path):
    alone = evaluate("--perturb", "noise=5", "--perturb", "jpeg=70", output="alone")
    words = ("test", "--test-csv", sets / "both.csv", "--model", tiny_model, "--device", "cpu")
    more = ("--output", tmp_path / "two", "--perturb", "noise=5", "--perturb", "jpeg=70")
    result = torchrun(2, (*words, *more, "--workers", 0), tmp_path)
    assert result.returncode == 0, result.stderr
    for level in (("noise", "5"), ("jpeg", "70")):
        np.testing.assert_allclose(
            scores_at(tmp_path / "two", *level), scores_at(alone, *level), rtol=0, atol=1e-6
        )


def test_updated_csvs_get_the_scores_of_the_images_as_they_are(evaluate, sets):
    folder = evaluate("--perturb", "blur=7", "--update-csv")
    updated = [float(row["spai"]) for row in read(sets / "both.csv")]
    written = [float(row["score"]) for row in read(folder / "scores.csv")]
    np.testing.assert_allclose(updated, written, rtol=0, atol=1e-9)


def test_a_result_that_would_replace_an_input_is_refused(tiny_model, sets):
    source = sets / "both.csv"
    source.rename(sets / "robustness.csv")
    words = ["--test-csv", sets / "robustness.csv", "--model", tiny_model, "--output", sets]
    result = CliRunner().invoke(command, [*map(str, words), "--perturb", "jpeg=85"])
    assert result.exit_code == 2 and "would be overwritten" in result.stderr


def test_a_level_says_what_it_is():
    assert (str(Level("scale", 0.85)), str(Level("jpeg", 85))) == ("scale=0.85", "jpeg=85")
