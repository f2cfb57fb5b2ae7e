"""`spai infer --report`: a page for each input, whatever the input and the way it was scored."""

import base64
import csv
import io
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from spai.cli import inference, main, page
from spai.data.images import FileSource
from spai.data.loaders import LoadingOptions
from spai.data.packing import list_entries, pack_files
from spai.data.records import read_input
from spai.data.scores import ScoreColumns, ScoreRow
from spai.engine.run_files import OutputFiles
from spai.engine.scoring import Finished
from tests.cli.test_infer_interrupted import torchrun
from tests.pages import Page
from tests.recipe import reference_image


@pytest.fixture
def infer(tiny_model, tmp_path):
    """Run the command with a page on the tiny model; return click's result."""

    def run(*arguments):
        fixed = ("--model", tiny_model, "--output", tmp_path / "out", "--device", "cpu")
        given = map(str, ("infer", *fixed, "--workers", "0", "--report", *arguments))
        return CliRunner().invoke(main, list(given))

    return run


@pytest.fixture
def rows(tmp_path):
    """Return the images of a page that was written."""
    return lambda name="photos": Page(tmp_path / "out" / f"{name}.html").data["rows"]


def picture(row):
    image = Image.open(io.BytesIO(base64.b64decode(row["thumb"])))
    assert image.format == "WEBP"
    return image


