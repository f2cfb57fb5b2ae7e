"""Decoding: what becomes of every kind of file, and what a bad one says."""

import io
import os
import pickle
import struct
import threading
import zlib

import lmdb
import numpy as np
import pytest
import torch
from PIL import Image

from spai.data import images
from spai.data.images import (
    FileSource,
    ImageError,
    LmdbSource,
    RowImage,
    has_image_extension,
    looks_like_image,
    open_image,
    to_pixels,
)
from tests.recipe import reference_image

SMALL_FORMATS = ("avif", "bmp", "gif", "ico", "jp2", "jpg", "pcx", "png", "ppm", "tiff", "webp")


def decode(path, max_pixels=images.MAX_PIXELS):
    """Return the pixels of a file, [H, W, 3]."""
    with open_image(path, FileSource(), max_pixels) as opened:
        return opened.decode().tensor().permute(1, 2, 0).numpy()


def refusal(path, **limits):
    """Return what is said of a file that gives no pixels."""
    with pytest.raises(ImageError) as caught:
        decode(path, **limits)
    return str(caught.value)


def saved(path, image, **options):
    image.save(path, **options)
    return path


def photo(height=40, width=60, seed=3):
    return Image.fromarray(reference_image(height, width, seed))


def png_header(width, height):
    """Return a PNG that claims a size and holds next to nothing."""

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


# -- pixels -------------------------------------------------------------------------------------


def test_rgb_pixels_are_unchanged(tmp_path):
    array = reference_image(33, 47, 4)
    assert np.array_equal(decode(saved(tmp_path / "a.png", Image.fromarray(array))), array)


@pytest.mark.parametrize("name", ["grey.png", "grey.tiff", "big_endian.tif", "grey.pgm"])
def test_16_bit_grey_is_rounded_and_not_clipped(tmp_path, name):
    values = np.random.default_rng(1).integers(0, 65536, (50, 70), dtype=np.uint16)
    values[0, :6] = (0, 128, 129, 256, 65406, 65535)
    path = tmp_path / name
    if name.startswith("big"):
        image = Image.frombytes("I;16B", (70, 50), values.astype(">u2").tobytes())
    else:
        image = Image.fromarray(values)
    saved(path, image)
    expected = np.round(values / 257).astype(np.uint8)
    found = decode(path)
    assert all(np.array_equal(found[:, :, channel], expected) for channel in range(3))


def test_values_of_mode_I_beyond_16_bits_are_clipped():
    image = Image.fromarray(np.array([[-5, 0, 257, 65535, 2**31 - 1]], dtype=np.int32))
    assert RowImage(image).tensor()[0].tolist() == [[0, 0, 1, 255, 255]]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I", "I;16"])
def test_reading_by_rows_equals_converting_the_whole_image(mode):
    if mode.startswith("I"):
        kind = np.uint16 if mode == "I;16" else np.int32
        values = np.random.default_rng(2).integers(0, 65536, (31, 23)).astype(kind)
        image = Image.fromarray(values)
    else:
        image = photo(31, 23).convert(mode)
    assert image.mode == mode
    rows = RowImage(image)
    assert rows.shape == (3, 31, 23)
    whole = rows.tensor()
    parts = [rows[:, top : top + 7] for top in range(0, 31, 7)]
    assert torch.equal(torch.cat(parts, dim=1), whole) and whole.dtype == torch.uint8
    if not mode.startswith("I"):
        assert np.array_equal(whole.permute(1, 2, 0).numpy(), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_alpha_is_dropped_and_not_composited(tmp_path, mode):
    image = photo().convert(mode)
    image.putalpha(Image.fromarray(np.full((40, 60), 7, np.uint8)))
    found = decode(saved(tmp_path / "a.png", image))
    opaque = photo().convert("L") if mode == "LA" else photo()
    assert np.array_equal(found, np.asarray(opaque.convert("RGB")))


@pytest.mark.parametrize("transparency", [3, bytes(range(0, 256, 2))])
def test_a_transparent_palette_entry_keeps_its_colour(tmp_path, transparency):
    image = photo().quantize(128)
    path = saved(tmp_path / "p.png", image, transparency=transparency)
    with Image.open(path) as reopened:
        assert reopened.mode == "P" and "transparency" in reopened.info
    assert np.array_equal(decode(path), np.asarray(image.convert("RGB")))


def test_cmyk_is_converted_as_pillow_does(tmp_path):
    path = saved(tmp_path / "c.jpg", photo().convert("CMYK"), quality=95)
    with Image.open(path) as reopened:
        assert reopened.mode == "CMYK"
        assert np.array_equal(decode(path), np.asarray(reopened.convert("RGB")))


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png", "a.tiff"])
def test_only_the_first_frame_of_an_animation_counts(tmp_path, name):
    frames = [Image.new("RGB", (30, 20), color) for color in ("red", "lime", "blue")]
    options = {"lossless": True} if name.endswith("webp") else {}
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **options)
    with Image.open(tmp_path / name) as reopened:
        assert reopened.n_frames == 3
    assert np.unique(decode(tmp_path / name).reshape(-1, 3), axis=0).tolist() == [[255, 0, 0]]


