"""What `spai test` does: one model file after the other, each over every CSV."""

import functools
import importlib.metadata
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import pandas as pd
import torch
from yacs.config import CfgNode

from spai import weights
from spai.cli.options import command_line
from spai.cli.page import pictures_at
from spai.cli.perturbations import parse_levels
from spai.cli.progress import show_progress
from spai.cli.scoring import (
    ImageChoices,
    choose_backend,
    describe_metrics,
    score_settings,
    source_of,
)
from spai.data.loaders import LoadingOptions
from spai.data.records import InputTable, natural_key
from spai.detectors import Detector, resolve_device, resolve_precision
from spai.detectors.spai import SpaiFile
from spai.engine.distributed import Ranks, local_rank, ranks_of_run
from spai.engine.evaluate import (
    add_score_column,
    check_images,
    check_new_column,
    gather_scores,
    read_test_csvs,
    score_column,
    share_of,
)
from spai.engine.predict import predict
from spai.engine.run_files import versions
from spai.files import file_sha256
from spai.report.checkpoints import SUMMARY_FILES, CheckpointResults, write_checkpoints
from spai.report.perturbed import PERTURBED_FILES, PerturbedScores, write_perturbed
from spai.report.results import RESULT_FILES, Results, check_not_overwritten, write_results
from spai.report.results_page import Pictures

CHECKPOINTS = "ckpt_epoch_*.pth"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A model file to test.

    Attributes:
        file: read and checked.
        output: folder of its results.
        column: what its scores are called in an updated CSV.
    """

    file: SpaiFile
    output: Path
    column: str


@dataclass(frozen=True)
class Evaluation:
    """What all checkpoints of a run share.

    Attributes:
        tables: the data sets.
        choices: how images are read.
        device: where models run.
        precision: of the patch encoder.
        compile_model: use torch.compile.
        backend: what runs the patch encoder, or "auto".
        update_csv: add the scores to the CSVs.
        facts: what the results say of the run besides the model.
    """

    tables: Sequence[InputTable]
    choices: ImageChoices
    device: torch.device
    precision: str
    compile_model: bool
    backend: str
    update_csv: bool
    facts: dict[str, Any]

    def check(self, checkpoint: Checkpoint) -> None:
        """Raise ValueError for what cannot work, before a model is built."""
        self.loading_options(checkpoint.file.config)
        self.choose_backend(checkpoint)
        names = (*RESULT_FILES, *(PERTURBED_FILES if self.choices.levels else ()))
        _check_output(checkpoint.output, [table.source for table in self.tables], names)
        for table in self.tables:
            check_images(table, source_of(table, self.choices.store(checkpoint.file.config)))
            if self.update_csv:
                check_new_column(table, checkpoint.column)

    def run(self, checkpoint: Checkpoint, ranks: Ranks) -> Results | None:
        """Test a checkpoint and write its results; they are returned on rank 0 only."""
        started = time.monotonic()
        backend = ranks.gather(self.choose_backend(checkpoint))[0]
        detector = checkpoint.file.build(
            device=self.device,
            precision=self.precision,
            compile_model=self.compile_model,
            backend=backend,
        )
        scores = [self._score(table, checkpoint, detector, ranks) for table in self.tables]
        if not ranks.is_main:
            return None
        facts = self._facts(checkpoint.file, detector)
        seconds = round(time.monotonic() - started, 3)
        facts |= {"ranks": ranks.world, "seconds": seconds}
        store = self.choices.store(checkpoint.file.config)
        sources = [source_of(table, store) for table in self.tables]
        limit = self.choices.max_pixels
        pictures = functools.partial(pictures_at, self.tables, sources, limit)
        results = self._write(checkpoint.output, scores, facts, pictures)
        for name, metrics in results.metrics.items():
            shown = describe_metrics(metrics)
            logger.info("%s: %s over %d images", name, shown, metrics.count)
            if metrics.errors:
                logger.warning("%s: images without a score: %d", name, metrics.errors)
        if self.update_csv:
            for table, (rows, *_) in zip(self.tables, scores, strict=True):
                _update_csv(table, checkpoint.column, rows)
        return results

    def loading_options(self, config: CfgNode) -> LoadingOptions:
        """Return how images are decoded under a model's configuration."""
        ahead = config.DATA.TEST_BATCH_SIZE or self.choices.batch_size
        return replace(self.choices, batch_size=ahead).loading_options(config, self.device)

    def choose_backend(self, checkpoint: Checkpoint) -> str:
        """Return what runs the patch encoder of a checkpoint; ValueError when it cannot."""
        config = checkpoint.file.config
        store = self.choices.store(config)
        inputs = [(table, source_of(table, store)) for table in self.tables]
        return choose_backend(
            *(self.backend, checkpoint.file, inputs, self.choices),
            device=self.device,
            precision=self.precision,
            compile_model=self.compile_model,
        )

    def _score(
        self, table: InputTable, checkpoint: Checkpoint, detector: Detector, ranks: Ranks
    ) -> list[pd.DataFrame]:
        """Score this rank's share of a data set; return all ranks' rows of each preparation."""
        config = checkpoint.file.config
        source = source_of(table, self.choices.store(config))
        share = share_of(table.records, ranks)
        predictions = predict(detector, share, source, self.loading_options(config))
        if ranks.is_main:
            predictions = show_progress(predictions, name=table.name, done=0, total=len(share))
        return gather_scores(table, predictions, ranks)

    def _write(
        self,
        output: Path,
        scores: Sequence[list[pd.DataFrame]],
        facts: dict[str, Any],
        pictures: Pictures,
    ) -> Results:
        """Write the results from the rows of each data set and preparation."""
        first, *others = (pd.concat(rows, ignore_index=True) for rows in zip(*scores, strict=True))
        levels = zip(self.choices.levels, others, strict=True)
        perturbed = [PerturbedScores(*level, rows) for level, rows in levels]
        robustness = write_perturbed(output, first, perturbed)
        return write_results(output, first, facts, robustness=robustness, pictures=pictures)

    def _facts(self, file: SpaiFile, detector: Detector) -> dict[str, Any]:
        return {
            **self.facts,
            "model": detector.facts,
            "model_file": str(file.file.path),
            "model_sha256": file.sha256,
            "epoch": file.file.epoch,
            "device": str(self.device),
            "precision": self.precision,
            "backend": detector.facts["backend"],
            "settings": score_settings(
                file, self.precision, detector.facts["backend"], self.choices
            ),
            "perturb": [str(level) for level in self.choices.levels],
        }