def test_a_folder_gives_a_page_with_each_image_and_its_score(infer, photos, rows, tmp_path):
    (photos / "broken.jpg").write_bytes(b"\xff\xd8\xff broken")
    result = infer("--input", photos)
    assert result.exit_code == 0, result.output
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"photos.csv", "photos.html", "photos.run.json"}
    with (tmp_path / "out" / "photos.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    found = rows()
    assert [row["name"] for row in found] == [line["image"] for line in table]
    for row, line in zip(found, table, strict=True):
        assert row.get("error", "") == line["spai_error"]
        if line["spai"]:
            assert row["score"] == float(line["spai"])
            with Image.open(photos / row["name"]) as image:
                assert max(picture(row).size) == min(192, max(image.size))
    assert "thumb" not in found[0] and found[0]["error"]  # broken.jpg
    run = json.loads((tmp_path / "out" / "photos.run.json").read_text())
    text = Page(tmp_path / "out" / "photos.html").text_of("dd")
    for fact in (run["model"]["sha256"], run["command"], str(run["seconds"])):
        assert fact in text


def test_hostile_file_names_stay_text(infer, tmp_path, rows):
    folder = tmp_path / "photos"
    for name in ("<script>alert(1)</script>.png", '"><img src=x onerror=alert(1)>.png', "a\nb.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(reference_image(224, 224, 1)).save(folder / name)
    assert infer("--input", folder).exit_code == 0
    assert {row["name"] for row in rows()} == {
        "<script>alert(1)</script>.png",
        '"><img src=x onerror=alert(1)>.png',
        "a\\nb.png",
    }
    found = Page(tmp_path / "out" / "photos.html")
    assert found.count("script") == 2
    found.check_self_contained()


def test_kept_rows_have_their_pictures(infer, photos, rows):
    moved = photos.parent / "later.png"
    shutil.move(photos / "img4.png", moved)
    assert infer("--input", photos).exit_code == 0
    shutil.move(moved, photos / "img4.png")
    result = infer("--input", photos, "--resume")
    assert result.exit_code == 0, result.output
    assert [row["name"] for row in rows()] == [f"img{i}.png" for i in range(1, 8)]
    assert all(picture(row) for row in rows())


def test_verdicts_are_on_the_page(infer, photos, rows, tmp_path):
    assert infer("--input", photos).exit_code == 0
    scores = tmp_path / "out" / "photos.csv"
    file = tmp_path / "tiny.json"
    arguments = ("calibrate", "--real", scores, "--target-fpr", 0.2, "--output", file)
    assert CliRunner().invoke(main, list(map(str, arguments))).exit_code == 0
    assert infer("--input", photos, "--calibration", file).exit_code == 0
    with scores.open(newline="") as stream:
        verdicts = {line["image"]: line["spai_verdict"] for line in csv.DictReader(stream)}
    assert len(set(verdicts.values())) > 1
    assert {row["name"]: row["verdict"] for row in rows()} == verdicts


def test_a_finished_run_gets_its_page_later(infer, photos, rows, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(inference, "write_page", interrupt)
        result = infer("--input", photos)
    assert result.exit_code == 1 and "--resume makes the page" in result.output
    assert not (tmp_path / "out" / "photos.html").exists()
    scores = (tmp_path / "out" / "photos.csv").read_bytes()
    assert infer("--input", photos, "--resume").exit_code == 0
    assert (tmp_path / "out" / "photos.csv").read_bytes() == scores
    assert len(rows()) == 7


@pytest.mark.parametrize("kind", ["json", "parquet"])
def test_the_format_of_the_scores_does_not_change_the_page(infer, photos, rows, tmp_path, kind):
    assert infer("--input", photos).exit_code == 0
    expected = rows()
    for _ in range(2):  # anew, and from the finished file
        assert infer("--input", photos, "--format", kind, "--resume").exit_code == 0
        np.testing.assert_allclose(
            [row["score"] for row in rows()], [row["score"] for row in expected], atol=1e-9
        )
        assert [row["thumb"] for row in rows()] == [row["thumb"] for row in expected]


def test_a_csv_shows_its_rows_of_the_split_with_their_classes(infer, photos, rows):
    lines = ["image,class,split", "photos/img1.png,1,test", "photos/gone.png,0,test"]
    lines += ["photos/img2.png,0,train", "photos/img3.png,0,test"]
    listing = photos.parent / "list.csv"
    listing.write_text("\n".join(lines) + "\n")
    result = infer("--input", listing, "--stability")
    assert result.exit_code == 0, result.output
    found = rows("list")
    assert [row["name"] for row in found] == [f"photos/{n}.png" for n in ("img1", "gone", "img3")]
    assert found[0]["details"][0] == ["labelled", "generated"]
    assert [name for name, _ in found[2]["details"]] == ["labelled", "jpeg80", "scale075"]
    assert found[1]["error"] == "file not found" and "thumb" in found[2]


def test_a_store_gives_the_pictures_of_the_files(infer, photos, rows):
    listing = photos.parent / "photos.csv"
    names = [path.name for path in sorted(photos.iterdir())]
    listing.write_text("image\n" + "".join(f"photos/{name}\n" for name in names))
    assert infer("--input", listing).exit_code == 0
    expected = rows()
    store = photos.parent / "store.lmdb"
    pack_files(list_entries(listing), store)
    shutil.rmtree(photos)
    result = infer("--input", listing, "--lmdb", store)
    assert result.exit_code == 0, result.output
    assert [row["thumb"] for row in rows()] == [row["thumb"] for row in expected]


def test_a_page_that_is_not_ours_is_left_alone(infer, photos, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "photos.html").write_text("my holiday")
    result = infer("--input", photos)
    assert result.exit_code == 2 and "move it away" in result.output
    assert (tmp_path / "out" / "photos.html").read_text() == "my holiday"
    assert not (tmp_path / "out" / "photos.csv").exists()


def test_an_input_is_never_replaced_by_its_page(infer, photos, tmp_path):
    (tmp_path / "out").mkdir()
    listing = tmp_path / "out" / "photos.html"
    listing.write_text(f"image\n{photos}/img1.png\n")
    result = infer("--input", listing)
    assert result.exit_code == 2 and "replace this input" in result.output
    assert listing.read_text().startswith("image")


def test_two_pages_for_two_inputs(infer, photos, rows):
    shutil.copytree(photos, photos.parent / "others")
    assert infer("--input", photos, "--input", photos.parent / "others").exit_code == 0
    assert len(rows("photos")) == len(rows("others")) == 7


def finished_run(photos, output, masks):
    """Return what a run leaves behind whose rows name these heat maps."""
    output.mkdir(exist_ok=True)
    table = read_input(photos)
    files = OutputFiles(output, table.name, "csv")
    files.run.write_text(json.dumps({"settings": {}, "stamps": []}))
    columns = ScoreColumns("spai", ("spai_verdict", "spai_mask"))
    run = SimpleNamespace(table=table, source=FileSource(), files=files)
    names = {record.row: record.name for record in table.records}
    rows = {row: ScoreRow(row, name, 0.5, ("real", masks.get(row))) for row, name in names.items()}
    return run, Finished(rows, columns)


def test_heat_maps_of_the_rows_are_embedded(photos, rows, tmp_path):
    (tmp_path / "out" / "maps").mkdir(parents=True)
    Image.fromarray(reference_image(900, 1200, 1)).save(tmp_path / "out" / "maps" / "1.png")
    run, scored = finished_run(photos, tmp_path / "out", {0: "maps/1.png", 1: "maps/gone.png"})
    page.write_page(run, scored, LoadingOptions())
    first, second, *_ = rows()
    heat_map = Image.open(io.BytesIO(base64.b64decode(first["map"])))
    assert heat_map.size == (448, 336) and first["mask"] == "maps/1.png"
    assert first["verdict"] == "real" and "map" not in second and "mask" not in second


@pytest.mark.parametrize("name", ["../secret.png", "/{folder}/secret.png", "..\\secret.png", ""])
def test_a_heat_map_outside_the_output_is_not_read(photos, rows, tmp_path, name):
    Image.fromarray(reference_image(90, 120, 1)).save(tmp_path / "secret.png")
    name = name.replace("{folder}", str(tmp_path))
    run, scored = finished_run(photos, tmp_path / "out", {0: name})
    page.write_page(run, scored, LoadingOptions())
    assert not any("map" in row for row in rows())


@pytest.mark.slow
def test_two_processes_write_one_page(photos, tiny_model, tmp_path, infer, rows):
    assert infer("--input", photos).exit_code == 0
    expected = rows()
    shutil.rmtree(tmp_path / "out")
    options = ("--model", tiny_model, "--device", "cpu", "--output", tmp_path / "out")
    result = torchrun(2, ("infer", "--input", photos, *options, "--report"), tmp_path)
    assert result.returncode == 0, result.stderr
    assert [row["thumb"] for row in rows()] == [row["thumb"] for row in expected]
