import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from spai.engine.metrics import compute_metrics, sigmoid
from spai.report.tables import (
    CrossTable,
    cross_table,
    dataset_metrics,
    markdown_report,
    markdown_table,
)

# Four generators and two real sources, as logits. coco: 0, 2; fodb: 1, 3.
TOY = {
    "real_coco": (0, [0.0, 2.0]),
    "fake_a": (1, [4.0, 5.0]),
    "fake_b": (1, [1.0, 2.0]),
    "real_fodb": (0, [1.0, 3.0]),
    "fake_c": (1, [-1.0]),
    "fake_d": (1, [2.5]),
}


def rows_of(datasets: dict[str, tuple[int, list[float]]]) -> pd.DataFrame:
    parts = []
    for name, (label, logits) in datasets.items():
        images = [f"{index}.png" for index in range(len(logits))]
        part = pd.DataFrame({"dataset": name, "image": images, "class": label, "logit": logits})
        parts.append(part.assign(score=sigmoid(np.array(logits)), error=""))
    return pd.concat(parts, ignore_index=True)


def cells(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def test_cross_table_equals_arithmetic_by_hand():
    cross = cross_table(rows_of(TOY))
    assert cross is not None
    assert cross.generators == ("fake_a", "fake_b", "fake_c", "fake_d")
    assert cross.sources == ("real_coco", "real_fodb")
    assert cross.auc == (
        (4 / 4, 4 / 4),  # 4 and 5 are above everything
        (2.5 / 4, 1.5 / 4),  # coco: 1 > 0, 2 > 0, 2 = 2 half; fodb: 1 = 1 half, 2 > 1
        (0, 0),  # -1 is below everything
        (2 / 2, 1 / 2),  # coco: 2.5 > 0 and 2; fodb: 2.5 > 1
    )
    assert cross.mean == (1, 0.5, 0, 0.75)
    assert cross.average == (1 + 0.5 + 0 + 0.75) / 4


def test_the_figure_of_a_generator_is_not_its_auc_against_pooled_sources():
    rng = np.random.default_rng(0)
    low, high, fake = rng.normal(0, 1, 50), rng.normal(3, 1, 200), rng.normal(2, 1, 80)
    cross = cross_table(rows_of({"x": (0, list(low)), "y": (0, list(high)), "z": (1, list(fake))}))
    against = [
        roc_auc_score(np.repeat((0, 1), (len(real), 80)), np.concatenate((real, fake)))
        for real in (low, high)
    ]
    assert cross.average == pytest.approx(np.mean(against), abs=1e-12)
    pooled = np.concatenate((low, high, fake))
    assert abs(cross.average - roc_auc_score(np.repeat((0, 1), (250, 80)), pooled)) > 0.1


def test_error_rows_do_not_enter_the_cross_table():
    rows = rows_of(TOY | {"fake_b": (1, [1.0, 2.0, 99.0, np.nan])})
    rows.loc[rows["logit"] == 99, "error"] = "truncated"
    assert cross_table(rows) == cross_table(rows_of(TOY))


def test_a_data_set_without_a_score_leaves_its_means_undefined():
    rows = rows_of(TOY)
    rows.loc[rows["dataset"] == "fake_c", "error"] = "truncated"
    cross = cross_table(rows)
    assert cross.auc[2] == (None, None)
    assert cross.mean == (1, 0.5, None, 0.75)
    assert cross.average is None


def test_data_sets_of_both_classes_are_left_out_of_the_cross_table():
    mixed = pd.concat((rows_of({"mixed": (0, [0.0])}), rows_of({"mixed": (1, [9.0])})))
    assert cross_table(mixed) is None
    assert cross_table(pd.concat((rows_of(TOY), mixed))) == cross_table(rows_of(TOY))


@pytest.mark.parametrize("prefix", ["real", "fake"])
def test_one_kind_of_data_set_has_no_cross_table(prefix):
    assert cross_table(rows_of({n: v for n, v in TOY.items() if n.startswith(prefix)})) is None


def test_dataset_metrics_are_those_of_the_rows_of_each_data_set():
    rows = pd.concat((rows_of({"two": (0, [0.0, -1.0])}), rows_of(TOY)))
    rows = pd.concat((rows, rows_of({"two": (1, [0.5, 7.0])}).assign(error=["", "broken"])))
    metrics = dataset_metrics(rows)
    assert list(metrics) == ["two", *TOY]
    assert metrics["two"] == compute_metrics([0, 0, 1, 1], [0.0, -1.0, 0.5, np.nan])
    assert metrics["fake_b"] == compute_metrics([1, 1], [1.0, 2.0])


def test_markdown_table_is_aligned():
    assert markdown_table(("Name", "AUC"), [("a", "91.0"), ("longer", "8.5")]) == (
        "| Name   |  AUC |\n| ------ | ---: |\n| a      | 91.0 |\n| longer |  8.5 |"
    )


@pytest.mark.parametrize(
    "name", ["a|b", "a\nb", "a\r\n| b |", "a\\|b", "a\u2028b\x0bc", "`a|", "<td>|", "|", "\\"]
)
def test_odd_names_do_not_break_a_table(name):
    table = markdown_table(("Name", "AUC"), [(name, "1.0"), ("next", "2.0")])
    assert [len(row) for row in cells(table)] == [2, 2, 2, 2]
    assert "<" not in table
    assert "\\" not in table


def test_report_shows_ranking_and_threshold_metrics_side_by_side():
    rows = pd.concat((rows_of({"set": (0, [-2.0, 0.5])}), rows_of({"set": (1, [0.2, 3.0])})))
    report = markdown_report(dataset_metrics(rows), cross_table(rows), rows, {})
    table = cells("\n".join(line for line in report.splitlines() if line.startswith("|")))
    assert len(table) == 3
    shown = dict(zip(table[0], table[2], strict=True))
    assert shown["Data set"] == "set"
    assert (shown["Real"], shown["Generated"], shown["No score"]) == ("2", "2", "0")
    assert shown["AUC"].startswith("75.0 (")
    assert shown["ACC at 0.5"].startswith("75.0 (")
    assert (shown["AP"], shown["ACC real"], shown["ACC generated"]) == ("83.3", "50.0", "100.0")
    assert "0.5 is badly calibrated" in report
    assert "Cross table" not in report
    assert "0 of 4 images have no score" in report


def test_report_shows_the_cross_table():
    rows = rows_of(TOY)
    report = markdown_report(dataset_metrics(rows), cross_table(rows), rows, {})
    lines = [[cell for cell in row if cell] for row in cells(report)]
    assert ["Generator", "real_coco", "real_fodb", "Mean AUC", "ACC at 0.5"] in lines
    assert ["fake_b", "62.5", "37.5", "50.0", "100.0"] in lines
    assert ["AVG", "56.2"] in lines


def test_report_marks_what_is_not_defined():
    rows = rows_of({"fake_a": (1, [1.0])})
    cross = CrossTable(("fake_a",), ("real_b",), ((None,),), (None,), None)
    report = markdown_report(dataset_metrics(rows), cross, rows, {})
    assert "nan" not in report.lower()
    assert "none" not in report.lower()
    assert ["fake_a", "–", "–", "100.0"] in cells(report)


def test_report_counts_errors_by_data_set_and_reason():
    rows = rows_of({"x": (0, [0.0] * 30), "y": (1, [1.0] * 5)})
    rows.loc[:2, "error"] = "truncated | file"
    rows.loc[30:31, "error"] = "too large"
    report = markdown_report(dataset_metrics(rows), cross_table(rows), rows, {})
    assert "5 of 35 images have no score" in report
    assert ["x", "truncated &#124; file", "3"] in cells(report)
    assert ["y", "too large", "2"] in cells(report)


def test_report_shows_the_commonest_reasons_only():
    rows = rows_of({"x": (0, [0.0] * 30)}).assign(error=[f"reason {n}" for n in range(30)])
    report = markdown_report(dataset_metrics(rows), None, rows, {})
    assert report.count("reason ") == 20
    assert "10 more reasons are in `scores.csv`" in report


def test_report_shows_simple_run_facts():
    rows = rows_of(TOY)
    run = {"model": "spai", "images": 7, "configuration": {"deep": 1}}
    report = markdown_report({}, None, rows, run)
    assert "\n- model: spai\n- images: 7\n" in report
    assert "configuration" not in report
