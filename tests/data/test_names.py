"""Names that are written never leave their folder."""

import pytest

from spai.data.names import inner_name


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a.png", "a.png"), ("./a//b c.png", "a/b c.png"), ("a..b/..c.png", "a..b/..c.png")],
)
def test_relative_names_are_normalised(name, expected):
    assert inner_name(name, where="x") == expected


@pytest.mark.parametrize(
    "name",
    [
        *("/etc/passwd", "../a.png", "a/../../b.png", "a/..", "..", "", ".", "./"),
        *("C:\\a.png", "C:a.png", "\\\\host\\share\\a.png", "\\a.png", "a\\..\\..\\b.png", "a\0b"),
    ],
)
def test_names_that_leave_their_folder_on_any_system_are_refused(name):
    with pytest.raises(ValueError, match=r"list.csv, row 3: .* relative path without '\.\.'"):
        inner_name(name, where="list.csv, row 3")
