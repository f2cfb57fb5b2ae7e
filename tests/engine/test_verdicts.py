"""Verdict cells of rows: what they are, and when they are empty."""

from pathlib import Path

import pytest

from spai.data.scores import ScoreColumns, ScoreRow
from spai.engine.calibration import Calibration, Threshold
from spai.engine.calibration_file import CalibrationFile, ScoreOrigin
from spai.engine.verdicts import add_verdicts

WHOLE = (0.0, 1.0)
THRESHOLDS = (
    Threshold(0.01, 0.9, 3, 0.01, WHOLE, WHOLE),
    Threshold(0.05, 0.6, 15, 0.05, WHOLE, WHOLE),
)
FILE = CalibrationFile(
    Path("c.json"), "ab", ScoreOrigin("m", "cd", {}), Calibration(THRESHOLDS, 0.1, 300, 0)
)
STABILITY = ScoreColumns("v", ("v_jpeg80", "v_scale075", "v_patches"))


def judge(*rows, columns=STABILITY):
    return add_verdicts(dict(enumerate(rows)), columns, FILE)


@pytest.mark.parametrize(
    ("versions", "stable"),
    [
        ((0.95, 0.9), "yes"),
        ((0.95, 0.89), "no"),
        ((0.1, 0.95), "no"),
        ((None, 0.95), None),
        ((0.1, None), None),
        ((None, None), None),
    ],
)
def test_stable_is_whether_both_versions_have_the_verdict(versions, stable):
    judged = judge(ScoreRow(0, "a", 0.91, (*versions, "2/4")))
    assert judged.rows[0].extras == (*versions, "2/4", "generated", stable)
    assert judged.columns.names == (
        *("v", "v_jpeg80", "v_scale075", "v_patches", "v_verdict", "v_stable"),
        "v_error",
    )


def test_a_row_without_a_score_has_empty_cells_and_no_verdict():
    judged = judge(ScoreRow(0, "a", None, (None,) * 3, "broken"), ScoreRow(1, "b", 0.6, (0.6,) * 3))
    assert judged.rows[0].extras == (None,) * 5
    assert judged.facts["verdicts"] == {"real": 0, "inconclusive": 1, "generated": 0}


def test_without_versions_there_is_no_column_of_stability():
    judged = judge(ScoreRow(0, "a", 0.5), columns=ScoreColumns("v"))
    assert judged.rows[0].extras == ("real",)
    assert judged.columns.names == ("v", "v_verdict", "v_error")
