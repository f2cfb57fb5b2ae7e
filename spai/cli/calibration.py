"""What `spai calibrate` does: read scores and what made them, compute thresholds, write them."""

import logging
from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np

from spai import weights
from spai.data.scores import format_number
from spai.engine.calibration import Calibration, calibrate
from spai.engine.calibration_file import (
    ScoreOrigin,
    read_calibration,
    read_origin,
    write_calibration,
)
from spai.files import file_sha256
from spai.report.results import read_scores

logger = logging.getLogger(__name__)


def run_calibrate(
    *,
    files: Sequence[Path],
    real: Sequence[Path],
    generated: Sequence[Path],
    score_column: str,
    targets: Sequence[float],
    model: str | None,
    output: Path | None,
) -> None:
    """Calibrate a model by score CSVs; the arguments are the options of the command.

    Raises:
        ValueError: a mistake in what was asked, or scores that cannot support it.
    """
    model_file = None if model is None else weights.find_weights(model)
    inputs = (*files, *real, *generated)
    target = _target(output, model_file)
    table = read_scores(files, column=score_column, real=real, generated=generated)
    origin = _common_origin(inputs, score_column)
    if model_file is not None:
        _check_model(model_file, origin, inputs[0])
    # As infer writes them: the last bits would tell the images of a threshold apart.
    scores = np.array([float(format_number(score)) for score in table["score"]], dtype=np.float64)
    usable = ((table["error"] == "") & np.isfinite(scores)).to_numpy(dtype=np.bool_)
    labels = table["class"].to_numpy(dtype=np.int64)
    real_scores, generated_scores = (scores[usable & (labels == label)] for label in (0, 1))
    if not len(real_scores):
        raise ValueError(
            "no real image with a score: thresholds are found on real images (class 0, or --real)"
        )
    calibration = calibrate(real_scores, generated_scores, targets)
    used = [{"file": path.name, "sha256": file_sha256(path)} for path in inputs]
    write_calibration(target, calibration, origin, used)
    _report(calibration, skipped=int(np.count_nonzero(~usable)))
    click.echo(target)


def _target(output: Path | None, model_file: Path | None) -> Path:
    """Return the file to write; it may replace a calibration and nothing else."""
    if output is None and model_file is None:
        raise ValueError(
            "where to? Name a file with --output, or the model with --model to write beside it"
        )
    if output is None:
        assert model_file is not None
        output = model_file.with_name(f"{model_file.stem}.calibration.json")
    if output.is_dir():
        raise ValueError(f"{output}: is a folder; name a file with --output")
    if output.exists():
        try:
            read_calibration(output)
        except ValueError as error:
            raise ValueError(
                f"{output}: is there already and is no calibration; name another file with --output"
            ) from error
    return output


def _common_origin(inputs: Sequence[Path], column: str) -> ScoreOrigin:
    """Return what made the scores of all files."""
    origins = [read_origin(path, column) for path in inputs]
    first = origins[0]
    for path, origin in zip(inputs, origins, strict=True):
        if origin.sha256 != first.sha256:
            raise ValueError(
                f"{inputs[0]} and {path}: scores of two models, {first.model} (SHA-256 "
                f"{first.sha256}) and {origin.model} (SHA-256 {origin.sha256}); calibrate each "
                "on its own"
            )
        found = first.differences(origin)
        if found:
            raise ValueError(
                f"{inputs[0]} and {path}: scored with different settings: {'; '.join(found[:5])}; "
                "score all images alike"
            )
    return first


def _check_model(model_file: Path, origin: ScoreOrigin, scores: Path) -> None:
    sha256 = file_sha256(model_file)
    if sha256 != origin.sha256:
        raise ValueError(
            f"{scores}: scores of the model {origin.model} (SHA-256 {origin.sha256}), not of "
            f"{model_file} (SHA-256 {sha256}); score the images with this model"
        )


def _report(calibration: Calibration, *, skipped: int) -> None:
    logger.info(
        "real images: %d, generated: %d, without a score: %d",
        calibration.real,
        calibration.generated,
        skipped,
    )
    for found in calibration.thresholds:
        low, high = found.true_fpr_interval
        logger.info(
            "target FPR %g %%: generated from a score of %.6g; %d of %d real images reach it, "
            "of further ones %.2g to %.2g %% (95 %%)%s",
            *(100 * found.target_fpr, found.threshold, found.false_positives, calibration.real),
            *(100 * low, 100 * high),
            "" if found.tpr is None else f"; {100 * found.tpr:.1f} % of the generated images do",
        )
    for note in calibration.notes:
        logger.warning("%s", note)