@pytest.mark.parametrize("extension", ["jpg", "png", "webp", "avif"])
def test_exif_orientation_is_ignored(tmp_path, extension):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees
    plain = saved(tmp_path / f"plain.{extension}", photo(40, 60))
    rotated = saved(tmp_path / f"rotated.{extension}", photo(40, 60), exif=exif)
    assert np.array_equal(decode(rotated), decode(plain))
    assert decode(rotated).shape == (40, 60, 3)


def test_a_colour_profile_changes_nothing(tmp_path):
    plain = saved(tmp_path / "plain.jpg", photo())
    profiled = saved(tmp_path / "profiled.jpg", photo(), icc_profile=b"\0" * 200)
    assert np.array_equal(decode(plain), decode(profiled))


@pytest.mark.parametrize("height, width", [(1, 1), (3, 20000), (20000, 3)])
def test_extreme_sizes_are_decoded(tmp_path, height, width):
    array = reference_image(height, width, 2)
    path = saved(tmp_path / "a.png", Image.fromarray(array))
    assert np.array_equal(decode(path), array)


@pytest.mark.parametrize("extension", SMALL_FORMATS)
def test_pixels_can_be_read_after_the_file_is_closed(tmp_path, extension):
    path = saved(tmp_path / f"a.{extension}", photo(48, 48))
    with open_image(path, FileSource()) as opened:
        rows = opened.decode()
    os.remove(path)
    with Image.open(io.BytesIO(_encoded(photo(48, 48), extension))) as expected:
        assert np.array_equal(
            rows[:, 8:40].permute(1, 2, 0).numpy(), np.asarray(expected.convert("RGB"))[8:40]
        )


def _encoded(image, extension):
    kinds = {"jpg": "JPEG", "jp2": "JPEG2000"}
    buffer = io.BytesIO()
    image.save(buffer, kinds.get(extension, extension.upper()))
    return buffer.getvalue()


def test_shrinking_limits_the_longer_side_and_never_enlarges():
    rows = RowImage(photo(30, 90))
    assert rows.shrink(45).shape == (3, 15, 45) and rows.shrink(500) is rows
    assert RowImage(photo(1, 900)).shrink(10).shape == (3, 1, 10)
    expected = photo(30, 90).resize((45, 15), Image.Resampling.LANCZOS)
    assert np.array_equal(rows.shrink(45).tensor().permute(1, 2, 0).numpy(), np.asarray(expected))


# -- limits -------------------------------------------------------------------------------------


def test_an_image_over_the_limit_is_refused_before_it_is_decoded(tmp_path):
    (tmp_path / "bomb.png").write_bytes(png_header(100_000, 100_000))
    said = refusal(tmp_path / "bomb.png")
    assert "100000x100000" in said and "500,000,000" in said and "--max-pixels" in said
    path = saved(tmp_path / "a.png", photo(40, 60))
    assert "2,400" in refusal(path, max_pixels=2399)
    assert decode(path, max_pixels=2400).shape == (40, 60, 3)


@pytest.mark.parametrize("extension", SMALL_FORMATS)
@pytest.mark.filterwarnings("error")
def test_the_limit_of_pillow_does_not_apply(tmp_path, monkeypatch, extension):
    path = saved(tmp_path / f"a.{extension}", photo(64, 64))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with open_image(path, FileSource()) as opened:
        rows = opened.decode()
    assert rows.tensor().shape == (3, 64, 64) and rows[:, 1:64].shape == (3, 63, 64)
    assert rows.shrink(50).shape == (3, 50, 50)
    assert Image.MAX_IMAGE_PIXELS == 100


def test_decoding_leaves_the_limit_of_pillow_as_it_was(tmp_path):
    before = Image.MAX_IMAGE_PIXELS
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    refusal(tmp_path / "bad.png")
    decode(saved(tmp_path / "a.png", photo()))
    assert before == Image.MAX_IMAGE_PIXELS is not None


def test_threads_leave_the_limit_of_pillow_as_it_was():
    before, meet = Image.MAX_IMAGE_PIXELS, threading.Barrier(2)

    def enter_first_and_leave_first():
        with images._no_pixel_limit():
            meet.wait()
            meet.wait()  # the other one is inside
        meet.wait()

    thread = threading.Thread(target=enter_first_and_leave_first)
    thread.start()
    meet.wait()
    with images._no_pixel_limit():
        meet.wait()
        meet.wait()  # the first one has left
        assert Image.MAX_IMAGE_PIXELS is None
    thread.join()
    assert before == Image.MAX_IMAGE_PIXELS


