"""The data tools work as scripts: options in, CSV and exit code out."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SCRIPTS = Path(__file__).parents[2] / "scripts"


def run(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPTS / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def save(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 9, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def ldm(tmp_path: Path) -> Path:
    for split in ("train", "valid"):
        for i in range(3):
            save(tmp_path / f"ldm/{split}/latent_diffusion_class2image/class-{i}.png", i)
        (tmp_path / f"ldm/{split}/real_coco.txt").write_text("000000000009.jpg\n")
        (tmp_path / f"ldm/{split}/real_lsun.txt").write_text("airplane_00.png\n")
    save(tmp_path / "COCO/train2017/000000000009.jpg")
    return tmp_path


def ldm_options(root: Path) -> list[object]:
    return [
        *("--train_dir", root / "ldm/train", "--val_dir", root / "ldm/val"),
        *("--coco_dir", root / "COCO", "--lsun_dir", root / "lsun"),
        *("-o", root / "ldm.csv", "-n", 1, "--seed", 2),
    ]


def test_create_ldm_csv_writes_the_rows_and_reports_counts_on_stderr(ldm: Path) -> None:
    save(ldm / "lsun/train/airplane/0_real/00.png")

    done = run("create_ldm_csv.py", *ldm_options(ldm))

    assert done.returncode == 0, done.stderr
    header, *rows = (ldm / "ldm.csv").read_text().splitlines()
    assert header == "image,class,split"
    assert [row.split(",")[1:] for row in rows] == [
        ["1", "train"],
        ["0", "train"],
        ["1", "val"],
        ["0", "val"],
    ]
    assert rows[2].startswith("ldm/valid/latent_diffusion_class2image/")
    assert done.stdout == ""
    assert done.stderr.splitlines()[-1].split() == ["all", "4"]


def test_create_ldm_csv_exits_2_and_writes_nothing_when_reals_are_missing(ldm: Path) -> None:
    done = run("create_ldm_csv.py", *ldm_options(ldm))
    assert done.returncode == 2
    assert "2 real files are missing" not in done.stderr  # one file, listed for both splits
    assert "1 real files are missing" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (ldm / "ldm.csv").exists()


def test_create_dir_csv_writes_relative_to_the_root(tmp_path: Path) -> None:
    save(tmp_path / "data/a/0_real/x y.png")
    save(tmp_path / "data/b/1_fake/z.png")
    folders = ["--train_dir", tmp_path / "data/a", "--train_dir", tmp_path / "data/b"]

    done = run("create_dir_csv.py", *folders, "-o", tmp_path / "s.csv", "-r", tmp_path / "data")

    assert done.returncode == 0, done.stderr
    expected = "image,class,split\na/0_real/x y.png,0,train\nb/1_fake/z.png,1,train\n"
    assert (tmp_path / "s.csv").read_text() == expected


def test_create_dir_csv_without_folders_is_a_usage_error(tmp_path: Path) -> None:
    done = run("create_dir_csv.py", "-o", tmp_path / "s.csv")
    assert done.returncode == 2
    assert "--train_dir" in done.stderr


def test_create_synthbuster_csv_leaves_missing_photographs_out_on_request(tmp_path: Path) -> None:
    save(tmp_path / "synthbuster/dalle3/r1t.png")
    save(tmp_path / "RAISE-1k/tiff/r1t.tif")
    prompts = tmp_path / "synthbuster/prompts.csv"
    prompts.write_text("image name (matching Raise-1k),prompt\nr1t,a\nr2t,b\n")
    folders = ["--synthbuster_dir", prompts.parent, "--raise_dir", tmp_path / "RAISE-1k"]

    done = run("create_synthbuster_csv.py", *folders, "-o", tmp_path / "s.csv", "--missing", "skip")

    assert done.returncode == 0, done.stderr
    assert "r2t.tif" in done.stderr
    rows = (tmp_path / "s.csv").read_text().splitlines()[1:]
    assert rows == ["synthbuster/dalle3/r1t.png,1,test", "RAISE-1k/tiff/r1t.tif,0,test"]


def test_reduce_csv_column_writes_average_deviation_and_count(tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_text("image,class,spai\na,0,0.5\nb,0,1\nc,1,0.25\n")
    options = ["-i", tmp_path / "s.csv", "-c", "spai", "-g", "class"]

    done = run("reduce_csv_column.py", *options)
    to_file = run("reduce_csv_column.py", *options, "-o", tmp_path / "out.csv")

    assert (done.returncode, to_file.returncode) == (0, 0)
    header, first, second = done.stdout.splitlines()
    assert header == "class,avg,std,count"
    assert first.startswith("0,0.75,0.35355339059327")
    assert second == "1,0.25,0.0,1"
    assert (tmp_path / "out.csv").read_text() == done.stdout


def test_check_dataset_exits_1_on_missing_or_broken_files_and_writes_json(tmp_path: Path) -> None:
    save(tmp_path / "good.png")
    (tmp_path / "bad.tif").write_bytes(b"II*\0 not much of an image")
    listing = tmp_path / "s.csv"
    listing.write_text("image,class,split\ngood.png,0,test\nbad.tif,1,test\ngone.png,1,test\n")

    done = run("check_dataset.py", "--csv", listing, "--output", tmp_path / "report.json")

    assert done.returncode == 1
    assert "1 images missing, 1 broken" in done.stderr
    assert "gone.png" in done.stdout
    found = json.loads((tmp_path / "report.json").read_text())
    assert list(found["broken"]) == [str(tmp_path / "bad.tif")]
    assert [group["images"] for group in found["groups"]] == [1, 2]


def test_check_dataset_exits_0_on_a_sound_set_of_several_csvs(tmp_path: Path) -> None:
    for folder, label in (("real", 0), ("fake", 1)):
        save(tmp_path / folder / "a.png", label)
        (tmp_path / folder / "s.csv").write_text(f"image,class,split\na.png,{label},test\n")

    done = run(
        "check_dataset.py", "--csv", tmp_path / "real/s.csv", "--csv", tmp_path / "fake/s.csv"
    )

    assert done.returncode == 0, done.stderr
    assert "sets of identical files: 0" in done.stdout
