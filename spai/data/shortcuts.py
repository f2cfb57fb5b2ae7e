"""Can real and generated images be told apart without looking at a pixel?

`container_features` reads what the file alone says (size, dimensions, format, JPEG coding) and
`shortcut_probe` trains a small classifier on it. A data set on which that works teaches, or
rewards, a shortcut; on a test set it is the trivial baseline a detector has to beat.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from PIL import JpegImagePlugin

from spai.data.images import FORMATS, FileSource, ImageError, OpenedImage, open_image

SUBSAMPLINGS = ("4:4:4", "4:2:2", "4:2:0")
FAMILIES: Mapping[str, Sequence[str]] = {
    "file size": ("file_size",),
    "dimensions": ("width", "height", "aspect"),
    "format": ("format",),
    "JPEG coding": ("jpeg_quality", "subsampling"),
}
FEATURES = tuple(name for family in FAMILIES.values() for name in family)

# Luminance quantisation table of the JPEG standard (ITU-T T.81, table K.1), row by row.
_LUMINANCE = np.fromstring(
    """16 11 10 16 24 40 51 61 12 12 14 19 26 58 60 55 14 13 16 24 40 57 69 56
    14 17 22 29 51 87 80 62 18 22 37 56 68 109 103 77 24 35 55 64 81 104 113 92
    49 64 78 87 103 121 120 101 72 92 95 98 112 100 103 99""",
    dtype=np.int64,
    sep=" ",
)


class ContainerFacts(NamedTuple):
    """What a file says without its pixels."""

    file_size: int  # bytes
    width: int  # pixels
    height: int
    format: str  # Pillow's name, one of FORMATS
    jpeg_quality: float  # 1 to 100, estimated; NaN when not a JPEG
    subsampling: str  # one of SUBSAMPLINGS; empty when not a JPEG, grey or unusual


@dataclass(frozen=True)
class ProbeResult:
    """How well the container alone tells the classes apart; 0.5 is chance for both numbers."""

    balanced_accuracy: float
    auc: float
    scores: np.ndarray  # [n] in [0, 1], higher = more likely generated, in the order of the rows


def estimate_jpeg_quality(table: Sequence[int]) -> int:
    """Return the libjpeg quality whose luminance table is nearest in absolute difference.

    Exact for files written by libjpeg, Pillow and OpenCV; phones and Photoshop use tables of their
    own, for which this is the nearest equivalent.

    Args:
        table: 64 quantisation steps, row by row (Pillow's `image.quantization[0]`).
    """
    differences = np.abs(_ijg_tables() - np.asarray(table)).sum(axis=1)  # [100]
    return int(differences.argmin()) + 1


def read_facts(opened: OpenedImage) -> ContainerFacts:
    """Read the container facts of an opened, not yet decoded image."""
    image = opened._image
    quality, subsampling = math.nan, ""
    if isinstance(image, JpegImagePlugin.JpegImageFile):
        code = JpegImagePlugin.get_sampling(image)
        subsampling = SUBSAMPLINGS[code] if code >= 0 else ""
        if 0 in image.quantization:
            quality = float(estimate_jpeg_quality(image.quantization[0]))
    return ContainerFacts(opened.stamp.size, *image.size, image.format or "", quality, subsampling)


def container_features(paths: Iterable[Path | str]) -> pd.DataFrame:
    """Read the headers of image files, one row a path, in order.

    Columns: file_size (bytes), width, height, aspect (width / height), format, jpeg_quality and
    subsampling. A file that is missing or no image has NaN and empty texts.
    """
    return facts_table([_facts_of(Path(path)) for path in paths])


def facts_table(facts: Sequence[ContainerFacts | None]) -> pd.DataFrame:
    """Return the table of `container_features` for facts already read; None is unreadable."""
    unreadable = (math.nan, math.nan, math.nan, "", math.nan, "")
    table = pd.DataFrame([row or unreadable for row in facts], columns=ContainerFacts._fields)
    numbers = ["file_size", "width", "height", "jpeg_quality"]
    table[numbers] = table[numbers].astype(float)
    table.insert(3, "aspect", table["width"] / table["height"])
    return table


def shortcut_probe(
    features: pd.DataFrame,
    labels: Sequence[int] | np.ndarray,
    *,
    test_features: pd.DataFrame | None = None,
    test_labels: Sequence[int] | np.ndarray | None = None,
    columns: Sequence[str] = FEATURES,
    folds: int = 5,
    seed: int = 0,
) -> ProbeResult:
    """Train gradient-boosted trees on container features only.

    With a test set: trained on all of `features`, measured on the test set. Without: stratified
    cross-validation, every row scored by the model that did not see it. Both classes weigh the
    same in training.

    Args:
        features: the columns of `container_features`, n rows.
        labels: [n] 0 real, 1 generated.
        test_features: separate rows to measure on.
        test_labels: [m] their labels.
        columns: the features that the classifier may see.
        folds: parts of the cross-validation; fewer when a class has fewer rows.
        seed: of the split and of the trees.

    Raises:
        ValueError: a missing column, or fewer than 2 rows of a class (1 in a test set).
    """
    import sklearn.ensemble  # noqa: F401  The limit below reaches only libraries already loaded.
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    inputs, targets = _encode(features, columns), _check_labels(labels, features, least=2)
    # One thread: many times faster than several when the machine has other work (they spin).
    with threadpool_limits(1, user_api="openmp"):
        if test_features is None or test_labels is None:
            return _measure(targets, _cross_validated(inputs, targets, folds=folds, seed=seed))
        test_targets = _check_labels(test_labels, test_features, least=1)
        model = _classifier(seed).fit(inputs, targets)
        scores = model.predict_proba(_encode(test_features, columns))[:, 1]
        return _measure(test_targets, scores)


def probe_families(features: pd.DataFrame, labels: Sequence[int] | np.ndarray) -> dict[str, float]:
    """Return the cross-validated balanced accuracy of `all` features and of each family alone."""
    families = {"all": FEATURES, **FAMILIES}
    return {
        name: shortcut_probe(features, labels, columns=columns).balanced_accuracy
        for name, columns in families.items()
    }


def _ijg_tables() -> np.ndarray:
    """[100, 64] luminance tables that libjpeg makes for quality 1 to 100 (its jcparam.c)."""
    quality = np.arange(1, 101)[:, None]
    scale = np.where(quality < 50, 5000 // quality, 200 - 2 * quality)
    return np.clip((_LUMINANCE * scale + 50) // 100, 1, 255)


def _facts_of(path: Path) -> ContainerFacts | None:
    """Read the facts of one file, None when it has none."""
    try:
        with open_image(path, FileSource()) as opened:
            return read_facts(opened)
    except ImageError:
        return None


def _encode(features: pd.DataFrame, columns: Sequence[str]) -> np.ndarray:
    """Return [n, len(columns)] float64: texts as their place in the known list, none or NaN as -1.

    (A column of NaN only, such as the JPEG quality of PNG files, makes scikit-learn fail.)
    """
    absent = [name for name in columns if name not in features]
    if absent:
        raise ValueError(f"container features lack {absent}; they have {list(features.columns)}")
    known = {"format": FORMATS, "subsampling": SUBSAMPLINGS}
    encoded = [
        pd.Index(known[name]).get_indexer(pd.Index(features[name]))
        if name in known
        else features[name]
        for name in columns
    ]
    return np.nan_to_num(np.column_stack(encoded).astype(np.float64), nan=-1.0)


def _check_labels(
    labels: Sequence[int] | np.ndarray, features: pd.DataFrame, *, least: int
) -> np.ndarray:
    """Return the labels as an array after checking values and numbers."""
    targets = np.asarray(labels)
    counts = [int((targets == value).sum()) for value in (0, 1)]
    if len(targets) != len(features) or sum(counts) != len(targets):
        raise ValueError(f"{len(features)} rows need as many labels, each 0 or 1; found {counts}")
    if min(counts) < least:
        raise ValueError(f"{counts} rows of class 0 and 1; the probe needs {least} of each")
    return targets.astype(np.int64)


def _classifier(seed: int):  # type: ignore[no-untyped-def]
    """Return the untrained classifier; trees need no scaling."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    return HistGradientBoostingClassifier(
        min_samples_leaf=5, class_weight="balanced", early_stopping=False, random_state=seed
    )


def _cross_validated(
    inputs: np.ndarray, targets: np.ndarray, *, folds: int, seed: int
) -> np.ndarray:
    """Return [n] scores of class 1, each from the model that did not see the row."""
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    parts = min(folds, int(np.bincount(targets).min()))
    splitter = StratifiedKFold(parts, shuffle=True, random_state=seed)
    scores = cross_val_predict(
        _classifier(seed), inputs, targets, cv=splitter, method="predict_proba"
    )
    return scores[:, 1]


def _measure(targets: np.ndarray, scores: np.ndarray) -> ProbeResult:
    """Return balanced accuracy at 0.5 and area under the ROC curve."""
    from sklearn.metrics import balanced_accuracy_score, roc_auc_score

    accuracy = balanced_accuracy_score(targets, scores > 0.5)
    return ProbeResult(float(accuracy), float(roc_auc_score(targets, scores)), scores)
