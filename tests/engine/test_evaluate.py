"""Labelled CSVs are read strictly, and ranks together give what one process gives."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spai.data.images import FileSource, FileStamp
from spai.data.records import ImageRecord, InputTable, read_table
from spai.engine.distributed import Ranks
from spai.engine.evaluate import (
    add_score_column,
    check_images,
    check_new_column,
    gather_scores,
    read_test_csvs,
    score_column,
    share_of,
)
from spai.engine.predict import Prediction
from spai.models.patches import PatchLayout

LAYOUT = PatchLayout(((0, 0),), (0,), 1, (224, 224), (224, 224))
ROWS = "image,class,split\na.png,0,test\nb.png,1,test\nc.png,x,train\n"


def write(path: Path, text: str = ROWS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def records(count: int) -> list[ImageRecord]:
    return [ImageRecord(Path(f"{row}.png"), f"{row}.png", row % 2, row) for row in range(count)]


@dataclass(frozen=True)
class Together(Ranks):
    """A rank whose gathering brings what the other ranks are known to have found."""

    others: tuple[Any, ...] = ()

    def gather(self, item):
        return [*self.others, item]


# --- reading ----------------------------------------------------------------------------------


def test_only_rows_of_the_split_are_read_and_their_classes_kept(tmp_path):
    (table,) = read_test_csvs([write(tmp_path / "set.csv")])
    assert table.name == "set"
    assert [(r.name, r.label, r.row) for r in table.records] == [("a.png", 0, 0), ("b.png", 1, 1)]
    assert table.records[0].path == tmp_path / "a.png"


def test_equal_stems_are_told_apart_by_as_many_folders_as_needed(tmp_path):
    names = ("x/real/test.csv", "y/real/test.csv", "fake/test.csv", "other.csv")
    tables = read_test_csvs([write(tmp_path / name) for name in names])
    assert [t.name for t in tables] == ["x/real/test", "y/real/test", "fake/test", "other"]


def test_one_csv_given_twice_is_refused_even_under_another_name(tmp_path):
    csv = write(tmp_path / "a.csv")
    (tmp_path / "b.csv").symlink_to(csv)
    with pytest.raises(ValueError, match=r"a\.csv: given twice"):
        read_test_csvs([csv, tmp_path / "b.csv"])


def test_equal_stems_in_one_folder_are_refused(tmp_path):
    with pytest.raises(ValueError, match="two CSVs make the data set .*; rename"):
        read_test_csvs([write(tmp_path / "a.csv"), write(tmp_path / "a.txt")])


@pytest.mark.parametrize(
    ("roots", "expected"), [([], ["", "sub"]), (["r"], ["r", "r"]), (["r", "s"], ["r", "s"])]
)
def test_roots_are_each_csvs_folder_or_one_for_all_or_one_each(tmp_path, roots, expected):
    csvs = [write(tmp_path / "a.csv"), write(tmp_path / "sub/b.csv")]
    tables = read_test_csvs(csvs, roots=[tmp_path / root for root in roots])
    assert [t.records[0].path.parent for t in tables] == [tmp_path / name for name in expected]


@pytest.mark.parametrize("count", [2, 4])
def test_another_number_of_roots_is_refused(tmp_path, count):
    csvs = [write(tmp_path / f"{name}.csv") for name in "abc"]
    with pytest.raises(ValueError, match=f"{count} root folders for 3 CSVs"):
        read_test_csvs(csvs, roots=[tmp_path] * count)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,split\na.png,test\n", "no column 'class' .* its columns are image, split"),
        (
            "image,class\na.png,1\nb.png,2\nc.png,\n",
            r"row 2 \(b.png\): class '2' .*; 2 such rows",
        ),
        ("image,class\na.png,fake\n", r"row 1 \(a.png\): class 'fake' is neither 0 .* nor 1"),
        ("image,class,split\na.png,1,val\n", "no rows with split='test'; found .'val'."),
        ("path,class\na.png,1\n", "'image'"),
        ("", "empty file"),
    ],
)
def test_a_csv_that_cannot_be_tested_on_is_refused_by_name(tmp_path, text, message):
    csv = write(tmp_path / "set.csv", text)
    with pytest.raises(ValueError, match=f"set.csv.*{message}"):
        read_test_csvs([csv])


def test_a_csv_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no.csv: no such file"):
        read_test_csvs([tmp_path / "no.csv"])


def test_a_data_set_without_any_image_is_refused_and_one_with_some_is_not(tmp_path):
    (table,) = read_test_csvs([write(tmp_path / "set.csv")])
    with pytest.raises(ValueError, match=r"none of its 2 images .*a\.png: file not found.*root"):
        check_images(table, FileSource())
    (tmp_path / "b.png").write_bytes(b"anything")
    check_images(table, FileSource())


# --- ranks ------------------------------------------------------------------------------------


@given(count=st.integers(0, 20), world=st.integers(1, 5))
def test_shares_of_all_ranks_are_every_image_once(count, world):
    images = records(count)
    shares = [share_of(images, Ranks(rank, world)) for rank in range(world)]
    assert sorted(r.row for share in shares for r in share) == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def predictions(images: list[ImageRecord]) -> list[Prediction]:
    """Return a logit for each of two versions of an image, an error of the first every third."""
    return [
        Prediction(image, FileStamp(), (np.nan, 1.0), ("damaged", ""))
        if image.row % 3 == 2
        else Prediction(image, FileStamp(), (image.row / 7 - 1, 1.0), ("", ""), layout=LAYOUT)
        for image in images
    ]


def test_rows_are_the_same_whoever_scored_what_in_which_order(tmp_path):
    images = records(8)
    table = InputTable(tmp_path / "s.csv", "set", tmp_path, images, read_table_of(images, tmp_path))
    alone, version = gather_scores(table, predictions(images), Ranks())
    others = [(p.record.row, p.logits, p.errors) for p in predictions(images[4:])[::-1]]
    ranks = Together(1, 2, (others,))
    shared = gather_scores(table, predictions(images[:4])[::-1], ranks)
    assert alone.equals(shared[0]) and version.equals(shared[1])
    assert (version["logit"] == 1).all() and (version["error"] == "").all()
    assert list(alone["image"]) == [f"{row}.png" for row in range(8)]
    assert list(alone["error"]) == ["", "", "damaged", "", "", "damaged", "", ""]
    assert np.isnan(alone["logit"][[2, 5]]).all() and np.isnan(alone["score"][[2, 5]]).all()
    np.testing.assert_allclose(alone["score"][7], 0.5)
    np.testing.assert_allclose(alone["score"][0], 1 / (1 + np.e))


def read_table_of(images, folder):
    lines = [f"{image.name},{image.label}" for image in images]
    return read_table(write(folder / "s.csv", "\n".join(["image,class", *lines]) + "\n"))


# --- the added column -------------------------------------------------------------------------


def test_the_column_is_named_by_tag_and_epoch_or_by_the_tag_alone():
    assert score_column("spai", 12) == "spai_epoch_12"
    assert score_column("spai", 0) == "spai_epoch_0"
    assert score_column("spai", None) == "spai"


def test_a_column_is_added_last_and_every_other_cell_kept(tmp_path):
    text = 'note,image,class,split\n"a, ""b""",a.png,0,test\n007,b.png,1.0,test\n,c.png,1,train\n'
    csv = write(tmp_path / "set.csv", "\ufeff" + text)
    (table,) = read_test_csvs([csv])
    add_score_column(table, "spai_epoch_3", {0: 0.25, 1: 1 / 3})
    expected = (
        'note,image,class,split,spai_epoch_3\n"a, ""b""",a.png,0,test,0.25\n'
        "007,b.png,1.0,test,0.333333333333\n,c.png,1,train,\n"
    )
    assert csv.read_bytes().decode() == expected
    assert [path.name for path in tmp_path.iterdir()] == ["set.csv"]


