"""The page of `spai infer --report`: every image with its picture, score and heat map.

Everything comes from the rows of the scores, the facts in `.run.json` and small pictures; the page
sorts and filters by itself.
"""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from spai.data.names import printable
from spai.data.scores import ScoreColumns, ScoreRow
from spai.report.pages import run_facts, run_summary, write_page

LABELS = {0: "real", 1: "generated"}
BINS = 20


class PictureSizes(NamedTuple):
    """How large the pictures in a page are; 0 for none.

    thumbnail: longer side, pixels.
    heat_map: longer side, pixels.
    """

    thumbnail: int
    heat_map: int


# Images at most, and sizes that keep the page under about 80 MB.
SIZES = ((1_000, PictureSizes(192, 448)), (20_000, PictureSizes(96, 192)))
NO_PICTURES = PictureSizes(0, 0)


class PageImage(NamedTuple):
    """One image of the page.

    row: what the output says of it.
    label: 0 real, 1 generated, None unknown.
    thumbnail: a WebP file, None where there is none.
    heat_map: a WebP file, None where there is none.
    """

    row: ScoreRow
    label: int | None = None
    thumbnail: bytes | None = None
    heat_map: bytes | None = None


def picture_sizes(images: int) -> PictureSizes:
    """Return how large the pictures of a page with so many images are."""
    return next((sizes for most, sizes in SIZES if images <= most), NO_PICTURES)


def write_images_page(
    path: Path,
    images: Sequence[PageImage],
    columns: ScoreColumns,
    *,
    title: str,
    run: Mapping[str, Any],
) -> None:
    """Write the page.

    Args:
        path: of the page, replaced at once.
        images: in the order of the input.
        columns: names of the cells of their rows.
        title: of the page: the name of the input.
        run: what `.run.json` says, without the stamps.
    """
    scores = [image.row.score for image in images if image.row.score is not None]
    rows = [_page_row(image, columns) for image in images]
    verdicts = sorted({row["verdict"] for row in rows if "verdict" in row})
    write_page(
        path,
        "images.html",
        script="images.js",
        title=printable(title),
        data={"rows": rows},
        verdicts=verdicts,
        has_maps=any("map" in row for row in rows),
        scored=len(scores),
        failed=len(images) - len(scores),
        bins=_histogram(scores),
        summary=run_summary(run),
        facts=run_facts(run),
    )


def _page_row(image: PageImage, columns: ScoreColumns) -> dict[str, Any]:
    """Return an image as the script reads it; empty fields are left out."""
    row, tag = image.row, columns.tag
    cells = dict(zip(columns.extras, row.extras, strict=True))
    verdict, mask = cells.pop(f"{tag}_verdict", None), cells.pop(f"{tag}_mask", None)
    details: list[tuple[str, float | str]] = [
        (
            printable(name.removeprefix(f"{tag}_")),
            printable(cell) if isinstance(cell, str) else cell,
        )
        for name, cell in cells.items()
        if cell is not None
    ]
    if image.label is not None:
        details.insert(0, ("labelled", LABELS[image.label]))
    fields = {
        "score": row.score,
        "error": printable(row.error),
        "verdict": None if verdict is None else printable(str(verdict)),
        "details": details,
        "thumb": _base64(image.thumbnail),
        "map": _base64(image.heat_map),
        "mask": None if mask is None or image.heat_map is None else printable(str(mask)),
    }
    known = {name: value for name, value in fields.items() if value not in (None, "", [])}
    return {"name": printable(row.name), **known}


def _base64(content: bytes | None) -> str | None:
    return None if content is None else base64.b64encode(content).decode()


def _histogram(scores: Sequence[float]) -> list[tuple[int, float]]:
    """Return the images in each of 20 equal bins of the score, and their share of the fullest."""
    counts = [0] * BINS
    for score in scores:
        counts[min(int(score * BINS), BINS - 1)] += 1
    most = max(*counts, 1)
    return [(count, count / most) for count in counts]
