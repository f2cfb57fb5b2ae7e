"""Score files: what a kill leaves can be read, and all formats say the same."""

import csv
import io
import json
import math
import os

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spai.data.images import FileStamp
from spai.data.scores import (
    FORMATS,
    PartialScores,
    ScoreColumns,
    ScoreRow,
    format_csv_row,
    format_number,
    read_partial,
    read_scores,
    write_scores,
)

HARD_NAMES = (
    'say "hi".png',
    "comma, and space.png",
    "line\nend.png",
    "return\rend.png",
    "windows\r\nend.png",
    "\n",
    '"',
    "separators\u2028\u2029\x85\x0b\x0c\x1c\x1e.png",
    "été 图 😀.png",
    "=1+1.png",
    " spaces ",
    "NA",
    "",
)
COLUMNS = ScoreColumns("spai", ("spai_jpeg80", "spai_mask"))

text = st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
cells = text | st.sampled_from(['"', "\n", "\r", "\r\n", ",", '","', '"\n"', "\n\n"])
score = st.floats(0, 1).map(lambda value: float(format_number(value)))


def hard_rows(columns=COLUMNS):
    """Return a row for each name, with and without an error."""
    rows = []
    for row, name in enumerate(HARD_NAMES):
        stamp = FileStamp(100 + row, 1_700_000_000_123_456_789 + row)
        if row % 3 == 2:
            rows.append(ScoreRow(row, name, None, (None, None), f'bad, "{name}"\nfile', stamp))
        else:
            rows.append(ScoreRow(row, name, row / 7.25, (row / 3.5, f"maps/{name}x"), "", stamp))
    rounded = []
    for row in rows:
        numbers = [
            value if value is None else float(format_number(value)) for value in (row.score,)
        ]
        extras = tuple(
            float(format_number(value)) if isinstance(value, float) else value
            for value in row.extras[: len(columns.extras)]
        )
        rounded.append(ScoreRow(row.row, row.name, numbers[0], extras, row.error, row.stamp))
    return rounded


def partial_file(path, rows, columns=COLUMNS):
    file = PartialScores(path, columns)
    for row in rows:
        file.append(row)
    file.close()
    return path


# -- the partial file ---------------------------------------------------------------------------


def test_a_file_cut_at_any_byte_gives_its_complete_rows(tmp_path):
    rows = hard_rows()
    content = partial_file(tmp_path / "p", rows).read_bytes()
    ends, path = [], tmp_path / "cut"
    for count in range(len(rows) + 1):
        ends.append(partial_file(path, rows[:count]).stat().st_size if count else None)
    ends[0] = content.index(b"\n") + 1
    for size in range(len(content) + 1):
        path.write_bytes(content[:size])
        complete = sum(end <= size for end in ends[1:])
        assert read_partial(path, COLUMNS) == rows[:complete], f"cut at byte {size}"


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(cells, score | st.none(), cells, cells), min_size=1, max_size=3), st.data()
)
def test_any_names_and_errors_survive_a_cut(tmp_path_factory, drawn, data):
    columns = ScoreColumns("t", ("mask",))
    rows = [
        ScoreRow(row, name, value, (None if not mask else f"m{mask}",), error, FileStamp(row, 5))
        for row, (name, value, mask, error) in enumerate(drawn)
    ]
    path = tmp_path_factory.mktemp("scores") / "p"
    content = partial_file(path, rows, columns).read_bytes()
    assert read_partial(path, columns) == rows
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    assert read_partial(path, columns) == rows[: len(read_partial(path, columns))]


def test_rows_are_on_disk_as_soon_as_they_are_appended(tmp_path):
    rows = hard_rows()
    file = PartialScores(tmp_path / "p", COLUMNS)
    for count, row in enumerate(rows, 1):
        file.append(row)
        assert read_partial(tmp_path / "p", COLUMNS) == rows[:count]
    file.close()


def test_a_partial_file_starts_with_the_rows_that_are_kept(tmp_path):
    rows = hard_rows()
    file = PartialScores(tmp_path / "p", COLUMNS, rows[:4])
    file.append(rows[4])
    file.close()
    assert read_partial(tmp_path / "p", COLUMNS) == rows[:5]
    assert [path.name for path in tmp_path.iterdir()] == ["p"]


def test_a_partial_file_without_rows_is_removed(tmp_path):
    partial_file(tmp_path / "p", [])
    assert list(tmp_path.iterdir()) == []


def test_a_partial_file_with_other_columns_is_refused_with_both(tmp_path):
    path = partial_file(tmp_path / "p", hard_rows())
    with pytest.raises(ValueError, match="(?s)spai_mask.*this run writes.*other_error.*--resume"):
        read_partial(path, ScoreColumns("other"))


def test_a_very_long_name_is_read_back(tmp_path):
    rows = [ScoreRow(0, "x" * 200_000, None, (None, None), "name too long")]
    assert read_partial(partial_file(tmp_path / "p", rows), COLUMNS) == rows


# -- the final file -----------------------------------------------------------------------------


def final_file(path, kind, rows=None, columns=COLUMNS):
    rows = rows or hard_rows()
    frame = pd.DataFrame(
        {"image": [row.name for row in rows], "note": [row.name[::-1] for row in rows]}, dtype=str
    )
    write_scores(path, frame, {row.row: row for row in rows}, columns, kind)
    return rows


@pytest.mark.parametrize("kind", FORMATS)
def test_what_is_written_is_read_back(tmp_path, kind):
    rows = final_file(tmp_path / "f", kind)
    assert read_scores(tmp_path / "f", COLUMNS, kind, [row.stamp for row in rows]) == rows


