"""Test images of one size and one compression, so that neither tells the classes apart.

Each image is shrunk until its shorter side has a given length (Lanczos; never enlarged), cut to the
central square and saved as JPEG with chroma subsampling 4:2:0.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd
from PIL import Image
from tqdm import tqdm

from spai.data.images import FileSource, ImageError, open_image
from spai.data.records import (
    CLASS_COLUMN,
    IMAGE_COLUMN,
    SPLIT_COLUMN,
    ImageRecord,
    read_csv,
)
from spai.data.tables import format_csv
from spai.files import replacing, replacing_text


def write_common_set(
    csv: Path,
    output: Path,
    *,
    split: str,
    side: int,
    quality: int,
    root: Path | None = None,
    groups: Sequence[str] = (),
) -> dict[str, str]:
    """Write the images of a split alike, and CSVs of them with split `test`.

    Args:
        csv: with the columns image, class and split.
        output: a folder; gets `images/`, `all.csv` and, with `groups`, a one-class CSV
            `<real|fake>_<group>.csv` for each value of the first of these columns (real images)
            and of the last (generated ones).
        split: which rows.
        side: of the squares, pixels; smaller images keep their size.
        quality: of the JPEG files.
        root: what the paths in the CSV are relative to; default: its folder.
        groups: columns of the CSV.

    Returns:
        Why an image was left out, by name.

    Raises:
        ValueError: the CSV is wrong or lacks a column.
    """
    table = read_csv(csv, split=split, root=root)
    absent = [name for name in (CLASS_COLUMN, *groups) if name not in table.frame]
    if absent:
        raise ValueError(f"{csv}: no column {', '.join(absent)}; found {list(table.frame)}")
    failed: dict[str, str] = {}
    written: list[tuple[ImageRecord, str]] = []
    for record in tqdm(table.records, unit="image", disable=None):
        name = f"images/{record.row:05}.jpg"
        try:
            square = _square(record.path, side)
        except ImageError as error:
            failed[record.name] = str(error)
            continue
        with replacing(output / name) as partial:
            square.save(partial, "jpeg", quality=quality, subsampling="4:2:0")
        written.append((record, name))
    for csv_name, rows in _tables(written, table.frame, groups):
        with replacing_text(output / csv_name, errors="strict") as file:
            file.write(format_csv([(IMAGE_COLUMN, CLASS_COLUMN, SPLIT_COLUMN), *rows]))
    return failed


def _square(path: Path, side: int) -> Image.Image:
    """Return the central square of an image whose shorter side has the given length."""
    with open_image(path, FileSource()) as opened:
        image = opened.decode()
    _, height, width = image.shape
    small = image.shrink(round(side * max(height, width) / min(height, width)))
    pixels = Image.fromarray(small.tensor().permute(1, 2, 0).numpy())
    edge = min(side, *pixels.size)
    left, top = (pixels.width - edge) // 2, (pixels.height - edge) // 2
    return pixels.crop((left, top, left + edge, top + edge))


def _tables(
    written: Sequence[tuple[ImageRecord, str]], frame: pd.DataFrame, groups: Sequence[str]
) -> Iterator[tuple[str, list[tuple[str, str, str]]]]:
    """Yield the CSVs to write: name and rows."""
    tables: dict[str, list[tuple[str, str, str]]] = {"all.csv": []}
    for record, name in written:
        row = (name, str(record.label), "test")
        tables["all.csv"].append(row)
        if groups:
            column = groups[-1] if record.label else groups[0]
            group = re.sub(r"[^\w.-]+", "-", str(frame[column][record.row])).strip("-")
            kind = "fake" if record.label else "real"
            tables.setdefault(f"{kind}_{group}.csv", []).append(row)
    yield from sorted(tables.items())
