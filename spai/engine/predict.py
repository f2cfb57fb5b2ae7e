"""The only inference loop: records in, predictions out, one by one."""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from spai.data.images import FileStamp, Source
from spai.data.loaders import LoadedPiece, LoadingOptions, load_pieces
from spai.data.records import ImageRecord
from spai.detectors import Detector, ImageFeatures, ImageScore
from spai.models.patches import PatchLayout, PatchPiece

# Keys of a stream number the versions of all images.
Key = int


@dataclass(frozen=True)
class Prediction:
    """What came of one record.

    Attributes:
        record: the image.
        stamp: of the file that was read.
        logits: log-odds of being generated, one for each preparation; NaN where there is none.
        errors: why a preparation has no logit, one for each; empty where it has one.
        attention: [heads, K] of the first preparation, None where there is none.
        layout: where its patches lie, None when it has an error.
        features: of the first preparation; None unless the detector keeps them.
        patches: how many patches the model looked at, over all preparations.
        preview: the image as the model saw it first, reduced, uint8 [3, h, w]; None when it was
            not asked for.
        drawing: where a picture of the attention lies, None where there is none.
    """

    record: ImageRecord
    stamp: FileStamp
    logits: tuple[float, ...]
    errors: tuple[str, ...]
    attention: Tensor | None = None
    layout: PatchLayout | None = None
    features: ImageFeatures | None = None
    patches: int = 0
    preview: Tensor | None = None
    drawing: str | None = None

    @property
    def error(self) -> str | None:
        """Why the image, that is its first preparation, has no score; None when it has one."""
        return self.errors[0] or None


def predict(
    detector: Detector, records: Sequence[ImageRecord], source: Source, options: LoadingOptions
) -> Iterator[Prediction]:
    """Score images, each as soon as its patches have gone through the model.

    An image that cannot be read, or a preparation that cannot be done, costs its own logit and
    nothing else.

    Args:
        detector: gives the scores.
        records: the images; predictions may come in another order.
        source: where encoded images come from.
        options: how they are decoded.

    Yields:
        One prediction for each record.
    """
    versions = len(options.preparations)
    first_pieces: dict[int, LoadedPiece] = {}
    errors: dict[Key, str] = {}
    found: dict[int, dict[int, ImageScore | str]] = defaultdict(dict)

    def pieces() -> Iterator[tuple[Key, PatchPiece | None]]:
        for loaded in load_pieces(records, source, detector.cutter, options):
            first_pieces.setdefault(loaded.position, loaded._replace(piece=None))
            key = loaded.position * versions + loaded.variant
            if loaded.error is not None:
                errors[key] = loaded.error
            yield key, loaded.piece

    for key, score in detector.stream(pieces()):
        position, variant = divmod(key, versions)
        found[position][variant] = errors.pop(key) if score is None else score
        if len(found[position]) == versions:
            yield _prediction(records[position], first_pieces.pop(position), found.pop(position))


def _prediction(
    record: ImageRecord, loaded: LoadedPiece, found: Mapping[int, ImageScore | str]
) -> Prediction:
    """Bring together what came of each preparation of an image."""
    results = [_finite(found[variant]) for variant in range(len(found))]
    scores = [result for result in results if isinstance(result, ImageScore)]
    first = results[0] if isinstance(results[0], ImageScore) else None
    return Prediction(
        record,
        loaded.stamp,
        tuple(math.nan if isinstance(result, str) else result.logit for result in results),
        tuple(result if isinstance(result, str) else "" for result in results),
        attention=None if first is None else first.attention,
        layout=None if first is None else first.layout,
        features=None if first is None else first.features,
        patches=sum(len(score.layout.corners) for score in scores),
        preview=loaded.preview,
    )


def _finite(result: ImageScore | str) -> ImageScore | str:
    if isinstance(result, ImageScore) and not math.isfinite(result.logit):
        return f"the model gives no finite logit ({result.logit})"
    return result