def test_an_icon_cannot_hide_a_larger_image_than_its_header_says(tmp_path):
    picture = _encoded(photo(300, 300), "png")
    entry = struct.pack("<HHHBBBBHHII", 0, 1, 1, 16, 16, 0, 0, 1, 32, len(picture), 22)
    (tmp_path / "a.ico").write_bytes(entry + picture)
    assert "300x300" in refusal(tmp_path / "a.ico", max_pixels=10_000)


# -- bad files ----------------------------------------------------------------------------------


@pytest.mark.parametrize("extension", ["jpg", "png", "webp", "gif", "bmp", "tiff", "jp2", "avif"])
def test_a_truncated_file_is_an_image_error(tmp_path, extension):
    whole = _encoded(photo(120, 160), extension)
    for share in (0.02, 0.3, 0.6, 0.9):
        path = tmp_path / f"a.{extension}"
        path.write_bytes(whole[: int(len(whole) * share)])
        assert refusal(path)


def test_damaged_bytes_give_pixels_or_an_image_error(tmp_path):
    rng = np.random.default_rng(5)
    for extension in SMALL_FORMATS:
        whole = np.frombuffer(_encoded(photo(48, 48), extension), np.uint8)
        for trial in range(15):
            damaged = whole.copy()
            places = rng.integers(0, len(whole) if trial % 2 else min(60, len(whole)), 6)
            damaged[places] = rng.integers(0, 256, 6)
            path = tmp_path / f"a.{extension}"
            path.write_bytes(damaged.tobytes())
            try:
                assert decode(path, max_pixels=100_000).ndim == 3
            except ImageError as error:
                assert str(error)


def test_every_kind_of_missing_or_unreadable_file_says_which(tmp_path):
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("this is not an image\n" * 50)
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "dangling.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "loop.png").symlink_to("loop.png")
    os.mkfifo(tmp_path / "pipe.png")
    expected = {
        "empty.jpg": "empty file",
        "text.jpg": "not an image",
        "folder.png": "not a regular file",
        "pipe.png": "not a regular file",
        "dangling.png": "link to a missing file",
        "absent.png": "file not found",
        "loop.png": "cannot be read",
        "n" * 300 + ".png": "cannot be read",
        "nul\0.png": "cannot be read",
    }
    for name, words in expected.items():
        assert words in refusal(tmp_path / name)
    assert refusal(tmp_path.__class__("/dev/zero")) == "not a regular file"


@pytest.mark.parametrize("blocked", ["stat", "open"])
def test_a_file_without_permission_is_an_image_error(tmp_path, monkeypatch, blocked):
    path = saved(tmp_path / "a.png", photo())

    def denied(*arguments, **options):
        raise PermissionError(13, "Permission denied", str(path))

    if blocked == "stat":
        monkeypatch.setattr(images.os, "stat", denied)
    else:
        monkeypatch.setattr("builtins.open", denied)
    assert "Permission denied" in refusal(path)


def test_a_file_that_vanishes_after_its_size_was_read_is_an_image_error(tmp_path):
    path = saved(tmp_path / "a.png", photo())

    class Vanishing(FileSource):
        def open(self, path):
            found = super().open(path)
            os.remove(path)
            return found

    with (
        pytest.raises(ImageError, match="No such file"),
        open_image(path, Vanishing()) as opened,
    ):
        opened.decode()


@pytest.mark.parametrize(
    "content",
    [
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n%%EndComments\nshowpage\n",
        b"\xc5\xd0\xd3\xc6"
        + struct.pack("<II", 30, 100)
        + b"\0" * 18
        + b"%!PS-Adobe-3.0 EPSF-3.0\n",
        b"%PDF-1.4\n",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    ],
)
def test_a_program_in_a_page_description_language_is_never_run(tmp_path, monkeypatch, content):
    def run(*arguments, **options):
        raise AssertionError("another program was started")

    monkeypatch.setattr("subprocess.Popen", run)
    (tmp_path / "a.png").write_bytes(content)
    assert "not an image" in refusal(tmp_path / "a.png")


def test_floating_point_pixels_are_an_image_error(tmp_path):
    path = saved(tmp_path / "f.tiff", Image.fromarray(np.zeros((9, 9), np.float32)))
    assert "mode F" in refusal(path)


def test_a_mode_without_an_rgb_form_is_an_image_error():
    with pytest.raises(ImageError, match="conversion"):
        RowImage(Image.new("La", (4, 4))).tensor()


