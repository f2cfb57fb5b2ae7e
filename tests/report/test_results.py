import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from spai.engine.metrics import compute_metrics, log_odds
from spai.report.results import RESULT_FILES, read_scores, write_results


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8", newline="")
    return path


def frame(scores: list[float], classes: list[int], **columns: object) -> pd.DataFrame:
    images = [f"{index}.png" for index in range(len(scores))]
    table = pd.DataFrame({"dataset": "set", "image": images, "class": classes, "score": scores})
    return table.assign(error="").assign(**columns)


def test_every_result_file_is_written_and_nothing_else(tmp_path):
    write_results(tmp_path / "new" / "out", frame([0.2, 0.9], [0, 1]), {})
    written = {path.name for path in (tmp_path / "new" / "out").iterdir()}
    assert written == {*RESULT_FILES, "figures"}


def test_json_holds_metrics_and_run_facts_without_nan(tmp_path):
    run = {
        "path": tmp_path,
        "nan": math.nan,
        "nested": {1: [math.inf, np.float32(0.5), (np.int64(3), None, True)]},
        "array": np.array([1.0, np.nan]),
    }
    write_results(tmp_path, frame([0.2, 0.9, 0.4], [1, 1, 1]), run)
    text = (tmp_path / "metrics.json").read_text()
    record = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in the JSON"))
    assert record["run"] == {
        "path": str(tmp_path),
        "nan": None,
        "nested": {"1": [None, 0.5, [3, None, True]]},
        "array": [1.0, None],
    }
    metrics = record["datasets"]["set"]
    assert (metrics["count"], metrics["acc"], metrics["auc"]) == (3, pytest.approx(1 / 3), None)
    assert record["cross_table"] is None


def test_metrics_csv_has_a_row_a_data_set(tmp_path):
    one, two = frame([0.2, 0.9], [0, 1]), frame([0.6], [1], dataset="other")
    results = write_results(tmp_path, pd.concat((one, two)), {})
    table = pd.read_csv(tmp_path / "metrics.csv")
    assert table["dataset"].tolist() == ["set", "other"]
    assert table["auc"].tolist()[0] == results.metrics["set"].auc == 1
    assert np.isnan(table["auc"][1])
    low, high = results.metrics["set"].acc_interval
    assert (table["acc_interval_low"][0], table["acc_interval_high"][0]) == (low, high)


def test_scores_csv_keeps_every_digit(tmp_path):
    scores = [1 / 3, 1e-12 / 3, 1 - 1e-15, 0.5]
    write_results(tmp_path, frame(scores, [0, 0, 1, 1]), {})
    table = pd.read_csv(tmp_path / "scores.csv", float_precision="round_trip")
    assert list(table.columns) == ["dataset", "image", "class", "score", "error"]
    assert table["score"].tolist() == scores
    assert table["class"].tolist() == [0, 0, 1, 1]


def test_results_of_a_scores_csv_are_the_results_it_came_with(tmp_path):
    rng = np.random.default_rng(0)
    classes = rng.integers(0, 2, 60)
    scores = rng.uniform(size=60)
    scores[:3] = (0.0, 1.0, 0.5)
    errors = [""] * 57 + ["truncated", 'a, "b"\nc', ""]
    scores[-1] = np.nan
    table = frame(scores.tolist(), classes.tolist(), error=errors)
    first = write_results(tmp_path / "a", table, {})
    again = write_results(tmp_path / "b", read_scores([tmp_path / "a" / "scores.csv"]), {})
    assert again == first
    assert first.metrics["set"].errors == 3
    for name in RESULT_FILES:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_given_logits_rank_where_scores_saturate(tmp_path):
    table = frame([1.0, 1.0], [0, 1])
    assert write_results(tmp_path, table, {}).metrics["set"].auc == 0.5
    logits = table.assign(logit=[50.0, 60.0])
    assert write_results(tmp_path, logits, {}).metrics["set"].auc == 1


def test_missing_logits_are_the_log_odds_of_the_scores(tmp_path):
    scores = [0.0, 0.3, 0.5, 1.0]
    metrics = write_results(tmp_path, frame(scores, [0, 1, 0, 1]), {}).metrics["set"]
    assert metrics == compute_metrics([0, 1, 0, 1], log_odds(np.array(scores)))
    # -ln(0.3) for the second, ln(2) for the third, nothing for the certain ones.
    assert metrics.loss == pytest.approx((-np.log(0.3) + np.log(2)) / 4)


