import hashlib
import json

import pandas as pd
import pytest
from click.testing import CliRunner

from spai.cli.report import command
from tests.pages import Page

TOY = {
    "real_coco": [0.1, 0.4],
    "real_fodb": [0.2, 0.6],
    "fake_a": [0.8, 0.9],
    "fake_b": [0.2, 0.4],
    "fake_c": [0.05],
    "fake_d": [0.5],
}


def run(*arguments):
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


@pytest.fixture
def toy(tmp_path):
    """Six score CSVs as `spai infer` writes them for folders."""
    files = []
    for name, scores in TOY.items():
        images = [f"{index}.png" for index in range(len(scores))]
        table = pd.DataFrame({"image": images, "spai": scores, "spai_error": ""})
        table.to_csv(tmp_path / f"{name}.csv", index=False)
        files.append(tmp_path / f"{name}.csv")
    return files


def scores_options(files):
    return [part for file in files for part in ("--scores", file)]


def test_cross_table_of_six_files_equals_arithmetic_by_hand(toy, tmp_path):
    result = run(*scores_options(toy), "--output", tmp_path / "out")
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert record["cross_table"] == {
        "generators": ["fake_a", "fake_b", "fake_c", "fake_d"],
        "sources": ["real_coco", "real_fodb"],
        # b, coco: 0.2 and 0.4 > 0.1, 0.4 = 0.4 half; fodb: 0.2 = 0.2 half, 0.4 > 0.2.
        "auc": [[1, 1], [2.5 / 4, 1.5 / 4], [0, 0], [1, 1 / 2]],
        "mean": [1, 0.5, 0, 0.75],
        "average": 0.5625,
    }
    assert list(record["datasets"]) == list(TOY)
    assert "56.2 %" in result.stderr
    assert result.stdout == f"{tmp_path / 'out' / 'report.md'}\n"


def test_the_page_names_mistakes_and_shows_no_pictures(toy, tmp_path):
    run(*scores_options(toy), "--output", tmp_path / "out")
    page = Page(tmp_path / "out" / "report.html")
    assert page.count("img") == 0 and "0.png" in page.texts["bdi"]
    assert "56.2" in page.text_of("td")
    page.check_self_contained()


def test_run_facts_identify_the_inputs(toy, tmp_path):
    run("--scores", toy[0], "--output", tmp_path / "out")
    facts = json.loads((tmp_path / "out" / "metrics.json").read_text())["run"]
    digest = hashlib.sha256(toy[0].read_bytes()).hexdigest()
    assert facts["inputs"] == [{"file": str(toy[0]), "sha256": digest}]
    assert {"spai", "python", "numpy", "pandas", "scikit-learn"} == set(facts["versions"])


def test_real_and_generated_files_alone_are_enough(tmp_path):
    for name, score in (("photos", 0.3), ("art", 0.2)):
        (tmp_path / f"{name}.csv").write_text(f"image,v2\na.png,{score}\n")
    real, generated, out = tmp_path / "photos.csv", tmp_path / "art.csv", tmp_path / "out"
    column = ("--score-column", "v2")
    result = run("--real", real, "--generated", generated, *column, "--output", out)
    assert result.exit_code == 0, result.output
    cross = json.loads((out / "metrics.json").read_text())["cross_table"]
    assert (cross["generators"], cross["sources"]) == (["art"], ["photos"])
    assert cross["average"] == 0


def test_a_report_of_a_report_is_the_same(toy, tmp_path):
    run(*scores_options(toy), "--output", tmp_path / "one")
    run("--scores", tmp_path / "one" / "scores.csv", "--output", tmp_path / "two")
    one, two = (json.loads((tmp_path / n / "metrics.json").read_text()) for n in ("one", "two"))
    assert one["datasets"] == two["datasets"]
    assert one["cross_table"] == two["cross_table"]


def test_errors_are_counted_and_said(tmp_path):
    text = "image,spai,spai_error\na.png,0.5,\nb.png,,truncated\n"
    (tmp_path / "real_a.csv").write_text(text)
    result = run("--scores", tmp_path / "real_a.csv", "--output", tmp_path / "out")
    assert "data sets: 1, images: 2, without a score: 1" in result.stderr
    assert "truncated" in (tmp_path / "out" / "report.md").read_text()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("image,class,other\na,0,0.5\n", "no column 'spai'; found image, class, other"),
        ("image,class,spai\na,0,1.5\n", "the score 1.5 is not between 0 and 1"),
        ("image,spai\na,0.5\n", "real or generated?"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_2(tmp_path, text, message):
    (tmp_path / "a.csv").write_text(text)
    result = run("--scores", tmp_path / "a.csv", "--output", tmp_path / "out")
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_missing_file_and_no_file_exit_with_2(tmp_path):
    missing = run("--scores", tmp_path / "no.csv", "--output", tmp_path / "out")
    assert missing.exit_code == 2
    assert "no.csv: no such file" in missing.stderr
    nothing = run("--output", tmp_path / "out")
    assert nothing.exit_code == 2
    assert "--scores" in nothing.stderr


def test_an_input_is_never_overwritten(tmp_path):
    scores = tmp_path / "scores.csv"
    scores.write_text("image,class,spai\na.png,0,0.5\n")
    result = run("--scores", scores, "--output", tmp_path)
    assert result.exit_code == 2
    assert "would be overwritten" in result.stderr
    assert scores.read_text() == "image,class,spai\na.png,0,0.5\n"


def test_an_output_that_is_a_file_is_refused(toy):
    result = run("--scores", toy[0], "--output", toy[1])
    assert result.exit_code == 2
    assert "is a file" in result.stderr
