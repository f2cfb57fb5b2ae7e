"""A file is whole or not there."""

import os

import pytest

from spai.files import replacing_text


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
