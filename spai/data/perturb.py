"""Pixel operations with exact definitions, and the test perturbations made of them.

Every image is a uint8 tensor [3, H, W], H and W at least 1, RGB. Results are rounded once, to the
nearest level (ties to even), and clipped to 0..255. Nothing here is antialiased: spectra matter.
"""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, JpegImagePlugin, WebPImagePlugin
from scipy import ndimage
from torch import Tensor

BAND = 256  # output rows resized at once, so that a large image is never float as a whole


class Codec(NamedTuple):
    """How a lossy format is written, read, and how many pixels a side it holds."""

    reader: Any
    options: dict[str, Any]
    longest: int


# The reader classes are used directly: Image.open would warn of "decompression bombs" although the
# bytes were encoded here. Lossy WebP is always 4:2:0.
CODECS = {
    "JPEG": Codec(JpegImagePlugin.JpegImageFile, {"subsampling": "4:2:0"}, 65500),
    "WEBP": Codec(WebPImagePlugin.WebPImageFile, {"lossless": False, "method": 4}, 16383),
}


class Limit(NamedTuple):
    """The numbers that a setting accepts, and how to say so."""

    low: float
    high: float
    text: str
    whole: bool = False
    odd: bool = False

    def check(self, name: str, value: object) -> None:
        """Raise ValueError, naming the setting and the value, unless `value` is accepted."""
        kind = Integral if self.whole else Real
        number = math.nan
        if isinstance(value, kind) and not isinstance(value, bool):
            number = float(value)
        inside = math.isfinite(number) and self.low <= number <= self.high
        if not inside or (self.odd and number % 2 != 1):
            raise ValueError(f"{name}: found {value!r}; give {self.text}")


QUALITY = Limit(1, 100, "a whole number from 1 to 100", whole=True)
KERNEL = Limit(3, 99, "an odd whole number from 3 to 99", whole=True, odd=True)


@dataclass(frozen=True)
class Perturbation:
    """A distortion of a test image; None leaves a step out.

    The steps run in the order of the fields. Sides of a scaled image are rounded (ties to even)
    and at least 1. Scaling interpolates between the four nearest pixels without antialiasing, as
    in training.

    Args:
        jpeg: quality 1..100, chroma subsampling 4:2:0.
        webp: quality 1..100, lossy.
        blur: odd side 3..99 of a Gaussian kernel, sigma 0.3 ((k - 1) / 2 - 1) + 0.8 pixels,
            borders reflected without repeating the edge.
        noise: standard deviation of Gaussian noise on the 0..255 scale, independent for every
            pixel and channel.
        scale: factor of both sides, above 0 and at most 4.

    Raises:
        ValueError: a value outside these ranges; the message names it.

    Example:
        >>> halve = Perturbation(scale=0.5)
        >>> halve(torch.zeros(3, 10, 7, dtype=torch.uint8), seed=0, row=0).shape
        torch.Size([3, 5, 4])
    """

    jpeg: int | None = None
    webp: int | None = None
    blur: int | None = None
    noise: float | None = None
    scale: float | None = None

    def __post_init__(self) -> None:
        limits = {
            "jpeg": QUALITY,
            "webp": QUALITY,
            "blur": KERNEL,
            "noise": Limit(0, 255, "a standard deviation from 0 to 255"),
            "scale": Limit(math.ulp(0.0), 4, "a factor above 0 and at most 4"),
        }
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None:
                limits[field.name].check(field.name, value)

    def __call__(self, image: Tensor, *, seed: int, row: int) -> Tensor:
        """Return the distorted image; `image` is not changed.

        Args:
            image: uint8 [3, H, W].
            seed: whole number of at least 0, the same for a run.
            row: the image's row in its data set, from 0. (seed, row) alone decides the noise, so
                it is the same in every run, and two levels add the same pattern, scaled.

        Returns:
            uint8 [3, H', W']; H' = H and W' = W unless the image is scaled.

        Raises:
            ValueError: the image is larger than the JPEG or WebP format allows.
        """
        assert image.dtype == torch.uint8 and image.ndim == 3
        if self.jpeg is not None:
            image = recompress(image, "JPEG", self.jpeg)
        if self.webp is not None:
            image = recompress(image, "WEBP", self.webp)
        if self.blur is not None:
            image = gaussian_blur(image, self.blur, 0.3 * ((self.blur - 1) / 2 - 1) + 0.8)
        if self.noise is not None:
            image = _add_seeded_noise(image, self.noise, seed=seed, row=row)
        if self.scale is not None:
            height, width = (max(1, round(side * self.scale)) for side in image.shape[1:])
            image = resize_bilinear(image, (height, width))
        return image


def to_uint8(values: Tensor) -> Tensor:
    """Round to the nearest level and clip to 0..255."""
    return values.round().clamp_(0, 255).to(torch.uint8)