def test_a_link_to_a_csv_stays_a_link(tmp_path):
    target = write(tmp_path / "there/set.csv")
    (tmp_path / "link.csv").symlink_to(target)
    (table,) = read_test_csvs([tmp_path / "link.csv"])
    add_score_column(table, "new", {0: 0.5})
    assert (tmp_path / "link.csv").is_symlink()
    assert target.read_text().startswith("image,class,split,new\n")


def test_a_column_that_another_run_added_meanwhile_is_kept(tmp_path):
    csv = write(tmp_path / "set.csv", "image,class\na.png,0\n")
    (table,) = read_test_csvs([csv])
    csv.write_text("image,class,other\na.png,0,9\n")
    add_score_column(table, "new", {0: 0.5})
    assert csv.read_text() == "image,class,other,new\na.png,0,9,0.5\n"


@pytest.mark.parametrize(
    ("now", "problem"),
    [("image,class\nz.png,0\n", "lists other images"), ("image,class,new\na.png,0,1\n", "already")],
)
def test_a_csv_that_changed_meanwhile_is_left_alone(tmp_path, now, problem):
    csv = write(tmp_path / "set.csv", "image,class\na.png,0\n")
    (table,) = read_test_csvs([csv])
    csv.write_text(now)
    with pytest.raises(ValueError, match=problem):
        add_score_column(table, "new", {0: 0.5})
    assert csv.read_text() == now


def test_a_column_of_that_name_is_refused_beforehand(tmp_path):
    (table,) = read_test_csvs([write(tmp_path / "set.csv", "image,class,x\na.png,0,1\n")])
    check_new_column(table, "y")
    with pytest.raises(ValueError, match="already has the column 'x'; choose another --tag"):
        check_new_column(table, "x")
