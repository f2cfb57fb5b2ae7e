"""Heat maps: the right pixels light up, weights compare, names stay in their folder."""

from pathlib import Path, PurePosixPath

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from spai.data.images import FileStamp, RowImage
from spai.data.records import ImageRecord
from spai.engine.predict import Prediction
from spai.models.patches import PatchCutter
from spai.report import maps
from spai.report.maps import MapFolder, attention_cells, draw_map, mirrored_name

GRID = PatchCutter(24, stride=24, minimum=4)
STRIDED = PatchCutter(24, stride=10, minimum=4)
CROPS = PatchCutter(24, stride=24, minimum=1000)


def on_one(layout, patch, heads=2):
    """Return attention [heads, K] that lies on all occurrences of one distinct patch."""
    members = torch.tensor(layout.members)
    row = (members == patch).double()
    return (row / row.sum()).float().repeat(heads, 1)


def pixel_values(layout, attention):
    """Return the mean relative weight of the patches on each pixel, by counting; NaN for none."""
    total, count = np.zeros(layout.image), np.zeros(layout.image)
    weights = attention.double().mean(0).numpy() * len(layout.members)
    for member, weight in zip(layout.members, weights, strict=True):
        top, left, bottom, right = layout.boxes()[member]
        total[top:bottom, left:right] += weight
        count[top:bottom, left:right] += 1
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def expanded(cells):
    """Return the value of each pixel [H, W] of the image."""
    rows = np.repeat(cells.values, np.diff(cells.rows), axis=0)
    return np.repeat(rows, np.diff(cells.columns), axis=1)


def shades(layout, attention):
    """Return the palette entry of each pixel of a map drawn at the size of the image."""
    return np.asarray(draw_map(attention_cells(layout, attention), layout.image[::-1]))


# -- geometry -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(48, 48), (70, 55), (121, 96)])
def test_attention_on_one_patch_of_the_grid_lights_exactly_its_pixels(height, width):
    layout = GRID.layout(height, width)
    for patch, (top, left) in enumerate(layout.corners):
        drawn = shades(layout, on_one(layout, patch))
        expected = np.zeros((height, width), bool)
        expected[top : top + 24, left : left + 24] = True
        assert ((drawn == maps.SHADES - 1) == expected).all()
        uncovered = np.ones((height, width), bool)
        uncovered[: height // 24 * 24, : width // 24 * 24] = False
        assert (np.isin(drawn, (maps.HATCH_GROUND, maps.HATCH_LINE)) == uncovered).all()
        assert (drawn[~expected & ~uncovered] == 0).all()


@pytest.mark.parametrize("cutter", [STRIDED, CROPS], ids=["overlapping", "five crops"])
@pytest.mark.parametrize(("height", "width"), [(44, 54), (24, 24), (24, 31), (40, 24), (30, 90)])
def test_attention_on_one_overlapping_patch_lights_exactly_its_pixels(cutter, height, width):
    layout = cutter.layout(height, width)
    for patch, (top, left) in enumerate(layout.corners):
        lit = expanded(attention_cells(layout, on_one(layout, patch))) > 1e-9
        expected = np.zeros((height, width), bool)
        expected[top : top + 24, left : left + 24] = True
        assert (lit == expected).all()


@pytest.mark.parametrize("cutter", [GRID, STRIDED, CROPS])
@pytest.mark.parametrize(("height", "width"), [(10, 120), (120, 7), (1, 1), (3, 23)])
def test_maps_of_padded_images_lie_on_true_pixels(cutter, height, width):
    layout = cutter.layout(height, width)
    for patch, (top, left, bottom, right) in enumerate(layout.boxes()):
        lit = expanded(attention_cells(layout, on_one(layout, patch))) > 1e-9
        expected = np.zeros((height, width), bool)
        expected[top:bottom, left:right] = True
        assert (lit == expected).all()


@settings(max_examples=100, deadline=None)
@given(
    *(st.integers(1, 130), st.integers(1, 130)),
    *(st.integers(1, 30), st.integers(1, 9), st.none() | st.integers(1, 9)),
)
@example(24, 24, 24, 4, None)
def test_a_pixel_shows_the_mean_over_the_patches_that_cover_it(
    height, width, stride, minimum, maximum
):
    layout = PatchCutter(24, stride=stride, minimum=minimum, maximum=maximum).layout(height, width)
    generator = torch.Generator().manual_seed(height * 131 + width)
    attention = torch.rand(3, len(layout.members), generator=generator).softmax(dim=-1)
    found = expanded(attention_cells(layout, attention))
    np.testing.assert_allclose(found, pixel_values(layout, attention), rtol=0, atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 130), st.integers(1, 130), st.sampled_from([GRID, STRIDED, CROPS]))
