"""What `spai tsne` does: score data sets, keep a sample of the vectors, lay it out, draw it."""

import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import click
import pandas as pd

from spai import weights
from spai.cli.options import command_line
from spai.cli.progress import show_progress
from spai.cli.scoring import ImageChoices, choose_backend, score_settings, source_of
from spai.data.records import InputTable
from spai.detectors import open_detector, resolve_device, resolve_precision
from spai.engine.evaluate import check_images, read_test_csvs
from spai.engine.predict import Prediction, predict
from spai.engine.projection import FEWEST_POINTS, FeatureSamples, Kind, fit_perplexity, project
from spai.engine.run_files import check_output_folder, versions, write_run
from spai.report.projection import write_points

logger = logging.getLogger(__name__)


def run_tsne(
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
    split: str,
    max_patches: int | None,
    perplexity: float,
    seed: int,
    **image_choices: Any,
) -> None:
    """Project the vectors of labelled images; the arguments are the options of the command.

    Raises:
        ValueError: a mistake in what was asked, found before the model is built; or too few
            points.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("spai tsne is one process; start it without torchrun")
    tables = read_test_csvs(csvs, roots=roots, split=split)
    check_output_folder(output)
    chosen = resolve_device(device)
    chosen_precision = resolve_precision(precision, chosen)
    path = weights.chosen_weights(model)
    file = open_detector(path, cfg=cfg, overrides=overrides)
    choices = ImageChoices(**image_choices)
    sources = [source_of(table, choices.store(file.config)) for table in tables]
    for table, source in zip(tables, sources, strict=True):
        check_images(table, source)
    loading = choices.loading_options(file.config, chosen)
    inputs = list(zip(tables, sources, strict=True))
    backend = choose_backend(
        *(backend, file, inputs, choices),
        device=chosen,
        precision=chosen_precision,
        compile_model=compile_model,
        max_patches=max_patches,
    )
    detector = file.build(
        device=chosen,
        precision=chosen_precision,
        compile_model=compile_model,
        max_patches=max_patches,
        backend=backend,
        keep_features=True,
    )
    samples = FeatureSamples(seed=seed)
    for number, (table, source) in enumerate(inputs):
        found = predict(detector, table.records, source, loading)
        shown = show_progress(found, name=table.name, done=0, total=len(table.records))
        _collect(samples, number, table, shown)
    kinds = _large_enough(samples.kinds())
    used = {
        kind.name: _draw(output, kind, tables, perplexity=perplexity, seed=seed) for kind in kinds
    }
    settings = score_settings(file, chosen_precision, backend, choices)
    settings["max_patches"] = max_patches
    facts = {"command": command_line(), "model": detector.facts, "settings": settings}
    tsne = {"seed": seed, "perplexity": used}
    write_run(output / "tsne.run.json", {**facts, "tsne": tsne, "versions": versions()})
    click.echo(output)


def _collect(
    samples: FeatureSamples, number: int, table: InputTable, predictions: Iterable[Prediction]
) -> None:
    """Sample the vectors of a data set and say how many images have none."""
    failed = 0
    for prediction in predictions:
        if prediction.error is None:
            samples.add(number, prediction)
        else:
            failed += 1
            logger.debug("%s: %s", prediction.record.name, prediction.error)
    if failed:
        logger.warning("%s: images that could not be scored: %d", table.name, failed)


def _large_enough(kinds: Sequence[Kind]) -> list[Kind]:
    """Leave out kinds with too few points; ValueError when that leaves none."""
    for kind in kinds:
        if len(kind.places) < FEWEST_POINTS:
            logger.info("%s: left out, %d points are too few", kind.title, len(kind.places))
    large = [kind for kind in kinds if len(kind.places) >= FEWEST_POINTS]
    if not large:
        raise ValueError(
            f"t-SNE needs at least {FEWEST_POINTS} images or patches; give more or larger images"
        )
    return large


def _draw(
    output: Path,
    kind: Kind,
    tables: Sequence[InputTable],
    *,
    perplexity: float,
    seed: int,
) -> float:
    """Lay out one kind of vectors, write its picture and CSV; return the perplexity used."""
    count = len(kind.places)
    used = fit_perplexity(count, perplexity)
    logger.info("%s: t-SNE of %d points", kind.title, count)
    if used < perplexity:
        logger.info(
            "%s: perplexity lowered from %g to %g for %d points",
            *(kind.title, perplexity, used, count),
        )
    coordinates = project(kind.vectors, perplexity=used, seed=seed)
    records = [{record.row: record for record in table.records} for table in tables]
    images = [records[place.dataset][place.row] for place in kind.places]
    columns: dict[str, Any] = {
        "dataset": [tables[place.dataset].name for place in kind.places],
        "image": [record.name for record in images],
        "class": [record.label for record in images],
    }
    if kind.of_patches:
        columns |= {
            name: [getattr(place, name) for place in kind.places]
            for name in ("patch", "top", "left")
        }
    columns |= {"x": coordinates[:, 0].tolist(), "y": coordinates[:, 1].tolist()}
    write_points(output, f"tsne_{kind.name}", kind.title, pd.DataFrame(columns))
    return used
