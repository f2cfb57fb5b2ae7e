"""Small copies of images, for pages that people look at.

They are made after scoring, by the same decoding workers: JPEGs at a fraction of their size, other
formats in full, huge images one at a time. So a resumed run has them for the images that an
earlier run scored, and scoring does not carry them along.
"""

import functools
import io
from collections.abc import Iterator, Sequence

from spai.data.images import MAX_PIXELS, RowImage, Source
from spai.data.loaders import LoadingOptions, load_pieces
from spai.data.records import ImageRecord

WEBP_QUALITY = 60
# Fewer images a worker than this take less time than starting it.
IMAGES_PER_WORKER = 32
PREFETCH = 8


def thumbnails(
    records: Sequence[ImageRecord],
    source: Source,
    *,
    side: int,
    workers: int = 0,
    max_pixels: int = MAX_PIXELS,
) -> Iterator[tuple[int, bytes]]:
    """Yield small copies of images, in any order; images that cannot be read are left out.

    They show the pixels that are scored: no EXIF rotation, no colour profile.

    Args:
        records: the images.
        source: where they come from.
        side: the longer side of a copy, pixels.
        workers: decoding processes at most.
        max_pixels: larger images are left out.

    Yields:
        The position in `records`, and the copy as a WebP file.
    """
    options = LoadingOptions(
        workers=min(workers, len(records) // IMAGES_PER_WORKER),
        prefetch=PREFETCH,
        max_pixels=max_pixels,
        at_least=2 * side,
    )
    for loaded in load_pieces(records, source, functools.partial(_encoded, side=side), options):
        if loaded.error is None:
            yield loaded.position, loaded.piece


def _encoded(image: RowImage, *, side: int) -> Iterator[bytes]:
    file = io.BytesIO()
    image.thumbnail(side).save(file, format="WEBP", quality=WEBP_QUALITY, method=2)
    yield file.getvalue()
