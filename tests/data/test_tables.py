"""CSVs come back as they were written; mistakes in them are named."""

import csv
import os
from pathlib import Path

import pytest

from spai.data.tables import (
    Sample,
    read_list,
    read_rows,
    read_samples,
    reduce_column,
    write_samples,
)


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())
    return path


AWKWARD = ["a b.png", "ü, comma.png", 'quote".png', "line\nbreak.png", "cr\rhere.png", " edge .png"]


@pytest.mark.parametrize("delimiter", [",", ";"])
def test_awkward_names_survive_writing_and_reading(tmp_path: Path, delimiter: str) -> None:
    samples = [Sample(tmp_path / "images" / name, 1, "test") for name in AWKWARD]
    output = tmp_path / "set.csv"

    write_samples(samples, output, delimiter=delimiter)

    assert read_samples(output, delimiter=delimiter) == samples
    with output.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file, delimiter=delimiter))
    assert rows == [["image", "class", "split"]] + [[f"images/{n}", "1", "test"] for n in AWKWARD]


def test_the_csv_has_lf_line_ends_and_paths_relative_to_the_root(tmp_path: Path) -> None:
    output = tmp_path / "lists/set.csv"
    samples = [Sample(tmp_path / "data/sub/../x.png", 0, "val")]

    write_samples(samples, output, root=tmp_path / "data")

    assert output.read_bytes() == b"image,class,split\nx.png,0,val\n"
    assert read_samples(output, root=tmp_path / "data")[0].path == tmp_path / "data/x.png"


def test_a_file_outside_the_root_names_both_and_leaves_the_old_csv(tmp_path: Path) -> None:
    output = write(tmp_path / "lists/set.csv", "old")
    with pytest.raises(ValueError, match="x.png lies outside the CSV root .*lists"):
        write_samples([Sample(tmp_path / "x.png", 0, "val")], output)
    assert output.read_text() == "old"


def test_a_failed_write_leaves_the_old_csv_and_no_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = write(tmp_path / "set.csv", "old")

    def full_disk(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(OSError, match="disk full"):
        write_samples([Sample(tmp_path / "x.png", 0, "val")], output)
    assert [path.name for path in tmp_path.iterdir()] == ["set.csv"]
    assert output.read_text() == "old"


def test_nothing_is_written_without_images(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no images"):
        write_samples([], tmp_path / "set.csv")
    assert not (tmp_path / "set.csv").exists()


def test_names_that_are_not_utf8_are_refused(tmp_path: Path) -> None:
    bad = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png"))
    with pytest.raises(ValueError, match="not UTF-8"):
        write_samples([Sample(bad, 0, "val")], tmp_path / "set.csv")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,class\na.png,0\n", r"no column \['split'\]"),
        ("image,class,split\n", "no rows"),
        ("image,class,split\na.png,2,test\n", "row 1 has image='a.png', class='2'"),
        ("image,class,split\na.png,1,test\n,0,test\n", "row 2 has image=''"),
        ("image,class,split\na.png,1\n", "row 1 has 2 of 3 cells"),
        ("", "no column"),
    ],
)
def test_unusable_csvs_say_where_and_why(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"set.csv: .*{message}"):
        read_samples(write(tmp_path / "set.csv", text))


def test_csvs_of_another_encoding_are_a_users_mistake(tmp_path: Path) -> None:
    (tmp_path / "set.csv").write_bytes("image,class,split\ncafé.png,1,test\n".encode("latin-1"))
    with pytest.raises(ValueError, match="set.csv: not UTF-8"):
        read_samples(tmp_path / "set.csv")


@pytest.mark.parametrize("delimiter", ["", ",,", "\n", '"'])
def test_delimiters_are_one_plain_character(tmp_path: Path, delimiter: str) -> None:
    with pytest.raises(ValueError, match="delimiter"):
        read_rows(write(tmp_path / "set.csv", "a\n"), ["a"], delimiter)


def test_lists_are_stripped_sorted_and_without_blanks_and_repeats(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "list.txt", "\ufeffb.jpg\r\n\n  a c.jpg \nb.jpg\n")
    assert read_list(path) == ["a c.jpg", "b.jpg"]
    assert "1 repeated" in caplog.text


def test_a_column_is_reduced_to_sample_statistics_in_order_of_appearance(tmp_path: Path) -> None:
    path = write(tmp_path / "s.csv", "k,v\nb,1\na,5\nb,2\nb,4.5\nc,\n")
    found = {g.group: (g.avg, g.std, g.count) for g in reduce_column(path, column="v", group="k")}
    assert list(found) == ["b", "a", "c"]
    assert found["b"] == (2.5, pytest.approx(1.8027756377319946, rel=1e-12), 3)
    assert found["a"] == (5.0, 0.0, 1)
    assert found["c"] == (None, None, 0)


@pytest.mark.parametrize("cell", ["high", "nan", "inf"])
def test_cells_that_are_no_numbers_are_named(tmp_path: Path, cell: str) -> None:
    path = write(tmp_path / "s.csv", f"k,v\nb,1\nb,{cell}\n")
    with pytest.raises(ValueError, match=f"row 2, column 'v': '{cell}'"):
        reduce_column(path, column="v", group="k")
