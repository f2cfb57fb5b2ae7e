import io
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from spai.data import perturb
from spai.data.perturb import Perturbation, recompress, reflect_to, resize_bilinear, sharpen


def noise_image(height: int, width: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)


def through_pillow(image: torch.Tensor, codec: str, **options: object) -> torch.Tensor:
    file = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, codec, **options)
    return torch.from_numpy(np.array(Image.open(file).convert("RGB"))).permute(2, 0, 1)


def assert_rounds_to(actual: torch.Tensor, exact: np.ndarray) -> None:
    """Every level is the exact value rounded; float32 sums may decide a tie either way."""
    assert actual.dtype == torch.uint8
    assert np.abs(actual.numpy() - np.clip(exact, 0, 255)).max() <= 0.5 + 1e-3


@pytest.mark.parametrize("quality", [1, 50, 85, 100])
def test_jpeg_is_pillows_with_chroma_subsampling_420(quality: int) -> None:
    image = noise_image(37, 50)
    actual = Perturbation(jpeg=quality)(image, seed=0, row=0)
    assert torch.equal(actual, through_pillow(image, "JPEG", quality=quality, subsampling=2))
    assert not torch.equal(actual, through_pillow(image, "JPEG", quality=quality, subsampling=0))


@pytest.mark.parametrize("quality", [1, 50, 85, 100])
def test_webp_is_pillows_lossy_webp(quality: int) -> None:
    image = noise_image(37, 50)
    actual = Perturbation(webp=quality)(image, seed=0, row=0)
    assert torch.equal(actual, through_pillow(image, "WEBP", quality=quality))
    assert not torch.equal(actual, image)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("codec", ["JPEG", "WEBP"])
