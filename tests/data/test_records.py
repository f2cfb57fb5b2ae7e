"""What there is to score: folders, CSVs and single images."""

import csv
import io
import logging
import os
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from spai.data import records
from spai.data.images import FileSource, ImageError, open_image
from spai.data.records import (
    check_distinct_outputs,
    natural_key,
    parse_labels,
    read_csv,
    read_folder,
    read_input,
    read_table,
)


def image(path, color="red"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 3), color).save(path, "PNG")
    return path


def names(table):
    return [record.name for record in table.records]


def table_file(path, text, encoding="utf-8"):
    path.write_bytes(text.encode(encoding))
    return path


# -- folders ------------------------------------------------------------------------------------


def test_a_folder_is_listed_in_natural_order_with_posix_names(tmp_path):
    for name in ("img10.png", "img2.png", "b/x1.png", "a/x10.png", "a/x9.png", "img02.png"):
        image(tmp_path / name)
    table = read_folder(tmp_path)
    assert names(table) == [
        *("a/x9.png", "a/x10.png", "b/x1.png", "img02.png", "img2.png", "img10.png")
    ]
    assert [record.row for record in table.records] == list(range(6))
    assert all(record.path == tmp_path / record.name for record in table.records)
    assert list(table.frame.columns) == ["image"] and list(table.frame["image"]) == names(table)


def test_the_order_does_not_depend_on_the_listing(tmp_path, monkeypatch):
    for number in range(30):
        image(tmp_path / f"{number % 3}" / f"i{number}.png")
    expected = names(read_folder(tmp_path))
    scan = os.scandir

    class Shuffled(list):
        def __enter__(self):
            return self

        def __exit__(self, *error):
            return None

    def shuffled(folder):
        entries = list(scan(folder))
        random.Random(1).shuffle(entries)
        return Shuffled(entries)

    monkeypatch.setattr(records.os, "scandir", shuffled)
    assert names(read_folder(tmp_path)) == expected


@given(st.lists(st.text(alphabet="ab01/-_.²٣é", max_size=8)))
def test_natural_order_is_total(given_names):
    ordered = sorted(given_names, key=natural_key)
    assert ordered == sorted(reversed(ordered), key=natural_key)


def test_hidden_files_and_folders_are_left_out(tmp_path):
    for name in (".hidden.png", ".folder/a.png", "b/.c.png", "kept.png"):
        image(tmp_path / name)
    assert names(read_folder(tmp_path)) == ["kept.png"]


def test_links_to_files_are_followed_and_links_to_folders_are_not(tmp_path):
    outside = image(tmp_path / "outside" / "a.png")
    folder = tmp_path / "in"
    image(folder / "own.png")
    (folder / "file.png").symlink_to(outside)
    (folder / "linked").symlink_to(outside.parent)
    (folder / "named.png").symlink_to(outside.parent)
    (folder / "self").symlink_to(folder)
    (folder / "dangling.png").symlink_to("nowhere.png")
    (folder / "dangling").symlink_to("nowhere")
    assert names(read_folder(folder)) == ["dangling.png", "file.png", "own.png"]


def test_a_link_to_a_folder_is_read_when_it_is_the_input(tmp_path):
    image(tmp_path / "real" / "a.png")
    (tmp_path / "link").symlink_to("real")
    table = read_input(tmp_path / "link")
    assert names(table) == ["a.png"] and table.name == "real"


def test_content_or_extension_makes_an_image(tmp_path):
    image(tmp_path / "no_extension")
    image(tmp_path / "wrong.txt")
    (tmp_path / "text.JPG").write_text("text")
    (tmp_path / "empty.png").touch()
    (tmp_path / "notes.txt").write_text("text")
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    os.mkfifo(tmp_path / "pipe")
    assert names(read_folder(tmp_path)) == ["empty.png", "no_extension", "text.JPG", "wrong.txt"]


