import numpy as np
import pytest

from spai.engine.metrics import compute_metrics
from spai.report.robustness import RobustnessRow, draw_robustness, robustness_table

LEVELS = {"none": [0], "jpeg": [85, 70, 50], "blur": [3, 7], "noise": [1.5], "scale": [0.85, 0.5]}


def rows(*datasets, both=True):
    rng = np.random.default_rng(0)
    labels = np.arange(20) % 2 if both else np.ones(20)
    return [
        RobustnessRow(name, kind, level, compute_metrics(labels, rng.normal(size=20), bootstrap=0))
        for name in datasets
        for kind, levels in LEVELS.items()
        for level in levels
    ]


def test_the_table_has_each_level_of_each_data_set():
    table = robustness_table(rows("a", "b"))
    assert [row[:3] for row in table[:4]] == [
        ("a", "none", ""),
        ("a", "jpeg", "85"),
        ("a", "jpeg", "70"),
        ("a", "jpeg", "50"),
    ]
    assert table[6][2] == "1.5" and len(table) == 18


def panels(drawing):
    """Return the texts of a figure."""
    import re

    return re.findall(r"<text[^>]*>([^<]*)</text>", drawing.svg)


def test_levels_go_from_weak_to_strong_and_begin_undegraded():
    texts = panels(draw_robustness(rows("a")))
    for order in (["none", "85", "70", "50"], ["none", "3", "7"], ["none", "0.85", "0.5"]):
        assert any(texts[i : i + len(order)] == order for i in range(len(texts))), texts
    assert "JPEG quality" in texts and "WebP quality" not in texts
    assert "AUC, %" in texts and "ACC at 0.5, %" in texts


def test_without_two_classes_only_accuracy_is_drawn():
    texts = panels(draw_robustness(rows("fake", both=False)))
    assert "AUC, %" not in texts and "ACC at 0.5, %" in texts


@pytest.mark.parametrize("given", [[], rows("a")[:1]])
def test_without_a_level_there_is_no_figure(given):
    assert draw_robustness(given) is None
