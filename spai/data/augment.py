"""Random views of decoded images for training, both stages.

Everything random is drawn from torch's global CPU generator; `seeded_rng` seeds it for a block.
An image is uint8 [3, H, W] of any size, a view uint8 [3, S, S].

A view of stage 2, in this order: crop (rescaled or not), horizontal flip, vertical flip, rotation,
Gaussian blur, Gaussian noise, colour jitter, sharpening, JPEG, WebP. Geometry is bilinear without
antialiasing, except for rescaling, which imitates what images went through before they came to us:
a low-pass filter would remove the traces that the detector learns.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from spai.data.perturb import (
    KERNEL,
    QUALITY,
    Limit,
    gaussian_blur,
    recompress,
    reflect_to,
    resize_bilinear,
    sharpen,
    to_uint8,
)

CROP_RATIO = (3 / 4, 4 / 3)  # width / height
NOISE_VARIANCE = (10.0, 50.0)  # on the 0..255 scale
INTERPOLATIONS = {"bicubic": InterpolationMode.BICUBIC, "bilinear": InterpolationMode.BILINEAR}

RESCALING = (InterpolationMode.BILINEAR, InterpolationMode.BICUBIC)

_PROBABILITY = Limit(0, 1, "a probability from 0 to 1")
_AREA = Limit(math.ulp(0.0), 1, "a share of the image above 0 and at most 1")
_FACTOR = Limit(0, math.inf, "a finite number of at least 0")
_LIMITS = {
    "min_crop_area": _AREA,
    "max_crop_area": _AREA,
    "rescale_prob": _PROBABILITY,
    "rescale_range": Limit(0.05, 4, "a factor from 0.05 to 4"),
    "horizontal_flip_prob": _PROBABILITY,
    "vertical_flip_prob": _PROBABILITY,
    "rotation_prob": _PROBABILITY,
    "rotation_degrees": Limit(0, 180, "degrees from 0 to 180"),
    "gaussian_blur_prob": _PROBABILITY,
    "gaussian_blur_limit": KERNEL,
    "gaussian_blur_sigma": Limit(math.ulp(0.0), math.inf, "a finite number above 0"),
    "gaussian_noise_prob": _PROBABILITY,
    "jpeg_compression_prob": _PROBABILITY,
    "jpeg_min_quality": QUALITY,
    "jpeg_max_quality": QUALITY,
    "jpeg_full_chroma_prob": _PROBABILITY,
    "webp_compression_prob": _PROBABILITY,
    "webp_min_quality": QUALITY,
    "webp_max_quality": QUALITY,
    "color_jitter": _PROBABILITY,
    "color_jitter_brightness_range": _FACTOR,
    "color_jitter_contrast_range": _FACTOR,
    "color_jitter_saturation_range": _FACTOR,
    "color_jitter_hue_range": Limit(-0.5, 0.5, "a share of the colour circle from -0.5 to 0.5"),
    "sharpen_prob": _PROBABILITY,
    "sharpen_alpha_range": Limit(0, 1, "a number from 0 to 1"),
    "sharpen_lightness_range": _FACTOR,
}
_ORDERED = (
    ("min_crop_area", "max_crop_area"),
    ("jpeg_min_quality", "jpeg_max_quality"),
    ("webp_min_quality", "webp_max_quality"),
)


@dataclass(frozen=True)
class ViewSettings:
    """The AUG.* configuration keys in lower case, with the published values, and the view's side.

    Areas are shares of the image, angles degrees, sigmas pixels; a pair is (smallest, largest),
    both included. Equal crop areas mean a plain random crop without resampling; with the
    probability `rescale_prob` it is then a crop of the image resized by a factor of
    `rescale_range`, with antialiasing, as images are that were shrunk or enlarged before they came
    to us. `jpeg_full_chroma_prob` is the share of JPEGs whose colour is not subsampled.

    Raises:
        ValueError: a value that the step cannot use; the message names the AUG key.
    """

    min_crop_area: float = 0.2
    max_crop_area: float = 1.0
    rescale_prob: float = 0.0
    rescale_range: tuple[float, float] = (0.4, 1.0)
    horizontal_flip_prob: float = 0.5
    vertical_flip_prob: float = 0.5
    rotation_prob: float = 0.5
    rotation_degrees: float = 90
    gaussian_blur_prob: float = 0.5
    gaussian_blur_limit: tuple[int, int] = (3, 9)
    gaussian_blur_sigma: tuple[float, float] = (0.01, 0.5)
    gaussian_noise_prob: float = 0.5
    jpeg_compression_prob: float = 0.5
    jpeg_min_quality: int = 50
    jpeg_max_quality: int = 100
    jpeg_full_chroma_prob: float = 0.0
    webp_compression_prob: float = 0.0
    webp_min_quality: int = 50
    webp_max_quality: int = 100
    color_jitter: float = 0.0
    color_jitter_brightness_range: tuple[float, float] = (0.8, 1.2)
    color_jitter_contrast_range: tuple[float, float] = (0.8, 1.2)
    color_jitter_saturation_range: tuple[float, float] = (0.8, 1.2)
    color_jitter_hue_range: tuple[float, float] = (-0.1, 0.1)
    sharpen_prob: float = 0.0
    sharpen_alpha_range: tuple[float, float] = (0.01, 0.4)
    sharpen_lightness_range: tuple[float, float] = (0.95, 1.0)
    size: int = 224

    def __post_init__(self) -> None:
        Limit(4, math.inf, "a side of at least 4 pixels", whole=True).check("size", self.size)
        for field in fields(self):
            if field.name in _LIMITS:
                _check_setting(field.name, getattr(self, field.name), field.default)
        for names in _ORDERED:
            low, high = (getattr(self, name) for name in names)
            if low > high:
                keys = [f"AUG.{name.upper()}" for name in names]
                raise ValueError(f"{keys[0]} {low} is above {keys[1]} {high}; swap them")


def _check_setting(name: str, value: object, default: object) -> None:
    """Check a number, or both numbers of a pair and their order."""
    key = f"AUG.{name.upper()}"
    pair = value if isinstance(default, tuple) else (value, value)
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise ValueError(f"{key}: found {value!r}; give a pair (smallest, largest)")
    for number in pair:
        _LIMITS[name].check(key, number)
    if pair[0] > pair[1]:
        raise ValueError(f"{key}: found {value!r}; give the smaller number first")


def make_view(image: Tensor, settings: ViewSettings) -> Tensor:
    """Draw a training view of stage 2.

    Args:
        image: uint8 [3, H, W], H and W at least 1; not changed.
        settings: rates, ranges and the side S of the view.

    Returns:
        uint8 [3, S, S], a tensor of its own.
    """
    assert image.dtype == torch.uint8 and image.ndim == 3
    view = _crop(image, settings)
    if _happens(settings.horizontal_flip_prob):
        view = F.horizontal_flip(view)
    if _happens(settings.vertical_flip_prob):
        view = F.vertical_flip(view)
    if _happens(settings.rotation_prob):
        view = _rotate(view, settings.rotation_degrees * _uniform(-1, 1))
    if _happens(settings.gaussian_blur_prob):
        smallest, largest = settings.gaussian_blur_limit
        kernel = 2 * _integer(smallest // 2, largest // 2) + 1
        view = gaussian_blur(view, kernel, _uniform(*settings.gaussian_blur_sigma))
    if _happens(settings.gaussian_noise_prob):
        view = to_uint8(view + torch.randn(view.shape) * math.sqrt(_uniform(*NOISE_VARIANCE)))
    if _happens(settings.color_jitter):
        view = _jitter_colour(view, settings)
    if _happens(settings.sharpen_prob):
        alpha = _uniform(*settings.sharpen_alpha_range)
        view = sharpen(view, alpha, _uniform(*settings.sharpen_lightness_range))
    if _happens(settings.jpeg_compression_prob):
        quality = _integer(settings.jpeg_min_quality, settings.jpeg_max_quality)
        full_chroma = _happens(settings.jpeg_full_chroma_prob)
        view = recompress(view, "JPEG", quality, full_chroma=full_chroma)
    if _happens(settings.webp_compression_prob):
        quality = _integer(settings.webp_min_quality, settings.webp_max_quality)
        view = recompress(view, "WEBP", quality)
    return view


def seeded_views(
    image: Tensor, settings: ViewSettings, count: int, *, seed: int, epoch: int, index: int
) -> Tensor:
    """Draw the views of one image, each from its own seed.

    View v is `make_view` within `seeded_rng(seed, epoch, index, v)`: it depends neither on the
    worker and the order in which images are drawn, nor on the other views.

    Args:
        image: uint8 [3, H, W].
        settings: rates, ranges and the side S of a view.
        count: number of views V, at least 1.
        seed: the run's seed, a whole number of at least 0.
        epoch: from 0.
        index: the image's row in the data set, from 0.

    Returns:
        uint8 [V, 3, S, S].
    """
    views = []
    for view in range(count):
        with seeded_rng(seed, epoch, index, view):
            views.append(make_view(image, settings))
    return torch.stack(views)


@contextmanager
def seeded_rng(*entropy: int) -> Iterator[None]:
    """Seed torch's global CPU generator within the block and restore it afterwards.

    The seed is the 64-bit word that `numpy.random.SeedSequence(entropy)` generates: it mixes all
    the numbers, so neighbouring epochs or images share nothing. Other devices' generators are
    left alone. The generator belongs to the process: do not use it from several threads.

    Args:
        entropy: whole numbers of at least 0, always the same count of them.
    """
    (word,) = np.random.SeedSequence(entropy).generate_state(1, np.uint64)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(word))
        yield


def make_pretraining_view(
    image: Tensor, *, size: int, min_area: float, interpolation: str
) -> Tensor:
    """Draw a view of stage 1: random resized crop, ratio 3/4 to 4/3, and horizontal flip, p 0.5.

    Resized with antialiasing, unlike the views of stage 2: pre-training follows the usual recipe
    of masked image modelling.

    Args:
        image: uint8 [3, H, W], H and W at least 1.
        size: side S of the view.
        min_area: smallest share of the image in (0, 1]; the largest is 1. With 1 the crop is a
            plain one: a random square of side S, padded if needed, not resized.
        interpolation: "bicubic" or "bilinear".

    Returns:
        uint8 [3, S, S].

    Raises:
        ValueError: `min_area` or `interpolation` is none of these.
    """
    _AREA.check("DATA.MIN_CROP_SCALE", min_area)
    if interpolation not in INTERPOLATIONS:
        choices = ", ".join(INTERPOLATIONS)
        raise ValueError(f"DATA.INTERPOLATION: found {interpolation!r}; choose from {choices}")
    mode = INTERPOLATIONS[interpolation]
    if min_area == 1:
        view = _padded(_plain_crop(image, size), size)
    else:
        box = _random_box(image, min_area, 1.0)
        view = F.resized_crop(image, *box, size=[size, size], interpolation=mode, antialias=True)
    return F.horizontal_flip(view) if _happens(0.5) else view.clone()


def _happens(probability: float) -> bool:
    return _uniform(0, 1) < probability


def _uniform(low: float, high: float) -> float:
    return low + (high - low) * torch.rand((), dtype=torch.float64).item()


def _integer(low: int, high: int) -> int:
    """Draw a whole number, both ends included."""
    return int(torch.randint(low, high + 1, ()))


def _random_box(image: Tensor, low: float, high: float) -> tuple[int, int, int, int]:
    """Draw top, left, height, width; the largest central box of a legal ratio after ten misses."""
    return v2.RandomResizedCrop.get_params(image, scale=[low, high], ratio=list(CROP_RATIO))


def _crop(image: Tensor, settings: ViewSettings) -> Tensor:
    size = settings.size
    if settings.min_crop_area < settings.max_crop_area:
        box = _random_box(image, settings.min_crop_area, settings.max_crop_area)
        return resize_bilinear(image, (size, size), box)
    if settings.rescale_prob and _happens(settings.rescale_prob):
        return _rescaled_crop(image, size, _uniform(*settings.rescale_range))
    # Padded after the crop: the same pixels from less data.
    return _padded(_plain_crop(image, size), size)


def _padded(image: Tensor, size: int) -> Tensor:
    for dim in (1, 2):
        image = reflect_to(image, dim, before=(size - image.shape[dim]) // 2, total=size)
    return image


def _plain_crop(image: Tensor, size: int) -> Tensor:
    """Cut a random square of a side, or of what there is."""
    for dim in (1, 2):
        start = _integer(0, max(0, image.shape[dim] - size))
        image = image.narrow(dim, start, min(size, image.shape[dim]))
    return image


def _rescaled_crop(image: Tensor, size: int, factor: float) -> Tensor:
    """Cut the square that a crop of the resized image shows, and resize only that."""
    window = max(4, min(round(size / factor), *image.shape[1:]))
    mode = RESCALING[_integer(0, len(RESCALING) - 1)]
    crop = _plain_crop(image, window)
    return F.resize(crop, [size, size], interpolation=mode, antialias=True)


def _rotate(view: Tensor, degrees: float) -> Tensor:
    """Rotate about the centre, cut the largest square without border, resize to the old side."""
    size = view.shape[1]
    angle = math.radians(degrees)
    # A square of n pixels centred in the view samples it up to (n - 1) / 2 * spread from its
    # centre; the outermost pixel centres are (size - 1) / 2 away.
    spread = abs(math.cos(angle)) + abs(math.sin(angle))
    margin = math.ceil((size - 1) / 2 * (1 - 1 / spread) - 1e-9)
    rotated = F.rotate(view, degrees, interpolation=InterpolationMode.BILINEAR)
    inner = size - 2 * margin
    return resize_bilinear(rotated, (size, size), (margin, margin, inner, inner))


def _jitter_colour(view: Tensor, settings: ViewSettings) -> Tensor:
    """Change brightness, contrast, saturation and hue in random order."""
    jitter = v2.ColorJitter(
        brightness=settings.color_jitter_brightness_range,
        contrast=settings.color_jitter_contrast_range,
        saturation=settings.color_jitter_saturation_range,
        hue=settings.color_jitter_hue_range,
    )
    return jitter(view)
