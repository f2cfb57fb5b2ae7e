"""Images in an LMDB store are the same images: same scores, whoever opens it and how often."""

import csv
import os
import pickle
from pathlib import Path

import lmdb
import numpy as np
import pytest
from click.testing import CliRunner

from spai.cli import main
from spai.data.images import FileSource, ImageError, LmdbSource
from spai.data.lmdb import open_store, store_key
from spai.data.loaders import LoadingOptions
from spai.data.packing import list_entries, pack_files
from spai.data.records import read_folder
from spai.detectors import load_detector
from spai.engine.predict import predict


@pytest.fixture
def store(photos: Path, tmp_path: Path) -> Path:
    """Return a store of the photographs, relative to their folder."""
    path = tmp_path / "photos.lmdb"
    assert pack_files(list_entries(photos), path) == 7
    return path


@pytest.mark.parametrize("workers", [0, 2])
def test_a_store_gives_the_logits_of_the_files(photos, store, tiny_model, workers):
    detector = load_detector(tiny_model, device="cpu")
    records = read_folder(photos).records[:4]
    logits = []
    for source in (FileSource(), LmdbSource(store, photos)):
        source.open(records[0].path)  # a source used before workers are forked is no other source
        found = predict(detector, records, source, LoadingOptions(workers=workers))
        by_row = {p.record.row: p.logits[0] for p in found}
        logits.append([by_row[record.row] for record in records])
    np.testing.assert_allclose(logits[0], logits[1], rtol=0, atol=1e-5)


def test_infer_scores_several_inputs_of_one_store(photos, store, tiny_model, tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.csv").write_text("image\nimg1.png\nimg3.png\n")
    inputs = [part for name in ("a", "b") for part in ("--input", str(tmp_path / f"{name}.csv"))]
    common = ("--model", str(tiny_model), "--device", "cpu", "--input-csv-root-dir", str(photos))
    scores = {}
    for name, options in (("files", ()), ("store", ("--lmdb", str(store), "--workers", "2"))):
        arguments = ["infer", *inputs, *common, *options, "--output", str(tmp_path / name)]
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 0, result.output
        for table in ("a", "b"):
            with (tmp_path / name / f"{table}.csv").open() as file:
                scores[name, table] = [float(row["spai"]) for row in csv.DictReader(file)]
    for table in ("a", "b"):
        np.testing.assert_allclose(scores["files", table], scores["store", table], atol=1e-5)


def test_a_store_that_is_a_folder_is_read_too(tmp_path):
    with lmdb.open(str(tmp_path / "store")) as made, made.begin(write=True) as transaction:
        transaction.put(b"a/b.png", b"bytes")
    source = LmdbSource(tmp_path / "store", Path("/root/of"))
    content, stamp = source.open(Path("/root/of/a/b.png"))
    assert content.read() == b"bytes" and stamp.size == 5


def test_sources_of_one_store_share_it_and_release_it(store, photos):
    first, second = LmdbSource(store, photos), LmdbSource(store, photos.parent)
    assert open_store(store) is open_store(store)
    image = photos / "img1.png"
    assert first.open(image)[0].read() == image.read_bytes()
    with pytest.raises(ImageError, match="no image 'photos/img1.png'"):
        second.open(image)
    del first, second
    lmdb.open(str(store), subdir=False, readonly=True, lock=False).close()  # refused when open


def test_a_pickled_source_opens_the_store_again(store, photos):
    source = pickle.loads(pickle.dumps(LmdbSource(store, photos)))
    assert source.open(photos / "img2.png")[0].read() == (photos / "img2.png").read_bytes()


def test_a_forked_process_and_its_parent_both_read(store, photos):
    source = LmdbSource(store, photos)
    expected = (photos / "img1.png").read_bytes()
    child = os.fork()
    if child == 0:
        same = source.open(photos / "img1.png")[0].read() == expected
        os._exit(0 if same else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert source.open(photos / "img1.png")[0].read() == expected


@pytest.mark.parametrize("name", ["missing", "text"])
def test_what_is_no_store_is_a_mistake_named(tmp_path, name):
    (tmp_path / "text").write_text("no store")
    with pytest.raises(ValueError, match=f"{name}: no LMDB store"):
        LmdbSource(tmp_path / name, tmp_path)


def test_keys_are_posix_paths_relative_to_the_root():
    assert store_key(Path("/data/set/a/ü b.png"), Path("/data/set")) == "a/ü b.png".encode()
    assert store_key(Path("set/./a//b.png"), Path("set")) == b"a/b.png"
    assert store_key(Path(os.fsdecode(b"set/\xff.png")), Path("set")) == b"\xff.png"
