import colorsys
import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from spai.data import augment
from spai.data.augment import (
    ViewSettings,
    make_pretraining_view,
    seeded_rng,
    seeded_views,
)

STEP_RATES = [
    name for name in asdict(ViewSettings()) if name.endswith("_prob") and "chroma" not in name
] + ["color_jitter"]
QUIET = ViewSettings(
    min_crop_area=1.0,
    max_crop_area=1.0,
    size=16,
    **dict.fromkeys(STEP_RATES, 0.0),
)


# Values at which each step shows on an image as small as a view.
VISIBLE = {"gaussian_blur_sigma": (0.5, 0.5), "rescale_range": (2.0, 2.0)}


def quiet(**changes: Any) -> ViewSettings:
    """Settings without any step but the changed ones, on views of 16 pixels."""
    return replace(QUIET, **changes)


def noise_image(height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Run as a loader's worker does; thousands of tiny views lose time to thread switches."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def ramp_image(side: int, step: int) -> Tensor:
    """Channel 0 is `step` times the column, channel 1 `step` times the row."""
    ramp = (torch.arange(side) * step).to(torch.uint8)
    return torch.stack(
        [ramp.expand(side, side), ramp[:, None].expand(side, side)] + [ramp.expand(side, side)]
    )


def draw(image: Tensor, chosen: ViewSettings, count: int) -> Tensor:
    return seeded_views(image, chosen, count, seed=0, epoch=0, index=0)


def assert_rate(hits: int, draws: int, rate: float) -> None:
    assert abs(hits - draws * rate) <= 4 * math.sqrt(draws * rate * (1 - rate))


def assert_uniform(values: list[float] | np.ndarray, low: float, high: float, slack: float) -> None:
    """Values fill [low, high] evenly; `slack` is the error of measuring one."""
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    assert ordered[0] >= low - slack and ordered[-1] <= high + slack
    even = low + (high - low) * (np.arange(len(ordered)) + 0.5) / len(ordered)
    assert np.abs(ordered - even).max() <= 1.95 * (high - low) / math.sqrt(len(ordered)) + slack


def record(monkeypatch: pytest.MonkeyPatch, name: str) -> list[tuple[Any, ...]]:
    """Let a pixel operation of the module run, and collect what it is called with."""
    calls: list[tuple[Any, ...]] = []
    original = getattr(augment, name)

    def recorder(image: Tensor, *args: Any, **options: Any) -> Tensor:
        calls.append((*args, *options.values()))
        return original(image, *args, **options)

    monkeypatch.setattr(augment, name, recorder)
    return calls


@pytest.mark.parametrize("rate", [0.5, 0.2])
@pytest.mark.parametrize("name", STEP_RATES)
def test_each_step_happens_at_its_rate(name: str, rate: float) -> None:
    image = noise_image(16, 16)
    chosen = quiet(**{name: rate}, **VISIBLE)
    views = draw(image, chosen, 1000)
    assert_rate(int((views != image).flatten(1).any(dim=1).sum()), 1000, rate)


@pytest.mark.parametrize("name", STEP_RATES)
def test_rate_one_is_always_and_rate_zero_never(name: str) -> None:
    image = noise_image(16, 16)
    always = quiet(**{name: 1.0}, **VISIBLE)
    assert (draw(image, always, 50) != image).flatten(1).any(dim=1).all()
    assert (draw(image, QUIET, 50) == image).all()


def test_flips_are_independent_mirror_images() -> None:
    image = noise_image(16, 16)
    views = draw(image, quiet(horizontal_flip_prob=0.5, vertical_flip_prob=0.5), 1000)
    for mirrored in (image, image.flip(2), image.flip(1), image.flip(1, 2)):
        assert_rate(int((views == mirrored).flatten(1).all(dim=1).sum()), 1000, 0.25)


def measured_boxes(views: Tensor) -> np.ndarray:
    """Recover left, top, width, height [N, 4] of views of `ramp_image(256, 1)`, within a pixel."""
    size = views.shape[-1]
    starts, extents = [], []
    for channel, other_axis in ((0, 1), (1, 2)):
        line = views[:, channel].double().mean(dim=other_axis)
        extents.append((line[:, -1] - line[:, 0]) * size / (size - 1))
        starts.append(line[:, 0] + 0.5 - 0.5 * extents[-1] / size)
    return torch.stack(starts + extents, dim=1).numpy()


def test_crop_areas_ratios_and_places_have_the_stated_ranges() -> None:
    views = draw(ramp_image(256, 1), quiet(min_crop_area=0.2, max_crop_area=1.0), 3000)
    left, top, width, height = measured_boxes(views).T
    area, ratio = width * height / 256**2, width / height
    assert 0.19 < area.min() < 0.22 and 0.95 < area.max() < 1.01
    assert 0.73 < ratio.min() < 0.77 and 1.3 < ratio.max() < 1.37
    # Below 3/4 of the image every ratio fits, so no draw was rejected.
    fits = area < 0.74
    assert_uniform(area[fits], 0.2, 0.74, slack=0.01)
    assert_uniform(np.log(ratio[fits]), math.log(3 / 4), math.log(4 / 3), slack=0.03)
    for start, length in ((left, width), (top, height)):
        assert start.min() > -1 and (start + length).max() < 257
        small = length < 200
        assert_uniform(start[small] / (256 - length[small]), 0, 1, slack=0.03)


def test_resized_crop_is_not_antialiased() -> None:
    image = noise_image(256, 256)
    views = draw(image, quiet(min_crop_area=0.9, max_crop_area=1.0), 30).float()
    # Four neighbours leave at least half of the noise, a mean over 16 x 16 pixels 1/16.
    assert views.flatten(1).std(dim=1).min() > 0.4 * image.float().std()


def test_equal_areas_cut_without_resampling_from_everywhere() -> None:
    image = ramp_image(64, 4)
    views = draw(image, quiet(min_crop_area=0.3, max_crop_area=0.3), 3000)
    places = Counter()
    for view in views:
        left, top = int(view[0, 0, 0]) // 4, int(view[1, 0, 0]) // 4
        assert torch.equal(view, image[:, top : top + 16, left : left + 16])
        places.update([("left", left), ("top", top)])
    for side in ("left", "top"):
        counts = [places[side, start] for start in range(64 - 16 + 1)]
        assert sum(counts) == 3000 and min(counts) > 25 and max(counts) < 100


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (15, 16), (2, 16)])
def test_small_image_is_reflected_around_its_centre(shape: tuple[int, int]) -> None:
    image = noise_image(*shape)
    pads = [((16 - side) // 2, 16 - side - (16 - side) // 2) for side in shape]
    expected = np.pad(image.numpy(), [(0, 0), *pads], mode="reflect")
    assert np.array_equal(draw(image, QUIET, 1)[0].numpy(), expected)


def gradients(views: Tensor) -> np.ndarray:
    """Return the mean gradient of channel 0 along x and y, per pixel, [N, 2]."""
    inner = views[:, 0, 4:-4, 4:-4].double()
    span = inner.shape[-1] - 1
    along_x = (inner[:, :, -1] - inner[:, :, 0]).mean(dim=1) / span
    along_y = (inner[:, -1] - inner[:, 0]).mean(dim=1) / span
    return torch.stack([along_x, along_y], dim=1).numpy()


def test_rescaling_factors_are_uniform_and_the_window_is_what_the_view_shows() -> None:
    chosen = quiet(rescale_prob=1.0, rescale_range=(0.25, 2.0))
    views = draw(ramp_image(256, 1), chosen, 400).float()
    # A view of 16 pixels shows 16 / factor pixels of the ramp: its slope is 1 / factor.
    slopes = (views[:, 0, 8, 12] - views[:, 0, 8, 3]) / 9
    assert_uniform((1 / slopes).numpy(), 0.25, 2.0, slack=0.3)


def test_rescaling_is_antialiased() -> None:
    shrunk = draw(noise_image(256, 256), quiet(rescale_prob=1.0, rescale_range=(0.25, 0.25)), 20)
    assert shrunk.float().std() < 0.6 * noise_image(256, 256).float().std()


def test_an_image_smaller_than_the_window_is_shown_whole() -> None:
    view = draw(ramp_image(20, 4), quiet(rescale_prob=1.0, rescale_range=(0.1, 0.1)), 1)[0]
    assert view.shape == (3, 16, 16)
    assert view[0, 0, 0] < 4 and view[0, 0, -1] > 72  # from the first to the last column


@pytest.mark.parametrize("limit", [90, 30])
def test_rotation_angles_are_uniform(limit: float) -> None:
    chosen = quiet(rotation_prob=1.0, rotation_degrees=limit, size=32)
    along_x, along_y = gradients(draw(ramp_image(32, 8), chosen, 2000)).T
    assert_uniform(np.degrees(np.arctan2(along_y, along_x)), -limit, limit, slack=1.5)


@pytest.mark.parametrize("size", [4, 31, 32, 64])
def test_rotation_shows_no_border(size: int) -> None:
    white = torch.full((3, size, size), 255, dtype=torch.uint8)
    views = draw(white, quiet(rotation_prob=1.0, size=size), 300)
    assert views.min() == 255


def test_rotation_keeps_the_largest_square_without_border(monkeypatch: pytest.MonkeyPatch) -> None:
    boxes = record(monkeypatch, "resize_bilinear")
    white = torch.full((3, 64, 64), 255, dtype=torch.uint8)
    for degrees in (0.0, 1.0, -7.0, 33.0, 45.0, -60.0, 89.0, 90.0):
        augment._rotate(white, degrees)
        rotated = F.rotate(white, degrees, interpolation=InterpolationMode.BILINEAR)
        clean = [m for m in range(32) if rotated[:, m : 64 - m, m : 64 - m].min() == 255]
        side = 64 - 2 * clean[0]
        assert boxes[-1] == ((64, 64), (clean[0], clean[0], side, side))


def test_blur_kernels_and_sigmas_have_the_stated_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = record(monkeypatch, "gaussian_blur")
    draw(noise_image(16, 16), quiet(gaussian_blur_prob=1.0), 1000)
    kernels = Counter(kernel for kernel, _ in calls)
    assert set(kernels) == {3, 5, 7, 9}
    for hits in kernels.values():
        assert_rate(hits, 1000, 0.25)
    assert_uniform([sigma for _, sigma in calls], 0.01, 0.5, slack=0)


def test_noise_has_the_stated_variances_and_is_independent_per_channel() -> None:
    grey = torch.full((3, 32, 32), 128, dtype=torch.uint8)
    change = draw(grey, quiet(gaussian_noise_prob=1.0, size=32), 1000).double() - 128
    variances = change.flatten(1).var(dim=1) - 1 / 12  # rounding adds 1/12
    assert_uniform(variances.numpy(), 10, 50, slack=5)
    assert variances.mean().item() == pytest.approx(30, abs=4 * 11.6 / 1000**0.5)
    assert change.mean().item() == pytest.approx(0, abs=0.02)
    correlation = np.corrcoef(change.transpose(0, 1).flatten(1))
    assert np.abs(correlation - np.eye(3)).max() < 0.01


def test_noise_is_clipped_not_wrapped() -> None:
    views = draw(
        torch.full((3, 16, 16), 255, dtype=torch.uint8), quiet(gaussian_noise_prob=1.0), 20
    )
    assert views.min() > 200


def hue_of(view: Tensor) -> float:
    return (colorsys.rgb_to_hsv(*(view[:, 0, 0].double() / 255).tolist())[0] + 0.5) % 1 - 0.5


def spread_of(view: Tensor) -> float:
    return (view[:, 0].double().mean() - view[:, -1].double().mean()).item() / 100


TWO_GREYS = torch.cat([torch.full((3, 8, 16), 170), torch.full((3, 8, 16), 70)], dim=1).byte()
COLOUR = torch.tensor([160, 110, 60], dtype=torch.uint8)[:, None, None].expand(3, 16, 16)
RED = torch.tensor([255, 0, 0], dtype=torch.uint8)[:, None, None].expand(3, 16, 16)
JITTERS: dict[str, tuple[Tensor, Callable[[Tensor], float]]] = {
    "brightness": (torch.full((3, 16, 16), 200).byte(), lambda view: float(view[0, 0, 0]) / 200),
    "contrast": (TWO_GREYS, spread_of),
    "saturation": (COLOUR, lambda view: float(view[0, 0, 0]) / 100 - float(view[2, 0, 0]) / 100),
    "hue": (RED, hue_of),
}


@pytest.mark.parametrize("kind", JITTERS)
def test_colour_jitter_changes_each_quality_in_its_range(kind: str) -> None:
    image, measure = JITTERS[kind]
    neutral = {f"color_jitter_{name}_range": (1.0, 1.0) for name in JITTERS if name != "hue"}
    neutral["color_jitter_hue_range"] = (0.0, 0.0)
    low, high = getattr(ViewSettings(), f"color_jitter_{kind}_range")
    neutral[f"color_jitter_{kind}_range"] = (low, high)
    views = draw(image.contiguous(), quiet(color_jitter=1.0, **neutral), 600)
    assert_uniform([measure(view) for view in views], low, high, slack=0.02)


def test_sharpening_strengths_have_the_stated_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = record(monkeypatch, "sharpen")
    draw(noise_image(16, 16), quiet(sharpen_prob=1.0), 1000)
    alphas, lightnesses = zip(*calls, strict=True)
    assert_uniform(alphas, 0.01, 0.4, slack=0)
    assert_uniform(lightnesses, 0.95, 1.0, slack=0)


@pytest.mark.parametrize("codec", ["jpeg", "webp"])
def test_qualities_are_uniform_with_both_ends(codec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = record(monkeypatch, "recompress")
    draw(noise_image(16, 16), quiet(**{f"{codec}_compression_prob": 1.0}), 1500)
    assert {name for name, *_ in calls} == {codec.upper()}
    qualities = Counter(quality for _, quality, *_ in calls)
    assert set(qualities) == set(range(50, 101))
    assert max(qualities.values()) < 1500 / 51 * 2


def pretraining_views(image: Tensor, count: int, interpolation: str, size: int = 16) -> Tensor:
    views = []
    for view in range(count):
        with seeded_rng(0, view):
            views.append(
                make_pretraining_view(image, size=size, min_area=0.2, interpolation=interpolation)
            )
    return torch.stack(views)


def test_colour_is_subsampled_in_all_but_the_stated_share_of_jpegs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = record(monkeypatch, "recompress")
    draw(noise_image(16, 16), quiet(jpeg_compression_prob=1.0, jpeg_full_chroma_prob=0.3), 1000)
    assert_rate(sum(full for _, _, full in calls), 1000, 0.3)


def test_plain_pretraining_crops_are_not_resized() -> None:
    image = noise_image(40, 50)
    with seeded_rng(0):
        view = make_pretraining_view(image, size=16, min_area=1.0, interpolation="bicubic")
    windows = image.unfold(1, 16, 1).unfold(2, 16, 1)  # [3, 25, 35, 16, 16]
    found = [
        (windows == shown[:, None, None]).flatten(3).all(dim=3).all(dim=0).any()
        for shown in (view, view.flip(2))
    ]
    assert any(found)
    small = make_pretraining_view(image[:, :9], size=16, min_area=1.0, interpolation="bicubic")
    assert small.shape == (3, 16, 16)


def test_pretraining_crops_have_the_stated_ranges_and_half_are_flipped() -> None:
    views = pretraining_views(ramp_image(256, 1), 1500, "bilinear")
    flipped = views[:, 0, 0, 0] > views[:, 0, 0, -1]
    assert_rate(int(flipped.sum()), 1500, 0.5)
    views[flipped] = views[flipped].flip(3)
    _, _, width, height = measured_boxes(views).T
    area, ratio = width * height / 256**2, width / height
    assert_uniform(area[area < 0.7], 0.2, 0.7, slack=0.03)
    assert 0.93 < area.max() < 1.02 and 0.72 < ratio.min() < 0.78 and 1.28 < ratio.max() < 1.4


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_pretraining_views_are_antialiased(interpolation: str) -> None:
    image = noise_image(256, 256)
    spread = pretraining_views(image, 30, interpolation).float().flatten(1).std(dim=1)
    assert spread.max() < 0.3 * image.float().std()
