"""`spai infer`: what is written, what is refused, what a bad file costs."""

import csv
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import spai
from spai.cli import main
from spai.data.records import natural_key
from tests.recipe import reference_image


@pytest.fixture
def infer(tiny_model, tmp_path):
    """Run the command on the tiny model; return click's result."""

    def run(*arguments, output=None, model=tiny_model):
        given = [str(argument) for argument in arguments]
        chosen = ["--model", str(model)] if model is not None else []
        folder = ["--output", str(output or tmp_path / "out")]
        return CliRunner().invoke(
            main, ["infer", *chosen, *folder, "--workers", "0", "--device", "cpu", *given]
        )

    return run


def read(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def scores(path):
    return {row["image"]: row["spai"] for row in read(path)}


def save_image(path, height, width, seed=1):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(reference_image(height, width, seed)).save(path)


def test_a_folder_gives_one_row_an_image_in_natural_order(infer, photos, tmp_path):
    for seed in (10, 11):
        save_image(photos / "sub" / f"img{seed}.png", 240, 250, seed)
    result = infer("--input", photos)
    assert result.exit_code == 0, result.output
    rows = read(tmp_path / "out" / "photos.csv")
    assert list(rows[0]) == ["image", "spai", "spai_error"]
    names = [row["image"] for row in rows]
    assert names == sorted(names, key=natural_key) and names[-1] == "sub/img11.png"
    assert all(0 < float(row["spai"]) < 1 and row["spai_error"] == "" for row in rows)
    assert max(len(row["spai"].lstrip("0.")) for row in rows) >= 9
    leftovers = {path.name for path in (tmp_path / "out").iterdir()}
    assert leftovers == {"photos.csv", "photos.run.json"}


def test_scores_equal_those_of_the_python_interface(infer, photos, tiny_model, tmp_path):
    infer("--input", photos)
    files = sorted(photos.iterdir(), key=lambda path: natural_key(path.name))
    expected = spai.load_detector(tiny_model, device="cpu").score(files)
    written = [float(value) for value in scores(tmp_path / "out" / "photos.csv").values()]
    np.testing.assert_allclose(written, expected.probabilities, rtol=0, atol=1e-9)


def test_run_json_names_model_settings_counts_and_versions(infer, photos, tmp_path, tiny_model):
    infer("--input", photos)
    run = json.loads((tmp_path / "out" / "photos.run.json").read_text())
    assert run["model"]["name"] == "tiny.safetensors" and len(run["model"]["sha256"]) == 64
    assert run["model"]["configuration"]["MODEL"]["VIT"]["EMBED_DIM"] == 32
    assert (run["model"]["device"], run["model"]["precision"]) == ("cpu", "fp32")
    assert run["counts"]["scored"] == 7 and run["counts"]["errors"] == 0
    assert torch.__version__.startswith(run["versions"]["torch"])
    assert "command" in run and run["seconds"] > 0


@pytest.mark.parametrize("option", [["--workers", "1"], ["--workers", "3"], ["--batch-size", "5"]])
def test_workers_and_batch_size_do_not_change_scores(infer, photos, tmp_path, option):
    infer("--input", photos, output=tmp_path / "a")
    result = infer("--input", photos, *option, output=tmp_path / "b")
    assert result.exit_code == 0, result.output
    a, b = (scores(tmp_path / name / "photos.csv") for name in "ab")
    assert a.keys() == b.keys()
    np.testing.assert_allclose(
        [float(v) for v in a.values()], [float(v) for v in b.values()], rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("chunk", [1, 3, 7])
def test_chunk_size_does_not_change_scores(infer, photos, tmp_path, chunk):
    infer("--input", photos, output=tmp_path / "a")
    infer(
        *("--input", photos, "--opt", "MODEL.FEATURE_EXTRACTION_BATCH", chunk),
        output=tmp_path / "b",
    )
    a, b = (scores(tmp_path / name / "photos.csv") for name in "ab")
    np.testing.assert_allclose(
        [float(v) for v in a.values()], [float(v) for v in b.values()], rtol=0, atol=1e-6
    )


def test_a_csv_keeps_its_columns_rows_and_order(infer, photos, tmp_path):
    table = tmp_path / "list.csv"
    table.write_text(
        '\ufeffnote,image,class,split\n"a, ""b""",photos/img2.png,0,test\n'
        "x,photos/img1.png,1,test\ny,photos/img2.png,1,train\nz,photos/img1.png,1,test\n",
        encoding="utf-8",
    )
    result = infer("--input", table)
    assert result.exit_code == 0, result.output
    rows = read(tmp_path / "out" / "list.csv")
    assert list(rows[0]) == ["note", "image", "class", "split", "spai", "spai_error"]
    assert [row["note"] for row in rows] == ['a, "b"', "x", "y", "z"]
    assert rows[1]["spai"] == rows[3]["spai"] != ""
    assert rows[2]["spai"] == "" and "train" in rows[2]["spai_error"]
    assert "AUC 1.0000" in result.output or "AUC 0.0000" in result.output


def test_csv_root_and_absolute_paths_are_read(infer, photos, tmp_path):
    table = tmp_path / "elsewhere" / "list.csv"
    table.parent.mkdir()
    table.write_text(f"image\nimg1.png\n{photos / 'img2.png'}\n")
    assert infer("--input", table, "--input-csv-root-dir", photos).exit_code == 0
    assert all(row["spai"] for row in read(tmp_path / "out" / "list.csv"))


def test_one_image_is_told_by_its_content(infer, photos, tmp_path):
    shutil.copy(photos / "img1.png", tmp_path / "evidence.dat")
    assert infer("--input", tmp_path / "evidence.dat").exit_code == 0
    assert [row["image"] for row in read(tmp_path / "out" / "evidence.csv")] == ["evidence.dat"]


def test_several_inputs_write_a_file_each(infer, photos, tmp_path):
    result = infer("--input", photos, "--input", photos / "img2.png")
    assert result.exit_code == 0
    assert {p.name for p in (tmp_path / "out").glob("*.csv")} == {"photos.csv", "img2.csv"}


def test_json_and_parquet_hold_the_same_cells(infer, photos, tmp_path):
    (photos / "bad.png").write_bytes(b"no image")
    for kind in ("csv", "json", "parquet"):
        assert infer("--input", photos, "--format", kind).exit_code == 0
    plain = read(tmp_path / "out" / "photos.csv")
    from_json = json.loads((tmp_path / "out" / "photos.json").read_text())
    parquet = pd.read_parquet(tmp_path / "out" / "photos.parquet")
    for text, record, (_, line) in zip(plain, from_json, parquet.iterrows(), strict=True):
        assert text["image"] == record["image"] == line["image"]
        assert text["spai_error"] == record["spai_error"] == line["spai_error"]
        if text["spai"]:
            assert float(text["spai"]) == record["spai"] == line["spai"]
        else:
            assert record["spai"] is None and pd.isna(line["spai"])


def test_a_bad_file_costs_only_its_own_row(infer, photos, tmp_path):
    good = scores_after(infer, photos, tmp_path / "good")
    png = (photos / "img2.png").read_bytes()
    (photos / "truncated.png").write_bytes(png[: len(png) // 2])
    (photos / "empty.jpg").write_bytes(b"")
    (photos / "text.jpg").write_text("not an image")
    (photos / "dangling.png").symlink_to(photos / "nowhere.png")
    (photos / "folder.png").mkdir()
    with_bad = read_after(infer, photos, tmp_path / "bad")
    errors = {row["image"]: row["spai_error"] for row in with_bad if row["spai_error"]}
    assert set(errors) == {"truncated.png", "empty.jpg", "text.jpg", "dangling.png"}
    assert "empty file" in errors["empty.jpg"] and "missing" in errors["dangling.png"]
    assert {row["image"]: row["spai"] for row in with_bad if row["spai"]} == good


def read_after(infer, folder, output):
    result = infer("--input", folder, output=output)
    assert result.exit_code == 0, result.output
    return read(output / f"{folder.name}.csv")


def scores_after(infer, folder, output):
    return {row["image"]: row["spai"] for row in read_after(infer, folder, output)}


def test_strict_exits_with_1_when_an_image_has_no_score(infer, photos):
    assert infer("--input", photos, "--strict").exit_code == 0
    (photos / "empty.jpg").write_bytes(b"")
    result = infer("--input", photos, "--strict")
    assert result.exit_code == 1 and "could not be scored" in result.output


def test_a_file_that_vanishes_after_the_listing_is_an_error_row(infer, photos, tmp_path):
    table = tmp_path / "list.csv"
    table.write_text("image\nphotos/img1.png\nphotos/gone.png\n")
    assert infer("--input", table).exit_code == 0
    assert read(tmp_path / "out" / "list.csv")[1]["spai_error"] == "file not found"


def test_too_many_pixels_are_an_error_row(infer, photos, tmp_path):
    assert infer("--input", photos, "--max-pixels", "100000").exit_code == 0
    errors = [row for row in read(tmp_path / "out" / "photos.csv") if row["spai_error"]]
    assert {row["image"] for row in errors} == {
        "img2.png", "img4.png", "img5.png", "img7.png"
    }  # fmt: skip
    assert "--max-pixels" in errors[0]["spai_error"]


def test_hostile_names_survive(infer, photos, tmp_path):
    names = ["<script>alert(1)</script>.png", "a,b\"c'.png", "=1+1.png", "naïve 图.png", "x\ny.png"]
    names.append("carriage\rreturn.png")
    for name in names:
        target = photos / name.replace("/", "∕")
        shutil.copy(photos / "img1.png", target)
    expected = {path.name for path in photos.iterdir()}
    assert infer("--input", photos).exit_code == 0
    assert {row["image"] for row in read(tmp_path / "out" / "photos.csv")} == expected
    table = pd.read_csv(tmp_path / "out" / "photos.csv")
    assert set(table["image"]) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--input", "{photos}/nothing"], "no such file"),
        (["--input", "{empty}"], "no image in this folder"),
        (["--input", "{bad_csv}"], "column 'image'"),
        (["--input", "{photos}", "--input", "{photos}"], "would both write"),
        (["--input", "{photos}", "--opt", "MODEL.NOPE", "1"], "unknown configuration key"),
        (["--input", "{photos}", "--device", "cuda:99"], "CUDA"),
        (["--input", "{photos}", "--device", "toaster"], "auto, cpu"),
        (["--input", "{photos}", "--output", "{file}"], "output cannot be written"),
        (["--input", "{photos}", "--tag", " "], "--tag"),
        (["--input", "{photos}", "--model", "{bad_csv}"], "not a model file"),
        (["--input", "{photos}", "--model", "{photos}/none.pth"], "none.pth"),
        (["--input", "{scored}"], "already has the column 'spai'"),
    ],
)
def test_user_errors_are_one_line_and_exit_2_before_the_model_is_built(
    infer, photos, tmp_path, monkeypatch, arguments, message
):
    def explode(*_, **__):
        raise AssertionError("the model was built")

    monkeypatch.setattr("spai.detectors.spai.build_model", explode)
    places = {
        "photos": photos,
        "empty": tmp_path / "empty",
        "bad_csv": tmp_path / "bad.csv",
        "scored": tmp_path / "scored.csv",
        "file": tmp_path / "file",
    }
    places["empty"].mkdir()
    places["bad_csv"].write_text("name,class\nx,1\n")
    places["scored"].write_text("image,spai\nphotos/img1.png,0.5\n")
    places["file"].write_text("")
    result = infer(*[argument.format(**places) for argument in arguments])
    assert result.exit_code == 2, result.output
    assert message in result.output and "Traceback" not in result.output
    assert not list((tmp_path / "out").glob("*.csv"))


def test_a_named_model_that_is_not_there_says_how_to_get_it(infer, photos, tmp_path, monkeypatch):
    monkeypatch.setenv("SPAI_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    result = infer("--input", photos, model="spai")
    assert result.exit_code == 2 and "spai weights download spai" in result.output
    assert not (tmp_path / "output").exists()


def test_max_patches_limits_and_reports_patches(infer, photos, tmp_path):
    assert infer("--input", photos, "--max-patches", "2").exit_code == 0
    rows = {row["image"]: row["spai_patches"] for row in read(tmp_path / "out" / "photos.csv")}
    assert rows["img5.png"] == "2/4" and rows["img2.png"] == "2/5"
    assert rows["img1.png"] == "1/5"  # five crops that coincide


def test_stability_adds_scores_of_degraded_versions(infer, photos, tmp_path):
    infer("--input", photos, output=tmp_path / "plain")
    assert infer("--input", photos, "--stability").exit_code == 0
    rows = read(tmp_path / "out" / "photos.csv")
    assert list(rows[0]) == ["image", "spai", "spai_jpeg80", "spai_scale075", "spai_error"]
    plain = scores(tmp_path / "plain" / "photos.csv")
    assert {row["image"]: row["spai"] for row in rows} == plain
    infer(
        *("--input", photos, "--opt", "TEST.JPEG_COMPRESSION", "True"),
        *("--opt", "TEST.JPEG_QUALITY", "80"),
        output=tmp_path / "jpeg",
    )
    jpeg = scores(tmp_path / "jpeg" / "photos.csv")
    np.testing.assert_allclose(
        [float(row["spai_jpeg80"]) for row in rows],
        [float(jpeg[row["image"]]) for row in rows],
        rtol=0,
        atol=1e-6,
    )


def test_a_version_that_cannot_be_made_leaves_its_cell_empty_and_the_score_valid(infer, tmp_path):
    folder = tmp_path / "wide"
    folder.mkdir()
    Image.new("RGB", (70_000, 2)).save(folder / "a.png")  # JPEG holds 65,500 pixels a side
    result = infer("--input", folder, "--stability", "--max-patches", "2", "--strict")
    assert result.exit_code == 0, result.output
    (row,) = read(tmp_path / "out" / "wide.csv")
    assert row["spai"] and row["spai_error"] == ""
    assert row["spai_jpeg80"] == "" and row["spai_scale075"]
    seen = json.loads((tmp_path / "out" / "wide.run.json").read_text())["counts"]
    assert (seen["scored"], seen["errors"], seen["patches_in_this_run"]) == (1, 0, 4)
    assert infer("--input", folder, "--stability", "--max-patches", "2", "--resume").exit_code == 0
    assert read(tmp_path / "out" / "wide.csv") == [row]


def test_resize_to_shrinks_the_longer_side_and_never_enlarges(infer, tmp_path):
    folder = tmp_path / "sizes"
    save_image(folder / "wide.png", 300, 1200, 3)
    save_image(folder / "small.png", 250, 260, 4)
    shrunk = Image.open(folder / "wide.png").resize((600, 150), Image.Resampling.LANCZOS)
    infer("--input", folder, "--resize-to", "600")
    resized = scores(tmp_path / "out" / "sizes.csv")
    shrunk.save(folder / "wide.png")
    infer("--input", folder, output=tmp_path / "plain")
    assert resized == scores(tmp_path / "plain" / "sizes.csv")


def test_output_inside_the_input_is_left_out(infer, photos):
    for _ in range(2):
        assert infer("--input", photos, output=photos / "out").exit_code == 0
        save_image(photos / "out" / "figure.png", 224, 224)
    assert len(read(photos / "out" / "photos.csv")) == 7


def test_resume_of_a_finished_run_scores_only_what_changed(infer, photos, tmp_path, monkeypatch):
    (photos / "late.png").write_bytes(b"")
    infer("--input", photos)
    before = scores(tmp_path / "out" / "photos.csv")
    save_image(photos / "img2.png", 300, 500, 9)
    save_image(photos / "late.png", 240, 240, 4)
    save_image(photos / "img0.png", 240, 240, 5)
    seen = count_scored(monkeypatch)
    result = infer("--input", photos, "--resume")
    assert result.exit_code == 0, result.output
    after = scores(tmp_path / "out" / "photos.csv")
    assert sorted(seen) == ["img0.png", "img2.png", "late.png"]
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"img2.png", "late.png"}
    seen.clear()
    text = (tmp_path / "out" / "photos.csv").read_bytes()
    assert infer("--input", photos, "--resume").exit_code == 0
    assert not seen and (tmp_path / "out" / "photos.csv").read_bytes() == text


def count_scored(monkeypatch):
    """Record the names of the images that go through the model."""
    from spai.engine import scoring

    seen = []
    original = scoring.to_row

    def recording(prediction, columns):
        seen.append(prediction.record.name)
        return original(prediction, columns)

    monkeypatch.setattr(scoring, "to_row", recording)
    return seen


@pytest.mark.parametrize("kind", ["json", "parquet"])
def test_other_formats_resume_too(infer, photos, monkeypatch, kind):
    infer("--input", photos, "--format", kind)
    seen = count_scored(monkeypatch)
    assert infer("--input", photos, "--format", kind, "--resume").exit_code == 0
    assert not seen


@pytest.mark.parametrize(
    ("option", "named"),
    [
        (["--resize-to", "100"], "resize_to"),
        (["--opt", "MODEL.PATCH_VIT.MINIMUM_PATCHES", "1"], "MINIMUM_PATCHES"),
        (["--precision", "bf16"], "precision"),
    ],
)
def test_resume_with_other_settings_is_refused_and_names_them(infer, photos, option, named):
    infer("--input", photos)
    result = infer("--input", photos, "--resume", *option)
    assert result.exit_code == 2 and named in result.output


def test_resume_with_another_model_is_refused(infer, photos, tmp_path, tiny_model):
    infer("--input", photos)
    other = tmp_path / "other.safetensors"
    content = bytearray(tiny_model.read_bytes())
    content[-1] ^= 1
    other.write_bytes(content)
    result = infer("--input", photos, "--resume", model=other)
    assert result.exit_code == 2 and "model_sha256" in result.output


def test_ctrl_c_keeps_what_was_scored_and_says_how_to_go_on(infer, photos, tmp_path, monkeypatch):
    expected = read_after(infer, photos, tmp_path / "whole")
    interrupt_after(monkeypatch, 3, KeyboardInterrupt())
    result = infer("--input", photos)
    assert result.exit_code == 1 and "--resume" in result.output
    assert len(read(tmp_path / "out" / "photos.csv.partial")) == 3
    monkeypatch.undo()
    assert infer("--input", photos, "--resume").exit_code == 0
    assert read(tmp_path / "out" / "photos.csv") == expected


def test_a_full_disk_keeps_what_was_scored_and_the_earlier_output(
    infer, photos, tmp_path, monkeypatch
):
    before = read_after(infer, photos, tmp_path / "out")
    interrupt_after(monkeypatch, 3, OSError(28, "No space left on device"))
    result = infer("--input", photos)
    assert result.exit_code == 1 and "No space left" in result.output
    assert read(tmp_path / "out" / "photos.csv") == before


def interrupt_after(monkeypatch, count, error):
    """Raise `error` when row number `count` (from 0) is to be written."""
    from spai.data.scores import PartialScores

    original, done = PartialScores.append, []

    def append(self, row):
        if len(done) == count:
            raise error
        done.append(row)
        original(self, row)

    monkeypatch.setattr(PartialScores, "append", append)


def test_without_resume_an_interrupted_runs_scores_are_set_aside(
    infer, photos, tmp_path, monkeypatch
):
    interrupt_after(monkeypatch, 3, KeyboardInterrupt())
    infer("--input", photos)
    monkeypatch.undo()
    assert infer("--input", photos).exit_code == 0
    assert len(read(tmp_path / "out" / "photos.csv.partial.old")) == 3


def test_two_runs_into_one_file_are_refused(infer, photos, tmp_path):
    import filelock

    (tmp_path / "out").mkdir()
    with filelock.FileLock(tmp_path / "out" / ".photos.lock"):
        result = infer("--input", photos)
    assert result.exit_code == 2 and "another run" in result.output


def test_unreadable_permissions_are_an_error_row(infer, photos, tmp_path, monkeypatch):
    locked = photos / "img2.png"
    original = os.stat

    def refuse(path, *args, **kwargs):
        if isinstance(path, Path) and path == locked:
            raise PermissionError(13, "Permission denied")
        return original(path, *args, **kwargs)

    monkeypatch.setattr("spai.data.images.os.stat", refuse)
    result = infer("--input", photos)
    assert result.exit_code == 0, result.output
    row = next(row for row in read(tmp_path / "out" / "photos.csv") if row["image"] == "img2.png")
    assert row["spai_error"] == "cannot be read: Permission denied"


def test_bf16_changes_scores_of_a_tiny_model_little(infer, photos, tmp_path):
    plain = scores_after(infer, photos, tmp_path / "plain")
    assert infer("--input", photos, "--precision", "bf16").exit_code == 0
    low = scores(tmp_path / "out" / "photos.csv")
    assert max(abs(float(low[name]) - float(plain[name])) for name in plain) < 0.02


def test_resume_does_not_trust_stamps_of_another_format(infer, photos):
    infer("--input", photos)
    save_image(photos / "img2.png", 300, 500, 9)
    infer("--input", photos, "--format", "json")
    result = infer("--input", photos, "--resume")
    assert result.exit_code == 2 and "format" in result.output


def test_resume_with_another_root_is_refused(infer, photos, tmp_path):
    table = tmp_path / "list.csv"
    table.write_text("image\nimg1.png\n")
    infer("--input", table, "--input-csv-root-dir", photos)
    result = infer("--input", table, "--input-csv-root-dir", tmp_path, "--resume")
    assert result.exit_code == 2 and "root" in result.output


def test_a_lost_worker_says_how_to_go_on(infer, photos, monkeypatch):
    interrupt_after(monkeypatch, 2, RuntimeError("DataLoader worker (pid 1) exited"))
    result = infer("--input", photos)
    assert result.exit_code == 1 and "--resume" in result.output


def test_the_output_does_not_replace_the_input(infer, photos, tmp_path):
    table = tmp_path / "list.csv"
    table.write_text("image\nphotos/img1.png\n")
    result = infer("--input", table, output=tmp_path)
    assert result.exit_code == 2 and "replace this input" in result.output
    assert table.read_text() == "image\nphotos/img1.png\n"


def test_a_refused_run_leaves_nothing_behind(infer, photos, tmp_path):
    infer("--input", photos)
    before = {path.name for path in (tmp_path / "out").iterdir()}
    infer("--input", photos, "--resume", "--resize-to", "100")
    assert {path.name for path in (tmp_path / "out").iterdir()} == before


def test_one_image_instead_of_a_list_is_refused(tiny_model, photos):
    detector = spai.load_detector(tiny_model, device="cpu")
    for one in (photos / "img1.png", str(photos / "img1.png"), np.zeros((230, 230, 3), np.uint8)):
        with pytest.raises(ValueError, match="list of images"):
            detector.score(one)


@pytest.mark.parametrize("name", ["list.zip", "list.csv.gz", "list.csv.xz", "list.tar"])
def test_the_name_of_a_csv_unpacks_nothing(infer, photos, tmp_path, name):
    (tmp_path / name).write_text("image\nphotos/img1.png\n")
    result = infer("--input", tmp_path / name)
    assert result.exit_code == 0, result.output
    (tmp_path / name).write_bytes(b"\x1f\x8b\x08\x00damaged")
    assert infer("--input", tmp_path / name).exit_code == 2


def test_a_blank_line_is_a_row_and_blank_lines_at_the_end_are_not(infer, photos, tmp_path):
    (tmp_path / "list.csv").write_text("image\nphotos/img1.png\n\nphotos/img3.png\n\n\n")
    assert infer("--input", tmp_path / "list.csv").exit_code == 0
    rows = read(tmp_path / "out" / "list.csv")
    assert [row["spai_error"] for row in rows] == ["", "no image is named", ""]


@pytest.mark.parametrize("name", ["photos.csv", "photos.run.json", "photos.csv.partial"])
def test_a_folder_in_the_way_is_refused_before_scoring(infer, photos, tmp_path, name):
    (tmp_path / "out" / name).mkdir(parents=True)
    result = infer("--input", photos)
    assert result.exit_code == 2 and "is a folder" in result.output


def test_a_file_that_is_not_ours_is_not_replaced(infer, photos, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "photos.csv").write_text("my,labels\n1,2\n")
    result = infer("--input", photos)
    assert result.exit_code == 2 and "not written by spai infer" in result.output
    assert (tmp_path / "out" / "photos.csv").read_text() == "my,labels\n1,2\n"


def test_names_too_long_for_the_output_are_refused(infer, tmp_path):
    save_image(tmp_path / ("n" * 240) / "a.png", 224, 224)
    result = infer("--input", tmp_path / ("n" * 240))
    assert result.exit_code == 2 and "too long" in result.output


def test_a_folder_whose_name_is_not_utf8_is_scored_and_resumed(infer, tmp_path):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/b\xffd"))
    save_image(folder / os.fsdecode(b"\xfe\x1b.png"), 224, 224)
    assert infer("--input", folder).exit_code == 0
    assert infer("--input", folder, "--resume").exit_code == 0
    (row,) = read(tmp_path / "out" / "b\\xffd.csv")
    assert row["spai"]


def test_an_empty_path_is_refused(infer):
    assert infer("--input", "").exit_code == 2


def test_names_in_the_log_cannot_drive_the_terminal(infer, photos):
    (photos / "\x1b[31mred\n.png").write_bytes(b"")
    assert "\x1b" not in infer("--input", photos).output
