import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from spai.data.images import FileSource, RowImage, open_image
from spai.data.records import ImageRecord
from spai.data.thumbnails import thumbnails
from tests.recipe import reference_image


def save(path: Path, height: int, width: int, mode: str = "RGB") -> ImageRecord:
    Image.fromarray(reference_image(height, width, 1)).convert(mode).save(path)
    return ImageRecord(path, path.name, None, 0)


def smooth(height: int, width: int) -> Image.Image:
    """Return a picture that looks the same at any size."""
    down, across = np.mgrid[:height, :width]
    planes = (255 * down / height, 255 * across / width, 255 * (down + across) / (height + width))
    return Image.fromarray(np.stack(planes, axis=2).astype(np.uint8))


def opened(picture: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(picture))
    assert image.format == "WEBP" and image.mode == "RGB"
    return image


@pytest.mark.parametrize("workers", [0, 2])
def test_each_readable_image_has_a_picture(tmp_path, workers):
    records = [
        save(tmp_path / f"{i}.{kind}", 200 + i, 300) for i, kind in enumerate(("png", "jpg"))
    ]
    (tmp_path / "bad.png").write_bytes(b"no image")
    records.append(ImageRecord(tmp_path / "bad.png", "bad.png", None, 2))
    records += [save(tmp_path / f"{i}.png", 60, 40) for i in range(3, 80)]
    found = dict(thumbnails(records, FileSource(), side=96, workers=workers))
    assert sorted(found) == [0, 1, *range(3, 80)]
    assert opened(found[0]).size == (96, 64)
    assert opened(found[3]).size == (40, 60)  # never enlarged


@pytest.mark.parametrize("kind", ["png", "jpg", "webp"])
def test_a_picture_shows_the_image(tmp_path, kind):
    smooth(1001, 1502).save(tmp_path / f"image.{kind}")
    records = [ImageRecord(tmp_path / f"image.{kind}", "", None, 0)]
    ((_, picture),) = thumbnails(records, FileSource(), side=96)
    image = opened(picture)
    assert image.size == (96, 64)
    off = np.abs(np.asarray(image, dtype=float) - np.asarray(smooth(64, 96), dtype=float))
    assert off.mean() < 4 and off.max() < 30  # lossy


def test_only_jpegs_are_decoded_smaller_and_never_below_the_side(tmp_path):
    for kind, size in (("jpg", (375, 250)), ("png", (1500, 1000))):
        smooth(1000, 1500).save(tmp_path / f"image.{kind}")
        with open_image(tmp_path / f"image.{kind}", FileSource()) as image:
            _, height, width = image.decode(at_least=192).shape
            assert (width, height) == size
        with open_image(tmp_path / f"image.{kind}", FileSource()) as image:
            assert image.decode().shape == (3, 1000, 1500)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 5000), (5000, 1), (193, 191), (97, 2)])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L", "1", "CMYK"])
def test_any_shape_and_mode_becomes_rgb_within_the_side(height, width, mode):
    image = Image.fromarray(reference_image(height, width, 2)).convert(mode)
    small = RowImage(image).thumbnail(96)
    assert small.mode == "RGB"
    assert max(small.size) == min(96, max(height, width)) and min(small.size) >= 1


def test_scans_of_sixteen_bits_keep_their_greys():
    values = np.linspace(0, 65535, 600).astype(np.uint16)
    image = Image.fromarray(np.tile(values, (600, 1)))
    grey = np.asarray(RowImage(image).thumbnail(60))[30, :, 0].astype(float)
    np.testing.assert_allclose(grey, np.linspace(2, 253, 60), atol=3)


def test_transparency_is_dropped_as_the_model_drops_it():
    image = Image.new("RGBA", (500, 500), (200, 100, 50, 0))
    assert RowImage(image).thumbnail(96).getpixel((48, 48)) == (200, 100, 50)


def test_ten_thousand_photographs_are_about_twenty_megabytes_of_text(tmp_path):
    photos = [Image.fromarray(photo) for photo in load_sample_images().images]
    records = []
    for number in range(40):
        left, top = number * 5, number * 3
        photos[number % 2].crop((left, top, left + 420, top + 280)).save(tmp_path / f"{number}.png")
        records.append(ImageRecord(tmp_path / f"{number}.png", "", None, number))
    sizes = [len(picture) for _, picture in thumbnails(records, FileSource(), side=96)]
    in_base64 = 10_000 * 4 / 3 * np.mean(sizes)
    assert 12e6 < in_base64 < 20e6


def test_images_above_the_limit_have_none(tmp_path):
    records = [save(tmp_path / "image.png", 300, 300)]
    assert list(thumbnails(records, FileSource(), side=96, max_pixels=89_999)) == []
