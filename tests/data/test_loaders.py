"""Decoding in workers: the same pieces however many there are, and errors that stay small."""

import os
import warnings
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from spai.data import loaders
from spai.data.images import FileSource, FileStamp, RowImage
from spai.data.loaders import LoadingOptions, Preparation, load_pieces
from spai.data.perturb import Perturbation
from spai.data.records import ImageRecord
from spai.models.patches import PatchCutter
from tests.recipe import reference_image

SIZES = ((224, 224), (300, 500), (80, 100), (448, 470), (230, 900), (1, 1), (460, 700))

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


def records_of(paths):
    return [ImageRecord(path, path.name, None, 100 + row) for row, path in enumerate(paths)]


@pytest.fixture
def paths(tmp_path):
    """Return good images with bad ones among them."""
    good = []
    for seed, (height, width) in enumerate(SIZES, 1):
        good.append(tmp_path / f"img{seed}.png")
        Image.fromarray(reference_image(height, width, seed)).save(good[-1])
    (tmp_path / "cut.png").write_bytes(good[3].read_bytes()[:3000])
    (tmp_path / "text.png").write_text("no image")
    return [*good[:2], tmp_path / "absent.png", *good[2:5], tmp_path / "cut.png", *good[5:]]


def pieces_of(paths, cut=None, **options):
    """Return {(position, variant): pieces in order} and {(position, variant): error}."""
    pieces, errors = defaultdict(list), {}
    cut = cut or PatchCutter()
    for loaded in load_pieces(records_of(paths), FileSource(), cut, LoadingOptions(**options)):
        if loaded.error is None:
            pieces[loaded.position, loaded.variant].append((loaded.piece, loaded.stamp))
        else:
            key = loaded.position, loaded.variant
            assert key not in errors and loaded.piece is None
            errors[key] = loaded.error
    return pieces, errors


def assert_same(first, second):
    assert first.keys() == second.keys()
    for key in first:
        assert len(first[key]) == len(second[key])
        for (a, stamp_a), (b, stamp_b) in zip(first[key], second[key], strict=True):
            assert a.layout == b.layout and stamp_a == stamp_b and torch.equal(a.patches, b.patches)


@pytest.mark.parametrize("workers", [1, 3])
def test_the_number_of_workers_changes_no_piece(paths, workers):
    preparations = (
        Preparation(),
        Preparation(Perturbation(noise=3.0), resize_to=300, seed=4),
        Preparation(Perturbation(jpeg=80)),
    )
    alone = pieces_of(paths, workers=0, preparations=preparations)
    several = pieces_of(paths, workers=workers, preparations=preparations)
    assert_same(alone[0], several[0])
    assert alone[1] == several[1]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_costs_only_its_image(paths, workers):
    pieces, errors = pieces_of(paths, workers=workers)
    assert sorted(errors) == [(2, 0), (6, 0)]
    assert errors[2, 0] == "file not found" and "cannot be decoded" in errors[6, 0]
    assert sorted(position for position, _ in pieces) == [0, 1, 3, 4, 5, 7, 8]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_version_that_cannot_be_had_costs_only_itself(paths, workers):
    huge = Preparation(Perturbation(webp=80, scale=4.0))
    plain = Preparation(resize_to=200)
    wide = paths[0].with_name("wide.png")
    Image.new("RGB", (17_000, 3)).save(wide)
    given = [*paths, wide]
    pieces, errors = pieces_of(given, workers=workers, preparations=(plain, huge, plain))
    last = len(paths)
    assert sorted(errors) == [*((p, v) for p in (2, 6) for v in range(3)), (last, 1)]
    assert {key for key in pieces if key[0] == last} == {(last, 0), (last, 2)}


def test_a_preview_comes_with_the_first_piece_of_the_first_version(paths):
    options = LoadingOptions(preparations=(Preparation(resize_to=400), Preparation()), preview=200)
    first = {}
    for loaded in load_pieces(records_of(paths), FileSource(), PatchCutter(stride=32), options):
        if loaded.error is None and loaded.variant == 0 and loaded.position not in first:
            first[loaded.position] = loaded.preview
        else:
            assert loaded.preview is None
    assert first[1].shape == (3, 120, 200) and first[1].dtype == torch.uint8
    assert first[7].shape == (3, 1, 1) and len(first) == 7


def test_no_image_is_too_large_for_the_others(paths):
    pieces, errors = pieces_of(paths, workers=2, max_pixels=250_000)
    assert sorted(errors) == [(2, 0), (6, 0), (8, 0)] and "--max-pixels" in errors[8, 0]
    assert len(pieces) == 6


