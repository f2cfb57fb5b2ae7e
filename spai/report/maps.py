"""Heat maps: which parts of an image counted, from its attention weights and patch layout.

A weight is shown relative to uniform attention: 1 where a patch counted as much as the mean of the
image's patches, on a scale of 0 to 3 that is the same for all images. Every occurrence of a patch
counts, so five crops that coincide are one place of weight 1, and where patches overlap the mean of
their weights is shown. Pixels that no patch covers are hatched.

K: patches of an image with repeats, R x C: cells between the edges of its patches.
"""

import functools
import hashlib
import re
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from spai.engine.predict import Prediction
from spai.files import replacing
from spai.models.patches import PatchLayout

LONGEST = 2000  # pixels of a drawn image; larger ones are reduced
SHORTEST_VIEW = 480  # pixels of a drawn image's longer side; smaller ones are enlarged

SCALE_END = 3.0
COLORMAP = "inferno"
SHADES = 254  # palette entries of the colour map; the last two are the hatching
HATCH_GROUND, HATCH_LINE = SHADES, SHADES + 1
HATCH_COLORS = ((96, 100, 108), (214, 218, 224))
HATCH_PERIOD, HATCH_WIDTH = 12, 2  # pixels, measured along a row
STRENGTH = 0.55  # of the colours over the photo

TITLE = "Attention, relative to uniform: 1 = the mean of all patches"
HATCHED = "hatched: no patch covers these pixels"
CAUTION = "Attention shows where the model looked, not where the image was edited."
PAPER, INK = (255, 255, 255), (32, 34, 38)

OVERLAY, MAP = ".overlay.png", ".map.png"
LONGEST_PART = 120  # bytes of a file or folder name; file systems allow 255
LONGEST_PATH = 1000  # bytes of a path below the folder of maps

Floats = npt.NDArray[np.float64]
Shades = npt.NDArray[np.uint8]


class Cells(NamedTuple):
    """Relative attention of an image, piecewise constant.

    rows: R + 1 edges from 0 to the height, pixels of the image.
    columns: C + 1 edges from 0 to the width.
    values: [R, C], 1 = uniform; NaN where no patch lies.
    """

    rows: npt.NDArray[np.int64]
    columns: npt.NDArray[np.int64]
    values: Floats


class MapFolder:
    """Draws the predictions of a run into files that mirror the names of the images."""

    def __init__(self, output: Path, name: str) -> None:
        """Name the folder `<output>/<name>_maps`; it is made with the first file."""
        self.output, self.path = output, output / f"{name}_maps"

    def __call__(self, prediction: Prediction) -> str:
        """Write heat map and overlay of a scored image.

        Returns:
            The path of the overlay, relative to the output folder, with forward slashes.

        Raises:
            OSError: they cannot be written.
        """
        assert prediction.layout is not None and prediction.preview is not None
        assert prediction.attention is not None
        cells = attention_cells(prediction.layout, prediction.attention)
        photo = photo_of(prediction.preview)
        heat = draw_map(cells, photo.size)
        overlay = draw_overlay(photo, heat, hatched=bool(np.isnan(cells.values).any()))
        target = self.path / mirrored_name(prediction.record.name)
        _save(heat, target.with_name(target.name + MAP))
        path = target.with_name(target.name + OVERLAY)
        _save(overlay, path)
        return path.relative_to(self.output).as_posix()


def mirrored_name(name: str) -> Path:
    """Return a relative path for what belongs to the image of that name.

    It mirrors the name. Parts that would lead elsewhere (`..`, a root) or that a common file
    system refuses (signs that are not printable, more than 120 bytes ...) keep what can be kept
    and end in a digest, so that different names have different paths.
    """
    path = PurePosixPath(name)
    parts = [_portable(part) for part in path.parts or (".",)]
    if len(str(PurePosixPath(*parts)).encode()) > LONGEST_PATH:
        parts = [_portable(str(path))]
    return Path(*parts)