def recompress(image: Tensor, codec: str, quality: int, *, full_chroma: bool = False) -> Tensor:
    """Write and read an image through Pillow as JPEG or WebP with chroma subsampling 4:2:0.

    Args:
        image: uint8 [3, H, W].
        codec: "JPEG" or "WEBP".
        quality: 1..100.
        full_chroma: of JPEG, no subsampling (4:4:4).

    Raises:
        ValueError: the image is larger than the format, or Pillow's reader of it, allows.
    """
    reader, options, longest = CODECS[codec]
    height, width = image.shape[1:]
    if max(height, width) > longest:
        raise ValueError(
            f"{codec} holds at most {longest} pixels a side, found {width} x {height}; "
            "shrink the image first"
        )
    if full_chroma:
        assert codec == "JPEG"
        options = {**options, "subsampling": "4:4:4"}
    file = io.BytesIO()
    pixels = image.permute(1, 2, 0).contiguous().numpy()
    Image.fromarray(pixels).save(file, format=codec, quality=quality, **options)
    file.seek(0)
    try:
        decoded = np.array(reader(file).convert("RGB"))
    except Image.DecompressionBombError as error:
        raise ValueError(f"{codec}: {width} x {height} pixels are too many: {error}") from error
    return torch.from_numpy(decoded).permute(2, 0, 1).contiguous()


def resize_bilinear(
    image: Tensor, size: tuple[int, int], box: tuple[int, int, int, int] | None = None
) -> Tensor:
    """Resize a box of an image, interpolating the four nearest pixels without antialiasing.

    Pixels have half-pixel centres and neighbours outside the box repeat its edge. Libraries give
    other levels: torchvision's resize rounds uint8 between its two passes, on some processors only;
    Pillow's transform cuts fractions off; torch's interpolate misplaces positions on long sides in
    float32. They also read every pixel of the box, where this reads four per output pixel.

    Args:
        image: uint8 [3, H, W]; fastest when contiguous.
        size: height and width of the result.
        box: top, left, height, width of the part to resize; None is the whole image.

    Returns:
        uint8 [3, *size].
    """
    top, left, height, width = box or (0, 0, *image.shape[1:])
    upper, lower, down = _neighbours(height, size[0])
    near, far, right = _neighbours(width, size[1])

    def lines(rows: Tensor) -> Tensor:
        pixels = image.index_select(1, rows + top)
        start, end = (pixels.index_select(2, columns + left).float() for columns in (near, far))
        return torch.lerp(start, end, right)

    bands = zip(upper.split(BAND), lower.split(BAND), down.split(BAND), strict=True)
    return torch.cat(
        [to_uint8(torch.lerp(lines(a), lines(b), part[:, None])) for a, b, part in bands], dim=1
    )


def _neighbours(length: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the two neighbours of `count` even positions on `length` pixels, the second's weight.

    Computed in float64: float32 misplaces positions visibly on sides of thousands of pixels.
    """
    positions = (torch.arange(count, dtype=torch.float64) + 0.5) * (length / count) - 0.5
    positions.clamp_(0, length - 1)
    first = positions.long()
    second = (first + 1).clamp_(max=length - 1)
    return first, second, (positions - first).float()


def gaussian_blur(image: Tensor, kernel: int, sigma: float) -> Tensor:
    """Blur with a Gaussian of odd side `kernel` and `sigma` pixels; borders are reflected.

    Args:
        image: uint8 [3, H, W].
        kernel: odd; it may exceed the image.
        sigma: above 0.

    Returns:
        uint8 [3, H, W].
    """
    offsets = torch.arange(kernel, dtype=torch.float64) - kernel // 2
    weights = torch.exp(-0.5 * (offsets / sigma).square())
    taps = (weights / weights.sum()).tolist()
    return torch.stack([to_uint8(separable_filter(plane, taps)) for plane in image])


def sharpen(image: Tensor, alpha: float, lightness: float) -> Tensor:
    """Blend with a 3x3 filter, 8 + `lightness` in the centre and -1 around it.

    Args:
        image: uint8 [3, H, W]; borders are reflected.
        alpha: weight of the filtered image in [0, 1].
        lightness: sum of the filter; 1 keeps the brightness.

    Returns:
        uint8 [3, H, W].
    """
    filtered = (9 + lightness) * image - separable_filter(image, (1, 1, 1))
    return to_uint8((1 - alpha) * image + alpha * filtered)


def separable_filter(image: Tensor, taps: Sequence[float]) -> Tensor:
    """Correlate the last two axes with odd, symmetric `taps`; borders are reflected.

    Args:
        image: [..., H, W]; it may be smaller than the filter.
        taps: weights along either axis.

    Returns:
        float32 [..., H, W], neither rounded nor clipped.
    """
    # Not torchvision's blur: it refuses images smaller than half the kernel and is slower.
    lines = ndimage.correlate1d(image.numpy(), taps, axis=-1, mode="mirror", output=np.float32)
    return torch.from_numpy(ndimage.correlate1d(lines, taps, axis=-2, mode="mirror"))


def reflect_to(image: Tensor, dim: int, *, before: int, total: int) -> Tensor:
    """Extend an axis to `total`, `before` of it in front, by reflection without the edge pixel.

    The image is reflected as often as needed, so it may be shorter than the border.
    """
    length = image.shape[dim]
    period = max(1, 2 * (length - 1))
    folded = (torch.arange(total) - before).remainder(period)
    return image.index_select(dim, torch.minimum(folded, period - folded))


def _add_seeded_noise(image: Tensor, sigma: float, *, seed: int, row: int) -> Tensor:
    generator = np.random.default_rng([seed, row])
    noisy = []
    for plane in image:
        noise = torch.from_numpy(generator.standard_normal(plane.shape, dtype=np.float32))
        noisy.append(to_uint8(plane + sigma * noise))
    return torch.stack(noisy)
