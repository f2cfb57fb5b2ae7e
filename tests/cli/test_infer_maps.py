"""`spai infer --attention-maps`: a picture for every score, in its place, whatever the input."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from spai.checkpoint import save_safetensors
from spai.cli import main
from spai.config import load_config
from spai.data.packing import list_entries, pack_files
from spai.report import maps
from tests.cli.test_infer_interrupted import torchrun
from tests.helpers import TINY, formula_model
from tests.recipe import reference_image


@pytest.fixture
def infer(tiny_model, tmp_path):
    """Run the command with maps on the tiny model; return click's result."""

    def run(*arguments, output=None, model=tiny_model):
        fixed = ["--model", model, "--output", output or tmp_path / "out", "--device", "cpu"]
        given = ["infer", *fixed, "--workers", 0, "--attention-maps", *arguments]
        return CliRunner().invoke(main, [str(argument) for argument in given])

    return run


def read(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def rows_after(result, path):
    assert result.exit_code == 0, result.output
    return read(path)


def is_hatched(overlay):
    """Tell from the heat map beside an overlay whether it has pixels that no patch covers."""
    path = overlay.with_name(overlay.name.removesuffix(maps.OVERLAY) + maps.MAP)
    with Image.open(path) as heat:
        return bool(np.isin(np.asarray(heat), (maps.HATCH_GROUND, maps.HATCH_LINE)).any())


def test_each_scored_image_has_an_overlay_and_a_map_beside_it(infer, photos, tmp_path):
    (photos / "broken.png").write_bytes(b"broken")
    (photos / "sub").mkdir()
    shutil.copy(photos / "img2.png", photos / "sub" / "img2.png")
    rows = rows_after(infer("--input", photos), tmp_path / "out/photos.csv")
    assert list(rows[0]) == ["image", "spai", "spai_mask", "spai_error"]
    for row in rows:
        if row["image"] == "broken.png":
            assert row["spai_mask"] == "" and row["spai_error"]
            continue
        assert row["spai_mask"] == f"photos_maps/{row['image']}.overlay.png"
        with Image.open(tmp_path / "out" / row["spai_mask"]) as overlay:
            overlay.load()
    drawn = [path for path in (tmp_path / "out/photos_maps").rglob("*") if path.is_file()]
    assert len(drawn) == 16
    hatched = {row["image"]: is_hatched(tmp_path / "out" / row["spai_mask"]) for row in rows[1:]}
    assert hatched["img4.png"] and not hatched["img1.png"]  # 448x470 has a remainder


def test_maps_change_no_score(infer, photos, tiny_model, tmp_path):
    rows = rows_after(infer("--input", photos), tmp_path / "out/photos.csv")
    plain = ["infer", "--input", photos, "--model", tiny_model, "--output", tmp_path / "plain"]
    CliRunner().invoke(main, [str(word) for word in (*plain, "--workers", 0, "--device", "cpu")])
    expected = {row["image"]: row["spai"] for row in read(tmp_path / "plain/photos.csv")}
    assert {row["image"]: row["spai"] for row in rows} == expected


@pytest.mark.parametrize("kind", ["json", "parquet"])
def test_other_formats_have_the_column_too(infer, photos, tmp_path, kind):
    pandas = pytest.importorskip("pandas")
    assert infer("--input", photos, "--format", kind).exit_code == 0
    path = tmp_path / f"out/photos.{kind}"
    table = pandas.read_parquet(path) if kind == "parquet" else json.loads(path.read_text())
    masks = [row["spai_mask"] for row in table] if kind == "json" else list(table["spai_mask"])
    assert all((tmp_path / "out" / mask).is_file() for mask in masks) and len(masks) == 7


def test_names_of_any_kind_have_a_picture_of_their_own_in_the_folder(infer, photos, tmp_path):
    names = ["a b.png", "naïve 图.png", "<script>alert(1)</script>.png", "x\ny.png", "q?.png"]
    names += ["twin/same.png", "other/same.png", "same.jpg", "same.png", "n" * 240 + ".png"]
    names += ["clash.png", "clash.png.overlay.png/inner.png"]
    for seed, name in enumerate(names):
        (photos / name).parent.mkdir(exist_ok=True)
        Image.fromarray(reference_image(230, 240, seed)).save(photos / name)
    rows = rows_after(infer("--input", photos), tmp_path / "out/photos.csv")
    assert len({row["spai_mask"] for row in rows}) == len(rows) == 7 + len(names)
    folder = (tmp_path / "out/photos_maps").resolve()
    for row in rows:
        path = (tmp_path / "out" / row["spai_mask"]).resolve()
        assert path.is_file() and path.is_relative_to(folder)


def test_paths_that_leave_the_folder_of_a_csv_are_drawn_inside_the_output(infer, photos, tmp_path):
    table = tmp_path / "lists" / "list.csv"
    table.parent.mkdir()
    table.write_text(f"image\n../photos/img1.png\n{photos}/img2.png\n../lists/../photos/img1.png\n")
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    rows = rows_after(infer("--input", table), tmp_path / "out/list.csv")
    assert all((tmp_path / "out" / row["spai_mask"]).is_file() for row in rows)
    assert len({row["spai_mask"] for row in rows}) == 3
    new = {path for path in tmp_path.rglob("*") if path.is_file()} - before
    assert all(path.is_relative_to(tmp_path / "out") for path in new)
    assert sum(path.is_relative_to(tmp_path / "out/list_maps") for path in new) == 6


def test_several_inputs_have_a_folder_each(infer, photos, tmp_path):
    assert infer("--input", photos, "--input", photos / "img1.png").exit_code == 0
    (row,) = read(tmp_path / "out/img1.csv")
    assert row["spai_mask"] == "img1_maps/img1.png.overlay.png"
    assert (tmp_path / "out/photos_maps/img1.png.overlay.png").is_file()


def test_the_tag_names_the_column(infer, photos, tmp_path):
    rows = rows_after(infer("--input", photos, "--tag", "mine"), tmp_path / "out/photos.csv")
    assert list(rows[0]) == ["image", "mine", "mine_mask", "mine_error"]


def test_left_out_patches_are_hatched(infer, photos, tmp_path):
    result = infer("--input", photos, "--max-patches", 2)
    rows = {row["image"]: row for row in rows_after(result, tmp_path / "out/photos.csv")}
    assert list(rows["img1.png"])[1:] == ["spai", "spai_patches", "spai_mask", "spai_error"]
    assert rows["img7.png"]["spai_patches"] == "2/6"
    assert is_hatched(tmp_path / "out" / rows["img7.png"]["spai_mask"])
    assert not is_hatched(tmp_path / "out" / rows["img1.png"]["spai_mask"])


def pictures(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("*.png"))}