@pytest.mark.parametrize("kind", FORMATS)
def test_what_is_read_back_is_written_byte_for_byte(tmp_path, kind):
    rows = final_file(tmp_path / "1", kind)
    again = read_scores(tmp_path / "1", COLUMNS, kind, [row.stamp for row in rows])
    final_file(tmp_path / "2", kind, again)
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def test_pandas_and_the_csv_module_see_the_same_cells(tmp_path):
    rows = final_file(tmp_path / "f.csv", "csv")
    with (tmp_path / "f.csv").open(encoding="utf-8", newline="") as file:
        by_module = list(csv.reader(file))
    table = pd.read_csv(tmp_path / "f.csv", dtype=str, keep_default_na=False, na_filter=False)
    assert [list(table.columns), *table.values.tolist()] == by_module
    assert by_module[0] == ["image", "note", "spai", "spai_jpeg80", "spai_mask", "spai_error"]
    assert [line[0] for line in by_module[1:]] == [row.name for row in rows]


@settings(deadline=None)
@given(st.lists(st.lists(cells, min_size=3, max_size=3), min_size=1, max_size=4))
def test_any_cells_are_read_alike_by_pandas_and_the_csv_module(lines):
    written = "".join(map(format_csv_row, [["a", "b", "c"], *lines]))
    assert list(csv.reader(io.StringIO(written, newline=""))) == [["a", "b", "c"], *lines]
    # As bytes: pandas translates the line ends of a text stream.
    table = pd.read_csv(
        io.BytesIO(written.encode()),
        dtype=str,
        keep_default_na=False,
        na_filter=False,
        skip_blank_lines=False,
    )
    assert table.values.tolist() == lines


def test_all_formats_hold_the_same_numbers(tmp_path):
    found = {}
    for kind in FORMATS:
        rows = final_file(tmp_path / kind, kind)
        read = read_scores(tmp_path / kind, COLUMNS, kind, [row.stamp for row in rows])
        found[kind] = [(row.name, row.score, row.extras, row.error) for row in read]
    assert found["csv"] == found["json"] == found["parquet"]
    assert json.loads((tmp_path / "json").read_text("utf-8"))[2]["spai"] is None
    numbers = pd.read_parquet(tmp_path / "parquet")["spai"]
    assert numbers.dtype == np.float64 and math.isnan(numbers[2])


@given(st.floats(0, 1))
def test_scores_keep_at_least_9_significant_digits(value):
    assert float(format_number(value)) == pytest.approx(value, rel=1e-9, abs=0)


def test_a_file_where_every_image_failed_is_read_back_in_all_formats(tmp_path):
    rows = [ScoreRow(row, f"{row}", None, (None, None), "bad", FileStamp(1)) for row in range(3)]
    for kind in FORMATS:
        final_file(tmp_path / kind, kind, rows)
        assert read_scores(tmp_path / kind, COLUMNS, kind, [FileStamp(1)] * 3) == rows


@pytest.mark.parametrize("kind", FORMATS)
def test_an_earlier_score_column_is_replaced(tmp_path, kind):
    frame = pd.DataFrame({"spai": ["0.5"], "image": ["a"], "spai_error": ["old"]}, dtype=str)
    columns = ScoreColumns("spai")
    write_scores(tmp_path / "f", frame, {0: ScoreRow(0, "a", 0.25)}, columns, kind)
    found = read_scores(tmp_path / "f", columns, kind, [FileStamp()])
    assert found == [ScoreRow(0, "a", 0.25)]
    if kind == "csv":
        assert (tmp_path / "f").read_text() == "image,spai,spai_error\na,0.25,\n"


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("tag", ["self", "index", "my score", 'quo"ted,', "line\nend"])
def test_any_tag_can_be_a_column(tmp_path, kind, tag):
    columns = ScoreColumns(tag)
    frame = pd.DataFrame({"image": ["a"]}, dtype=str)
    write_scores(tmp_path / "f", frame, {0: ScoreRow(0, "a", 0.25)}, columns, kind)
    assert read_scores(tmp_path / "f", columns, kind, [FileStamp()])[0].score == 0.25


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("damage", ["rows", "columns", "score", "bytes", "empty", "absent"])
def test_a_final_file_that_was_changed_is_refused_by_name(tmp_path, kind, damage):
    path, count = tmp_path / "scores", len(HARD_NAMES)
    final_file(path, kind)
    if damage == "rows":
        count -= 1
    elif damage == "columns":
        final_file(path, kind, columns=ScoreColumns("other", COLUMNS.extras))
    elif damage == "score":
        rows = final_file(path, kind)
        frame = pd.DataFrame({"image": [row.name for row in rows], "spai": "high"})
        frame = frame.assign(spai_jpeg80="", spai_mask="", spai_error="")
        if kind == "parquet":
            frame.to_parquet(path)
        else:
            frame.to_csv(path) if kind == "csv" else frame.to_json(path, orient="records")
    elif damage == "absent":
        path.unlink()
    else:
        path.write_bytes(b"\xff\xfe\0\x01" if damage == "bytes" else b"")
    with pytest.raises(ValueError, match=f"{path}: cannot be continued .*--resume"):
        read_scores(path, COLUMNS, kind, [FileStamp()] * count)


# -- replacing a file ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FORMATS)
def test_a_failing_rename_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, kind):
    path = tmp_path / "f"
    path.write_text("old")

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        final_file(path, kind)
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["f"]
