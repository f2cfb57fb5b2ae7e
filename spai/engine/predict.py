"""The only inference loop: records in, predictions out, one by one."""

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from spai.data.images import FileStamp, Source
from spai.data.loaders import LoadedPiece, LoadingOptions, load_pieces
from spai.data.records import ImageRecord
from spai.detectors import Detector, ImageScore
from spai.models.patches import PatchLayout, PatchPiece

# Keys of a stream number the versions of all images.
Key = int


@dataclass(frozen=True)
class Prediction:
    """What came of one record.

    Attributes:
        record: the image.
        stamp: of the file that was read.
        logits: log-odds of being generated, one for each preparation; empty with an error.
        error: why the image has no score; None when it has one.
        attention: [heads, K] of the first preparation, None where there is none.
        layout: where its patches lie, None with an error.
        preview: the image as the model saw it first, reduced, uint8 [3, h, w]; None when it was
            not asked for.
        drawing: where a picture of the attention lies, None where there is none.
    """

    record: ImageRecord
    stamp: FileStamp
    logits: tuple[float, ...] = ()
    error: str | None = None
    attention: Tensor | None = None
    layout: PatchLayout | None = None
    preview: Tensor | None = None
    drawing: str | None = None

    @property
    def patches(self) -> int:
        """How many patches the model looked at, over all preparations."""
        return 0 if self.layout is None else len(self.layout.corners) * len(self.logits)


def predict(
    detector: Detector, records: Sequence[ImageRecord], source: Source, options: LoadingOptions
) -> Iterator[Prediction]:
    """Score images, each as soon as its patches have gone through the model.

    An image that cannot be read costs its own prediction an error and nothing else.

    Args:
        detector: gives the scores.
        records: the images; predictions may come in another order.
        source: where encoded images come from.
        options: how they are decoded.

    Yields:
        One prediction for each record.
    """
    versions = len(options.preparations)
    failed: deque[Prediction] = deque()
    first_pieces: dict[int, LoadedPiece] = {}
    scored: dict[int, dict[int, ImageScore]] = {}

    def pieces() -> Iterator[tuple[Key, PatchPiece | None]]:
        for loaded in load_pieces(records, source, detector.cutter, options):
            if loaded.error is None:
                first_pieces.setdefault(loaded.position, loaded._replace(piece=None))
                yield loaded.position * versions + loaded.variant, loaded.piece
                continue
            first_pieces.pop(loaded.position, None)
            scored.pop(loaded.position, None)
            failed.append(_failure(records, loaded))
            yield from ((loaded.position * versions + variant, None) for variant in range(versions))

    for key, score in detector.stream(pieces()):
        while failed:
            yield failed.popleft()
        if score is None:
            continue
        position, variant = divmod(key, versions)
        scored.setdefault(position, {})[variant] = score
        if len(scored[position]) == versions:
            scores = [scored[position][i] for i in range(versions)]
            del scored[position]
            yield _success(records[position], first_pieces.pop(position), scores)


def _success(record: ImageRecord, loaded: LoadedPiece, scores: list[ImageScore]) -> Prediction:
    logits = tuple(score.logit for score in scores)
    if not all(map(math.isfinite, logits)):
        return Prediction(
            record, loaded.stamp, error=f"the model gives no finite logit ({logits[0]})"
        )
    first = scores[0]
    return Prediction(
        record, loaded.stamp, logits, None, first.attention, first.layout, loaded.preview
    )


def _failure(records: Sequence[ImageRecord], loaded: LoadedPiece) -> Prediction:
    return Prediction(records[loaded.position], loaded.stamp, error=loaded.error)
