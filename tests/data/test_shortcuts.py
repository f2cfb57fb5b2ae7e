"""Container features say what the file says; the probe finds shortcuts and nothing else."""

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from spai.data.shortcuts import (
    FEATURES,
    ContainerFacts,
    container_features,
    estimate_jpeg_quality,
    facts_table,
    probe_families,
    shortcut_probe,
)

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 36, 3), dtype=np.uint8))


def table(count: int, *, seed: int = 0, quality: int = 90) -> pd.DataFrame:
    """Features of `count` JPEG files of random sizes and one quality."""
    generator = np.random.default_rng(seed)
    sizes = generator.integers(200, 900, (count, 3)).tolist()
    return facts_table(
        [ContainerFacts(size * 100, w, h, "JPEG", quality, "4:2:0") for size, w, h in sizes]
    )


@pytest.mark.parametrize("quality", range(1, 101))
def test_jpeg_quality_of_files_saved_by_libjpeg_is_exact(quality: int) -> None:
    stream = io.BytesIO()
    PICTURE.save(stream, "JPEG", quality=quality)
    with Image.open(stream) as image:
        assert estimate_jpeg_quality(image.quantization[0]) == quality  # type: ignore[attr-defined]


@pytest.mark.parametrize(("code", "name"), [(0, "4:4:4"), (1, "4:2:2"), (2, "4:2:0")])
def test_subsampling_is_read_from_the_header(tmp_path: Path, code: int, name: str) -> None:
    PICTURE.save(tmp_path / "x.jpg", subsampling=code)
    assert list(container_features([tmp_path / "x.jpg"])["subsampling"]) == [name]


def test_container_features_have_a_row_for_each_path_in_order(tmp_path: Path) -> None:
    PICTURE.save(tmp_path / "a.jpg", quality=77)
    PICTURE.convert("L").save(tmp_path / "grey.jpg", quality=60)
    PICTURE.save(tmp_path / "b.png")
    (tmp_path / "broken.png").write_bytes(b"no image")
    names = ["b.png", "missing.png", "a.jpg", "broken.png", "grey.jpg"]

    features = container_features([tmp_path / name for name in names])

    assert set(FEATURES) == set(features.columns)
    assert features["file_size"].tolist()[0] == (tmp_path / "b.png").stat().st_size
    assert features["width"].tolist()[::2] == [36, 36, 36]
    assert features["aspect"].tolist()[::2] == [1.5, 1.5, 1.5]
    assert features["format"].tolist() == ["PNG", "", "JPEG", "", "JPEG"]
    assert features["subsampling"].tolist() == ["", "", "4:2:0", "", ""]
    assert features["jpeg_quality"].tolist()[2::2] == [77, 60]
    assert features["width"].isna().tolist() == [False, True, False, True, False]
    assert features["jpeg_quality"].isna().tolist() == [True, True, False, True, False]


def test_the_probe_finds_a_quality_that_tells_the_classes_apart() -> None:
    features = pd.concat([table(40, quality=90), table(40, seed=1, quality=75)])
    found = probe_families(features, [0] * 40 + [1] * 40)
    assert found["all"] == 1.0
    assert found["JPEG coding"] == 1.0
    assert found["format"] == 0.5  # the same for all: chance
    assert 0.3 < found["dimensions"] < 0.7


def test_the_probe_is_near_chance_when_the_container_says_nothing() -> None:
    labels = np.random.default_rng(5).integers(0, 2, 400)
    result = shortcut_probe(table(400), labels)
    assert 0.4 < result.balanced_accuracy < 0.6  # 4 standard errors
    assert 0.4 < result.auc < 0.6


def test_the_probe_finds_formats_and_takes_missing_values() -> None:
    features = table(40)
    features.loc[20:, "format"] = "WEBP"
    features.loc[20:, "jpeg_quality"] = float("nan")
    result = shortcut_probe(features, [0] * 20 + [1] * 20, columns=["format"])
    assert result.balanced_accuracy == 1.0


def test_class_imbalance_does_not_raise_the_balanced_accuracy() -> None:
    result = shortcut_probe(table(300), [0] * 280 + [1] * 20)
    assert 0.3 < result.balanced_accuracy < 0.65


def test_the_same_seed_gives_the_same_scores() -> None:
    labels = [0, 1] * 30
    first, second = (shortcut_probe(table(60), labels, seed=2) for _ in range(2))
    np.testing.assert_array_equal(first.scores, second.scores)
    assert not np.array_equal(shortcut_probe(table(60), labels, seed=3).scores, first.scores)


def test_scores_of_a_separate_test_set_follow_its_rows() -> None:
    train = pd.concat([table(30, quality=90), table(30, seed=1, quality=75)])
    test = pd.concat([table(4, seed=2, quality=75), table(2, seed=3, quality=90)])
    result = shortcut_probe(
        train, [0] * 30 + [1] * 30, test_features=test, test_labels=[1, 1, 1, 1, 0, 0]
    )
    assert ((result.scores > 0.5) == [1, 1, 1, 1, 0, 0]).all()
    assert result.balanced_accuracy == result.auc == 1.0


def test_unusable_inputs_of_the_probe_are_refused() -> None:
    with pytest.raises(ValueError, match=r"needs 2 of each"):
        shortcut_probe(table(5), [0, 0, 0, 0, 1])
    with pytest.raises(ValueError, match="as many labels"):
        shortcut_probe(table(5), [0, 1])
    with pytest.raises(ValueError, match=r"lack \['format'\]"):
        shortcut_probe(table(4).drop(columns="format"), [0, 1, 0, 1])
    with pytest.raises(ValueError, match="needs 1 of each"):
        shortcut_probe(table(4), [0, 1, 0, 1], test_features=table(2), test_labels=[1, 1])
