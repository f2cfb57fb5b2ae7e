"""What holds for every view: order, seeds, shapes, refused settings."""

import math
import pickle
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from spai.config import as_plain, default_config
from spai.data import augment
from spai.data.augment import (
    ViewSettings,
    make_pretraining_view,
    make_view,
    seeded_rng,
    seeded_views,
)

STEP_RATES = [name for name in asdict(ViewSettings()) if name.endswith("_prob")] + ["color_jitter"]
QUIET = ViewSettings(
    min_crop_area=1.0, max_crop_area=1.0, size=16, **dict.fromkeys(STEP_RATES, 0.0)
)


def quiet(**changes: Any) -> ViewSettings:
    """Settings without any step but the changed ones, on views of 16 pixels."""
    return replace(QUIET, **changes)


def noise_image(height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)


def draw(image: Tensor, chosen: ViewSettings, count: int) -> Tensor:
    return seeded_views(image, chosen, count, seed=0, epoch=0, index=0)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Run as a loader's worker does; thousands of tiny views lose time to thread switches."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_defaults_are_those_of_the_configuration() -> None:
    tree = default_config().AUG
    named = {name.upper(): value for name, value in asdict(ViewSettings()).items()}
    assert named.pop("SIZE") == 224
    assert named == dict(tree)
    lists = {name.lower(): value for name, value in as_plain(tree).items()}
    assert make_view(noise_image(9, 9), ViewSettings(**lists)).shape == (3, 224, 224)


def test_steps_run_in_the_stated_order(monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []

    def note(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def noting(*args: Any, **options: Any) -> Any:
            names.append(args[1] if name == "recompress" else name)
            return original(*args, **options)

        monkeypatch.setattr(owner, name, noting)

    for operation in ("resize_bilinear", "gaussian_blur", "to_uint8", "sharpen", "recompress"):
        note(augment, operation)
    for operation in ("horizontal_flip", "vertical_flip", "rotate"):
        note(augment.F, operation)
    note(augment.v2, "ColorJitter")
    everything = replace(ViewSettings(size=16), **dict.fromkeys(STEP_RATES, 1.0))
    make_view(noise_image(20, 20), everything)
    geometry = ["resize_bilinear", "horizontal_flip", "vertical_flip", "rotate", "resize_bilinear"]
    pixels = ["gaussian_blur", "to_uint8", "ColorJitter", "sharpen", "JPEG", "WEBP"]
    assert names == geometry + pixels


def test_views_depend_on_seed_epoch_index_and_view_alone() -> None:
    image, chosen = noise_image(60, 40), ViewSettings(size=32)
    place = {"seed": 1, "epoch": 2, "index": 3}
    views = seeded_views(image, chosen, 4, **place)
    torch.manual_seed(1234)
    assert torch.equal(seeded_views(image, chosen, 2, **place), views[:2])
    with seeded_rng(1, 2, 3, 3):
        assert torch.equal(make_view(image, chosen), views[3])
    others = [seeded_views(image, chosen, 4, **{**place, name: 7}) for name in place]
    others.append(seeded_views(image, chosen, 4, seed=2, epoch=1, index=3))
    every = torch.cat([views, *others])
    assert len({view.numpy().tobytes() for view in every}) == len(every)


def test_global_random_state_is_left_untouched_even_by_an_error() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    draw(noise_image(20, 20), ViewSettings(size=16), 3)
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(KeyError), seeded_rng(1):
        torch.rand(3)
        raise KeyError
    assert torch.equal(torch.get_rng_state(), state)


def test_make_view_draws_from_the_global_generator_and_keeps_its_input() -> None:
    image = noise_image(40, 40)
    before = image.clone()
    torch.manual_seed(3)
    first = make_view(image, ViewSettings(size=16))
    torch.manual_seed(3)
    assert torch.equal(make_view(image, ViewSettings(size=16)), first)
    for size in (16, 40):
        make_view(image, quiet(size=size)).zero_()
    assert torch.equal(image, before)


@pytest.mark.parametrize("shape", [(1, 1), (3, 2000), (2000, 3)])
@pytest.mark.parametrize("areas", [(0.2, 1.0), (1.0, 1.0)])
def test_extreme_shapes_give_views(shape: tuple[int, int], areas: tuple[float, float]) -> None:
    chosen = ViewSettings(min_crop_area=areas[0], max_crop_area=areas[1])
    views = draw(noise_image(*shape), chosen, 4)
    assert views.shape == (4, 3, 224, 224) and views.dtype == torch.uint8


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 50), st.integers(1, 50)),
    size=st.integers(4, 40),
    area=st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)).map(sorted),
    rates=st.fixed_dictionaries({name: st.floats(0, 1) for name in STEP_RATES}),
    seed=st.integers(0, 2**64),
)
def test_any_image_and_settings_give_a_view(
    shape: tuple[int, int], size: int, area: list[float], rates: dict[str, float], seed: int
) -> None:
    chosen = ViewSettings(size=size, min_crop_area=area[0], max_crop_area=area[1], **rates)
    place = {"seed": seed, "epoch": 0, "index": 0}
    views = seeded_views(noise_image(*shape), chosen, 2, **place)
    assert views.shape == (2, 3, size, size) and views.dtype == torch.uint8
    assert torch.equal(seeded_views(noise_image(*shape), chosen, 2, **place), views)


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, value) for name in STEP_RATES for value in (-0.1, 1.1, math.nan, "0.5", True)]
    + [("min_crop_area", 0.0), ("max_crop_area", 1.5), ("rotation_degrees", -1)]
    + [("gaussian_blur_limit", pair) for pair in ((4, 9), (3, 8), (1, 3), (9, 3), (3.0, 9.0), 3)]
    + [("gaussian_blur_sigma", pair) for pair in ((0, 1), (0.5, 0.1), (0.1,), (1, math.inf))]
    + [("jpeg_min_quality", 0), ("jpeg_max_quality", 101), ("webp_min_quality", 50.5)]
    + [("color_jitter_hue_range", (-0.6, 0)), ("color_jitter_contrast_range", (-1, 1))]
    + [("sharpen_alpha_range", (0, 1.1)), ("sharpen_lightness_range", (1, 0.9))],
)
def test_impossible_setting_is_refused_by_its_key(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"^AUG\.{name.upper()}: found .*; give "):
        ViewSettings(**{name: value})


