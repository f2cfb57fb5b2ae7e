"""The files that scores are written to: the partial one, row by row, and the final one.

The partial file is a CSV whose rows are appended and flushed as images are scored, so that an
interrupted run loses nothing. Besides the columns of the final file it holds what tells whether an
image changed since.
"""

import contextlib
import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from spai.data.images import FileStamp
from spai.files import replacing, replacing_text

FORMATS = ("csv", "json", "parquet")


@dataclass(frozen=True)
class ScoreRow:
    """What the output says of one row of the input.

    Attributes:
        row: of the input, from 0.
        name: of the image, as in the input.
        score: in [0, 1], None with an error.
        extras: further cells, in the order of `ScoreColumns.extras`; None is an empty cell.
        error: why there is no score; empty when there is one.
        stamp: of the file that was scored.
    """

    row: int
    name: str
    score: float | None = None
    extras: tuple[float | str | None, ...] = ()
    error: str = ""
    stamp: FileStamp = FileStamp()


@dataclass(frozen=True)
class ScoreColumns:
    """The columns that scoring adds to a table.

    Attributes:
        tag: name of the score column.
        extras: names of the columns between the score and the error.
    """

    tag: str
    extras: tuple[str, ...] = ()

    @property
    def error(self) -> str:
        """Name of the error column."""
        return f"{self.tag}_error"

    @property
    def patches(self) -> str:
        """Name of the column of how many patches were scored."""
        return f"{self.tag}_patches"

    @property
    def mask(self) -> str:
        """Name of the column of where heat maps lie."""
        return f"{self.tag}_mask"

    @property
    def names(self) -> tuple[str, ...]:
        """All columns that are added, in order."""
        return (self.tag, *self.extras, self.error)


def format_number(value: float) -> str:
    """Write a number with 12 significant digits, enough to tell scores near 0 and 1 apart."""
    return f"{value:.12g}"


def format_csv_row(cells: Iterable[str]) -> str:
    """Return one line of a CSV, LF at the end; cells are quoted where they must be.

    Unlike Python's writer it also quotes a lone carriage return, which readers take for a line end.
    """
    return ",".join(map(_quoted, cells)) + "\n"


class PartialScores:
    """The partial file of a run, open for appending."""

    def __init__(self, path: Path, columns: ScoreColumns, rows: Sequence[ScoreRow] = ()) -> None:
        """Start the file anew with rows that are already scored.

        Raises:
            OSError: it cannot be written.
        """
        self._path = path
        self._rows = len(rows)
        with replacing_text(path) as file:
            file.write(format_csv_row(_partial_header(columns)))
            file.writelines(map(_partial_line, rows))
        self._file = path.open("a", encoding="utf-8", errors="backslashreplace", newline="")

    def append(self, row: ScoreRow) -> None:
        """Add a row; it is in the hands of the operating system when this returns."""
        self._file.write(_partial_line(row))
        self._file.flush()
        self._rows += 1

    @property
    def rows(self) -> int:
        """How many rows it has."""
        return self._rows

    def close(self) -> None:
        """Close the file; one without rows is removed."""
        with contextlib.suppress(OSError):  # a full disk was reported when a row was added
            self._file.close()
        if not self._rows:
            self._path.unlink(missing_ok=True)


def read_partial(path: Path, columns: ScoreColumns) -> list[ScoreRow]:
    """Read the complete rows of a partial file; a line cut off by a kill is left out.

    Raises:
        ValueError: its columns are those of another run.
    """
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        text = file.read()
    csv.field_size_limit(max(len(text), csv.field_size_limit()))  # names can be longer than it
    rows = list(csv.reader(io.StringIO(text, newline="")))
    header = _partial_header(columns)
    if rows and rows[0] != header and (len(rows) > 1 or text.endswith("\n")):
        raise ValueError(
            f"{path}: has the columns {', '.join(rows[0])}, this run writes {', '.join(header)}; "
            "use the same options as before, or start anew without --resume"
        )
    complete = rows[1:] if text.endswith("\n") else rows[1:-1]
    return [_parse_partial(cells) for cells in complete if len(cells) == len(header)]