def _portable(part: str) -> str:
    """Return a file name for a part of a path: itself, or what is left of it and a digest."""
    kept = re.sub(r'[<>:"/\\|?*~]', "_", part)
    kept = "".join(sign if sign.isprintable() else "_" for sign in kept)
    kept = re.sub(r"[. ]+$", "_", kept)
    if kept == part and len(part.encode()) <= LONGEST_PART and not part.endswith((OVERLAY, MAP)):
        return part
    digest = hashlib.sha256(part.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    return f"{kept.encode()[:LONGEST_PART].decode(errors='ignore')}~{digest}"


def attention_cells(layout: PatchLayout, attention: Tensor) -> Cells:
    """Lay the weights of an image's patches on its true pixels.

    Args:
        layout: where the patches lie.
        attention: [heads, K], each head's weights sum to 1; the mean over heads is shown.
    """
    members = np.array(layout.members)
    relative = attention.double().mean(dim=0).numpy() * len(members)  # [K], 1 = uniform
    top, left, bottom, right = layout.boxes()[members].T
    height, width = layout.image
    rows = np.unique(np.concatenate(([0, height], top, bottom)))
    columns = np.unique(np.concatenate(([0, width], left, right)))
    # Each patch adds itself at its first corner and takes itself back behind its edges; running
    # sums then give each cell the total and the number of the patches on it.
    steps = np.zeros((2, len(rows), len(columns)))
    top, bottom = (np.searchsorted(rows, edge) for edge in (top, bottom))
    left, right = (np.searchsorted(columns, edge) for edge in (left, right))
    for row, column, sign in (
        (top, left, 1),
        (bottom, right, 1),
        (top, right, -1),
        (bottom, left, -1),
    ):
        np.add.at(steps[0], (row, column), sign * relative)
        np.add.at(steps[1], (row, column), sign)
    total, count = steps.cumsum(axis=1).cumsum(axis=2)[:, :-1, :-1]
    values = np.full(total.shape, np.nan)
    np.divide(total, count, out=values, where=count > 0.5)
    return Cells(rows, columns, values)


def photo_of(preview: Tensor) -> Image.Image:
    """Return the image to draw on: a preview [3, h, w] uint8, small ones enlarged."""
    photo = Image.fromarray(np.ascontiguousarray(preview.permute(1, 2, 0).numpy()))
    factor = max(1, SHORTEST_VIEW // max(photo.size))
    size = (photo.width * factor, photo.height * factor)
    return photo if factor == 1 else photo.resize(size, Image.Resampling.NEAREST)


def draw_map(cells: Cells, size: tuple[int, int]) -> Image.Image:
    """Draw the cells alone, on exactly the pixels of the drawn image.

    Args:
        cells: of the image.
        size: width and height of the drawing.

    Returns:
        A palette image: shade 0 to 253 for a weight of 0 to 3, 254 and 255 where no patch lies.
    """
    covered = ~np.isnan(cells.values)
    level = np.clip(np.where(covered, cells.values, 0) / SCALE_END, 0, 1)
    shades = np.where(covered, np.rint(level * (SHADES - 1)), HATCH_GROUND).astype(np.uint8)
    pixels = np.repeat(shades, _lengths(cells.rows, size[1]), axis=0)
    pixels = np.repeat(pixels, _lengths(cells.columns, size[0]), axis=1)
    if not covered.all():
        _hatch(pixels)
    return _with_palette(pixels)


def draw_overlay(photo: Image.Image, heat: Image.Image, *, hatched: bool) -> Image.Image:
    """Lay a map over a photo of the same size, with a legend below.

    The photo is shown without its colours: those of the overlay are then the map's alone.
    """
    mixed = Image.blend(photo.convert("L").convert("RGB"), heat.convert("RGB"), STRENGTH)
    legend = _legend(max(SHORTEST_VIEW, photo.width), hatched)
    page = Image.new("RGB", (legend.width, photo.height + legend.height), PAPER)
    page.paste(mixed, ((page.width - photo.width) // 2, 0))
    page.paste(legend, (0, photo.height))
    return page


def _lengths(edges: npt.NDArray[np.int64], length: int) -> npt.NDArray[np.int64]:
    """Return how many of `length` drawn pixels lie between each two edges of the image."""
    return np.diff(np.rint(edges * (length / edges[-1])).astype(np.int64))


def _hatch(pixels: Shades) -> None:
    """Draw diagonal lines where no patch lies, in place."""
    height, width = pixels.shape
    for start in range(0, height, 64):  # in bands: the diagonals of a large image are large too
        part = pixels[start : start + 64]
        diagonal = np.add.outer(np.arange(start, start + len(part)), np.arange(width))
        part[(part == HATCH_GROUND) & (diagonal % HATCH_PERIOD < HATCH_WIDTH)] = HATCH_LINE


def _with_palette(pixels: Shades) -> Image.Image:
    image = Image.fromarray(pixels)
    image.putpalette(_palette())  # makes it a palette image
    return image


@functools.cache
def _palette() -> bytes:
    import matplotlib  # runs without maps do not wait for it

    colors = matplotlib.colormaps[COLORMAP](np.linspace(0, 1, SHADES), bytes=True)[:, :3]
    return bytes(colors.tobytes()) + bytes(sum(HATCH_COLORS, ()))


@functools.lru_cache(maxsize=16)
def _legend(width: int, hatched: bool) -> Image.Image:
    """Draw title, colour bar with ticks, the meaning of hatching, and the caution."""
    size = min(26, max(13, width // 60))
    font = ImageFont.load_default(size)
    line, margin = round(1.5 * size), size
    lines = 5 + hatched
    page = Image.new("RGB", (width, lines * line + 2 * margin - line // 2), PAPER)
    draw = ImageDraw.Draw(page)
    draw.text((margin, margin), TITLE, INK, font)
    bar = min(width - 2 * margin, 30 * size)
    top = margin + line
    shades = np.linspace(0, SHADES - 1, bar).astype(np.uint8)
    page.paste(_with_palette(np.repeat(shades[None], size, axis=0)), (margin, top))
    for tick in range(int(SCALE_END) + 1):
        place = margin + round(tick / SCALE_END * (bar - 1))
        draw.line((place, top, place, top + size + size // 3), INK)
        label = f"{tick} or more" if tick == SCALE_END else str(tick)
        anchor = {0: "la", SCALE_END: "ra"}.get(tick, "ma")
        draw.text((place, top + round(1.4 * size)), label, INK, font, anchor)
    text = top + round(2.2 * line)
    if hatched:
        swatch = np.full((size, 3 * size), HATCH_GROUND, np.uint8)
        _hatch(swatch)
        page.paste(_with_palette(swatch), (margin, text))
        draw.text((margin + round(3.6 * size), text), HATCHED, INK, font)
        text += line
    draw.text((margin, text), CAUTION, INK, font)
    return page


def _save(image: Image.Image, path: Path) -> None:
    with replacing(path) as partial:
        image.save(partial, format="PNG", compress_level=1)  # a third of the time, a fifth larger
