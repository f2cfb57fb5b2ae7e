"""Decoding in worker processes: records in, pieces of images out.

What a piece is, the caller decides by the function that cuts a decoded image; a large image is
handed over in pieces as they are cut and never travels whole.
"""

import contextlib
import multiprocessing
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from spai.data.images import (
    MAX_PIXELS,
    FileStamp,
    ImageError,
    RowImage,
    Source,
    decoding_errors,
    open_image,
)
from spai.data.perturb import Perturbation
from spai.data.records import ImageRecord

# Images above this are decoded one at a time over all workers: their memory would add up.
HUGE_PIXELS = 64_000_000


class LoadedPiece(NamedTuple):
    """A piece of one version of an image, or the end of what can be had of it.

    position: of the image in the list of records.
    variant: which of the preparations it went through.
    piece: what the cutting function yielded; None with an error.
    stamp: of the file that was read.
    error: why this version gives nothing more; None otherwise.
    preview: with the first piece of an image whose preview is wanted, uint8 [3, h, w].
    """

    position: int
    variant: int
    piece: Any
    stamp: FileStamp
    error: str | None
    preview: Tensor | None = None


@dataclass(frozen=True)
class Preparation:
    """What happens to a decoded image before it is cut.

    Attributes:
        perturbation: a degradation to test against.
        resize_to: shrink so that the longer side is at most this, pixels.
        seed: of the perturbation's noise.
    """

    perturbation: Perturbation | None = None
    resize_to: int | None = None
    seed: int = 0

    def __call__(self, image: RowImage, row: int) -> RowImage:
        """Apply it to the image of an input row."""
        if self.perturbation is not None:
            pixels = self.perturbation(image.tensor(), seed=self.seed, row=row)
            image = RowImage.from_tensor(pixels)
        return image if self.resize_to is None else image.shrink(self.resize_to)


@dataclass(frozen=True)
class LoadingOptions:
    """How images are decoded.

    Attributes:
        workers: processes; 0 decodes in this one.
        prefetch: pieces that each worker may be ahead.
        max_pixels: larger images are an error.
        preparations: the versions of each image that are wanted, in order.
        pin_memory: keep pieces where a GPU copies them fastest.
        preview: longest side of the previews of the first preparations, pixels; None for none.
        at_least: None for all pixels; else smaller versions do, as of `OpenedImage.decode`.
    """

    workers: int = 0
    prefetch: int = 2
    max_pixels: int = MAX_PIXELS
    preparations: tuple[Preparation, ...] = (Preparation(),)
    pin_memory: bool = False
    preview: int | None = None
    at_least: int | None = None


def load_pieces(
    records: Sequence[ImageRecord],
    source: Source,
    cut: Callable[[Any], Iterator[Any]],
    options: LoadingOptions,
) -> Iterator[LoadedPiece]:
    """Decode and cut images.

    The pieces of one image come in order; those of different images may come interleaved.

    Args:
        records: what to read.
        source: where from.
        cut: a picklable function from a decoded image to its pieces.
        options: how.

    Yields:
        Each piece, and for a version of an image that cannot be had one with an error instead of
        the rest; an image that cannot be read gives one such for each version.
    """
    workers = min(options.workers, len(records))
    dataset = _Pieces(records, source, cut, options, multiprocessing.Lock())
    if workers == 0:
        yield from dataset
        return
    yield from DataLoader(
        dataset,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=options.prefetch,
        collate_fn=_unchanged,
        pin_memory=options.pin_memory,
        worker_init_fn=ignore_interrupts,
        in_order=False,  # in order, workers that wait for their turn at a huge image would deadlock
    )


class _Pieces(IterableDataset[LoadedPiece]):
    """The pieces of this worker's share of the records."""

    def __init__(
        self,
        records: Sequence[ImageRecord],
        source: Source,
        cut: Callable[[Any], Iterator[Any]],
        options: LoadingOptions,
        turn: Any,
    ) -> None:
        self.records, self.source, self.cut = records, source, cut
        self.options, self.turn = options, turn

    def __iter__(self) -> Iterator[LoadedPiece]:
        worker = get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for position in range(first, len(self.records), step):
            yield from self._image_pieces(position)

    def _image_pieces(self, position: int) -> Iterator[LoadedPiece]:
        record, stamp = self.records[position], FileStamp()
        versions = range(len(self.options.preparations))
        try:
            with contextlib.ExitStack() as stack:
                opened = stack.enter_context(
                    open_image(record.path, self.source, self.options.max_pixels)
                )
                stamp = opened.stamp
                if opened.pixels > HUGE_PIXELS:
                    stack.enter_context(self.turn)
                image = opened.decode(self.options.at_least)
                for variant in versions:
                    yield from self._version_pieces(position, variant, image, stamp)
        except ImageError as error:
            for variant in versions:
                yield LoadedPiece(position, variant, None, stamp, str(error))

    def _version_pieces(
        self, position: int, variant: int, image: RowImage, stamp: FileStamp
    ) -> Iterator[LoadedPiece]:
        preview = None
        try:
            with decoding_errors():
                row = self.records[position].row
                prepared = self.options.preparations[variant](image, row)
            if variant == 0 and self.options.preview is not None:
                preview = prepared.preview(self.options.preview)
            for piece in self.cut(prepared):
                yield LoadedPiece(position, variant, piece, stamp, None, preview)
                preview = None
        except ImageError as error:
            yield LoadedPiece(position, variant, None, stamp, str(error))


def _unchanged(piece: Any) -> Any:
    return piece


def ignore_interrupts(worker: int) -> None:
    """Leave Ctrl-C to the main process, which ends the workers.

    The thread that hands tensors over may then lose its peer, which is nothing to report.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    report = sys.excepthook
    sys.excepthook = lambda kind, error, trace: (
        None if issubclass(kind, (ConnectionError, EOFError)) else report(kind, error, trace)
    )