def test_a_row_without_a_finite_result_is_an_error_with_a_reason(tmp_path):
    table = frame([0.1, np.nan, 0.9, 0.8], [0, 0, 1, 1], error=[None, "", "cut off", np.nan])
    table = table.assign(logit=[-2.0, 1.0, 2.0, np.inf])
    metrics = write_results(tmp_path, table, {}).metrics["set"]
    assert (metrics.count, metrics.errors) == (1, 3)
    written = pd.read_csv(tmp_path / "scores.csv", keep_default_na=False)
    assert written["score"].tolist() == ["0.1", "", "", ""]
    not_finite = "the score is not a finite number"
    assert written["error"].tolist() == ["", not_finite, "cut off", not_finite]


def test_the_given_table_is_left_as_it_was(tmp_path):
    table = frame([0.1, np.nan], [0, 1])
    before = table.copy(deep=True)
    write_results(tmp_path, table, {})
    pd.testing.assert_frame_equal(table, before)


def test_no_rows_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no images"):
        write_results(tmp_path, frame([], []), {})


def test_a_failed_run_leaves_the_earlier_results(tmp_path):
    write_results(tmp_path, frame([0.1, 0.9], [0, 1]), {})
    before = {name: (tmp_path / name).read_bytes() for name in RESULT_FILES}
    with pytest.raises(ValueError, match="labels must be"):
        write_results(tmp_path, frame([0.1, 0.9], [0, 7]), {})
    assert {name: (tmp_path / name).read_bytes() for name in RESULT_FILES} == before


ODD_NAMES = [
    "a|b.png",
    "a\nb.png",
    "a\rb.png",
    'q"uo,te.png',
    "ünï.png",
    "=1+1",
    "NA",
    "x\udcff.png",
]


def test_odd_names_survive_writing_and_reading(tmp_path):
    count = len(ODD_NAMES)
    names = pd.Series(ODD_NAMES, dtype=object)
    table = frame([0.5] * count, [0] * count, image=names, dataset=names)
    write_results(tmp_path, table, {})
    read = read_scores([tmp_path / "scores.csv"])
    assert read["image"].tolist() == ODD_NAMES
    assert read["dataset"].tolist() == ODD_NAMES
    report = (tmp_path / "report.md").read_bytes().split(b"\n")
    assert len({line.count(b"|") for line in report if line.startswith(b"|")}) == 1


def test_output_of_infer_is_read_with_its_class_column(tmp_path):
    file = write(
        tmp_path,
        "photos.csv",
        "image,class,dataset,spai,spai_error\na.png,0,mine,0.125,\nb.png,1.0,mine,,not an image\n",
    )
    rows = read_scores([file])
    assert rows["dataset"].tolist() == ["photos", "photos"]
    assert rows["class"].tolist() == [0, 1]
    assert rows["score"].tolist()[0] == 0.125
    assert np.isnan(rows["score"][1])
    assert rows["error"].tolist() == ["", "not an image"]


@pytest.mark.parametrize(("name", "label"), [("real_coco.csv", 0), ("fake_flux.csv", 1)])
def test_a_file_name_tells_the_class(tmp_path, name, label):
    file = write(tmp_path, name, "image,spai\na.png,0.5\nb.png,0.6\n")
    assert read_scores([file])["class"].tolist() == [label, label]


def test_the_lists_tell_the_class_whatever_the_file_says(tmp_path):
    # The published code writes class 1 for every folder.
    photos = write(tmp_path, "photos.csv", "image,class,spai\na.png,1,0.5\n")
    art = write(tmp_path, "real_art.csv", "image,spai\nb.png,0.6\n")
    rows = read_scores([], real=[photos], generated=[art])
    assert dict(zip(rows["dataset"], rows["class"], strict=True)) == {"photos": 0, "real_art": 1}


def test_a_class_column_goes_before_the_file_name_with_a_warning(tmp_path, caplog):
    file = write(tmp_path, "real_x.csv", "image,class,spai\na.png,1,0.5\n")
    assert read_scores([file])["class"].tolist() == [1]
    assert "does not fit its name" in caplog.text


def test_score_column_and_its_errors_can_be_named(tmp_path):
    text = "image,class,spai,spai_error,v2,v2_error,error\na.png,0,0.1,,0.7,,x\nb.png,0,,no,0.8,,\n"
    rows = read_scores([write(tmp_path, "a.csv", text)], column="v2")
    assert rows["score"].tolist() == [0.7, 0.8]
    assert rows["error"].tolist() == ["", ""]


def test_scores_of_test_keep_their_own_data_sets(tmp_path):
    text = "dataset,image,class,score,error\nreal_a,1.png,0,0.25,\nfake_b,2.png,1,,broken\n"
    rows = read_scores([write(tmp_path, "scores.csv", text)])
    assert rows["dataset"].tolist() == ["real_a", "fake_b"]
    assert rows["error"].tolist() == ["", "broken"]


