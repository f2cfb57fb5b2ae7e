"""Robustness tables and the file of degraded scores."""

import csv

import numpy as np
import pandas as pd
import pytest

from spai.engine.metrics import sigmoid
from spai.report.perturbed import POOLED, PerturbedScores, write_perturbed
from spai.report.results import write_results
from spai.report.robustness import robustness_table
from spai.report.tables import ROBUSTNESS_HEADING


def rows_of(*sets, shift=0.0, failed=()):
    """Return rows of data sets given as (name, labels); the logit is the label less 0.5."""
    names = [name for name, labels in sets for _ in labels]
    labels = np.array([label for _, labels in sets for label in labels])
    logits = np.where(np.isin(np.arange(len(labels)), failed), np.nan, labels - 0.5 - shift)
    return pd.DataFrame(
        {
            "dataset": pd.Series(names, dtype=object),
            "image": pd.Series([f"{i},<b>.png" for i in range(len(labels))], dtype=object),
            "class": labels,
            "score": sigmoid(logits),
            "logit": logits,
            "error": pd.Series(["bad" if np.isnan(x) else "" for x in logits], dtype=object),
        }
    )


MIXED = ("a", [0, 1, 0, 1])


def test_nothing_is_written_without_degradations(tmp_path):
    assert write_perturbed(tmp_path, rows_of(MIXED), []) == []
    assert list(tmp_path.iterdir()) == []


def test_each_version_gives_a_row_for_each_data_set_and_one_for_all(tmp_path):
    sets = (("real", [0, 0]), ("fake", [1, 1]))
    versions = [PerturbedScores("jpeg", 85, rows_of(*sets, shift=-1.0))]
    found = write_perturbed(tmp_path, rows_of(*sets), versions)
    keys = [(row.dataset, row.perturbation, row.level) for row in found]
    assert keys == [
        (name, *v) for v in (("none", 0), ("jpeg", 85)) for name in ("real", "fake", POOLED)
    ]
    assert [row.metrics.acc for row in found] == [1, 1, 1, 0, 1, 0.5]
    assert [row.metrics.auc for row in found] == [None, None, 1, None, None, 1]


def test_scores_are_written_with_errors_beside_them(tmp_path):
    versions = [PerturbedScores("scale", 0.5, rows_of(MIXED, failed=[2]))]
    found = write_perturbed(tmp_path, rows_of(MIXED), versions)
    with (tmp_path / "scores_perturbed.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == [f"{i},<b>.png" for i in range(4)]
    assert {(row["perturbation"], row["level"]) for row in rows} == {("scale", "0.5")}
    assert [row["error"] for row in rows] == ["", "", "bad", ""] and rows[2]["score"] == ""
    assert float(rows[0]["score"]) == pytest.approx(1 / (1 + np.exp(0.5)), rel=1e-11)
    assert [row.metrics.errors for row in found] == [0, 1]


def test_the_report_and_the_csv_have_the_levels(tmp_path):
    versions = [PerturbedScores("scale", 0.5, rows_of(MIXED, failed=[2]))]
    robustness = write_perturbed(tmp_path, rows_of(MIXED), versions)
    assert robustness_table(robustness) == [
        ("a", "none", "", "100.0", "100.0", "100.0", "0"),
        ("a", "scale", "0.5", "100.0", "100.0", "100.0", "1"),
    ]
    write_results(tmp_path, rows_of(MIXED), {}, robustness=robustness)
    report = (tmp_path / "report.md").read_text()
    assert all(word in report for word in (*ROBUSTNESS_HEADING, " scale |", "## Robustness"))
    with (tmp_path / "robustness.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[:4] == ["dataset", "perturbation", "level", "count"]
    assert [row["errors"] for row in rows] == ["0", "1"]
