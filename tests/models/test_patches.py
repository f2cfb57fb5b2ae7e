"""Cutting: which pixels of an image the model sees, and in which order."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import functional as F

from spai.models import patches
from spai.models.patches import (
    PIECE_PATCHES,
    CentreCutter,
    PatchBatch,
    PatchCutter,
    five_crop_corners,
    reflect_indices,
)

sides = st.integers(1, 100)


def noise(height, width, seed=0):
    """Return an image [3, H, W] in which hardly any two pixels are equal."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)


def padded(image, size):
    """Return the image as numpy pads it to at least `size` a side."""
    shares = [(0, 0)]
    for side in image.shape[1:]:
        missing = max(0, size - side)
        shares.append((missing // 2, missing - missing // 2))
    return torch.from_numpy(np.pad(image.numpy(), shares, mode="reflect"))


def cut(cutter, image):
    """Return the model's patches [K, 3, S, S], repeats included, and the layout."""
    pieces = list(cutter(image))
    layout = pieces[0].layout
    assert all(piece.layout is None for piece in pieces[1:])
    distinct = torch.cat([piece.patches for piece in pieces])
    assert len(distinct) == len(layout.corners) and distinct.dtype == torch.uint8
    return distinct[list(layout.members)], layout


# -- padding ------------------------------------------------------------------------------------


@given(sides, sides)
def test_reflection_equals_numpy_also_for_pads_longer_than_the_image(side, more):
    before = more // 2
    expected = np.pad(np.arange(side), (before, more - before), mode="reflect")
    assert reflect_indices(side, side + more).tolist() == expected.tolist()


def test_the_edge_pixel_is_not_repeated():
    assert reflect_indices(3, 8).tolist() == [2, 1, 0, 1, 2, 1, 0, 1]
    assert reflect_indices(1, 4).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("height, width", [(1, 1), (3, 500), (100, 224), (223, 223), (224, 2)])
def test_a_small_image_is_padded_to_one_patch_in_its_centre(height, width):
    image = noise(height, width)
    found, layout = cut(PatchCutter(minimum=1), image)
    expected = padded(image, 224)
    assert layout.corners[0] == (0, 0)
    assert torch.equal(found[0], expected[:, :224, :224])


# -- five crops ---------------------------------------------------------------------------------


@pytest.mark.parametrize("height", [224, 225, 227, 300])
@pytest.mark.parametrize("width", [224, 226, 229, 301])
def test_five_crops_are_those_of_torchvision_in_its_order(height, width):
    image = noise(height, width)
    found, layout = cut(PatchCutter(), image)
    assert torch.equal(found, torch.stack(F.five_crop(image, [224, 224])))
    assert layout.total == 5


def test_the_offset_of_the_centre_is_rounded_half_to_even():
    offsets = [five_crop_corners(side, side, 224)[4][0] for side in range(224, 232)]
    assert offsets == [0, 0, 1, 2, 2, 2, 3, 4]


@pytest.mark.parametrize(
    "height, width, distinct", [(224, 224, 1), (10, 10, 1), (224, 300, 3), (225, 225, 4)]
)
def test_crops_that_are_the_same_pixels_are_cut_once(height, width, distinct):
    layout = PatchCutter().layout(height, width)
    assert len(layout.corners) == len(set(layout.corners)) == distinct
    assert len(layout.members) == 5


def test_few_grid_patches_give_five_crops_and_enough_do_not():
    assert len(PatchCutter().layout(224, 4 * 224 - 1).members) == 5  # three on the grid
    assert len(PatchCutter().layout(224, 4 * 224).members) == 4
    assert len(PatchCutter(minimum=1).layout(224, 224).members) == 1
    assert len(PatchCutter(minimum=7).layout(448, 672).members) == 5  # six on the grid


# -- the grid -----------------------------------------------------------------------------------


def test_the_grid_goes_row_by_row_and_drops_the_remainder():
    layout = PatchCutter().layout(2 * 224 + 223, 3 * 224 + 1)
    assert layout.corners == ((0, 0), (0, 224), (0, 448), (224, 0), (224, 224), (224, 448))
    assert layout.members == (0, 1, 2, 3, 4, 5) and layout.total == 6


def test_patches_overlap_with_a_stride_below_their_size():
    layout = PatchCutter(stride=112).layout(224 + 112, 224 + 230)
    assert layout.corners == ((0, 0), (0, 112), (0, 224), (112, 0), (112, 112), (112, 224))


@settings(deadline=None)
@given(sides, sides, st.integers(1, 30), st.integers(1, 9), st.none() | st.integers(1, 20))
def test_patches_are_slices_of_the_padded_image(height, width, stride, minimum, maximum):
    size = 16
    image = noise(height, width, seed=height * 101 + width)
    cutter = PatchCutter(size, stride=stride, minimum=minimum, maximum=maximum)
    whole = padded(image, size)
    rows, columns = (range(0, side - size + 1, stride) for side in whole.shape[1:])
    grid = [(top, left) for top in rows for left in columns]
    found, layout = cut(cutter, image)
    used = [layout.corners[member] for member in layout.members]
    if len(grid) < minimum:
        assert layout.total == 5
        if maximum is None or maximum >= 5:
            assert torch.equal(found, torch.stack(F.five_crop(whole, [size, size])))
        else:
            assert 1 <= len(layout.corners) <= maximum
    else:
        assert layout.total == len(grid)
        if maximum is None or maximum >= len(grid):
            assert used == grid
        else:
            assert 1 <= len(used) <= maximum
            assert used == [corner for corner in grid if corner in set(used)]
    for patch, (top, left) in zip(found, used, strict=True):
        assert torch.equal(patch, whole[:, top : top + size, left : left + size])


# -- at most so many patches --------------------------------------------------------------------


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 80))
def test_a_subset_is_spread_evenly_and_uses_what_it_may(rows, columns, maximum):
    layout = PatchCutter(10, stride=10, minimum=1, maximum=maximum).layout(rows * 10, columns * 10)
    count = len(layout.corners)
    assert layout == PatchCutter(10, stride=10, minimum=1, maximum=maximum).layout(
        rows * 10, columns * 10
    )
    assert count == rows * columns if rows * columns <= maximum else count <= maximum
    assert 2 * count > min(maximum, rows * columns), "more than half of what is allowed"
    for axis, length in ((0, rows), (1, columns)):
        kept = sorted({corner[axis] // 10 for corner in layout.corners})
        gaps = np.diff(kept)
        assert gaps.size == 0 or gaps.max() - gaps.min() <= 1
        assert abs(kept[0] - (length - 1 - kept[-1])) <= 1, "as far from both borders"


def test_a_maximum_above_the_grid_keeps_every_patch():
    assert PatchCutter(maximum=6).layout(448, 672) == PatchCutter().layout(448, 672)
    assert PatchCutter(maximum=10**9).layout(448, 672) == PatchCutter().layout(448, 672)


# -- pieces -------------------------------------------------------------------------------------


def test_no_piece_holds_more_patches_than_allowed():
    image = noise(16, 16 * (2 * PIECE_PATCHES + 3))
    sizes = [len(piece.patches) for piece in PatchCutter(16, stride=16)(image)]
    assert sizes == [PIECE_PATCHES, PIECE_PATCHES, 3]


def test_only_the_rows_of_one_patch_are_read_at_a_time():
    image = noise(100, 50)
    read = []

    class Rows:
        shape = image.shape

        def __getitem__(self, rows):
            read.append((rows[1].start, rows[1].stop))
            return image[rows]

    found, _ = cut(PatchCutter(16, stride=16), Rows())
    assert read == [(top, top + 16) for top in range(0, 96, 16)]
    assert torch.equal(found, cut(PatchCutter(16, stride=16), image)[0])


def test_pieces_are_cut_when_they_are_asked_for(monkeypatch):
    read = []
    monkeypatch.setattr(
        patches, "_padded_rows", lambda image, top, size: read.append(top) or image[:, :size]
    )
    stream = PatchCutter(16, stride=16)(noise(160, 160))
    next(stream)
    assert read == [0]


def test_pieces_do_not_share_the_memory_of_the_image():
    image = noise(64, 64)
    pieces = list(PatchCutter(16, stride=16)(image))
    before = torch.cat([piece.patches for piece in pieces])
    image.zero_()
    assert torch.equal(torch.cat([piece.patches for piece in pieces]), before)


# -- fixed resolution and views -----------------------------------------------------------------


@given(st.integers(1, 60), st.integers(1, 60))
def test_the_centre_crop_starts_at_half_the_rest_rounded_down(height, width):
    image = noise(height, width)
    found, layout = cut_views(CentreCutter(16), image)
    whole = padded(image, 16)
    top, left = ((side - 16) // 2 for side in whole.shape[1:])
    assert torch.equal(found, whole[None, :, top : top + 16, left : left + 16])
    assert layout.corners == ((top, left),) and layout.total == 1


def cut_views(cutter, image):
    (piece,) = cutter(image)
    return piece.patches, piece.layout


def test_the_whole_image_is_resized_without_a_crop():
    image = noise(50, 30)
    found, layout = cut_views(CentreCutter(16, crop=False), image)
    expected = torch.nn.functional.interpolate(image[None].float(), (16, 16), mode="bilinear")
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=1)
    assert layout.members == (0,)


@pytest.mark.parametrize("height, width", [(41, 53), (40, 52), (16, 17), (16, 16)])
def test_ten_views_are_those_of_torchvision(height, width):
    image = noise(height, width)
    found, layout = cut_views(CentreCutter(16, ten_crop=True), image)
    assert torch.equal(found, torch.stack(F.ten_crop(image, [16, 16])))
    assert layout.members == tuple(range(10)) and layout.total == 10
    assert len(layout.corners) == 10
    small, _ = cut_views(CentreCutter(16, ten_crop=True), noise(5, 40))
    assert torch.equal(small, torch.stack(F.ten_crop(padded(noise(5, 40), 16), [16, 16])))


def test_views_of_images_become_their_patches():
    views = noise(2 * 4 * 16, 16).reshape(2, 4, 3, 16, 16)
    batch = PatchBatch.from_views(views)
    for image, members in zip(views, batch.members, strict=True):
        assert torch.equal(batch.patches[members], image)


# -- true pixels --------------------------------------------------------------------------------


def shown_pixels(cutter, height, width):
    """Return for each patch [K] the set of true pixels (y, x) that it shows, and the layout."""
    rows, columns = np.mgrid[:height, :width].astype(np.uint8)
    image = torch.from_numpy(np.stack((rows, columns, rows)))
    cropped, layout = cut(cutter, image)
    return [set(map(tuple, patch[:2].flatten(1).T.tolist())) for patch in cropped], layout


@settings(max_examples=150, deadline=None)
@given(sides, sides, st.integers(1, 40), st.integers(1, 9), st.none() | st.integers(1, 9))
def test_a_box_holds_exactly_the_true_pixels_of_its_patch(height, width, stride, minimum, maximum):
    cutter = PatchCutter(24, stride=stride, minimum=minimum, maximum=maximum)
    pixels, layout = shown_pixels(cutter, height, width)
    assert layout.image == (height, width)
    for (top, left, bottom, right), shown in zip(
        layout.boxes()[list(layout.members)].tolist(), pixels, strict=True
    ):
        assert shown == {(y, x) for y in range(top, bottom) for x in range(left, right)}


@pytest.mark.parametrize(("height", "width"), [(10, 70), (24, 24), (61, 33), (5, 6)])
def test_the_box_of_a_centre_crop_holds_its_true_pixels(height, width):
    (shown,), layout = shown_pixels(CentreCutter(24), height, width)
    ((top, left, bottom, right),) = layout.boxes().tolist()
    assert shown == {(y, x) for y in range(top, bottom) for x in range(left, right)}


@pytest.mark.parametrize(("height", "width"), [(10, 70), (24, 24), (61, 33), (5, 6)])
def test_the_box_of_a_resized_image_is_the_image(height, width):
    image = noise(height, width)
    _, layout = cut(CentreCutter(24, crop=False), image)
    assert layout.boxes().tolist() == [[0, 0, height, width]]