def test_own_bytes_raise_no_alarm_of_a_decompression_bomb(
    codec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    assert recompress(noise_image(30, 30), codec, 90).shape == (3, 30, 30)


def test_image_beyond_pillows_webp_reader_is_a_stated_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(ValueError, match="WEBP: 40 x 30 pixels are too many"):
        recompress(noise_image(30, 40), "WEBP", 90)


@pytest.mark.parametrize(("codec", "longest"), [("jpeg", 65500), ("webp", 16383)])
def test_format_limit_is_the_longest_side_that_works(codec: str, longest: int) -> None:
    image = torch.zeros(3, 1, longest + 1, dtype=torch.uint8)
    perturbation = Perturbation(**{codec: 50})
    assert perturbation(image[:, :, 1:], seed=0, row=0).shape == (3, 1, longest)
    with pytest.raises(ValueError, match=f"at most {longest} .* found {longest + 1} x 1"):
        perturbation(image, seed=0, row=0)


@pytest.mark.parametrize(("kernel", "sigma"), [(3, 0.8), (5, 1.1), (7, 1.4), (9, 1.7)])
@pytest.mark.parametrize("shape", [(40, 31), (1, 1), (2, 5), (300, 1)])
def test_blur_is_a_gaussian_of_the_stated_sigma(
    kernel: int, sigma: float, shape: tuple[int, int]
) -> None:
    image = noise_image(*shape)
    positions = np.arange(kernel) - kernel // 2
    taps = np.exp(-(positions**2) / (2 * sigma**2))
    taps /= taps.sum()
    exact = image.numpy().astype(np.float64)
    for axis in (1, 2):
        exact = ndimage.correlate1d(exact, taps, axis=axis, mode="mirror")
    assert_rounds_to(Perturbation(blur=kernel)(image, seed=0, row=0), exact)


def test_noise_is_gaussian_with_sigma_on_the_255_scale() -> None:
    image = torch.full((3, 100, 100), 128, dtype=torch.uint8)
    for sigma in (1, 3, 5):
        change = Perturbation(noise=sigma)(image, seed=7, row=3).double() - 128
        assert change.mean().item() == pytest.approx(0, abs=4 * sigma / 30000**0.5)
        assert change.var().item() == pytest.approx(sigma**2 + 1 / 12, rel=0.04)
        assert (change.abs() < sigma).double().mean().item() == pytest.approx(
            {1: 0.383, 3: 0.5953, 5: 0.632}[sigma], abs=0.02
        )  # P(|N| < sigma) once values are rounded
        assert np.abs(np.corrcoef(change.flatten(1)) - np.eye(3)).max() < 0.04


def test_noise_is_rounded_and_clipped_not_wrapped() -> None:
    pattern = np.random.default_rng([5, 2]).standard_normal((3, 20, 30), dtype=np.float32)
    for level in (0, 3, 128, 255):
        image = torch.full((3, 20, 30), level, dtype=torch.uint8)
        expected = np.clip(np.round(level + 5.0 * pattern), 0, 255).astype(np.uint8)
        actual = Perturbation(noise=5.0)(image, seed=5, row=2)
        assert np.array_equal(actual.numpy(), expected)


def test_noise_depends_on_seed_and_row_alone() -> None:
    image = noise_image(20, 20)
    noisy = Perturbation(noise=3.0)
    first = noisy(image, seed=1, row=2)
    torch.manual_seed(99)
    np.random.seed(99)
    state = torch.get_rng_state()
    assert torch.equal(noisy(image, seed=1, row=2), first)
    assert torch.equal(torch.get_rng_state(), state)
    for seed, row in ((1, 3), (2, 2), (2, 1)):
        assert not torch.equal(noisy(image, seed=seed, row=row), first)


@pytest.mark.parametrize(
    ("side", "scale", "expected"),
    [(100, 0.85, 85), (101, 0.85, 86), (7, 0.5, 4), (10, 0.75, 8), (3, 0.1, 1), (1, 0.5, 1)],
)
def test_scaled_sides_are_rounded_and_at_least_one(side: int, scale: float, expected: int) -> None:
    scaled = Perturbation(scale=scale)(noise_image(side, 2 * side), seed=0, row=0)
    assert scaled.shape == (3, expected, max(1, round(2 * side * scale)))


@pytest.mark.parametrize("scale", [0.85, 0.7, 0.5, 0.1, 1.6])
def test_scale_is_bilinear_without_antialiasing(scale: float) -> None:
    image = noise_image(640, 333)
    size = (round(640 * scale), round(333 * scale))
    exact = torch.nn.functional.interpolate(image[None].double(), size, mode="bilinear")[0]
    assert_rounds_to(Perturbation(scale=scale)(image, seed=0, row=0), exact.numpy())


def test_resizing_a_box_is_resizing_the_cut_box() -> None:
    image = noise_image(50, 70)
    boxed = resize_bilinear(image, (300, 9), (5, 11, 31, 42))
    assert torch.equal(boxed, resize_bilinear(image[:, 5:36, 11:53].contiguous(), (300, 9)))


def test_resizing_to_the_same_size_changes_nothing() -> None:
    image = noise_image(31, 300)
    assert torch.equal(resize_bilinear(image, (31, 300)), image)


@pytest.mark.parametrize("length", [1, 2, 3, 8])
def test_reflection_continues_beyond_the_image(length: int) -> None:
    image = noise_image(length, 4)
    expected = np.pad(image.numpy(), ((0, 0), (9, 20 - length), (0, 0)), mode="reflect")
    assert np.array_equal(reflect_to(image, 1, before=9, total=29).numpy(), expected)


def test_sharpening_blends_with_the_stated_filter() -> None:
    image = noise_image(21, 30)
    for alpha, lightness in ((0.01, 1.0), (0.25, 0.95), (0.4, 1.0)):
        effect = np.array([[-1, -1, -1], [-1, 8 + lightness, -1], [-1, -1, -1]], dtype=np.float64)
        identity = np.zeros((3, 3))
        identity[1, 1] = 1
        matrix = (1 - alpha) * identity + alpha * effect
        planes = image.numpy().astype(np.float64)
        exact = np.stack([ndimage.correlate(plane, matrix, mode="mirror") for plane in planes])
        assert_rounds_to(sharpen(image, alpha, lightness), exact)


def test_steps_run_in_the_stated_order() -> None:
    image = noise_image(60, 45)
    levels = {"jpeg": 70, "webp": 50, "blur": 5, "noise": 5.0, "scale": 0.5}
    together = Perturbation(**levels)(image, seed=3, row=4)

    def one_by_one(names: list[str]) -> torch.Tensor:
        result = image
        for name in names:
            result = Perturbation(**{name: levels[name]})(result, seed=3, row=4)
        return result

    names = ["jpeg", "webp", "blur", "noise", "scale"]
    assert torch.equal(together, one_by_one(names))
    for position in range(4):
        swapped = names.copy()
        swapped[position : position + 2] = swapped[position : position + 2][::-1]
        assert not torch.equal(together, one_by_one(swapped))


def test_input_is_not_changed_and_no_step_returns_it() -> None:
    image = noise_image(20, 20)
    before = image.clone()
    assert torch.equal(Perturbation()(image, seed=0, row=0), before)
    Perturbation(jpeg=50, webp=50, blur=3, noise=9.0, scale=0.7)(image, seed=0, row=0)
    assert torch.equal(image, before)


def test_it_survives_pickling() -> None:
    perturbation = Perturbation(jpeg=50, noise=2.0)
    assert pickle.loads(pickle.dumps(perturbation)) == perturbation


@pytest.mark.parametrize(
    ("name", "value"),
    [("jpeg", 0), ("jpeg", 101), ("jpeg", 50.5), ("webp", 0), ("webp", True), ("blur", 4)]
    + [("blur", 1), ("blur", 101), ("noise", -1.0), ("noise", 256), ("noise", float("nan"))]
    + [("noise", "3"), ("scale", 0), ("scale", -0.5), ("scale", 85), ("scale", float("inf"))],
)
def test_impossible_level_is_refused_by_name_and_value(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^{name}: found {value!r}; give "):
        Perturbation(**{name: value})


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    levels=st.fixed_dictionaries(
        {},
        optional={
            "jpeg": st.integers(1, 100),
            "webp": st.integers(1, 100),
            "blur": st.integers(1, 10).map(lambda half: 2 * half + 1),
            "noise": st.floats(0, 255),
            "scale": st.floats(0.01, 4),
        },
    ),
    row=st.integers(0, 2**40),
)
def test_any_image_and_levels_give_an_image(
    shape: tuple[int, int], levels: dict[str, float], row: int
) -> None:
    image = noise_image(*shape)
    perturbed = Perturbation(**levels)(image, seed=0, row=row)
    scale = levels.get("scale", 1)
    assert perturbed.shape == (3, *(max(1, round(side * scale)) for side in shape))
    assert perturbed.dtype == torch.uint8
    assert torch.equal(perturbed, Perturbation(**levels)(image, seed=0, row=row))


@pytest.mark.parametrize("levels", [{"blur": 7}, {"scale": 0.37}, {"jpeg": 100}, {"webp": 100}])
def test_flat_image_stays_flat(levels: dict[str, float]) -> None:
    image = torch.full((3, 33, 29), 77, dtype=torch.uint8)
    assert Perturbation(**levels)(image, seed=0, row=0).unique().tolist() == [77]


def test_band_height_does_not_change_a_resize(monkeypatch: pytest.MonkeyPatch) -> None:
    image = noise_image(90, 20)
    whole = resize_bilinear(image, (61, 13))
    monkeypatch.setattr(perturb, "BAND", 7)
    assert torch.equal(resize_bilinear(image, (61, 13)), whole)