def test_a_piece_carries_the_stamp_of_its_file(paths):
    pieces, _ = pieces_of(paths)
    for (position, _), found in pieces.items():
        status = os.stat(paths[position])
        assert {stamp for _, stamp in found} == {FileStamp(status.st_size, status.st_mtime_ns)}


def test_a_file_that_vanishes_before_its_turn_costs_only_itself(paths):
    stream = load_pieces(records_of(paths), FileSource(), PatchCutter(), LoadingOptions())
    first = next(stream)
    paths[-1].unlink()
    rest = list(stream)
    assert first.error is None and rest[-1].error == "file not found"
    assert {loaded.position for loaded in rest if loaded.error is None} >= {1, 3, 4, 5, 7}


def fail_halfway(image):
    """Cut like PatchCutter, and run out of memory when an image has a second piece."""
    for number, piece in enumerate(PatchCutter(stride=32)(image)):
        if number == 1:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(np, "array", _no_memory)
                image[:, 0:1]
        yield piece


def _no_memory(*arguments, **options):
    raise MemoryError


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_after_the_first_piece_ends_its_image_alone(paths, workers):
    pieces, errors = pieces_of(paths, fail_halfway, workers=workers)
    # Images of 225 rows or more have several rows of patches.
    assert {key for key, error in errors.items() if "memory" in error} == {(1, 0), (4, 0), (8, 0)}
    assert len(pieces[1, 0]) == 1 and len(pieces[0, 0]) == 1


@pytest.mark.parametrize("workers", [0, 2, 3])
def test_huge_images_take_turns_without_a_deadlock(paths, workers, monkeypatch):
    expected = pieces_of(paths, PatchCutter(stride=48), workers=0)
    monkeypatch.setattr(loaders, "HUGE_PIXELS", 10_000)
    found = pieces_of(paths, PatchCutter(stride=48), workers=workers, prefetch=1)
    assert_same(expected[0], found[0])
    assert expected[1] == found[1]


def log_decoding(image):
    """Note in the folder that SPAI_TEST_LOG names when an image is held."""
    log = Path(os.environ["SPAI_TEST_LOG"])
    (log / f"{os.getpid()}").touch()
    held = len(list(log.iterdir()))
    yield from ((held, number) for number in range(3))
    (log / f"{os.getpid()}").unlink()


def test_only_one_huge_image_is_decoded_at_a_time(paths, tmp_path, monkeypatch):
    (tmp_path / "log").mkdir()
    monkeypatch.setenv("SPAI_TEST_LOG", str(tmp_path / "log"))
    monkeypatch.setattr(loaders, "HUGE_PIXELS", 0)
    pieces, _ = pieces_of([path for path in paths if path.exists()], log_decoding, workers=3)
    assert [held for found in pieces.values() for (held, _), _ in found] == [1] * 21


@pytest.mark.parametrize("huge", [0, 10**9])
def test_stopping_early_leaves_no_process(paths, huge, monkeypatch):
    monkeypatch.setattr(loaders, "HUGE_PIXELS", huge)
    options = LoadingOptions(workers=2)
    stream = load_pieces(records_of(paths), FileSource(), PatchCutter(stride=16), options)
    next(stream)
    stream.close()
    assert torch.multiprocessing.active_children() == []


@pytest.mark.parametrize("workers", [0, 2])
def test_no_records_give_no_pieces(workers):
    assert pieces_of([], workers=workers) == ({}, {})


def test_a_wide_image_over_pillows_own_limit_costs_nobody_anything(tmp_path, monkeypatch):
    Image.fromarray(reference_image(300, 3000, 1)).save(tmp_path / "wide.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pieces, errors = pieces_of([tmp_path / "wide.png"])
        noisy = Preparation(Perturbation(noise=1.0))
        assert pieces_of([tmp_path / "wide.png"], preparations=(noisy,))[1] == {}
    assert errors == {} and len(pieces) == 1
    assert Image.MAX_IMAGE_PIXELS == 1000


def test_images_are_shrunk_after_they_are_degraded(tmp_path):
    pixels = torch.from_numpy(reference_image(300, 500, 1)).permute(2, 0, 1)
    levels = Perturbation(jpeg=70, noise=5.0, scale=0.85)
    found = Preparation(levels, 200, 3)(RowImage.from_tensor(pixels), 9).tensor()
    degraded = RowImage.from_tensor(levels(pixels, seed=3, row=9))
    assert torch.equal(found, degraded.shrink(200).tensor())
    early = levels(RowImage.from_tensor(pixels).shrink(200).tensor(), seed=3, row=9)
    assert early.shape != found.shape