def test_the_output_folder_inside_the_input_is_left_out(tmp_path):
    for name in ("a.png", "out/mask.png", "out/deep/b.png", "sub/out/c.png"):
        image(tmp_path / name)
    (tmp_path / "link").symlink_to("out")
    for exclude in (tmp_path / "out", tmp_path / "sub" / ".." / "out", tmp_path / "link"):
        assert names(read_input(tmp_path, exclude=exclude)) == ["a.png", "sub/out/c.png"]
    assert len(read_input(tmp_path, exclude=tmp_path).records) == 4


def test_folders_inside_are_left_out_on_request(tmp_path):
    image(tmp_path / "sub" / "a.png")
    with pytest.raises(ValueError, match="no image in this folder.*--no-recursive"):
        read_input(tmp_path, recursive=False)
    image(tmp_path / "b.png")
    assert names(read_input(tmp_path, recursive=False)) == ["b.png"]


def test_a_folder_without_images_is_an_error_that_names_it(tmp_path):
    (tmp_path / "notes.txt").write_text("text")
    with pytest.raises(ValueError, match=f"{tmp_path}: no image in this folder"):
        read_input(tmp_path)


def test_a_folder_inside_that_cannot_be_read_is_left_out_with_a_warning(
    tmp_path, monkeypatch, caplog
):
    image(tmp_path / "a.png")
    image(tmp_path / "closed" / "b.png")
    scan = os.scandir

    def denied(folder):
        if Path(folder).name == "closed":
            raise PermissionError(13, "Permission denied", str(folder))
        return scan(folder)

    monkeypatch.setattr(records.os, "scandir", denied)
    with caplog.at_level(logging.WARNING):
        assert names(read_input(tmp_path)) == ["a.png"]
    assert "closed" in caplog.text and "Permission denied" in caplog.text
    with pytest.raises(ValueError, match="closed: folder cannot be read: Permission denied"):
        read_input(tmp_path / "closed")


def test_a_file_that_vanishes_after_the_listing_costs_its_own_record(tmp_path):
    image(tmp_path / "a.png")
    image(tmp_path / "b.png")
    table = read_folder(tmp_path)
    (tmp_path / "a.png").unlink()
    with (
        pytest.raises(ImageError, match="file not found"),
        open_image(table.records[0].path, FileSource()),
    ):
        pass


def test_names_that_are_hard_to_write_survive(tmp_path):
    hard = ["new\nline.png", "été 图.png", 'quote".png', "comma,.png", "=1+1.png", "tab\t.png"]
    for name in hard:
        image(tmp_path / name)
    table = read_folder(tmp_path)
    assert sorted(names(table)) == sorted(hard)
    assert all(record.path.exists() for record in table.records)


def test_a_name_that_is_not_utf_8_is_escaped_and_still_read(tmp_path):
    raw = os.fsencode(tmp_path) + b"/caf\xe9.png"
    image(Path(os.fsdecode(raw)))
    record = read_folder(tmp_path).records[0]
    assert record.name == "caf\\xe9.png"
    record.name.encode("utf-8")
    with open_image(record.path, FileSource()) as opened:
        assert opened.decode().shape == (3, 3, 4)


def test_an_output_is_named_after_the_resolved_folder(tmp_path, monkeypatch):
    image(tmp_path / "photos" / "a.png")
    monkeypatch.chdir(tmp_path / "photos")
    assert read_input(Path(".")).name == "photos"
    assert read_input(tmp_path / "photos" / ".." / "photos").name == "photos"


# -- single images and what is neither -----------------------------------------------------------


def test_a_single_image_is_told_by_its_content(tmp_path):
    path = image(tmp_path / "list.csv")
    table = read_input(path)
    assert (table.name, names(table), table.records[0].path) == ("list", ["list.csv"], path)


def test_a_csv_is_told_by_its_content(tmp_path):
    image(tmp_path / "a.png")
    path = table_file(tmp_path / "list.png", "image\na.png\n")
    assert names(read_input(path)) == ["a.png"]


