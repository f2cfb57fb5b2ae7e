"""What there is to score: the images of a folder, the rows of a CSV, or one image."""

import logging
import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from spai.data.images import has_image_extension, looks_like_image

logger = logging.getLogger(__name__)

# File systems allow 255 bytes; temporary names are longer than the final ones.
LONGEST_NAME = 200
IMAGE_COLUMN, CLASS_COLUMN, SPLIT_COLUMN = "image", "class", "split"


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """One image to score.

    Attributes:
        path: where it is.
        name: how it is called in the output: as in the CSV, or relative to the folder (POSIX).
        label: 0 real, 1 generated, None unknown.
        row: its row of the input, from 0.
    """

    path: Path
    name: str
    label: int | None
    row: int


@dataclass(frozen=True)
class InputTable:
    """The images of one input.

    Attributes:
        source: the folder, CSV or image that was given.
        name: of the output files, without extension.
        root: what the names of the records are relative to.
        records: the images to score.
        frame: what the output repeats of the input, a row for each image, all cells text.
        skipped: why rows that have no record are not scored, by row.
    """

    source: Path
    name: str
    root: Path
    records: Sequence[ImageRecord]
    frame: pd.DataFrame
    skipped: dict[int, str] = field(default_factory=dict)


def read_input(
    source: Path,
    *,
    recursive: bool = True,
    split: str = "test",
    csv_root: Path | None = None,
    exclude: Path | None = None,
) -> InputTable:
    """List the images of a folder, a CSV or a single image file, told apart by content.

    Args:
        source: what to read.
        recursive: descend into the folders of a folder.
        split: rows to take of a CSV with a `split` column.
        csv_root: what the paths of a CSV are relative to; None for the CSV's folder.
        exclude: a folder inside the input that is left out.

    Raises:
        ValueError: it does not exist, holds no image, or is no readable CSV.
    """
    try:
        mode = os.stat(source).st_mode
    except FileNotFoundError as error:
        raise ValueError(f"{source}: no such file or folder") from error
    except OSError as error:
        raise ValueError(f"{source}: cannot be read: {error.strerror}") from error
    if stat.S_ISDIR(mode):
        return read_folder(source, recursive=recursive, exclude=exclude)
    if not stat.S_ISREG(mode):  # reading a pipe or a device might never end
        raise ValueError(f"{source}: neither a file nor a folder; save it as a file first")
    if looks_like_image(source):
        record = ImageRecord(source, as_text(source.name), None, 0)
        return InputTable(
            source, as_text(source.stem), source.parent, [record], _names_frame([record])
        )
    return read_csv(source, split=split, root=csv_root)


def read_folder(folder: Path, *, recursive: bool = True, exclude: Path | None = None) -> InputTable:
    """List the images of a folder in natural order.

    Raises:
        ValueError: it cannot be read or holds no image.
    """
    excluded = exclude.resolve() if exclude is not None else None
    try:
        names = sorted(_image_names(folder, recursive, excluded), key=natural_key)
    except OSError as error:
        raise ValueError(f"{error.filename}: folder cannot be read: {error.strerror}") from error
    if not names:
        where = "" if recursive else " (folders inside it are left out: --no-recursive)"
        raise ValueError(f"{folder}: no image in this folder{where}")
    records = [
        ImageRecord(folder / name, as_text(name), None, row) for row, name in enumerate(names)
    ]
    output_name = as_text(folder.resolve().name) or "root"
    return InputTable(folder, output_name, folder, records, _names_frame(records))


def read_csv(csv: Path, *, split: str = "test", root: Path | None = None) -> InputTable:
    """List the images of a CSV with an `image` column.

    Rows of another split stay in the output, unscored.

    Raises:
        ValueError: not a CSV, no `image` column, or no row of the split.
    """
    frame = read_table(csv)
    if IMAGE_COLUMN not in frame:
        raise ValueError(
            f"{csv}: neither an image nor a CSV with a column {IMAGE_COLUMN!r}; "
            f"its first line has {', '.join(repr(name[:40]) for name in frame.columns[:8])}"
        )
    if frame.empty:
        raise ValueError(f"{csv}: no rows below the header")
    skipped = {row: "no image is named" for row, name in enumerate(frame[IMAGE_COLUMN]) if not name}
    if SPLIT_COLUMN in frame:
        splits = frame[SPLIT_COLUMN]
        if not (splits == split).any():
            found = sorted(set(splits))[:8]
            raise ValueError(f"{csv}: no rows with split={split!r}; found {found}")
        skipped |= {
            row: f"not scored: of split {value!r}"
            for row, value in enumerate(splits)
            if value != split
        }
    folder = csv.parent if root is None else root
    labels = parse_labels(frame)
    records = [
        ImageRecord(folder / name, name, labels[row], row)
        for row, name in enumerate(frame[IMAGE_COLUMN])
        if row not in skipped
    ]
    return InputTable(csv, as_text(csv.stem), folder, records, frame, skipped)