@pytest.mark.parametrize(
    "pair",
    [
        {"min_crop_area": 0.9, "max_crop_area": 0.3},
        {"jpeg_min_quality": 90, "jpeg_max_quality": 80},
        {"webp_min_quality": 90, "webp_max_quality": 80},
    ],
)
def test_minimum_above_maximum_is_refused_with_both_keys(pair: dict[str, float]) -> None:
    low, high = pair
    message = rf"AUG\.{low.upper()} {pair[low]} is above AUG\.{high.upper()} {pair[high]}"
    with pytest.raises(ValueError, match=message):
        ViewSettings(**pair)


def test_too_small_a_view_is_refused() -> None:
    with pytest.raises(ValueError, match="^size: found 3; give"):
        ViewSettings(size=3)


def test_settings_survive_pickling() -> None:
    assert pickle.loads(pickle.dumps(QUIET)) == QUIET


def test_pretraining_interpolation_is_the_one_asked_for() -> None:
    image = noise_image(20, 20) // 4 + 100  # far from the limits, where overshoots are clipped
    with seeded_rng(0, 0):
        box = augment.v2.RandomResizedCrop.get_params(image, [0.2, 1.0], [3 / 4, 4 / 3])
    cut = F.crop(image, *box)[None].float()
    for mode, other in (("bicubic", "bilinear"), ("bilinear", "bicubic")):
        exact = torch.nn.functional.interpolate(cut, (32, 32), mode=mode, antialias=True)[0]
        distances = {}
        for name in (mode, other):
            with seeded_rng(0, 0):
                view = make_pretraining_view(image, size=32, min_area=0.2, interpolation=name)
            distances[name] = min((exact - v).abs().max() for v in (view, view.flip(2)))
        assert distances[mode] < 2 < distances[other]


def test_pretraining_accepts_tiny_images_and_names_bad_values() -> None:
    image = noise_image(1, 1)
    view = make_pretraining_view(image, size=8, min_area=1.0, interpolation="bicubic")
    assert view.shape == (3, 8, 8) and view.dtype == torch.uint8
    with pytest.raises(ValueError, match="DATA.MIN_CROP_SCALE: found 0;"):
        make_pretraining_view(image, size=8, min_area=0, interpolation="bicubic")
    with pytest.raises(ValueError, match="DATA.INTERPOLATION: found 'nearest'; choose from bic"):
        make_pretraining_view(image, size=8, min_area=0.2, interpolation="nearest")
