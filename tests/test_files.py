"""A file is whole or not there."""

import os

import pytest

from spai.files import remove_leftovers, replacing_text


def test_a_file_is_replaced_only_when_the_new_one_is_complete(tmp_path):
    path = tmp_path / "f"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), replacing_text(path) as file:
        file.write("half")
        file.flush()
        assert path.read_text() == "old"
        raise KeyboardInterrupt
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["f"]
    with replacing_text(path) as file:
        file.write("new\n")
    assert path.read_bytes() == b"new\n" and os.listdir(tmp_path) == ["f"]


def test_what_killed_writers_left_is_removed_and_nothing_else(tmp_path):
    kept = {"a.csv", ".a.csv.note", ".b.csv.1.partial", "a.csv.partial"}
    for name in (*kept, ".a.csv.1.partial", ".a.csv.22.partial"):
        (tmp_path / name).touch()
    remove_leftovers(tmp_path / "a.csv")
    assert set(os.listdir(tmp_path)) == kept