def test_running_out_of_memory_is_an_image_error(tmp_path, monkeypatch):
    path = saved(tmp_path / "a.png", photo())
    with open_image(path, FileSource()) as opened:
        rows = opened.decode()

    def full(*arguments, **options):
        raise MemoryError

    monkeypatch.setattr(images.np, "array", full)
    with pytest.raises(ImageError, match="not enough memory"):
        rows[:, 0:10]


# -- what callers of the Python API have ---------------------------------------------------------


@pytest.mark.filterwarnings("error")
def test_paths_images_arrays_and_tensors_give_the_same_pixels(tmp_path):
    array = reference_image(20, 30, 6)
    expected = torch.from_numpy(array.copy()).permute(2, 0, 1)
    path = saved(tmp_path / "a.png", Image.fromarray(array))
    read_only = np.asarray(Image.fromarray(array))
    assert not read_only.flags.writeable
    for given in (path, str(path), Image.fromarray(array), Image.open(path)):
        found = to_pixels(given)
        assert isinstance(found, RowImage) and torch.equal(found.tensor(), expected)
    for given in (array, read_only, array[::-1, ::-1].copy()[::-1, ::-1], expected):
        assert torch.equal(to_pixels(given), expected)
    grey = to_pixels(array[:, :, 0])
    assert all(torch.equal(plane, expected[0]) for plane in grey)


@pytest.mark.parametrize(
    "given",
    [
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
        torch.zeros(3, 4, 4),
        torch.zeros(4, 4, 3, dtype=torch.uint8),
        torch.zeros(3, 4, 0, dtype=torch.uint8),
        Image.new("RGB", (0, 5)),
        Image.new("F", (5, 5)),
        b"bytes",
        None,
    ],
)
def test_anything_else_is_a_value_error(given):
    with pytest.raises(ValueError):
        to_pixels(given)


def test_an_unreadable_path_is_named(tmp_path):
    with pytest.raises(ImageError, match="absent.png: file not found"):
        to_pixels(tmp_path / "absent.png")


# -- names, headers and stores -------------------------------------------------------------------


def test_images_are_recognised_by_content(tmp_path):
    assert looks_like_image(saved(tmp_path / "noname", photo(), format="PNG"))
    (tmp_path / "text.png").write_text("no image")
    assert not looks_like_image(tmp_path / "text.png")
    assert not looks_like_image(tmp_path) and not looks_like_image(tmp_path / "absent")


def test_extensions_are_compared_without_case():
    assert all(map(has_image_extension, ("a.JPG", "b.jpeg", "x/y.WebP", "c.tar.png", "d.HEIC")))
    assert not any(map(has_image_extension, ("jpg", ".png", "a.csv", "a.png.txt", "a.eps")))


def test_a_store_gives_the_pixels_of_the_files_also_after_pickling(tmp_path):
    path = saved(tmp_path / "\u00e9t\u00e9 1.png", photo())
    with lmdb.open(str(tmp_path / "store")) as store, store.begin(write=True) as transaction:
        transaction.put("sub/\u00e9t\u00e9 1.png".encode(), path.read_bytes())
    source = pickle.loads(pickle.dumps(LmdbSource(tmp_path / "store", tmp_path / "root")))
    with open_image(tmp_path / "root" / "sub" / path.name, source) as opened:
        assert np.array_equal(opened.decode().tensor().permute(1, 2, 0).numpy(), decode(path))
    for name in ("absent.png", "x" * 5000):
        with pytest.raises(ImageError, match="store"), open_image(tmp_path / name, source):
            pass


def test_what_is_no_store_is_a_value_error(tmp_path):
    (tmp_path / "file").write_bytes(b"no store" * 100)
    for name in ("absent", "file"):
        with pytest.raises(ValueError, match=f"{name}: no LMDB store"):
            LmdbSource(tmp_path / name, tmp_path)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "CMYK", "1", "I;16"])
@pytest.mark.parametrize(("height", "width", "drawn"), [(700, 90, (100, 13)), (40, 99, (40, 99))])
def test_a_preview_is_the_mean_of_whole_blocks_of_pixels(monkeypatch, mode, height, width, drawn):
    monkeypatch.setattr(images, "REDUCED_ROWS", 20)
    source = Image.fromarray(reference_image(height, width, 3))
    image = source.convert("L").convert("I").convert("I;16") if mode == "I;16" else source
    wrapped = RowImage(image if mode == "I;16" else source.convert(mode))
    factor = 7 if height == 700 else 1
    pixels = wrapped.tensor().permute(1, 2, 0).numpy()
    expected = np.asarray(Image.fromarray(pixels).reduce(factor))
    found = wrapped.preview(100).permute(1, 2, 0).numpy()
    assert found.shape == (*drawn, 3) and np.array_equal(found, expected)