def read_table(csv: Path) -> pd.DataFrame:
    """Read a CSV with all cells as text, exactly as written.

    A short row gets empty cells; the second of two columns of the same name gets a number.

    Raises:
        ValueError: it cannot be read as a UTF-8 CSV with a header, or a row is longer than that.
    """
    try:
        # Without pandas' header, which renames columns and drops what a long row has too much.
        table = pd.read_csv(
            csv,
            header=None,
            dtype=str,
            keep_default_na=False,
            na_filter=False,
            skip_blank_lines=False,
            encoding="utf-8-sig",
            compression=None,  # whatever the file is called: nothing is unpacked
        )
    except pd.errors.EmptyDataError as error:
        raise ValueError(f"{csv}: empty file, not a CSV") from error
    except (OSError, UnicodeDecodeError, pd.errors.ParserError, ValueError) as error:
        raise ValueError(f"{csv}: not an image, and not a readable CSV: {error}") from error
    while len(table) > 1 and not any(table.iloc[-1]):  # blank lines at the end are no rows
        table = table.iloc[:-1]
    frame = table.iloc[1:].reset_index(drop=True)
    frame.columns = pd.Index(_distinct(table.iloc[0]), dtype=str)
    return frame


def parse_labels(frame: pd.DataFrame) -> list[int | None]:
    """Return the `class` of each row, None where it is not 0 or 1."""
    if CLASS_COLUMN not in frame:
        return [None] * len(frame)
    numbers = pd.to_numeric(frame[CLASS_COLUMN], errors="coerce").to_numpy(np.float64)
    return [int(number) if number in (0, 1) else None for number in numbers]


def check_distinct_outputs(tables: Sequence[InputTable]) -> None:
    """Raise ValueError when two inputs would write the same file, or a name would be too long."""
    seen: dict[str, Path] = {}
    for table in tables:
        if len(table.name.encode()) > LONGEST_NAME:
            raise ValueError(
                f"{table.source}: its name is too long for the files that are written beside the "
                f"scores; use one of at most {LONGEST_NAME} bytes"
            )
        key = table.name.casefold()
        if key in seen:
            raise ValueError(
                f"{seen[key]} and {table.source} would both write {table.name}; "
                "score them with different --output folders"
            )
        seen[key] = table.source


def natural_key(name: str) -> tuple[list[str | int], str]:
    """Return a sort key that orders the numbers in names by value: img2 before img10."""
    parts = re.split(r"([0-9]+)", name)
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], name


def _image_names(folder: Path, recursive: bool, excluded: Path | None) -> Iterator[str]:
    """Yield the POSIX names, relative to `folder`, of the files that are or claim to be images."""
    pending = [""]
    while pending:
        prefix = pending.pop()
        try:
            listing = os.scandir(folder / prefix)
        except OSError as error:
            if not prefix:
                raise
            logger.warning("%s: left out: %s", folder / prefix, error.strerror)
            continue
        with listing as entries:
            for entry in entries:
                name = f"{prefix}{entry.name}"
                if entry.name.startswith("."):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    if recursive and Path(entry.path).resolve() != excluded:
                        pending.append(f"{name}/")
                elif _is_candidate(entry):
                    yield name


def _is_candidate(entry: os.DirEntry[str]) -> bool:
    """Tell whether a file is taken: an image by its first bytes or by its extension."""
    claims = has_image_extension(entry.name)
    try:
        regular = stat.S_ISREG(entry.stat().st_mode)
    except OSError:
        return claims  # such as a dangling link: an error row says so
    return regular and (claims or looks_like_image(Path(entry.path)))


def _distinct(names: Iterable[str]) -> list[str]:
    """Return column names, repeated ones with a number: a, a.1, a.2."""
    given = list(names)
    distinct: list[str] = []
    for name in given:
        numbered = (f"{name}.{number}" for number in range(1, len(given) + 1))
        free = (new for new in numbered if new not in given and new not in distinct)
        distinct.append(next(free) if name in distinct else name)
    return distinct


def _names_frame(records: Sequence[ImageRecord]) -> pd.DataFrame:
    return pd.DataFrame({IMAGE_COLUMN: [record.name for record in records]}, dtype=str)


def as_text(name: str) -> str:
    """Return a file name as valid text; bytes that are not UTF-8 become backslash escapes."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
