"""Write one training view of each image of a CSV as a file, and a CSV that lists them."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from spai.data.augment import ViewSettings, seeded_views
from spai.data.images import FileSource, ImageError, open_image
from spai.data.names import inner_name
from spai.data.records import IMAGE_COLUMN, read_table
from spai.data.scores import format_csv_row
from spai.files import replacing, replacing_text

# What each format is written with; the quality comes on top. A view is RGB, 8 bits a channel.
LOSSY: dict[str, dict[str, Any]] = {
    "JPEG": {"subsampling": "4:2:0"},
    "WEBP": {"lossless": False, "method": 4},
}
LOSSLESS = ("BMP", "PNG", "PPM", "TIFF")

logger = logging.getLogger(__name__)


class Task(NamedTuple):
    """A row of the CSV, numbered from 0: the image to read and the file to write."""

    row: int
    image: Path
    written: Path


class Report(NamedTuple):
    """How many images were written, and why the others were not, by their name in the CSV."""

    written: int
    unreadable: dict[str, str]


def write_views(
    csv: Path,
    output_csv: Path,
    output_dir: Path,
    settings: ViewSettings,
    *,
    root: Path | None = None,
    seed: int = 0,
    quality: int = 95,
) -> Report:
    """Write a view of each image to `output_dir / <its name in the CSV>`.

    The view of a row follows from the seed and the row alone. The format is that of the file's
    extension. An image that cannot be read is left out of the new CSV; other columns stay.

    Args:
        csv: with a column `image`; rows of every split are taken.
        output_csv: its paths are relative to its folder. Written last, at once.
        output_dir: files in it with the same names are replaced.
        settings: rates, ranges and the side of a view.
        root: what the paths in `csv` are relative to; its folder by default.
        seed: of the views.
        quality: 1 to 100, of JPEG and lossy WebP files.

    Raises:
        ValueError: a CSV without rows or `image` column, a name that would be written outside
            `output_dir` or over an image that is read, a name that occurs twice, an extension
            that cannot be written, or no image that can be read.
        OSError: a file cannot be written.
    """
    frame = read_table(csv)
    if IMAGE_COLUMN not in frame or frame.empty:
        raise ValueError(f"{csv}: a header with {IMAGE_COLUMN!r} and rows below it are needed")
    if csv.resolve() == output_csv.resolve():
        raise ValueError(f"{csv}: would be overwritten; choose another output CSV")
    tasks = _tasks(csv, list(frame[IMAGE_COLUMN]), csv.parent if root is None else root, output_dir)
    unreadable: dict[int, str] = {}
    for task in tqdm(tasks, unit="image", disable=None):
        try:
            view = _view(task, settings, seed)
        except ImageError as error:
            unreadable[task.row] = str(error)
            continue
        _save(view, task.written, quality)
    names = {frame[IMAGE_COLUMN].iloc[row]: reason for row, reason in unreadable.items()}
    if len(unreadable) == len(tasks):
        name, reason = next(iter(names.items()))
        raise ValueError(f"{csv}: none of its images can be read, such as {name!r}: {reason}")
    _write_csv(output_csv, frame, [task for task in tasks if task.row not in unreadable])
    return Report(len(tasks) - len(unreadable), names)


def _tasks(csv: Path, names: Sequence[str], root: Path, output_dir: Path) -> list[Task]:
    """Check every name before anything is written."""
    rows: dict[str, int] = {}
    tasks = []
    for row, name in enumerate(names):
        where = f"{csv}, row {row + 1}"
        inner = inner_name(name, where=where)
        if inner in rows:
            raise ValueError(f"{where}: {name!r} is in row {rows[inner] + 1} too; list it once")
        rows[inner] = row
        _format(Path(inner), where=where)
        tasks.append(Task(row, root / name, output_dir / inner))
    read = {task.image.resolve() for task in tasks}
    for task in tasks:
        if task.written.resolve() in read:
            raise ValueError(
                f"{csv}, row {task.row + 1}: {task.written} is an image that is read and would be "
                "overwritten; choose another output folder"
            )
    return tasks


def _format(path: Path, *, where: str) -> str:
    """Return Pillow's name of the format that a file's extension stands for."""
    found = Image.registered_extensions().get(path.suffix.lower(), "")
    known = (*LOSSY, *LOSSLESS)
    if found not in known:
        raise ValueError(
            f"{where}: {path.name!r}: views are written as {', '.join(known)}; leave this image out"
        )
    return found


def _view(task: Task, settings: ViewSettings, seed: int) -> Tensor:
    """Return the view of a row's image, uint8 [3, S, S]."""
    with open_image(task.image, FileSource()) as opened:
        pixels = opened.decode().tensor()
    return seeded_views(pixels, settings, 1, seed=seed, epoch=0, index=task.row)[0]


def _save(view: Tensor, path: Path, quality: int) -> None:
    """Write an image beside its name, then rename it."""
    name = _format(path, where=str(path.parent))
    options = {**LOSSY[name], "quality": quality} if name in LOSSY else {}
    with replacing(path) as partial:
        Image.fromarray(view.permute(1, 2, 0).contiguous().numpy()).save(partial, name, **options)


def _write_csv(output_csv: Path, frame: pd.DataFrame, tasks: Sequence[Task]) -> None:
    """Write the rows of the images that were written, with their new paths."""
    folder = output_csv.resolve().parent
    folder.mkdir(parents=True, exist_ok=True)
    place = list(frame.columns).index(IMAGE_COLUMN)
    with replacing_text(output_csv) as file:
        file.write(format_csv_row(frame.columns))
        for task in tasks:
            cells = list(frame.iloc[task.row])
            cells[place] = Path(os.path.relpath(task.written.resolve(), folder)).as_posix()
            file.write(format_csv_row(cells))
