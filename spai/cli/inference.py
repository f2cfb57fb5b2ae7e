"""What `spai infer` does: find what there is to score, claim the outputs, score, report."""

import contextlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from spai import weights
from spai.cli.options import Failure, command_line
from spai.cli.page import check_page, write_page
from spai.cli.progress import show_progress
from spai.cli.scoring import (
    ImageChoices,
    choose_backend,
    describe_metrics,
    score_settings,
    source_of,
)
from spai.data.images import LmdbSource
from spai.data.loaders import LoadingOptions
from spai.data.names import printable
from spai.data.records import InputTable, as_text, check_distinct_outputs, read_input
from spai.data.scores import ScoreColumns, ScoreRow, needs_parquet
from spai.detectors import (
    Detector,
    DetectorFile,
    open_detector,
    resolve_device,
    resolve_precision,
)
from spai.engine.calibration_file import CalibrationFile, ScoreOrigin, read_calibration
from spai.engine.distributed import Ranks, local_rank, ranks_of_run
from spai.engine.metrics import compute_metrics, log_odds
from spai.engine.run_files import OutputFiles, check_output_folder, earlier_backend
from spai.engine.scoring import Finished, ScoringRun
from spai.engine.verdicts import VERSIONS, verdict_columns
from spai.report.maps import LONGEST, MapFolder

logger = logging.getLogger(__name__)


def run_infer(
    *,
    inputs: Sequence[Path],
    output: Path,
    model: str | None,
    cfg: Path | None,
    overrides: Sequence[tuple[str, str]],
    device: str,
    precision: str,
    backend: str,
    compile_model: bool,
    csv_root: Path | None,
    split: str,
    tag: str,
    max_patches: int | None,
    recursive: bool,
    resume: bool,
    page: bool,
    kind: str,
    calibration: Path | None,
    attention_maps: bool,
    strict: bool,
    **image_choices: Any,
) -> None:
    """Score the images of some inputs; the arguments are the options of the command.

    Raises:
        ValueError: a mistake in what was asked, found before the model is built.
        Failure: interrupted, the output could not be written, or `strict` and an image failed.
    """
    choices = ImageChoices(**image_choices)
    columns = _columns(
        tag,
        stability=choices.stability,
        patches=max_patches is not None,
        maps=attention_maps,
    )
    if kind == "parquet":
        needs_parquet()
    tables = [
        read_input(path, recursive=recursive, split=split, csv_root=csv_root, exclude=output)
        for path in inputs
    ]
    check_distinct_outputs(tables)
    thresholds = None if calibration is None else read_calibration(calibration)
    verdicts = () if thresholds is None else verdict_columns(columns)
    _check_columns(tables, replace(columns, extras=(*columns.extras, *verdicts)), resume)
    check_output_folder(output)
    if choices.lmdb is not None:
        LmdbSource(choices.lmdb, tables[0].root)
    chosen = resolve_device(device, local_rank=local_rank())
    chosen_precision = resolve_precision(precision, chosen)
    path = weights.chosen_weights(model)
    file = open_detector(path, cfg=cfg, overrides=overrides)
    logger.info("model: %s", weights.describe(file.sha256) or path)
    loading = choices.loading_options(file.config, chosen)
    maps: dict[str, MapFolder] = {}
    if attention_maps:
        maps = _map_folders(output, tables, file)
        loading = replace(loading, preview=LONGEST)
    outputs = [OutputFiles(output, table.name, kind) for table in tables]
    sources = [source_of(table, choices.store(file.config)) for table in tables]
    asked = backend if not resume or backend != "auto" else _earlier_backend(outputs)
    with contextlib.ExitStack() as stack:
        ranks = stack.enter_context(ranks_of_run())
        backend = choose_backend(
            *(asked, file, list(zip(tables, sources, strict=True)), choices),
            device=chosen,
            precision=chosen_precision,
            compile_model=compile_model,
            max_patches=max_patches,
        )
        backend = ranks.gather(backend)[0]  # what is in the cache may change meanwhile
        settings = {
            **score_settings(file, chosen_precision, backend, choices),
            "max_patches": max_patches,
            "split": split,
            "tag": tag,
            "format": kind,
            "attention_maps": attention_maps,
        }
        if thresholds is not None:
            thresholds.check_use(ScoreOrigin.of_run(path.name, settings))
        runs = []
        for table, source, files in zip(tables, sources, outputs, strict=True):
            if page:
                check_page(files, table)
            own = {
                **settings,
                "input": as_text(str(table.source.resolve())),
                "root": as_text(str(table.root.resolve())),
            }
            run = ScoringRun(
                *(table, source, files, columns, own),
                resume=resume,
                ranks=ranks,
                draw=maps.get(table.name),
            )
            stack.callback(run.close)
            runs.append(run)
        detector = file.build(
            device=chosen,
            precision=chosen_precision,
            compile_model=compile_model,
            max_patches=max_patches,
            backend=backend,
        )
        del file  # its tensors, which the model may hold in another precision
        failed = sum(_score(run, detector, loading, ranks, thresholds, page=page) for run in runs)
    if strict and failed:
        raise Failure(f"{failed} images could not be scored (--strict)")


