"""The file of a calibration comes back as it was, and nothing else is taken for one."""

import dataclasses
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spai.engine.calibration import Calibration, Logistic, Threshold, calibrate
from spai.engine.calibration_file import (
    ScoreOrigin,
    read_calibration,
    read_origin,
    write_calibration,
)

SETTINGS = {
    "model_sha256": "ab" * 32,
    "configuration": {"MODEL.PATCH_VIT.MINIMUM_PATCHES": 4, "MODEL.VIT.LAYERS": (0, 1)},
    "precision": "fp32",
    "resize_to": None,
    "max_patches": None,
    "lmdb": "/somewhere",
}
ORIGIN = ScoreOrigin.of_run("spai.pth", SETTINGS)
SHARE = st.floats(0, 1)
FINITE = st.floats(allow_nan=False, allow_infinity=False)


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "a.calibration.json"
    real = np.arange(400) / 401
    write_calibration(path, calibrate(real, real[:50] / 2 + 0.5, [0.01, 0.05]), ORIGIN, [])
    return path


@settings(deadline=None)
@given(threshold=SHARE, median=SHARE, ends=st.tuples(SHARE, SHARE), fit=st.tuples(FINITE, FINITE))
def test_numbers_come_back_bit_for_bit(tmp_path_factory, threshold, median, ends, fit):
    path = tmp_path_factory.mktemp("round") / "trip.json"
    found = Threshold(0.01, threshold, 3, 0.01, ends, ends, 1, 0.5, ends)
    before = Calibration((found,), median, 300, 2, Logistic(*fit), ("a note",))
    write_calibration(path, before, ORIGIN, [])
    after = read_calibration(path).calibration
    assert after == before
    assert math.copysign(1, after.thresholds[0].threshold) == math.copysign(1, threshold)


def test_a_calibration_and_its_origin_come_back(saved):
    read = read_calibration(saved)
    assert read.origin == ORIGIN and read.path == saved
    assert [found.target_fpr for found in read.calibration.thresholds] == [0.01, 0.05]
    assert "somewhere" not in saved.read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "not a file of spai calibrate"),
        ({"version": 2}, "format version 2, this spai reads 1"),
        ({"thresholds": []}, "do not fall"),
        ({"thresholds": [{"target_fpr": 0.01}]}, "'threshold' is missing"),
        ({"real_median": 1.5}, "1.5 is not between 0 and 1"),
        ({"real_median": "0.5"}, "'0.5' is not a finite number"),
        ({"real_median": True}, "True is not a finite number"),
        ({"real_median": 10**400}, "too large"),
        ({"settings": None}, "'settings' is no JSON object"),
        ({"model": "spai"}, "'model' is no JSON object"),
        ({"model": {"name": "spai"}}, "'sha256' is missing"),
    ],
)
def test_a_malformed_file_is_refused_by_name(saved, change, message):
    content = json.loads(saved.read_text())
    saved.write_text(json.dumps({**content, **change}))
    with pytest.raises(ValueError) as error:
        read_calibration(saved)
    assert str(saved) in str(error.value)
    assert message in str(error.value)


@pytest.mark.parametrize("data", [b"", b"[]", b"\xff", b"{", b'{"format": NaN}', b"1"])
def test_what_is_no_json_object_is_refused(tmp_path, data):
    (tmp_path / "x.json").write_bytes(data)
    with pytest.raises(ValueError, match=r"x\.json: cannot be read as a calibration"):
        read_calibration(tmp_path / "x.json")


def test_a_missing_file_is_said(tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        read_calibration(tmp_path / "no.json")


def test_thresholds_that_rise_with_the_target_are_refused(saved):
    content = json.loads(saved.read_text())
    content["thresholds"][0]["threshold"] = 0.1
    saved.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="do not fall"):
        read_calibration(saved)


def test_another_model_is_refused_naming_both(saved):
    other = dataclasses.replace(ORIGIN, model="other.pth", sha256="cd" * 32)
    with pytest.raises(ValueError) as error:
        read_calibration(saved).check_use(other)
    for part in (str(saved), "spai.pth", "ab" * 32, "other.pth", "cd" * 32, "spai calibrate"):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"precision": "fp16"}, "precision 'fp32' and 'fp16'"),
        ({"resize_to": 512}, "resize_to None and 512"),
        ({"max_patches": 4}, "max_patches None and 4"),
        (
            {"configuration": {"MODEL.PATCH_VIT.MINIMUM_PATCHES": 1}},
            "configuration.MODEL.PATCH_VIT.MINIMUM_PATCHES 4 and 1",
        ),
    ],
)
def test_other_settings_that_change_a_score_are_refused(saved, change, message):
    with pytest.raises(ValueError, match="other settings") as error:
        read_calibration(saved).check_use(ScoreOrigin.of_run("spai.pth", {**SETTINGS, **change}))
    assert message in str(error.value)


def test_settings_that_change_no_score_are_no_reason_to_refuse(saved):
    renamed = ScoreOrigin.of_run("renamed.pth", {**SETTINGS, "lmdb": None, "tag": "x"})
    read_calibration(saved).check_use(renamed)


def test_the_facts_of_infer_and_of_test_tell_the_model(tmp_path):
    facts = {"model": {"name": "spai.pth"}, "settings": {**SETTINGS, "tag": "spai"}}
    (tmp_path / "photos.run.json").write_text(json.dumps(facts))
    assert read_origin(tmp_path / "photos.csv", "spai") == ORIGIN
    facts["settings"].pop("tag")
    (tmp_path / "metrics.json").write_text(json.dumps({"run": facts}))
    assert read_origin(tmp_path / "scores.csv", "spai") == ORIGIN


def test_facts_of_another_column_do_not_tell_the_model(tmp_path):
    facts = {"model": {"name": "spai.pth"}, "settings": {**SETTINGS, "tag": "v2"}}
    (tmp_path / "photos.run.json").write_text(json.dumps(facts))
    with pytest.raises(ValueError, match="use --score-column v2"):
        read_origin(tmp_path / "photos.csv", "spai")


@pytest.mark.parametrize("text", [None, "", "[]", "{}", '{"model": {"name": "a"}}'])
def test_scores_without_facts_are_refused_with_a_remedy(tmp_path, text):
    if text is not None:
        (tmp_path / "a.run.json").write_text(text)
    with pytest.raises(ValueError, match=r"which model made these scores\?.*score the images anew"):
        read_origin(tmp_path / "a.csv", "spai")
