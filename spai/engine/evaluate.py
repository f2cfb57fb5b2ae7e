"""Labelled CSVs for `spai test`: what is read, which rank scores what, rows for the metrics."""

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from spai.data.images import ImageError, Source
from spai.data.records import (
    CLASS_COLUMN,
    IMAGE_COLUMN,
    ImageRecord,
    InputTable,
    read_csv,
    read_table,
)
from spai.data.scores import format_csv_row, format_number
from spai.engine.distributed import Ranks
from spai.engine.metrics import sigmoid
from spai.engine.predict import Prediction
from spai.files import replacing_text


def read_test_csvs(
    csvs: Sequence[Path], *, roots: Sequence[Path] = (), split: str = "test"
) -> list[InputTable]:
    """Read labelled CSVs, each a data set; `name` of a table is distinct.

    A data set is named by its CSV's stem; CSVs with the same stem also by as many of their folders
    as tell them apart: `real/test` and `fake/test`.

    Args:
        csvs: with the columns `image` and `class` (0 real, 1 generated).
        roots: what image paths are relative to: none (each CSV's folder), one, or one a CSV.
        split: rows to take of a CSV with a `split` column.

    Raises:
        ValueError: another number of roots, a CSV given twice, missing or unreadable, without
            `image` or `class` column or rows of the split, or a class that is not 0 or 1.
    """
    if len(roots) > 1 and len(roots) != len(csvs):
        raise ValueError(
            f"{len(roots)} root folders for {len(csvs)} CSVs; give none, one for all, or one for "
            "each CSV in the same order (--test-csv-root-dir)"
        )
    folders: Sequence[Path | None] = roots or [None]
    if len(folders) == 1:
        folders = [folders[0]] * len(csvs)
    tables = []
    for csv, name, folder in zip(csvs, _distinct_names(csvs), folders, strict=True):
        if not csv.is_file():
            raise ValueError(f"{csv}: no such file; give a CSV with the columns image and class")
        table = replace(read_csv(csv, split=split, root=folder), name=name)
        _check_labels(table)
        tables.append(table)
    return tables


def check_images(table: InputTable, source: Source) -> None:
    """Raise ValueError when there is none of the images: most likely the root is wrong.

    Single missing images are no mistake of this kind; they become error rows.
    """
    reason = ""
    for record in table.records:
        try:
            source.open(record.path)
            return
        except ImageError as error:
            reason = reason or f"{record.path}: {error}"
    raise ValueError(
        f"{table.source}: none of its {len(table.records)} images can be read ({reason}); is the "
        "root folder right? (--test-csv-root-dir)"
    )


def share_of(records: Sequence[ImageRecord], ranks: Ranks) -> Sequence[ImageRecord]:
    """Return the images that this rank scores."""
    return records[ranks.rank :: ranks.world]


def gather_scores(
    table: InputTable, predictions: Iterable[Prediction], ranks: Ranks
) -> list[pd.DataFrame]:
    """Bring together what the ranks find, in the order of the CSV whoever scored what and when.

    Args:
        table: the data set.
        predictions: of this rank's share.
        ranks: all of them must call this.

    Returns:
        One table for each preparation, the same on each rank. A row an image: dataset, image,
        class, score, logit (NaN with an error), error (empty without one).
    """
    found = [(p.record.row, p.logits, p.errors) for p in predictions]
    results = {row: result for part in ranks.gather(found) for row, *result in part}
    assert len(results) == len(table.records)
    logits, errors = zip(*(results[record.row] for record in table.records), strict=True)
    versions = zip(zip(*logits, strict=True), zip(*errors, strict=True), strict=True)
    return [_score_table(table, *version) for version in versions]