def test_what_is_not_there_or_no_file_is_an_error_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dangling").symlink_to("nowhere")
    for name in ("absent", "dangling"):
        with pytest.raises(ValueError, match=f"{name}: no such file or folder"):
            read_input(tmp_path / name)
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(ValueError, match="neither a file nor a folder"):
            read_input(path)


def test_an_input_without_permission_is_a_value_error(tmp_path, monkeypatch):
    def denied(*arguments, **options):
        raise PermissionError(13, "Permission denied", "a.csv")

    monkeypatch.setattr(records.os, "stat", denied)
    with pytest.raises(ValueError, match="a.csv: .*Permission denied"):
        read_input(tmp_path / "a.csv")
    monkeypatch.undo()
    monkeypatch.setattr("builtins.open", denied)
    monkeypatch.setattr(Path, "open", denied)
    (tmp_path / "a.csv").touch()
    with pytest.raises(ValueError, match="a.csv: .*Permission denied"):
        read_input(tmp_path / "a.csv")


def test_two_inputs_that_would_write_the_same_file_are_refused(tmp_path):
    first, second = (read_input(image(tmp_path / name)) for name in ("1/a.png", "2/A.jpg"))
    with pytest.raises(ValueError, match="a.png.*A.jpg.*--output"):
        check_distinct_outputs([first, second])
    check_distinct_outputs([first, read_input(image(tmp_path / "b.png"))])


# -- CSVs ---------------------------------------------------------------------------------------


def test_every_row_and_column_is_kept_in_order(tmp_path):
    text = 'note,image,class\n"a, b",x.png,1\n,y.png,0\n NA ,x.png,\nnull,z/../x.png,1.0\n'
    table = read_csv(table_file(tmp_path / "l.csv", text))
    expected = list(csv.reader(io.StringIO(text)))
    assert [list(table.frame.columns), *table.frame.values.tolist()] == expected
    assert names(table) == ["x.png", "y.png", "x.png", "z/../x.png"]
    assert [record.label for record in table.records] == [1, 0, None, 1]
    assert table.records[0].path == tmp_path / "x.png"


def test_absolute_paths_and_another_root_are_honoured(tmp_path):
    path = table_file(tmp_path / "l.csv", f"image\n{tmp_path}/abs.png\nrel.png\n")
    table = read_csv(path, root=tmp_path / "root")
    assert [record.path for record in table.records] == [
        tmp_path / "abs.png",
        tmp_path / "root" / "rel.png",
    ]


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_a_byte_order_mark_and_windows_line_ends_are_no_part_of_the_cells(tmp_path, ending):
    text = ending.join(("\ufeffimage,class", "a.png,1", ""))
    table = read_csv(table_file(tmp_path / "l.csv", text))
    assert table.frame.to_dict("list") == {"image": ["a.png"], "class": ["1"]}


