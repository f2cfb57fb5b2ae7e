"""Each row gets one training view, under the image's own name, and nothing else is touched."""

import csv
import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from spai.data import augmented
from spai.data.augment import ViewSettings, seeded_views
from tests.recipe import reference_image

SCRIPT = Path(__file__).parents[2] / "scripts" / "augment_dataset.py"


@pytest.fixture(scope="module")
def main():
    spec = importlib.util.spec_from_file_location("augment_dataset", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Return a folder with images of three formats and a CSV of them."""
    for seed, name in enumerate(("a.png", "sub/b c.JPEG", "sub/d.webp")):
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(reference_image(300, 260 + seed, seed + 1)).save(path)
    rows = (
        'note,image,class,split\n"x, y",a.png,0,train\n,sub/b c.JPEG,1,val\n7,sub/d.webp,1,test\n'
    )
    (tmp_path / "data/set.csv").write_text(rows)
    return tmp_path / "data"


@pytest.fixture
def augment(main, data, tmp_path):
    """Run the script in this process; return click's result."""

    def run(*extra: object, out: str = "new", source: Path = data / "set.csv"):
        fixed = ("-i", source, "-o", tmp_path / out / "set.csv", "--output_dir", tmp_path / out)
        return CliRunner().invoke(main, [str(part) for part in (*fixed, *extra)])

    return run


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def pixels(path: Path) -> torch.Tensor:
    with Image.open(path) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def test_each_row_gets_the_training_view_of_its_seed(augment, data, tmp_path):
    result = augment("--seed", 5)
    assert result.exit_code == 0, result.output
    expected = seeded_views(pixels(data / "a.png"), ViewSettings(), 1, seed=5, epoch=0, index=0)
    assert torch.equal(pixels(tmp_path / "new/a.png"), expected[0])
    lossy = seeded_views(pixels(data / "sub/d.webp"), ViewSettings(), 1, seed=5, epoch=0, index=2)
    difference = (pixels(tmp_path / "new/sub/d.webp").float() - lossy[0].float()).abs().mean()
    assert 0 < difference < 20
    assert "3 images written, 0 left out" in result.stderr and result.stdout == ""


def test_names_formats_columns_and_rows_stay(augment, tmp_path):
    augment()
    rows = read(tmp_path / "new/set.csv")
    assert [list(row.values()) for row in rows] == [
        ["x, y", "a.png", "0", "train"],
        ["", "sub/b c.JPEG", "1", "val"],
        ["7", "sub/d.webp", "1", "test"],
    ]
    formats = [Image.open(tmp_path / "new" / row["image"]).format for row in rows]
    assert formats == ["PNG", "JPEG", "WEBP"]
    names = {path.name for path in (tmp_path / "new").rglob("*") if path.is_file()}
    assert names == {"set.csv", "a.png", "b c.JPEG", "d.webp"}


def test_paths_of_the_new_csv_are_relative_to_its_folder(augment, tmp_path):
    augment("--output_dir", tmp_path / "elsewhere" / "views")
    names = [row["image"] for row in read(tmp_path / "new/set.csv")]
    assert names[0] == "../elsewhere/views/a.png"
    assert all((tmp_path / "new" / name).is_file() for name in names)


def test_equal_seeds_give_equal_files_and_others_do_not(augment, tmp_path):
    for out, seed in (("one", 1), ("two", 1), ("three", 2)):
        augment("--seed", seed, out=out)
    for name in ("a.png", "sub/b c.JPEG", "sub/d.webp"):
        one, two, three = ((tmp_path / out / name).read_bytes() for out in ("one", "two", "three"))
        assert one == two != three


def test_configuration_keys_change_the_views(augment, data, tmp_path):
    (tmp_path / "still.yaml").write_text("AUG: {ROTATION_PROB: 0.0, HORIZONTAL_FLIP_PROB: 0.0}\n")
    keys = ("VERTICAL_FLIP_PROB", "GAUSSIAN_BLUR_PROB", "GAUSSIAN_NOISE_PROB")
    off = [part for key in (*keys, "JPEG_COMPRESSION_PROB") for part in ("--opt", f"AUG.{key}", 0)]
    crop = ("--opt", "AUG.MIN_CROP_AREA", 1, "--opt", "DATA.IMG_SIZE", 96)
    result = augment("--cfg", tmp_path / "still.yaml", *off, *crop)
    assert result.exit_code == 0, result.output
    view, original = pixels(tmp_path / "new/a.png"), pixels(data / "a.png")
    assert view.shape == (3, 96, 96)
    windows = original.unfold(1, 96, 1).unfold(2, 96, 1)  # a plain crop of the original
    corner = (windows[..., 0, 0] == view[:, None, None, 0, 0]).all(0).nonzero()
    assert any(torch.equal(windows[:, top, left], view) for top, left in corner.tolist())


def test_the_quality_decides_the_size_of_lossy_files_only(augment, tmp_path):
    for quality in (30, 95):
        augment("--quality", quality, out=str(quality))
    for name, shrinks in (("a.png", False), ("sub/b c.JPEG", True), ("sub/d.webp", True)):
        low, high = ((tmp_path / q / name).stat().st_size for q in ("30", "95"))
        assert low < high if shrinks else low == high


def test_images_that_cannot_be_read_are_reported_and_left_out(augment, data, tmp_path):
    (data / "a.png").write_bytes((data / "a.png").read_bytes()[:500])
    (data / "sub/d.webp").unlink()
    result = augment()
    assert result.exit_code == 0, result.output
    assert "left out: a.png: cannot be decoded" in result.stderr
    assert "left out: sub/d.webp: file not found" in result.stderr
    assert "1 images written, 2 left out" in result.stderr
    assert [row["image"] for row in read(tmp_path / "new/set.csv")] == ["sub/b c.JPEG"]


def test_a_view_does_not_depend_on_other_rows_being_readable(augment, data, tmp_path):
    augment(out="one")
    (data / "a.png").unlink()
    augment(out="two")
    one, two = ((tmp_path / out / "sub/d.webp").read_bytes() for out in ("one", "two"))
    assert one == two


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["a.png", "/etc/x.png"], "row 2: '/etc/x.png'"),
        (["a.png", "../data/a.png"], "row 2: '../data/a.png'"),
        (["a.png", "sub/d.webp", "./a.png"], "row 3: './a.png' is in row 1 too"),
        (["a.png", "b.psd"], "'b.psd': views are written as JPEG, WEBP"),
        (["noextension"], "'noextension'"),
        (["gone.png"], "none of its images can be read, such as 'gone.png': file not found"),
        ([], "rows below it are needed"),
    ],
)
def test_lists_that_cannot_be_written_safely_are_refused(augment, data, tmp_path, rows, message):
    (data / "bad.csv").write_text("image\n" + "".join(f"{name}\n" for name in rows))
    result = augment(source=data / "bad.csv")
    assert result.exit_code == 2
    assert message in result.stderr and len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "new").exists()


def test_originals_and_the_input_csv_are_never_overwritten(augment, data):
    before = {path: path.read_bytes() for path in data.rglob("*") if path.is_file()}
    over = augment("--output_dir", data)
    assert over.exit_code == 2 and "a.png is an image that is read" in over.stderr
    same = augment("-o", data / "set.csv")
    assert same.exit_code == 2 and "would be overwritten" in same.stderr
    assert {path: path.read_bytes() for path in data.rglob("*") if path.is_file()} == before


def test_a_failure_halfway_leaves_no_csv_and_no_half_image(augment, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError("unplugged")

    monkeypatch.setattr(augmented.os, "replace", fail)
    result = augment()
    assert result.exit_code == 1 and "unplugged" in result.stderr
    assert [path for path in (tmp_path / "new").rglob("*") if path.is_file()] == []


def test_it_runs_as_a_script():
    done = subprocess.run([sys.executable, str(SCRIPT), "--help"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--output_dir" in done.stdout
