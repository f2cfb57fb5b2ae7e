"""The inference loop: one prediction a record, errors at once, nothing kept of what is done."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from spai.data.images import FileSource
from spai.data.loaders import LoadingOptions, Preparation
from spai.data.perturb import Perturbation
from spai.data.records import read_csv, read_folder
from spai.detectors import load_detector
from spai.engine.predict import predict
from tests.recipe import reference_image


@pytest.fixture(scope="module")
def detector(tiny_model):
    return load_detector(tiny_model, device="cpu")


def run(detector, records, **options):
    found = predict(detector, records, FileSource(), LoadingOptions(**options))
    return {prediction.record.name: prediction for prediction in found}


def test_folder_csv_and_interface_give_the_same_logits(detector, photos, tmp_path):
    folder = read_folder(photos).records
    table = tmp_path / "list.csv"
    table.write_text("image\n" + "".join(f"photos/{record.name}\n" for record in folder[::-1]))
    by_folder, by_csv = run(detector, folder), run(detector, read_csv(table).records)
    logits = detector.score([record.path for record in folder]).logits.tolist()
    assert [by_folder[record.name].logits[0] for record in folder] == logits
    assert [by_csv[f"photos/{record.name}"].logits[0] for record in folder] == logits


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_comes_out_before_later_scores(detector, photos, workers):
    (photos / "img0.png").write_bytes(b"")
    records = read_folder(photos).records
    stream = predict(detector, records, FileSource(), LoadingOptions(workers=workers))
    names = [prediction.record.name for prediction in stream]
    assert sorted(names) == sorted(record.name for record in records)
    if workers == 0:
        assert names[0] == "img0.png"


def test_each_preparation_gives_its_logit(detector, photos):
    records = read_folder(photos).records
    versions = (Preparation(), Preparation(Perturbation(scale=0.5)), Preparation(resize_to=90))
    together = run(detector, records, preparations=versions)
    for number, version in enumerate(versions):
        alone = run(detector, records, preparations=(version,))
        for name, prediction in alone.items():
            assert together[name].logits[number] == prediction.logits[0]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("failing", [0, 1, 2])
def test_a_preparation_that_cannot_be_done_costs_only_its_own_logit(
    detector, tmp_path, failing, workers
):
    Image.new("RGB", (17_000, 2)).save(tmp_path / "wide.png")
    Image.fromarray(reference_image(230, 230, 1)).save(tmp_path / "fine.png")
    records = read_folder(tmp_path).records
    versions = [Preparation(), Preparation(resize_to=100)]
    expected = run(detector, records, preparations=tuple(versions))["wide.png"]
    versions.insert(failing, Preparation(Perturbation(webp=80)))
    found = run(detector, records, preparations=tuple(versions), workers=workers)
    assert found["fine.png"].errors == ("", "", "")
    wide = found["wide.png"]
    assert [bool(error) for error in wide.errors] == [i == failing for i in range(3)]
    assert "16383 pixels" in wide.errors[failing] and np.isnan(wide.logits[failing])
    rest = [logit for i, logit in enumerate(wide.logits) if i != failing]
    np.testing.assert_allclose(rest, expected.logits, rtol=0, atol=1e-5)
    assert (wide.error is None) == (failing > 0) == (wide.layout is not None)


def test_an_image_that_cannot_be_read_has_an_error_for_each_preparation(detector, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"bad")
    versions = (Preparation(), Preparation(Perturbation(scale=0.5)))
    (found,) = run(detector, read_folder(tmp_path).records, preparations=versions).values()
    assert len(found.logits) == 2 and np.isnan(found.logits).all()
    assert found.errors[0] == found.errors[1] == found.error != ""
    assert found.patches == 0


def test_the_model_not_being_finite_is_an_error_not_a_score(tiny_model, photos):
    detector = load_detector(tiny_model, device="cpu")
    with torch.no_grad():
        detector._model.cls_head.head[6].bias.fill_(float("nan"))
    for prediction in run(detector, read_folder(photos).records).values():
        assert np.isnan(prediction.logits).all() and "finite" in prediction.error


def test_patches_count_what_the_model_saw(detector, photos):
    found = run(detector, read_folder(photos).records)
    assert {name: p.patches for name, p in found.items()} == {
        "img1.png": 1, "img2.png": 5, "img3.png": 1, "img4.png": 4,
        "img5.png": 4, "img6.png": 1, "img7.png": 6,
    }  # fmt: skip


def test_an_image_that_breaks_in_the_middle_gives_an_error(detector, tmp_path):
    path = tmp_path / "tall.jpg"
    Image.fromarray(reference_image(3000, 230, 1)).save(path)
    path.write_bytes(path.read_bytes()[:-2000])
    (found,) = run(detector, read_folder(tmp_path).records).values()
    assert found.error is not None and "truncated" in found.error
    assert isinstance(found.record.path, Path) and np.isscalar(found.stamp.size)