def run_test(
    *,
    csvs: Sequence[Path],
    roots: Sequence[Path],
    output: Path,
    model: str | None,
    cfg: Path | None,
    overrides: Sequence[tuple[str, str]],
    device: str,
    precision: str,
    compile_model: bool,
    backend: str,
    batch_size: int,
    split: str,
    tag: str,
    update_csv: bool,
    lmdb: Path | None,
    resize_to: int | None,
    workers: int | None,
    max_pixels: int,
    perturb: Sequence[str],
    seed: int | None,
) -> None:
    """Test one model file or a folder of them; the arguments are the options of `spai test`.

    Raises:
        ValueError: a mistake in what was asked; raised before a model is built.
    """
    if not tag.strip():
        raise ValueError("--tag: the name of the run cannot be empty")
    levels = parse_levels(perturb)
    tables = read_test_csvs(csvs, roots=roots, split=split)
    chosen = resolve_device(device, local_rank=local_rank())
    evaluation = Evaluation(
        tables,
        ImageChoices(lmdb, resize_to, workers, max_pixels, batch_size, levels=levels, seed=seed),
        chosen,
        resolve_precision(precision, chosen),
        compile_model,
        backend,
        update_csv,
        _run_facts(tables, split=split, tag=tag),
    )
    files = [SpaiFile.read(path, cfg=cfg, overrides=overrides) for path in _model_files(model)]
    several = _is_folder(model)
    checkpoints = [_checkpoint(file, output, tag, several=several) for file in files]
    if update_csv:
        _check_columns(checkpoints)
    if several:
        _check_output(output, csvs, SUMMARY_FILES)
    for checkpoint in checkpoints:
        evaluation.check(checkpoint)
    with ranks_of_run() as ranks:
        done: list[CheckpointResults] = []
        for checkpoint in checkpoints:
            results = evaluation.run(checkpoint, ranks)
            if results is not None and several:
                epoch = checkpoint.file.file.epoch
                done.append(CheckpointResults(checkpoint.output.name, epoch, results))
                write_checkpoints(output, done)
        if ranks.is_main:
            click.echo(output / ("checkpoints.md" if several else "report.md"))


def _is_folder(model: str | None) -> bool:
    """Tell whether --model is a folder; the name of a registered model never is one."""
    return model is not None and model not in weights.REGISTRY and Path(model).expanduser().is_dir()


def _model_files(model: str | None) -> list[Path]:
    """Return the model file, or those of a folder in natural order."""
    if model is None or not _is_folder(model):
        return [weights.chosen_weights(model)]
    folder = Path(model).expanduser()
    found = sorted(folder.glob(CHECKPOINTS), key=lambda path: natural_key(path.name))
    if not found:
        raise ValueError(f"{folder}: no {CHECKPOINTS} in this folder; name a model file")
    return found


def _checkpoint(file: SpaiFile, output: Path, tag: str, *, several: bool) -> Checkpoint:
    folder = output / file.file.path.stem if several else output
    return Checkpoint(file, folder, score_column(tag, file.file.epoch))


def _check_columns(checkpoints: Sequence[Checkpoint]) -> None:
    """Raise ValueError when two checkpoints would add a column of the same name."""
    by_column: dict[str, Path] = {}
    for checkpoint in checkpoints:
        path = checkpoint.file.file.path
        other = by_column.setdefault(checkpoint.column, path)
        if other != path:
            raise ValueError(
                f"{other} and {path}: both would add the column {checkpoint.column!r}; "
                "leave out --update-csv, or test them one by one with different --tag"
            )


def _check_output(output: Path, inputs: Sequence[Path], names: Sequence[str]) -> None:
    """Make the folder; ValueError when it cannot be written or a result would replace an input."""
    check_not_overwritten(output, inputs, names)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or error
        raise ValueError(f"{output}: the results cannot be written there: {reason}") from error
    if not os.access(output, os.W_OK):
        raise ValueError(f"{output}: the results cannot be written there: not writable")


def _run_facts(tables: Sequence[InputTable], *, split: str, tag: str) -> dict[str, Any]:
    packages = ("pandas", "scikit-learn")
    return {
        "command": command_line(),
        "tag": tag,
        "split": split,
        "inputs": [
            {
                "dataset": table.name,
                "file": str(table.source.resolve()),
                "sha256": file_sha256(table.source),
                "root": str(table.root.resolve()),
            }
            for table in tables
        ],
        "versions": versions() | {name: importlib.metadata.version(name) for name in packages},
    }


def _update_csv(table: InputTable, column: str, rows: pd.DataFrame) -> None:
    scored = {
        record.row: score
        for record, score in zip(table.records, rows["score"], strict=True)
        if score == score  # not NaN
    }
    add_score_column(table, column, scored)
    logger.info("%s: column %r added", table.source, column)