@example(24, 24, CROPS)
def test_uniform_attention_is_1_wherever_a_patch_lies(height, width, cutter):
    layout = cutter.layout(height, width)
    count = len(layout.members)
    values = attention_cells(layout, torch.full((2, count), 1 / count)).values
    np.testing.assert_allclose(values[~np.isnan(values)], 1, rtol=0, atol=1e-6)


def test_five_crops_that_are_one_place_weigh_1_whatever_the_weights():
    layout = CROPS.layout(24, 24)
    attention = torch.tensor([[0.9, 0.1, 0.0, 0.0, 0.0], [0.2, 0.2, 0.2, 0.2, 0.2]])
    np.testing.assert_allclose(attention_cells(layout, attention).values, [[1]], atol=1e-6)


def test_weights_above_the_scale_have_its_last_shade():
    layout = GRID.layout(48, 240)
    drawn = shades(layout, on_one(layout, 3))  # 20 patches: 20 times uniform
    assert drawn.max() == maps.SHADES - 1


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 130), st.integers(1, 130), st.integers(1, 300), st.integers(1, 300))
def test_a_map_has_the_size_that_is_asked_for(height, width, drawn_height, drawn_width):
    layout = GRID.layout(height, width)
    count = len(layout.members)
    cells = attention_cells(layout, torch.full((1, count), 1 / count))
    assert draw_map(cells, (drawn_width, drawn_height)).size == (drawn_width, drawn_height)


# -- files --------------------------------------------------------------------------------------


def predicted(name, height, width, cutter=None):
    layout = (cutter or PatchCutter()).layout(height, width)
    pixels = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
    return Prediction(
        ImageRecord(Path("unused"), name, None, 0),
        FileStamp(),
        (0.0,),
        ("",),
        attention=torch.full((2, len(layout.members)), 1 / len(layout.members)),
        layout=layout,
        preview=RowImage.from_tensor(pixels).preview(maps.LONGEST),
    )


@pytest.mark.parametrize(
    ("height", "width", "drawn"),
    [(600, 900, (900, 600)), (60, 90, (450, 300)), (1, 1, (480, 480)), (5, 2001, (1001, 3))],
)
def test_map_and_overlay_have_a_sensible_size(tmp_path, height, width, drawn):
    path = MapFolder(tmp_path, "run")(predicted("a/b.jpg", height, width))
    assert path == "run_maps/a/b.jpg.overlay.png"
    with (
        Image.open(tmp_path / path) as overlay,
        Image.open(tmp_path / "run_maps/a/b.jpg.map.png") as heat,
    ):
        assert heat.size == drawn
        assert overlay.width == max(480, drawn[0]) and overlay.height > drawn[1] + 60
    assert len(list((tmp_path / "run_maps/a").iterdir())) == 2


def test_the_legend_speaks_of_hatching_only_where_there_is_any(tmp_path):
    folder = MapFolder(tmp_path, "run")
    heights = []
    for name, width in (("whole", 448), ("rest", 500)):
        with Image.open(tmp_path / folder(predicted(name, 448, width))) as overlay:
            heights.append(overlay.height)
    assert heights[1] > heights[0]


def test_a_failing_disk_leaves_no_half_picture(tmp_path, monkeypatch):
    def fail(self, file, **options):
        Path(file).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError):
        MapFolder(tmp_path, "run")(predicted("a.png", 224, 224))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    "name", ["a.png", "sub/dir/a.png", "naïve 图.png", ".hidden", "with space/a b.jpg"]
)
def test_plain_names_are_mirrored(name):
    assert mirrored_name(name) == Path(name)


HOSTILE = [
    *("../../etc/passwd.png", "/etc/x.png", "a/../x.png", "..", ".", "/", "<script>.png", "x\ny"),
    *("n" * 250 + ".png", "n" * 250 + ".jpg", "/".join(["part"] * 900), "b\udcff.png", "C:\\x.png"),
    *("x.overlay.png/y", "a~1", "trailing.", "a/b /c", "图" * 80),
]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_stay_in_the_folder_and_fit_any_file_system(tmp_path, name):
    target = mirrored_name(name)
    assert not target.is_absolute() and ".." not in target.parts and target.parts
    assert all(len(part.encode()) < 200 and part.isprintable() for part in target.parts)
    (tmp_path / target).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / target).touch()
    assert (tmp_path / target).resolve().is_relative_to(tmp_path.resolve())


parts = st.text(st.sampled_from("ab./~\\ <é\n"), max_size=6)


@settings(max_examples=300, deadline=None)
@given(st.lists(parts.filter(lambda name: name), min_size=2, max_size=8, unique=True))
def test_different_names_have_different_paths(names):
    different = {PurePosixPath(name) for name in names}
    assert len({mirrored_name(name) for name in names}) == len(different)
