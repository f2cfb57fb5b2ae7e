"""The data-set check finds what would spoil training or a test."""

import json
import os
from dataclasses import asdict
from pathlib import Path

import lmdb
import numpy as np
from PIL import Image

from spai.data.images import FileSource, LmdbSource
from spai.data.inspection import check_file, check_samples, format_report
from spai.data.tables import Sample


def save(path: Path, *, seed: int = 0, size: tuple[int, int] = (12, 8), **options: int) -> Path:
    """Save a noise image in the format of the extension."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def broken_tiff(path: Path) -> Path:
    """A TIFF whose header is whole and whose pixels are cut off."""
    save(path, size=(64, 64))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def test_every_kind_of_bad_file_is_listed_once_with_its_reason(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "dangling.png").symlink_to(tmp_path / "nowhere.png")
    save(tmp_path / "target.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "target.png")
    broken_tiff(tmp_path / "r0bf7f938t.tif")
    (tmp_path / "page.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    names = ["pipe.png", "text.png", "folder.png", "dangling.png", "link.png", "r0bf7f938t.tif"]
    names += ["page.eps", "gone.png", "null\0byte.png"]

    report = check_samples([Sample(tmp_path / name, 0, "test") for name in names])

    assert [Path(path).name for path in report.missing] == [
        "dangling.png",
        "gone.png",
        "null\0byte.png",
    ]
    assert sorted(Path(path).name for path in report.broken) == [
        "folder.png",
        "page.eps",
        "pipe.png",
        "r0bf7f938t.tif",
        "text.png",
    ]
    assert report.broken[str(tmp_path / "pipe.png")] == "not a regular file"
    assert all(report.broken.values())
    assert (report.groups[0].images, report.groups[0].missing, report.groups[0].broken) == (9, 3, 5)


def test_images_above_the_pixel_limit_are_broken_and_not_decoded(tmp_path: Path) -> None:
    save(tmp_path / "x.png", size=(20, 10))
    assert check_file(tmp_path / "x.png", FileSource(), max_pixels=200).error == ""
    assert "200 pixels" in check_file(tmp_path / "x.png", FileSource(), max_pixels=199).error


def test_the_check_restores_pillows_own_limit(tmp_path: Path) -> None:
    before = Image.MAX_IMAGE_PIXELS
    check_samples([Sample(save(tmp_path / "x.png"), 0, "test")])
    assert before == Image.MAX_IMAGE_PIXELS


def test_distributions_are_given_per_split_and_class(tmp_path: Path) -> None:
    samples = [
        Sample(save(tmp_path / "a.jpg", seed=1, size=(10, 5), quality=75), 0, "train"),
        Sample(save(tmp_path / "b.jpg", seed=2, size=(30, 5), quality=75), 0, "train"),
        Sample(save(tmp_path / "c.jpg", seed=3, size=(20, 7), quality=90), 0, "train"),
        Sample(save(tmp_path / "d.png", seed=4, size=(16, 16)), 1, "train"),
        Sample(save(tmp_path / "e.tif", seed=5, size=(16, 16)), 0, "val"),
    ]

    real, generated, validation = check_samples(samples).groups

    assert (real.split, real.label, real.images) == ("train", "real", 3)
    assert real.width == {"min": 10, "25%": 15, "50%": 20, "75%": 25, "max": 30}
    assert real.height["max"] == 7
    assert real.sizes == {"10 x 5": 1, "30 x 5": 1, "20 x 7": 1}
    assert real.formats == {"JPEG": 3}
    assert real.jpeg_quality == {"75": 2, "90": 1}
    assert real.subsampling == {"4:2:0": 3}
    assert (generated.label, generated.formats, generated.jpeg_quality) == (
        "generated",
        {"PNG": 1},
        {},
    )
    assert (validation.split, validation.formats) == ("val", {"TIFF": 1})
    assert real.file_size["min"] == min(s.path.stat().st_size for s in samples[:3])


def test_a_group_without_readable_images_has_empty_distributions(tmp_path: Path) -> None:
    report = check_samples([Sample(tmp_path / "gone.png", 1, "test")])
    assert report.groups[0].width == report.groups[0].formats == {}
    assert "gone.png" in format_report(report)


def test_identical_files_are_found_within_and_across_splits_and_labels(tmp_path: Path) -> None:
    samples = [
        Sample(save(tmp_path / "a.png", seed=1), 0, "train"),
        Sample(save(tmp_path / "same split.png", seed=1), 0, "train"),
        Sample(save(tmp_path / "b.png", seed=2), 0, "train"),
        Sample(save(tmp_path / "other split.png", seed=2), 0, "test"),
        Sample(save(tmp_path / "c.png", seed=3), 0, "test"),
        Sample(save(tmp_path / "other label.png", seed=3), 1, "test"),
        Sample(save(tmp_path / "unique.png", seed=4), 1, "test"),
    ]

    found = check_samples(samples).duplicates

    assert [[Path(image).name for image in d.images] for d in found] == [
        ["b.png", "other split.png"],  # leaks first
        ["c.png", "other label.png"],
        ["a.png", "same split.png"],
    ]
    assert [d.splits for d in found] == [["test", "train"], ["test"], ["train"]]
    assert [d.labels for d in found] == [["real"], ["generated", "real"], ["real"]]


def data_set(root: Path, *, extension: str) -> list[Sample]:
    """12 real PNGs and 12 generated files, of the same random sizes."""
    samples = []
    for i in range(24):
        size = (40 + 7 * (i % 5), 40 + 5 * (i % 3))
        label, suffix = (1, extension) if i % 2 else (0, ".png")
        samples.append(Sample(save(root / f"{i}{suffix}", seed=i, size=size), label, "train"))
    return samples


def test_a_format_that_gives_the_class_away_is_warned_about(tmp_path: Path) -> None:
    report = check_samples(data_set(tmp_path, extension=".jpg"))
    assert report.probes[0].balanced_accuracy["format"] == 1.0
    assert "WARNING: above 60 %" in format_report(report)


def test_equal_containers_are_not_warned_about(tmp_path: Path) -> None:
    report = check_samples(data_set(tmp_path, extension=".png"))
    assert (report.probes[0].real, report.probes[0].generated) == (12, 12)
    assert report.probes[0].balanced_accuracy["format"] == 0.5
    assert "WARNING" not in format_report(report)


def test_the_probe_is_not_run_on_a_handful_of_images(tmp_path: Path) -> None:
    report = check_samples(data_set(tmp_path, extension=".jpg")[:8])
    assert report.probes[0].balanced_accuracy == {}
    assert "not run" in format_report(report)


def test_long_lists_are_cut_in_the_text_only(tmp_path: Path) -> None:
    report = check_samples([Sample(tmp_path / f"{i}.png", 0, "test") for i in range(13)])
    text = format_report(report, most=10)
    assert "missing files: 13" in text
    assert "... and 3 more" in text
    assert len(json.loads(json.dumps(asdict(report)))["missing"]) == 13


def test_images_of_a_store_are_checked_like_files(tmp_path: Path) -> None:
    content = save(tmp_path / "a.png").read_bytes()
    with lmdb.open(str(tmp_path / "store")) as store, store.begin(write=True) as transaction:
        transaction.put(b"set/a.png", content)
        transaction.put(b"set/b.png", content[:40])
    names = ["set/a.png", "set/b.png", "set/c.png"]
    samples = [Sample(tmp_path / name, 0, "test") for name in names]

    report = check_samples(samples, source=LmdbSource(tmp_path / "store", tmp_path))

    assert report.missing == [str(tmp_path / "set/c.png")]
    assert list(report.broken) == [str(tmp_path / "set/b.png")]
    assert report.groups[0].file_size["max"] == len(content)