def test_with_stability_the_map_is_that_of_the_image_itself(infer, photos, tmp_path):
    infer("--input", photos)
    result = infer("--input", photos, "--stability", output=tmp_path / "stable")
    rows = rows_after(result, tmp_path / "stable/photos.csv")
    assert list(rows[0])[1:5] == ["spai", "spai_jpeg80", "spai_scale075", "spai_mask"]
    assert pictures(tmp_path / "stable") == pictures(tmp_path / "out")


def test_the_map_shows_the_pixels_that_the_model_saw(infer, tmp_path):
    folder = tmp_path / "wide"
    folder.mkdir()
    image = Image.fromarray(reference_image(500, 1500, 3))
    image.save(folder / "a.png")
    infer("--input", folder, "--resize-to", 750)
    seen = pictures(tmp_path / "out")
    with Image.open(tmp_path / "out/wide_maps/a.png.map.png") as heat:
        assert heat.size == (750, 250)
    image.resize((750, 250), Image.Resampling.LANCZOS).save(folder / "a.png")
    infer("--input", folder, output=tmp_path / "resized")
    assert pictures(tmp_path / "resized") == seen
    blur = ("--opt", "TEST.GAUSSIAN_BLUR", "True")
    infer("--input", folder, *blur, output=tmp_path / "blurred")
    assert pictures(tmp_path / "blurred")["a.png.overlay.png"] != seen["a.png.overlay.png"]


def test_large_images_are_drawn_reduced(infer, tmp_path):
    folder = tmp_path / "large"
    folder.mkdir()
    Image.fromarray(reference_image(300, 4001, 3)).save(folder / "a.png")
    assert infer("--input", folder).exit_code == 0
    with Image.open(tmp_path / "out/large_maps/a.png.map.png") as heat:
        assert heat.size == (1334, 100)  # a third


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_no_picture(infer, photos, tmp_path, workers):
    infer("--input", photos)
    infer("--input", photos, "--workers", workers, output=tmp_path / "other")
    assert pictures(tmp_path / "other") == pictures(tmp_path / "out")


