"""CSV tables of the data tools: the `image,class,split` rows, name lists, column summaries.

Files are read as UTF-8 with or without BOM and written whole or not at all.
"""

import csv
import io
import logging
import math
import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from spai.files import replacing_text

CLASS_NAMES = ("real", "generated")

logger = logging.getLogger(__name__)


class Sample(NamedTuple):
    """One image of a data set: 0 is real, 1 is generated; split is train, val or test."""

    path: Path
    label: int
    split: str
    source: str = ""  # who made it, for the count report only


@dataclass(frozen=True)
class GroupStatistics:
    """Mean, sample standard deviation (0 for a single value) and number of a group's values."""

    group: str
    avg: float | None
    std: float | None
    count: int


def format_csv(rows: Sequence[Sequence[str]], delimiter: str = ",") -> str:
    r"""Return rows as CSV text with LF line ends, quoting what needs it (`\r` and `\n` too).

    >>> format_csv([["image", "class"], ["a, b.png", "1"]])
    'image,class\n"a, b.png",1\n'
    """
    _check_delimiter(delimiter)
    special = (delimiter, '"', "\r", "\n")

    def cell(text: str) -> str:
        quote = text != text.strip() or any(mark in text for mark in special)
        return '"' + text.replace('"', '""') + '"' if quote else text

    return "".join(delimiter.join(map(cell, row)) + "\n" for row in rows)


def write_samples(
    samples: Sequence[Sample], output: Path, *, root: Path | None = None, delimiter: str = ","
) -> None:
    """Write `image,class,split` rows in the order given.

    Args:
        samples: the rows; their paths may be relative to the working directory.
        output: the CSV; replaced at once when complete.
        root: folder that the image paths are made relative to; default: the CSV's folder.
        delimiter: one character.

    Raises:
        ValueError: no samples, a file outside the root, or a name that is not UTF-8.
    """
    if not samples:
        raise ValueError(f"{output}: not written, there are no images to list")
    base = os.path.abspath(root or output.parent)
    rows = [("image", "class", "split")]
    rows += [(_relative_name(s.path, base), str(s.label), s.split) for s in samples]
    with replacing_text(output, errors="strict") as file:
        file.write(format_csv(rows, delimiter))


def read_samples(path: Path, *, root: Path | None = None, delimiter: str = ",") -> list[Sample]:
    """Read a CSV with the columns image, class and split.

    Args:
        path: the CSV, UTF-8 with or without BOM.
        root: folder that the image paths are relative to; default: the CSV's folder.
        delimiter: one character.

    Raises:
        ValueError: unreadable CSV, no rows, missing column, or a class other than 0 and 1.
    """
    samples = []
    columns = ("image", "class", "split")
    for number, row in enumerate(read_rows(path, columns, delimiter), start=1):
        label = row["class"].strip()
        if label not in ("0", "1") or not row["image"]:
            raise ValueError(
                f"{path}: row {number} has image={row['image']!r}, class={row['class']!r}; "
                "expected a path and 0 (real) or 1 (generated)"
            )
        image = (root or path.parent) / row["image"]
        samples.append(Sample(image, int(label), row["split"].strip()))
    if not samples:
        raise ValueError(f"{path}: has no rows")
    return samples


def read_rows(path: Path, columns: Sequence[str], delimiter: str = ",") -> list[dict[str, str]]:
    """Read the named columns of a CSV as they are, skipping blank lines.

    Raises:
        ValueError: unreadable file, a missing column, or a row that is too short.
    """
    _check_delimiter(delimiter)
    reader = csv.reader(io.StringIO(_read_text(path), newline=""), delimiter=delimiter)
    try:
        table = list(reader)
    except csv.Error as error:
        raise ValueError(f"{path}: line {reader.line_num}: {error}") from error
    header = [name.strip() for name in table[0]] if table else []
    absent = [name for name in columns if name not in header]
    if absent:
        raise ValueError(f"{path}: no column {absent}; its columns are {header}")
    places = {name: header.index(name) for name in columns}
    rows = []
    for number, cells in enumerate(filter(None, table[1:]), start=1):
        if len(cells) <= max(places.values()):
            raise ValueError(f"{path}: row {number} has {len(cells)} of {len(header)} cells")
        rows.append({name: cells[place] for name, place in places.items()})
    return rows


def read_list(path: Path) -> list[str]:
    """Read a text file of one name a line: stripped, without blanks and repeats, sorted."""
    names = [line.strip() for line in _read_text(path).split("\n")]
    unique = sorted(set(filter(None, names)))
    repeats = sum(map(bool, names)) - len(unique)
    if repeats:
        logger.warning("%s: %d repeated lines were used once", path, repeats)
    return unique


def reduce_column(
    path: Path, *, column: str, group: str, delimiter: str = ","
) -> list[GroupStatistics]:
    """Summarise a numeric column per value of another, in the order the values appear.

    Empty cells do not count; a group of empty cells has count 0 and no mean.

    Raises:
        ValueError: unreadable CSV, missing column, or a cell that is not a finite number.
    """
    groups: dict[str, list[float]] = {}
    for number, row in enumerate(read_rows(path, (column, group), delimiter), start=1):
        values = groups.setdefault(row[group], [])
        if row[column].strip():
            values.append(_finite(row[column], f"{path}: row {number}, column {column!r}"))
    return [
        GroupStatistics(
            name,
            statistics.fmean(values) if values else None,
            (statistics.stdev(values) if len(values) > 1 else 0.0) if values else None,
            len(values),
        )
        for name, values in groups.items()
    ]


def _finite(text: str, where: str) -> float:
    """Return a cell as a number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{where}: {text!r} is not a finite number")
    return value


def _read_text(path: Path) -> str:
    """Return a file's text; a mistake about the file is a ValueError that names it."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise ValueError(f"{path}: no such file") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error.reason}); save it as UTF-8") from error


def _relative_name(path: Path, base: str) -> str:
    """Return the POSIX path of a file below the absolute folder `base`; links are kept."""
    absolute = os.path.abspath(path)
    try:
        name = Path(absolute).relative_to(base).as_posix()
    except ValueError as error:
        raise ValueError(
            f"{absolute} lies outside the CSV root {base}; choose a root above it (-r)"
        ) from error
    try:
        name.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"{absolute!r}: the name is not UTF-8; rename the file") from error
    return name


def _check_delimiter(delimiter: str) -> None:
    if len(delimiter) != 1 or delimiter in '"\r\n':
        raise ValueError(f"delimiter {delimiter!r}: expected one character, such as , or ;")