def test_an_empty_score_without_an_error_counts_as_not_scored(tmp_path):
    rows = read_scores([write(tmp_path, "real_a.csv", "image,spai\na.png,\nb.png,nan\nc.png,1\n")])
    assert rows["error"].tolist() == ["not scored", "", ""]
    assert write_results(tmp_path / "out", rows, {}).metrics["real_a"].errors == 2


def test_byte_order_mark_and_crlf_are_read(tmp_path):
    file = write(tmp_path, "real_a.csv", "\ufeffimage,spai\r\na.png,0.5\r\n\r\n")
    assert read_scores([file])["image"].tolist() == ["a.png"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("image,spai,class\n", "is empty"),
        ("image,other,class\na,0.5,0\n", "no column 'spai'; found image, other, class"),
        ("image;spai;class\na;0.5;0\n", "no column 'spai'; found image;spai;class"),
        ("name,spai,class\na,0.5,0\n", "no column 'image'; found name, spai, class"),
        ("image,spai,class\na,0.5,0\nb,high,0\n", "line 3: the score 'high' is not a number"),
        ("image,spai,class\na,1.01,0\n", "line 2: the score 1.01 is not between 0 and 1"),
        ("image,spai,class\na,-0.1,0\n", "line 2: the score -0.1 is not between"),
        ("image,spai,class\na,inf,0\n", "line 2: the score inf is not between"),
        ("image,spai,class\na,0.5,2\n", "line 2: class '2' is neither 0 .* nor 1"),
        ("image,spai,class\na,0.5,\n", "line 2: class '' is neither 0 .* nor 1"),
        ("image,spai,class\na,0.5,nan\n", "line 2: class 'nan' is neither 0 .* nor 1"),
        ("image,spai\na,0.5\n", "real or generated.*--real or --generated.*real_ or fake_"),
        ("image,spai,class\na,0.5\n", "line 2: 2 cells under 3 columns"),
        ("image,spai,class\na,b,0.5,0\n", "line 2: 4 cells under 3 columns"),
        ("image,spai,spai\na,0.5,0\n", "a column name occurs twice"),
        ('image,spai,class\n"a,0.5,0\n', "not a CSV"),
    ],
)
def test_a_bad_file_is_refused_with_its_name_and_the_reason(tmp_path, text, message):
    with pytest.raises(ValueError, match=rf"(?s)photos\.csv.*{message}"):
        read_scores([write(tmp_path, "photos.csv", text)])


def test_binary_files_are_refused(tmp_path):
    (tmp_path / "real_a.csv").write_bytes(bytes(range(256)) * 4)
    with pytest.raises(ValueError, match=r"real_a\.csv"):
        read_scores([tmp_path / "real_a.csv"])


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    for path in (tmp_path / "no.csv", tmp_path):
        with pytest.raises(ValueError, match="no such file"):
            read_scores([path])


def test_no_file_at_all_is_refused():
    with pytest.raises(ValueError, match="at least one with --scores"):
        read_scores([])


def test_two_data_sets_of_one_name_are_refused_with_both_files(tmp_path):
    (tmp_path / "b").mkdir()
    first = write(tmp_path, "real_a.csv", "image,spai\na.png,0.5\n")
    second = write(tmp_path / "b", "real_a.csv", "image,spai\na.png,0.5\n")
    with pytest.raises(ValueError, match=r"(?s)real_a\.csv and .*b.real_a\.csv.*'real_a'"):
        read_scores([first], real=[second])
    tested = write(tmp_path, "scores.csv", "dataset,image,class,score\nreal_a,a.png,0,0.5\n")
    with pytest.raises(ValueError, match="'real_a'"):
        read_scores([first, tested])


def test_files_with_names_that_are_not_utf_8_are_read_and_reported(tmp_path):
    file = tmp_path / "real_\udcff.csv"
    file.write_bytes(b"image,spai,spai_error\n\xff.png,,cannot open \xff.png\nb.png,0.5,\n")
    metrics = write_results(tmp_path / "out", read_scores([file]), {"file": file}).metrics
    assert list(metrics) == ["real_\udcff"]
    assert (
        b"real_\xff,\xff.png,0,,cannot open \xff.png\n"
        in (tmp_path / "out" / "scores.csv").read_bytes()
    )


def test_a_column_name_that_is_not_utf_8_does_not_matter(tmp_path):
    file = tmp_path / "real_a.csv"
    file.write_bytes("größe,image,spai\n7,a.png,0.5\n".encode("latin-1"))
    assert read_scores([file])["score"].tolist() == [0.5]
