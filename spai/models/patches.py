"""From an image of any size to the square patches that the model reads.

An image here is anything with `shape` (3, H, W) whose slices of rows `image[:, top:bottom]` are
uint8 tensors [3, rows, W]: a tensor, or an image that is converted a few rows at a time.

S: side of a patch, K: patches of an image with repeats, P: distinct patches.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

# Patches handed on at once, so that a very wide image is never copied whole.
PIECE_PATCHES = 32


class Pixels(Protocol):
    """A decoded image whose rows can be read as uint8 tensors."""

    @property
    def shape(self) -> Sequence[int]:
        """3, height and width in pixels."""
        ...

    def __getitem__(self, rows: tuple[slice, slice]) -> Tensor:
        """Return `[:, top:bottom]` as a uint8 tensor [3, rows, W]."""
        ...


class PatchLayout(NamedTuple):
    """Where the patches of an image lie.

    corners: (top, left) of each distinct patch, on the padded image.
    members: K indices into `corners`, the patches in the model's order, repeats included.
    total: number of patches before `maximum` left some out.
    extent: height and width that a patch spans on the padded image, pixels.
    image: height and width of the image before padding.
    """

    corners: tuple[tuple[int, int], ...]
    members: tuple[int, ...]
    total: int
    extent: tuple[int, int]
    image: tuple[int, int]

    def boxes(self) -> npt.NDArray[np.int64]:
        """Return the true pixels of each distinct patch, [P, 4]: top, left, bottom, right.

        In pixels of the image before padding; bottom and right are the first that are not shown.
        Padding repeats pixels of the same patch, so what is left of a box without it is complete.
        """
        corners, extent, image = (
            np.array(part) for part in (self.corners, self.extent, self.image)
        )
        before = np.maximum(extent - image, 0) // 2  # as `reflect_indices` pads
        starts = np.maximum(corners - before, 0)
        return np.hstack((starts, np.minimum(corners - before + extent, image)))


class PatchBatch(NamedTuple):
    """Patches of a batch of images, ready for the model.

    patches: [P, 3, S, S] uint8, or float in [0, 1].
    members: for each image [K] int64, indices into `patches`.
    """

    patches: Tensor
    members: tuple[Tensor, ...]

    @classmethod
    def from_views(cls, views: Tensor) -> "PatchBatch":
        """Make the views of each image its patches; `views` is [B, V, 3, S, S]."""
        images, count = views.shape[:2]
        members = torch.arange(images * count, device=views.device).reshape(images, count)
        return cls(views.flatten(0, 1), tuple(members))


class PatchPiece(NamedTuple):
    """Some consecutive distinct patches [n, 3, S, S] uint8 of an image.

    The first piece of an image has its layout, the others None.
    """

    layout: PatchLayout | None
    patches: Tensor


@dataclass(frozen=True)
class PatchCutter:
    """Cut an image into patches on a grid, or five crops when the grid has too few.

    Attributes:
        size: S, pixels.
        stride: of the grid, pixels.
        minimum: with fewer patches than this on the grid, the five crops are taken instead.
        maximum: at most this many patches, evenly spread over the grid, or of the five crops the
            centre first; None for all.
    """

    size: int = 224
    stride: int = 224
    minimum: int = 4
    maximum: int | None = None

    def layout(self, height: int, width: int) -> PatchLayout:
        """Return where the patches of an image of this size lie."""
        image, extent = (height, width), (self.size, self.size)
        height, width = max(height, self.size), max(width, self.size)
        tops: Sequence[int] = range(0, height - self.size + 1, self.stride)
        lefts: Sequence[int] = range(0, width - self.size + 1, self.stride)
        total = len(tops) * len(lefts)
        if total < self.minimum:
            crops = five_crop_corners(height, width, self.size)
            if self.maximum is not None:  # the centre first, then across
                preferred = [crops[i] for i in (4, 0, 3, 1, 2)]
                wanted = list(dict.fromkeys(preferred))[: self.maximum]
                crops = tuple(crop for crop in crops if crop in wanted)
            distinct = tuple(dict.fromkeys(crops))
            return PatchLayout(distinct, tuple(map(distinct.index, crops)), 5, extent, image)
        if self.maximum is not None and total > self.maximum:
            rows, columns = _spread_grid(len(tops), len(lefts), self.maximum)
            tops, lefts = _evenly(tops, rows), _evenly(lefts, columns)
        corners = tuple((top, left) for top in tops for left in lefts)
        return PatchLayout(corners, tuple(range(len(corners))), total, extent, image)

    def __call__(self, image: Pixels) -> Iterator[PatchPiece]:
        """Yield the distinct patches of an image in the order of its layout, a piece at a time."""
        layout: PatchLayout | None = self.layout(*image.shape[1:])
        assert layout is not None
        for top, lefts in _rows_of(layout.corners):
            strip = _padded_rows(image, top, self.size)  # [3, S, max(W, S)]
            for start in range(0, len(lefts), PIECE_PATCHES):
                crops = [
                    strip[:, :, left : left + self.size]
                    for left in lefts[start : start + PIECE_PATCHES]
                ]
                yield PatchPiece(layout, torch.stack(crops))
                layout = None


@dataclass(frozen=True)
class CentreCutter:
    """One view of an image for the fixed-resolution mode, or ten.

    Attributes:
        size: S, pixels.
        crop: cut the centre; otherwise resize the padded image to S x S (bilinear, not
            antialiased).
        ten_crop: the four corners and the centre, then those of the mirrored image (torchvision's
            ten_crop, so the two centres differ by a pixel when the rest is odd).
    """

    size: int = 224
    crop: bool = True
    ten_crop: bool = False

    def __call__(self, image: Pixels) -> Iterator[PatchPiece]:
        """Yield the views of an image, [1 or 10, 3, S, S]."""
        height, width = true_size = image.shape[1:]
        extent = (self.size, self.size)
        crops: tuple[tuple[int, int], ...]
        if self.ten_crop:
            height, width = max(height, self.size), max(width, self.size)
            crops = five_crop_corners(height, width, self.size)
            crops += tuple((top, width - self.size - left) for top, left in crops)
            views = torch.stack([_crop(image, top, left, self.size) for top, left in crops])
            views[5:] = views[5:].flip(-1)
        elif self.crop:
            top, left = (max(0, side - self.size) // 2 for side in (height, width))
            crops = ((top, left),)
            views = _crop(image, top, left, self.size)[None]
        else:
            crops = ((0, 0),)
            extent = (max(height, self.size), max(width, self.size))
            size = [self.size, self.size]
            whole = _padded_rows(image, 0, max(height, self.size), pad_to=self.size)
            views = F.resize(whole, size, antialias=False)[None]
        members = tuple(range(len(views)))
        layout = PatchLayout(crops, members, len(views), extent, (true_size[0], true_size[1]))
        yield PatchPiece(layout, views)


Cutter = PatchCutter | CentreCutter


def patch_count(cutter: Cutter, height: int, width: int) -> int:
    """Return how many distinct patches a cutter makes of an image of this size."""
    if isinstance(cutter, CentreCutter):
        return 10 if cutter.ten_crop else 1
    return len(cutter.layout(height, width).corners)


def five_crop_corners(height: int, width: int, size: int) -> tuple[tuple[int, int], ...]:
    """Return (top, left) of the corners and the centre crop, in torchvision's order.

    The centre's offset is Python's `round((side - size) / 2)`, half to even.
    """
    bottom, right = height - size, width - size
    centre = (round(bottom / 2), round(right / 2))
    return ((0, 0), (0, right), (bottom, 0), (bottom, right), centre)


def reflect_indices(side: int, size: int) -> Tensor:
    """Return the [size] source pixels of a centred reflection padding from `side` to `size`.

    The edge pixel is not repeated; a pad longer than the image goes on reflecting.
    """
    before = (size - side) // 2
    padded = np.pad(np.arange(side), (before, size - side - before), mode="reflect")
    return torch.from_numpy(padded)


def _padded_rows(image: Pixels, top: int, count: int, *, pad_to: int | None = None) -> Tensor:
    """Return rows `top` to `top + count` of the image padded to `pad_to`, else `count`, a side."""
    _, height, width = image.shape
    size = count if pad_to is None else pad_to
    rows = image[:, top : top + count]
    if height < size:
        rows = rows[:, reflect_indices(height, size)]
    if width < size:
        rows = rows[:, :, reflect_indices(width, size)]
    return rows


def _crop(image: Pixels, top: int, left: int, size: int) -> Tensor:
    return _padded_rows(image, top, size)[:, :, left : left + size]


def _rows_of(corners: Iterable[tuple[int, int]]) -> Iterator[tuple[int, list[int]]]:
    """Group consecutive corners of the same row: (top, lefts)."""
    top = -1
    lefts: list[int] = []
    for corner_top, left in corners:
        if lefts and corner_top != top:
            yield top, lefts
            lefts = []
        top = corner_top
        lefts.append(left)
    yield top, lefts


def _spread_grid(rows: int, columns: int, maximum: int) -> tuple[int, int]:
    """Return rows and columns of the sub-grid with at most `maximum` patches, near square cells."""
    kept = min(rows, maximum, max(1, round((maximum * rows / columns) ** 0.5)))
    kept_columns = min(columns, maximum // kept)
    return min(rows, maximum // kept_columns), kept_columns


def _evenly(values: Sequence[int], count: int) -> list[int]:
    """Return `count` of the values, in the middles of equal shares."""
    return [values[(2 * i + 1) * len(values) // (2 * count)] for i in range(count)]
