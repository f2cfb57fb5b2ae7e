"""The one place that opens images: from a file, an LMDB store or a caller's object to RGB bytes.

Pixels follow the published pipeline: Pillow's RGB conversion, no EXIF rotation, no colour profile,
alpha dropped, the first frame of an animation. 16-bit greyscale is scaled to 8 bits, not clipped.
"""

import contextlib
import importlib.util
import io
import math
import os
import stat
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import filetype
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from spai.data.lmdb import lmdb_package, open_store, store_key

MAX_PIXELS = 500_000_000

# Formats that Pillow decodes by itself; others (EPS among them) would start other programs.
FORMATS = (
    *("AVIF", "BMP", "DIB", "GIF", "HEIF", "ICO", "JPEG", "JPEG2000", "MPO", "PCX", "PNG"),
    *("PPM", "PSD", "QOI", "SGI", "TIFF", "WEBP"),
)
EXTENSIONS = frozenset(
    (
        *(".apng", ".avif", ".bmp", ".dib", ".gif", ".heic", ".heif", ".ico", ".j2k", ".jfif"),
        *(".jp2", ".jpe", ".jpeg", ".jpg", ".jpx", ".jxl", ".mpo", ".pbm", ".pcx", ".pgm"),
        *(".png", ".pnm", ".ppm", ".psd", ".qoi", ".sgi", ".tif", ".tiff", ".webp"),
    )
)
HEADER_BYTES = 512
REDUCED_ROWS = 256  # rows converted at once for a small copy, so that a huge image is there once


class ImageError(ValueError):
    """Why an image cannot be scored, in words for its row of the output."""


@dataclass(frozen=True)
class FileStamp:
    """Tells whether a file changed since: its bytes and modification time (0 in a store)."""

    size: int = 0
    mtime_ns: int = 0


class Source(Protocol):
    """Where encoded images come from."""

    def open(self, path: Path) -> tuple[Path | io.BytesIO, FileStamp]:
        """Return something Pillow can open, and its stamp.

        Raises:
            ImageError: there is no such image.
        """
        ...


class FileSource:
    """Images that are files."""

    def open(self, path: Path) -> tuple[Path, FileStamp]:
        """Return the path itself when it is a file with content."""
        try:
            status = os.stat(path)
        except FileNotFoundError as error:
            kind = "link to a missing file" if path.is_symlink() else "file not found"
            raise ImageError(kind) from error
        except (OSError, ValueError) as error:
            raise ImageError(f"cannot be read: {_reason(error)}") from error
        if not stat.S_ISREG(status.st_mode):
            raise ImageError("not a regular file")
        if status.st_size == 0:
            raise ImageError("empty file")
        return path, FileStamp(status.st_size, status.st_mtime_ns)


class LmdbSource:
    """Images packed into an LMDB store under their names in the CSV (see scripts/pack_lmdb.py)."""

    def __init__(self, store: Path, root: Path) -> None:
        """Name a store.

        Args:
            store: the LMDB file or folder.
            root: what the paths of the records are relative to; the rest is the key.

        Raises:
            ValueError: the store cannot be opened, or the package lmdb is not installed.
        """
        self.store, self.root = store, root
        self._transaction: Any = None
        self._begun_by = -1
        self._begin()

    def open(self, path: Path) -> tuple[io.BytesIO, FileStamp]:
        """Return the bytes stored for a path."""
        key = store_key(path, self.root)
        try:
            content = self._begin().get(key)
        except lmdb_package().Error as error:  # such as a key that is empty or too long
            name = os.fsdecode(key)
            raise ImageError(f"{name!r} cannot be read from {self.store}: {error}") from error
        if content is None:
            raise ImageError(f"no image {os.fsdecode(key)!r} in {self.store}")
        return io.BytesIO(content), FileStamp(len(content))

    def _begin(self) -> Any:
        """Return this process's transaction."""
        if self._begun_by != os.getpid():
            self._transaction = open_store(self.store).begin()
            self._begun_by = os.getpid()
        return self._transaction

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_transaction": None, "_begun_by": -1}


