"""Packing keeps bytes, names keys by paths, and leaves nothing half done."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import lmdb
import pytest
from click.testing import CliRunner

from spai.data import packing

SCRIPT = Path(__file__).parents[2] / "scripts" / "pack_lmdb.py"


@pytest.fixture(scope="module")
def main():
    spec = importlib.util.spec_from_file_location("pack_lmdb", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


@pytest.fixture
def pack(main, tmp_path):
    """Run the script in this process; return click's result."""

    def run(*arguments: object, output: Path | None = None):
        given = map(str, (*arguments, "-o", output or tmp_path / "store.lmdb"))
        return CliRunner().invoke(main, list(given))

    return run


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Return a folder of files that carry an image's extension; packing does not decode."""
    for name in ("a.png", "sub/b c.jpg", "sub/ü.webp"):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode() * 3000)
    (tmp_path / "images/notes.txt").write_text("no image")
    return tmp_path / "images"


def content(store: Path) -> dict[str, bytes]:
    with (
        lmdb.open(str(store), subdir=False, readonly=True, lock=False) as environment,
        environment.begin() as transaction,
    ):
        return {key.decode(): value for key, value in transaction.cursor()}


def write_csv(path: Path, *names: str) -> Path:
    path.write_text("class,image\n" + "".join(f'0,"{name}"\n' for name in names))
    return path


def test_a_folder_is_packed_under_relative_posix_names_byte_for_byte(pack, images, tmp_path):
    result = pack("-i", images)
    assert result.exit_code == 0, result.output
    expected = {n: n.encode() * 3000 for n in ("a.png", "sub/b c.jpg", "sub/ü.webp")}
    assert content(tmp_path / "store.lmdb") == expected
    assert "3 images" in result.stderr and result.stdout == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "store.lmdb"]


def test_a_csv_is_packed_relative_to_its_folder_or_a_root_each_image_once(pack, images, tmp_path):
    csv = write_csv(images / "list.csv", "sub/b c.jpg", "./a.png", "a.png")
    assert pack("-i", csv).exit_code == 0
    assert content(tmp_path / "store.lmdb").keys() == {"a.png", "sub/b c.jpg"}
    moved = write_csv(tmp_path / "list.csv", "b c.jpg")
    other = tmp_path / "other.lmdb"
    assert pack("-i", moved, "-r", images / "sub", output=other).exit_code == 0
    assert content(other).keys() == {"b c.jpg"}


def test_a_store_grows_beyond_its_first_size(pack, tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "FIRST_MAP_BYTES", 1 << 15)
    monkeypatch.setattr(packing, "BATCH_BYTES", 100_000)
    names = [f"{number}.png" for number in range(40)]
    for name in names:
        (tmp_path / name).write_bytes(os.urandom(9000))
    assert pack("-i", write_csv(tmp_path / "list.csv", *names)).exit_code == 0
    assert content(tmp_path / "store.lmdb") == {n: (tmp_path / n).read_bytes() for n in names}


def test_missing_files_are_an_error_that_names_them_or_left_out(pack, images, tmp_path):
    csv = write_csv(images / "list.csv", "a.png", "gone.png", "sub/gone.png")
    refused = pack("-i", csv)
    assert refused.exit_code == 2
    assert "2 files are missing" in refused.stderr and "sub/gone.png" in refused.stderr
    assert not (tmp_path / "store.lmdb").exists()
    skipped = pack("-i", csv, "--missing", "skip")
    assert skipped.exit_code == 0, skipped.output
    assert content(tmp_path / "store.lmdb").keys() == {"a.png"}
    assert "gone.png" in skipped.stderr


@pytest.mark.parametrize("name", ["/etc/hostname", "../images/a.png", "sub/../../x.png", ""])
def test_keys_outside_the_root_are_refused(pack, images, tmp_path, name):
    result = pack("-i", write_csv(images / "list.csv", "a.png", name))
    assert result.exit_code == 2
    assert "list.csv, row 2" in result.stderr
    assert not (tmp_path / "store.lmdb").exists()


def test_a_folder_outside_the_root_is_refused(pack, images):
    result = pack("-i", images, "-r", images / "sub")
    assert result.exit_code == 2
    assert "'../a.png'" in result.stderr


def test_an_output_that_exists_is_left_alone(pack, images, tmp_path):
    (tmp_path / "store.lmdb").write_text("mine")
    result = pack("-i", images)
    assert result.exit_code == 2
    assert "exists already" in result.stderr
    assert (tmp_path / "store.lmdb").read_text() == "mine"


def test_a_key_that_lmdb_cannot_hold_is_refused_beforehand(pack, tmp_path):
    long = "/".join(["x" * 200] * 3) + ".png"
    result = pack("-i", write_csv(tmp_path / "list.csv", long))
    assert result.exit_code == 2
    assert "longer than the 511 bytes" in result.stderr


@pytest.mark.parametrize("error", [OSError("unplugged"), lmdb.Error("unplugged")])
def test_a_failure_halfway_is_one_line_and_leaves_no_file(
    pack, images, tmp_path, monkeypatch, error
):
    def fail(*_):
        raise error

    monkeypatch.setattr(packing, "_put", fail)
    result = pack("-i", images)
    assert result.exit_code == 1 and "unplugged" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def test_a_file_that_vanishes_meanwhile_is_left_out_on_request(pack, images, tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "is_file", lambda path: True)
    csv = write_csv(images / "list.csv", "a.png", "gone.png")
    assert pack("-i", csv).exit_code == 1
    assert pack("-i", csv, "--missing", "skip").exit_code == 0
    assert content(tmp_path / "store.lmdb").keys() == {"a.png"}


@pytest.mark.parametrize(
    ("text", "message"),
    [("name\na.png\n", "no column 'image'"), ("image\n", "no images to pack"), ("", "empty file")],
)
def test_a_csv_without_images_is_refused(pack, tmp_path, text, message):
    (tmp_path / "list.csv").write_text(text)
    result = pack("-i", tmp_path / "list.csv")
    assert result.exit_code == 2
    assert message in result.stderr


def test_it_runs_as_a_script():
    done = subprocess.run([sys.executable, str(SCRIPT), "--help"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--csv_root_dir" in done.stdout