def _score_table(table: InputTable, found: Sequence[float], errors: Sequence[str]) -> pd.DataFrame:
    """Make the rows of one preparation from the logits and errors of the records."""
    logits = np.array(found, dtype=np.float64)
    texts = {
        "dataset": [table.name] * len(table.records),
        "image": [record.name for record in table.records],
        "error": list(errors),
    }
    columns = {name: pd.Series(values, dtype=object) for name, values in texts.items()}
    return pd.DataFrame(
        {
            "dataset": columns["dataset"],
            "image": columns["image"],
            "class": [record.label for record in table.records],
            "score": sigmoid(logits),
            "logit": logits,
            "error": columns["error"],
        }
    )


def score_column(tag: str, epoch: int | None) -> str:
    """Return the name of the column that `--update-csv` adds; the tag alone without an epoch."""
    return tag if epoch is None else f"{tag}_epoch_{epoch}"


def check_new_column(table: InputTable, column: str) -> None:
    """Raise ValueError when a CSV has that column already, or cannot be replaced."""
    if column in table.frame:
        raise ValueError(f"{table.source}: already has the column {column!r}; choose another --tag")
    folder = table.source.resolve().parent
    if not os.access(folder, os.W_OK):
        raise ValueError(f"{table.source}: cannot be updated, {folder} is not writable")


def add_score_column(table: InputTable, column: str, scores: Mapping[int, float]) -> None:
    """Add a column to a CSV, last; the file is replaced at once.

    Cells keep their text, and so do columns that were added while the images were scored.

    Args:
        table: as it was read before.
        column: its name.
        scores: by row of the CSV; rows without one get an empty cell.

    Raises:
        ValueError: the CSV lists other images than before, or has such a column now.
        OSError: it cannot be written.
    """
    path = table.source.resolve()  # a link stays a link
    frame = read_table(path)
    same = IMAGE_COLUMN in frame and list(frame[IMAGE_COLUMN]) == list(table.frame[IMAGE_COLUMN])
    if not same or column in frame:
        problem = "already has this column" if same else "lists other images"
        raise ValueError(
            f"{table.source}: changed while its images were scored and {problem} now; "
            f"{column!r} was not added, the scores are in the results"
        )
    with replacing_text(path) as file:
        file.write(format_csv_row([*frame.columns, column]))
        for row, cells in enumerate(frame.itertuples(index=False, name=None)):
            score = format_number(scores[row]) if row in scores else ""
            file.write(format_csv_row([*cells, score]))


def _distinct_names(csvs: Sequence[Path]) -> list[str]:
    """Name CSVs by their stems, prefixed by parent folders where stems are equal."""
    repeated = [csv for csv, count in Counter(csv.resolve() for csv in csvs).items() if count > 1]
    if repeated:
        raise ValueError(f"{repeated[0]}: given twice; name each CSV once")
    paths = [Path(os.path.abspath(csv)) for csv in csvs]
    names = [path.stem for path in paths]
    for depth in range(2, max(len(path.parts) for path in paths) + 1):
        counts = Counter(names)
        names = [
            "/".join((*path.parts[-depth:-1], path.stem)) if counts[name] > 1 else name
            for name, path in zip(names, paths, strict=True)
        ]
    if len(set(names)) < len(names):
        name = Counter(names).most_common(1)[0][0]
        raise ValueError(f"two CSVs make the data set {name!r}; rename one of them")
    return [os.fsencode(name).decode("utf-8", "backslashreplace") for name in names]


def _check_labels(table: InputTable) -> None:
    """Raise ValueError unless each image has the class 0 or 1."""
    if CLASS_COLUMN not in table.frame:
        raise ValueError(
            f"{table.source}: no column {CLASS_COLUMN!r} (0 real, 1 generated); its columns are "
            f"{', '.join(table.frame.columns)}. To score images of unknown class use `spai infer`"
        )
    unknown = [record for record in table.records if record.label is None]
    if unknown:
        row = unknown[0].row
        raise ValueError(
            f"{table.source}: row {row + 1} ({unknown[0].name}): class "
            f"{table.frame[CLASS_COLUMN].iloc[row]!r} is neither 0 (real) nor 1 (generated)"
            + (f"; {len(unknown)} such rows" if len(unknown) > 1 else "")
        )