class RowImage:
    """A decoded Pillow image whose rows are converted to RGB when they are read.

    It stands for a uint8 tensor [3, H, W] without ever being one, so that a very large image is in
    memory once.
    """

    def __init__(self, image: Image.Image) -> None:
        """Wrap a loaded image.

        Raises:
            ImageError: it is empty, or its mode has no brightness range.
        """
        if 0 in image.size:
            raise ImageError(f"an image needs at least one pixel, found {image.size}")
        if image.mode == "F":
            raise ImageError("floating-point pixels (mode F) have no defined brightness range")
        self._image = image

    @classmethod
    def from_tensor(cls, pixels: Tensor) -> "RowImage":
        """Wrap uint8 pixels [3, H, W]."""
        return cls(Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy()))

    @property
    def shape(self) -> tuple[int, int, int]:
        """3, height and width in pixels."""
        return 3, self._image.height, self._image.width

    def __getitem__(self, rows: tuple[slice, slice]) -> Tensor:
        """Return `[:, top:bottom]` as a uint8 tensor [3, rows, W].

        Raises:
            ImageError: the mode has no RGB form, or there is not enough memory.
        """
        top, bottom, _ = rows[1].indices(self._image.height)
        with decoding_errors(), _no_pixel_limit():
            part = self._image.crop((0, top, self._image.width, bottom))
            return torch.from_numpy(np.array(_to_rgb(part))).permute(2, 0, 1)

    def tensor(self) -> Tensor:
        """Return the whole image, uint8 [3, H, W]."""
        return self[:, 0 : self._image.height]

    def preview(self, longest: int) -> Tensor:
        """Return the image for drawing, uint8 [3, h, w], its longer side at most `longest`.

        Both sides are divided by the same whole number, rounded up, and each pixel is the mean of
        those it stands for. Read in bands, so that a large image is not converted as a whole.
        """
        factor = -(-max(self._image.size) // longest)
        return torch.from_numpy(np.array(self._reduced(factor))).permute(2, 0, 1)

    def shrink(self, longest: int) -> "RowImage":
        """Return the image with its longer side at most `longest` pixels (Lanczos)."""
        width, height = self._image.size
        scale = longest / max(width, height)
        if scale >= 1:
            return self
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        return RowImage(_to_rgb(self._image).resize(size, Image.Resampling.LANCZOS))

    def thumbnail(self, longest: int) -> Image.Image:
        """Return a small RGB copy for people to look at, its longer side at most `longest` pixels.

        It is reduced in bands to about twice its size and then resampled: quick, and in little
        memory. Scores never come from it.
        """
        small = self._reduced(max(1, max(self._image.size) // (2 * longest)))
        small.thumbnail((longest, longest), Image.Resampling.LANCZOS)
        return small

    def _reduced(self, factor: int) -> Image.Image:
        """Return the image with both sides divided by a whole number, rounded up."""
        width, height = self._image.size
        small = Image.new("RGB", (math.ceil(width / factor), math.ceil(height / factor)))
        rows = factor * max(1, REDUCED_ROWS // factor)
        with decoding_errors(), _no_pixel_limit():
            for top in range(0, height, rows):
                band = self._image.crop((0, top, width, min(top + rows, height)))
                small.paste(_to_rgb(band).reduce(factor), (0, top // factor))
        return small


class OpenedImage:
    """An image file whose header was read and whose pixels were not."""

    def __init__(self, image: Image.Image, stamp: FileStamp) -> None:
        self._image, self.stamp = image, stamp

    @property
    def pixels(self) -> int:
        """Width times height."""
        return self._image.width * self._image.height

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self._image.height, self._image.width

    def decode(self, at_least: int | None = None) -> RowImage:
        """Decode all pixels, or a smaller version where the format offers one.

        Args:
            at_least: None for all pixels; else a JPEG may come out at a half, a quarter or an
                eighth of its size, its longer side not below this, at a fraction of the cost.

        Raises:
            ImageError: the data are damaged or of a kind that cannot be shown as RGB.
        """
        with decoding_errors(), _no_pixel_limit():  # TIFF and ICO check it again
            if at_least is not None:
                scale = at_least / max(self._image.size)
                width, height = (max(1, math.ceil(side * scale)) for side in self._image.size)
                self._image.draft(None, (width, height))
            self._image.load()
            return RowImage(self._image)


@contextlib.contextmanager
def open_image(path: Path, source: Source, max_pixels: int = MAX_PIXELS) -> Iterator[OpenedImage]:
    """Open an image and read its header.

    Args:
        path: as the source knows it.
        source: where the bytes come from.
        max_pixels: larger images are refused before they are decoded.

    Raises:
        ImageError: missing, unreadable, not an image or too large.
    """
    file, stamp = source.open(path)
    _register_heif()
    with contextlib.ExitStack() as stack:
        with decoding_errors(), _no_pixel_limit():
            image = stack.enter_context(Image.open(file, formats=_formats()))
        if image.width * image.height > max_pixels:
            raise ImageError(
                f"{image.width}x{image.height} is {image.width * image.height:,} pixels, "
                f"more than the limit of {max_pixels:,} (--max-pixels)"
            )
        yield OpenedImage(image, stamp)


def to_pixels(image: Any) -> "RowImage | Tensor":
    """Accept what callers have: a path, a Pillow image, an array or a tensor.

    Args:
        image: a path; a Pillow image; a uint8 array [H, W, 3] or [H, W]; a uint8 tensor [3, H, W].

    Raises:
        ValueError: of another type, shape or dtype.
        ImageError: a file that cannot be decoded.
    """
    if isinstance(image, (str, os.PathLike)):
        try:
            with open_image(Path(image), FileSource()) as opened:
                return opened.decode()
        except ImageError as error:
            raise ImageError(f"{os.fspath(image)}: {error}") from error
    if isinstance(image, Image.Image):
        with decoding_errors():
            image.load()
        return RowImage(image)
    if isinstance(image, np.ndarray):
        if image.dtype == np.uint8 and (image.ndim == 2 or image.ndim == 3 and image.shape[2] == 3):
            planes = image if image.ndim == 3 else image[:, :, None].repeat(3, axis=2)
            owned = np.require(planes, requirements=("C", "W"))  # torch warns of read-only ones
            return _not_empty(torch.from_numpy(owned).permute(2, 0, 1))
        raise ValueError(
            f"an array must be uint8 [H, W, 3] or [H, W], found {image.dtype} {list(image.shape)}"
        )
    if isinstance(image, Tensor):
        if image.dtype == torch.uint8 and image.ndim == 3 and image.shape[0] == 3:
            return _not_empty(image.cpu())
        raise ValueError(
            f"a tensor must be uint8 [3, H, W], found {image.dtype} {list(image.shape)}"
        )
    raise ValueError(f"cannot score a {type(image).__name__}; give a path, image, array or tensor")


def looks_like_image(path: Path) -> bool:
    """Tell by its first bytes whether a file is an image of a known kind."""
    try:
        with path.open("rb") as file:
            return is_image_header(file.read(HEADER_BYTES))
    except OSError:
        return False


def is_image_header(head: bytes) -> bool:
    """Tell whether these first bytes of a file are those of an image."""
    return filetype.image_match(head) is not None


def has_image_extension(name: str) -> bool:
    """Tell whether a file name ends like an image's."""
    return os.path.splitext(name)[1].lower() in EXTENSIONS


@contextlib.contextmanager
def decoding_errors() -> Iterator[None]:
    """Turn whatever a decoder raises on a damaged or hostile file into an ImageError."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # remarks on metadata, which is not used
        try:
            yield
        except ImageError:
            raise
        except Image.UnidentifiedImageError as error:
            raise ImageError("not an image, or of a format that is not supported") from error
        except MemoryError as error:
            raise ImageError("not enough memory to decode it") from error
        except Exception as error:  # decoders raise nearly anything on damaged files
            raise ImageError(f"cannot be decoded: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return (text or type(error).__name__).strip()


class _NoPixelLimit:
    """Lift Pillow's limit of pixels for our decoding only; ours is checked instead.

    Pillow has one for the whole process: it is back when the last of the threads here has left.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._limit: int | None = None

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        with self._lock:
            if self._inside == 0:
                self._limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if self._inside == 0:
                    Image.MAX_IMAGE_PIXELS = self._limit


_no_pixel_limit = _NoPixelLimit()


def _register_heif() -> None:
    """Let Pillow read HEIF when the optional package is there."""
    if "HEIF" not in Image.OPEN and importlib.util.find_spec("pillow_heif"):
        import pillow_heif

        Image.init()
        pillow_heif.register_heif_opener()


def _formats() -> list[str]:
    """Return the allowed formats that this Pillow knows."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "I" or image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.float64)
        grey = np.rint(values / 257).clip(0, 255).astype(np.uint8)
        image = Image.fromarray(grey)
    if image.mode == "RGB":
        return image
    with decoding_errors():
        return image.convert("RGB")


def _not_empty(image: Tensor) -> Tensor:
    if image.numel() == 0:
        raise ValueError(f"an image needs at least one pixel, found shape {list(image.shape)}")
    return image