def test_quoted_cells_keep_quotes_commas_and_line_ends(tmp_path):
    cells = ['say "hi".png', "a,b.png", "line\nend.png", "return\rend.png", " spaces ", "'single'"]
    with (tmp_path / "l.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows([["image"], *([cell] for cell in cells)])
    assert names(read_csv(tmp_path / "l.csv")) == cells


def test_200_000_rows_are_read(tmp_path):
    rows = "".join(f"folder/{number}.png,{number % 2}\n" for number in range(200_000))
    table = read_csv(table_file(tmp_path / "l.csv", "image,class\n" + rows))
    assert len(table.records) == len(table.frame) == 200_000
    assert table.records[-1].name == "folder/199999.png" and table.records[-1].label == 1


def test_a_split_column_chooses_rows_and_keeps_the_others_in_the_output(tmp_path):
    path = table_file(tmp_path / "l.csv", "image,split\na,train\nb,test\nc,val\nd,test\n")
    table = read_csv(path)
    assert [(record.name, record.row) for record in table.records] == [("b", 1), ("d", 3)]
    assert sorted(table.skipped) == [0, 2] and "train" in table.skipped[0]
    assert len(table.frame) == 4
    assert names(read_csv(path, split="val")) == ["c"]
    with pytest.raises(ValueError, match=r"split='dev'; found \['test', 'train', 'val'\]"):
        read_csv(path, split="dev")


def test_a_csv_without_a_split_column_is_taken_whole(tmp_path):
    assert names(read_csv(table_file(tmp_path / "l.csv", "image\na\nb\n"), split="x")) == ["a", "b"]


def test_unnamed_columns_keep_their_empty_name(tmp_path):
    frame = read_csv(table_file(tmp_path / "l.csv", ",image,class\n0,a.png,1\n")).frame
    assert list(frame.columns) == ["", "image", "class"]


def test_repeated_column_names_are_told_apart(tmp_path):
    frame = read_csv(table_file(tmp_path / "l.csv", "image,note,note,note.1\na,1,2,3\n")).frame
    assert len(set(frame.columns)) == 4 and frame.iloc[0].tolist() == ["a", "1", "2", "3"]


def test_a_short_row_has_empty_cells_at_its_end(tmp_path):
    table = read_csv(table_file(tmp_path / "l.csv", "image,class,note\na.png\nb.png,1\n"))
    assert table.frame.values.tolist() == [["a.png", "", ""], ["b.png", "1", ""]]


@pytest.mark.parametrize("text", ["image,class\na,b.png,1\n", "image,class\na,1\nb,c.png,0\n"])
def test_a_row_with_too_many_cells_is_refused_with_its_line(tmp_path, text):
    path = table_file(tmp_path / "l.csv", text)
    with pytest.raises(ValueError, match=r"l.csv: .*line [23]"):
        read_csv(path)


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", "empty"),
        (b"\n\n", "empty"),
        (b"path,class\na.png,1\n", "column 'image'.*'path', 'class'"),
        (b"Image\na.png\n", "column 'image'.*'Image'"),
        (b"image\n", "no rows"),
        (b"image;class\na.png;1\n", "column 'image'.*'image;class'"),
        ("image\né.png\n".encode("latin-1"), "not a readable CSV"),
        ("image\na.png\n".encode("utf-16"), "not a readable CSV"),
        (b'image\n"a.png\n', "not a readable CSV"),
        (bytes(range(256)) * 40, "CSV"),
        (b"\x7fELF\x02\x01\x01" + b"\0" * 500, "CSV"),
        (b"PK\x03\x04" + b"\0\n," * 300, "CSV"),
    ],
)
def test_what_is_no_csv_with_images_is_one_clear_error(tmp_path, content, words):
    path = tmp_path / "list.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=words) as caught:
        read_input(path)
    assert str(path) in str(caught.value) and len(str(caught.value)) < 500


def test_labels_are_0_and_1_and_nothing_else(tmp_path):
    cells = ["0", "1", "1.0", " 1", "2", "-1", "", "real", "nan", "inf", "True", "0.5"]
    text = "image,class\n" + "".join(f"a,{cell}\n" for cell in cells)
    frame = read_table(table_file(tmp_path / "l.csv", text))
    assert parse_labels(frame) == [0, 1, 1, 1, *[None] * 8]
    assert parse_labels(frame.drop(columns="class")) == [None] * 12


csv_cells = st.text(
    alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=6
)


@given(st.lists(st.tuples(csv_cells, csv_cells), min_size=1, max_size=5))
def test_cells_are_read_exactly_as_they_were_written(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("csv") / "l.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows([("image", "note"), *rows])
    while rows and not any(rows[-1]):  # blank lines at the end are no rows
        rows = rows[:-1]
    assert [tuple(row) for row in read_table(path).values] == rows


def test_an_empty_image_name_costs_its_own_row(tmp_path):
    table = read_csv(table_file(tmp_path / "l.csv", 'image,class\n"",1\nb.png,0\n'))
    assert table.skipped == {0: "no image is named"}
    assert [record.name for record in table.records] == ["b.png"]