def write_scores(
    path: Path, frame: pd.DataFrame, rows: Mapping[int, ScoreRow], columns: ScoreColumns, kind: str
) -> None:
    """Write the final file, beside and renamed.

    Args:
        path: of the file.
        frame: what is repeated of the input, all cells text.
        rows: what to add, for each row of `frame`.
        columns: their names; columns of `frame` with these names are replaced.
        kind: "csv", "json" or "parquet".
    """
    kept = frame.drop(columns=[name for name in columns.names if name in frame])
    if kind == "csv":
        with replacing_text(path) as file:
            file.write(format_csv_row([*map(str, kept.columns), *columns.names]))
            for row, cells in enumerate(kept.itertuples(index=False, name=None)):
                file.write(format_csv_row([*cells, *_score_cells(rows[row])]))
        return
    added = pd.DataFrame(_score_series(rows, columns, len(kept)), index=kept.index)
    table = pd.concat([kept, added], axis=1)
    if kind == "json":
        records = [_without_nan(record) for record in table.to_dict("records")]
        with replacing_text(path, errors="strict") as file:
            file.write(json.dumps(records, ensure_ascii=False, indent=1) + "\n")
        return
    with replacing(path) as partial:
        table.to_parquet(partial, index=False)


def read_scores(
    path: Path, columns: ScoreColumns, kind: str, stamps: Sequence[FileStamp]
) -> list[ScoreRow]:
    """Read back a final file that `write_scores` wrote.

    Args:
        path: of the file.
        columns: as it was written with.
        kind: "csv", "json" or "parquet".
        stamps: of the images, in the order of the rows.

    Raises:
        ValueError: it is not such a file, or was changed since.
    """
    try:
        if kind == "csv":
            table = pd.read_csv(path, dtype=str, keep_default_na=False, na_filter=False)
        elif kind == "json":
            table = pd.DataFrame(json.loads(path.read_text(encoding="utf-8")))
        else:
            table = pd.read_parquet(path)
        table = table.astype(object).where(table.notna(), None)
        names, scores, errors = (table[name] for name in ("image", columns.tag, columns.error))
        extras = table[list(columns.extras)].itertuples(index=False, name=None)
        if len(table) != len(stamps):
            raise ValueError(f"{len(table)} rows, {len(stamps)} when it was written")
        numbers = [_number(score) for score in scores]
    except (KeyError, ValueError, OSError) as error:
        raise ValueError(
            f"{path}: cannot be continued ({error}); start anew without --resume"
        ) from error
    return [
        ScoreRow(row, name, number, tuple(map(_cell, extra)), error or "", stamp)
        for row, (name, number, extra, error, stamp) in enumerate(
            zip(names, numbers, extras, errors, stamps, strict=True)
        )
    ]


def needs_parquet() -> None:
    """Raise ValueError when the package that writes parquet is not installed."""
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise ValueError("--format parquet needs pyarrow: pip install 'spai[parquet]'") from error


def _quoted(cell: str) -> str:
    if any(sign in cell for sign in ',"\r\n'):
        return '"' + cell.replace('"', '""') + '"'
    return cell


def _score_cells(row: ScoreRow) -> list[str]:
    return [_text(row.score), *map(_text, row.extras), row.error]


def _text(value: float | str | None) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else format_number(value)


def _partial_header(columns: ScoreColumns) -> list[str]:
    return ["row", "image", *columns.names, "bytes", "mtime_ns"]


def _partial_line(row: ScoreRow) -> str:
    stamp = (str(row.stamp.size), str(row.stamp.mtime_ns))
    return format_csv_row([str(row.row), row.name, *_score_cells(row), *stamp])


def _parse_partial(cells: list[str]) -> ScoreRow:
    row, name, score, *extras, error, size, mtime_ns = cells
    stamp = FileStamp(int(size), int(mtime_ns))
    return ScoreRow(int(row), name, _number(score), tuple(map(_cell, extras)), error, stamp)


def _number(value: Any) -> float | None:
    """Return a score cell as a number, None for an empty one."""
    return None if value is None or value == "" else float(value)


def _cell(value: Any) -> float | str | None:
    """Return a further cell as a number where it is one, so that all formats agree."""
    if value is None or value == "":
        return None
    with contextlib.suppress(ValueError):
        return float(value)
    return str(value)


def _score_series(
    rows: Mapping[int, ScoreRow], columns: ScoreColumns, count: int
) -> dict[str, list[Any]]:
    """Return the added columns, numbers as the CSV has them."""
    cells = [[rows[row].score, *rows[row].extras] for row in range(count)]
    rounded = [[_cell(_text(value)) for value in line] for line in cells]
    numbers = {name: [line[i] for line in rounded] for i, name in enumerate(columns.names[:-1])}
    return {**numbers, columns.error: [rows[row].error for row in range(count)]}


def _without_nan(record: dict[Any, Any]) -> dict[str, Any]:
    return {
        str(name): None if isinstance(value, float) and math.isnan(value) else value
        for name, value in record.items()
    }