def test_images_in_a_store_are_drawn_like_files(infer, photos, tmp_path):
    table = tmp_path / "list.csv"
    table.write_text("image\n" + "".join(f"photos/img{seed}.png\n" for seed in range(1, 8)))
    infer("--input", table)
    pack_files(list_entries(tmp_path), tmp_path / "store.lmdb")
    shutil.rmtree(photos)
    result = infer("--input", table, "--lmdb", tmp_path / "store.lmdb", output=tmp_path / "lmdb")
    assert result.exit_code == 0, result.output
    assert pictures(tmp_path / "lmdb") == pictures(tmp_path / "out")


def test_resume_keeps_pictures_and_draws_again_what_was_lost(infer, photos, tmp_path):
    infer("--input", photos)
    before = read(tmp_path / "out/photos.csv")
    kept, lost = (tmp_path / f"out/photos_maps/img{seed}.png.overlay.png" for seed in (1, 2))
    kept.write_bytes(b"kept")
    lost.unlink()
    result = infer("--input", photos, "--resume")
    assert result.exit_code == 0, result.output
    assert read(tmp_path / "out/photos.csv") == before
    assert kept.read_bytes() == b"kept" and lost.read_bytes().startswith(b"\x89PNG")
    counts = json.loads((tmp_path / "out/photos.run.json").read_text())["counts"]
    assert counts["kept_from_earlier_run"] == 6


def test_resume_refuses_a_run_without_maps_and_names_the_option(
    infer, photos, tiny_model, tmp_path
):
    plain = ["infer", "--input", photos, "--model", tiny_model, "--output", tmp_path / "out"]
    CliRunner().invoke(main, [str(word) for word in (*plain, "--workers", 0, "--device", "cpu")])
    result = infer("--input", photos, "--resume")
    assert result.exit_code == 2 and "attention_maps was False, now True" in result.output


def test_a_model_without_attention_is_refused_before_it_is_built(infer, photos, tmp_path):
    config = load_config(overrides=[*TINY.items(), ("MODEL.RESOLUTION_MODE", "fixed")])
    fixed = tmp_path / "fixed.safetensors"
    save_safetensors(formula_model(config), config, fixed, epoch=None)
    result = infer("--input", photos, model=fixed)
    assert result.exit_code == 2 and "no attention over patches" in result.output
    assert not (tmp_path / "out/photos.csv").exists()
    assert not (tmp_path / "out/photos_maps").exists()


def test_a_file_in_the_way_of_the_folder_is_refused(infer, photos, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/photos_maps").write_text("mine")
    result = infer("--input", photos)
    assert result.exit_code == 2 and "in the way of the heat maps" in result.output


def test_maps_among_the_images_of_the_input_are_refused_and_below_them_left_out(infer, photos):
    result = infer("--input", photos, output=photos)
    assert result.exit_code == 2 and "among the images of this input" in result.output
    for _ in range(2):
        assert infer("--input", photos, output=photos / "out").exit_code == 0
        assert len(read(photos / "out/photos.csv")) == 7


def test_a_full_disk_ends_the_run_like_any_other_and_keeps_rows(
    infer, photos, tmp_path, monkeypatch
):
    original, drawn = maps.MapFolder.__call__, []

    def draw(self, prediction):
        if len(drawn) == 3:
            raise OSError(28, "No space left on device")
        drawn.append(original(self, prediction))
        return drawn[-1]

    monkeypatch.setattr(maps.MapFolder, "__call__", draw)
    result = infer("--input", photos)
    assert result.exit_code == 1 and "No space left" in result.output
    rows = read(tmp_path / "out/photos.csv.partial")
    assert [row["spai_mask"] for row in rows] == drawn
    monkeypatch.undo()
    rows = rows_after(infer("--input", photos, "--resume"), tmp_path / "out/photos.csv")
    assert all((tmp_path / "out" / row["spai_mask"]).is_file() for row in rows)


@pytest.mark.slow
def test_several_processes_draw_the_same_pictures(infer, photos, tiny_model, tmp_path):
    infer("--input", photos)
    arguments = ("infer", "--input", photos, "--model", tiny_model, "--device", "cpu")
    output = ("--output", tmp_path / "two", "--workers", 0, "--attention-maps")
    result = torchrun(2, (*arguments, *output), tmp_path)
    assert result.returncode == 0, result.stderr
    one, two = (read(tmp_path / name / "photos.csv") for name in ("out", "two"))
    assert [row["spai_mask"] for row in one] == [row["spai_mask"] for row in two]
    for row in two:
        assert Path(tmp_path / "two" / row["spai_mask"]).is_file()
