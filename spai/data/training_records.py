"""The images that training needs: read from a CSV and checked before anything is built."""

from collections.abc import Sequence
from pathlib import Path

from spai.data.images import ImageError, Source
from spai.data.records import (
    CLASS_COLUMN,
    SPLIT_COLUMN,
    ImageRecord,
    InputTable,
    parse_labels,
    read_csv,
)

# Missing images that a message names.
LISTED = 10


def read_labelled(csv: Path, *, split: str, root: Path | None) -> InputTable:
    """Read the rows of a split of a training CSV with the columns `image`, `class`, `split`.

    Args:
        csv: the file.
        split: which rows.
        root: what its paths are relative to; None for the CSV's folder.

    Raises:
        ValueError: a column is missing, no row is of that split, a or a class is not 0 or 1.
    """
    table = read_csv(csv, split=split, root=root)
    for column in (CLASS_COLUMN, SPLIT_COLUMN):
        if column not in table.frame:
            raise ValueError(
                f"{csv}: needs the columns image, class and split; {column!r} is missing "
                f"(found {', '.join(map(str, table.frame.columns))})"
            )
    labels = parse_labels(table.frame)
    wrong = [record.row for record in table.records if labels[record.row] is None]
    if wrong:
        found = table.frame[CLASS_COLUMN][wrong[0]]
        raise ValueError(
            f"{csv}: class {found!r} in line {wrong[0] + 2} ({len(wrong)} such rows with "
            f"split={split!r}); use 0 for real and 1 for generated images"
        )
    return table


def check_classes(records: Sequence[ImageRecord], where: str) -> None:
    """Raise ValueError unless there are real and generated images."""
    classes = {record.label for record in records}
    if len(classes) < 2:
        raise ValueError(
            f"{where}: all {len(records)} images are of class {classes.pop()}; "
            "training needs real (0) and generated (1) images"
        )


def drop_missing(
    records: Sequence[ImageRecord], source: Source, *, skip: bool, where: str
) -> tuple[list[ImageRecord], str]:
    """Find the images that do not exist, all at once.

    Args:
        records: what is needed.
        source: where images come from.
        skip: leave the missing ones out instead of raising.
        where: what the records are of, for the message.

    Returns:
        The records that exist, and a text on the others; empty when there are none.

    Raises:
        ValueError: some do not exist, and they are not skipped, or none exists.
    """
    missing: list[str] = []
    found: list[ImageRecord] = []
    for record in records:
        try:
            source.open(record.path)
        except ImageError as error:
            missing.append(f"  {record.path}: {error}")
        else:
            found.append(record)
    if not missing:
        return found, ""
    shown = [*missing[:LISTED], *(["  ..."] if len(missing) > LISTED else [])]
    text = "\n".join([f"{where}: {len(missing)} of {len(records)} images are missing:", *shown])
    if not skip:
        raise ValueError(f"{text}\nRepair the list, or leave them out with --missing skip")
    if not found:
        raise ValueError(f"{text}\nNone is left")
    return found, text