def _score(
    run: ScoringRun,
    detector: Detector,
    loading: LoadingOptions,
    ranks: Ranks,
    calibration: CalibrationFile | None,
    *,
    page: bool,
) -> int:
    """Score one input and say what came of it; return the number of images without a score."""
    table = run.table
    try:
        for _ in show_progress(
            run.score(detector, loading),
            name=table.name,
            done=run.kept,
            total=run.kept + len(run.todo),
            shown=ranks.is_main,
        ):
            pass
        facts = {"model": detector.facts, "command": command_line()}
        finished = run.finish(facts, calibration)
    except (KeyboardInterrupt, OSError, RuntimeError, MemoryError) as error:
        reason = f"stopped: {str(error) or type(error).__name__}"
        if isinstance(error, KeyboardInterrupt):
            reason = "interrupted"
        if "DataLoader worker" in reason:
            reason += ". A worker died over an image: --workers 0 or a lower --max-pixels may help"
        kept = "Nothing was scored yet"
        if run.scored:
            kept = (
                f"What was scored is kept in {run.files.partial()}; "
                "the same command with --resume continues"
            )
        raise Failure(f"{table.source}: {reason}. {kept}") from error
    if not ranks.is_main:
        return 0
    failed = _report(table, finished.rows, run.files.final)
    if page:
        _write_page(run, finished, loading)
    return failed


def _write_page(run: ScoringRun, finished: Finished, loading: LoadingOptions) -> None:
    try:
        write_page(run, finished, loading)
    except KeyboardInterrupt as error:
        raise Failure(
            f"{run.files.page}: interrupted; the scores are complete in {run.files.final}, and the "
            "same command with --resume makes the page"
        ) from error
    logger.info("%s: written", run.files.page)


def _report(table: InputTable, rows: Mapping[int, ScoreRow], final: Path) -> int:
    failed = [row for row in rows.values() if row.score is None]
    logger.info("%s: %d images scored, %d not", final, len(rows) - len(failed), len(failed))
    for row in failed[:5]:
        logger.warning("  %s: %s", printable(row.name), row.error)
    if len(failed) > 5:
        logger.warning("  and %d more; see the error column", len(failed) - 5)
    known = [
        (record.label, rows[record.row].score)
        for record in table.records
        if record.label is not None and rows[record.row].score is not None
    ]
    if known:
        labels, scores = (np.array(values, dtype=np.float64) for values in zip(*known, strict=True))
        metrics = compute_metrics(labels, log_odds(scores), bootstrap=0)
        shown = describe_metrics(metrics)
        logger.info("%s: %s over %d labelled images", table.name, shown, len(known))
    return len(failed)


def _map_folders(
    output: Path, tables: Sequence[InputTable], file: DetectorFile
) -> dict[str, MapFolder]:
    """Return what draws the maps of each input, by its name.

    Raises:
        ValueError: the model has no attention, the maps cannot be written, or would be among the
            images of the next run.
    """
    if not file.has_attention:
        raise ValueError(
            "--attention-maps: this model has no attention over patches "
            f"(MODEL.RESOLUTION_MODE is {file.config.MODEL.RESOLUTION_MODE!r}), so there is "
            "nothing to draw; leave the option out"
        )
    if output.resolve() in {table.source.resolve() for table in tables}:
        raise ValueError(
            f"{output}: the heat maps would lie among the images of this input; choose another "
            "--output"
        )
    folders = {table.name: MapFolder(output, table.name) for table in tables}
    for folder in folders.values():
        if folder.path.exists() and not folder.path.is_dir():
            raise ValueError(f"{folder.path}: is in the way of the heat maps; move it away")
    return folders


def _earlier_backend(outputs: Sequence[OutputFiles]) -> str:
    """Return what ran the encoder in the first run that is resumed, so that its scores go on."""
    found = (earlier_backend(files) for files in outputs)
    return next((name for name in found if name is not None), "auto")


def _columns(tag: str, *, stability: bool, patches: bool, maps: bool) -> ScoreColumns:
    if not tag.strip():
        raise ValueError("--tag: the name of the score column cannot be empty")
    extras = [f"{tag}_{version}" for version in VERSIONS] if stability else []
    columns = ScoreColumns(tag)
    extras += [columns.patches] if patches else []
    extras += [columns.mask] if maps else []
    return replace(columns, extras=tuple(extras))


def _check_columns(tables: Sequence[InputTable], columns: ScoreColumns, resume: bool) -> None:
    """Refuse to overwrite a column of an input, unless it is a run's own output resumed."""
    for table in tables:
        taken = [name for name in columns.names if name in table.frame]
        if taken and (not resume or "image" in taken):
            raise ValueError(
                f"{table.source}: already has the column {taken[0]!r}; choose another --tag"
            )
