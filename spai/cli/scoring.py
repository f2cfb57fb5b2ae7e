"""From options and configuration to how images are read and scored; for `infer` and `test`."""

import itertools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from yacs.config import CfgNode

from spai.cli.perturbations import Level
from spai.config import flatten
from spai.data.images import (
    MAX_PIXELS,
    FileSource,
    ImageError,
    LmdbSource,
    Source,
    open_image,
)
from spai.data.loaders import LoadingOptions, Preparation
from spai.data.perturb import Perturbation
from spai.data.records import ImageRecord, InputTable, as_text
from spai.detectors import DetectorFile
from spai.detectors.spai import build_cutter
from spai.engine.metrics import Metrics
from spai.models.patches import Cutter, patch_count

# Pieces of images that a worker may be ahead, whatever the batch size: each is up to 5 MB.
MOST_PREFETCHED = 8

# Configuration keys that change a score.
SCORE_KEYS = ("MODEL.", "TEST.", "DATA.IMG_SIZE")
# Among them, those that do not.
NEUTRAL_KEYS = ("MODEL.FEATURE_EXTRACTION_BATCH", "TEST.EXPORT_IMAGE_PATCHES", "TEST.MAX_SIZE")


@dataclass(frozen=True)
class ImageChoices:
    """The options that say how images are read; None leaves it to the configuration.

    Attributes:
        lmdb: an LMDB store to read from.
        resize_to: longest side, pixels.
        workers: decoding processes.
        max_pixels: larger images are an error.
        batch_size: images that may be decoded ahead.
        stability: also score after JPEG 80 and after scaling by 0.75.
        levels: also score after each of these degradations.
        seed: of the noise of a degradation.
    """

    lmdb: Path | None = None
    resize_to: int | None = None
    workers: int | None = None
    max_pixels: int = MAX_PIXELS
    batch_size: int = 1
    stability: bool = False
    levels: tuple[Level, ...] = ()
    seed: int | None = None

    def store(self, config: CfgNode) -> Path | None:
        """Return the LMDB store to read from, None for files."""
        named = config.DATA.LMDB_PATH
        return self.lmdb or (Path(named) if named else None)

    def longest_side(self, config: CfgNode) -> int | None:
        """Return the longest side that images are shrunk to, None for no limit."""
        size: int | None = config.TEST.MAX_SIZE
        return size if self.resize_to is None else self.resize_to

    def loading_options(self, config: CfgNode, device: torch.device) -> LoadingOptions:
        """Return how images are decoded for a device."""
        workers = config.DATA.NUM_WORKERS if self.workers is None else self.workers
        ahead = config.DATA.TEST_PREFETCH_FACTOR or config.DATA.PREFETCH_FACTOR
        on_gpu = device.type == "cuda"
        return LoadingOptions(
            workers=default_workers(on_gpu) if workers is None else workers,
            prefetch=min(MOST_PREFETCHED, ahead * self.batch_size),
            max_pixels=self.max_pixels,
            preparations=self.preparations(config),
            pin_memory=on_gpu and config.DATA.PIN_MEMORY,
        )

    def preparations(self, config: CfgNode) -> tuple[Preparation, ...]:
        """Return the versions of each image that are scored, the one that counts first."""
        seed = self.noise_seed(config)
        first = Preparation(configured_perturbation(config), self.longest_side(config), seed)
        base = first.perturbation or Perturbation()
        if self.levels and first.perturbation is not None:
            raise ValueError(
                "--perturb: the configuration already degrades each image (TEST.*); use one of both"
            )
        degraded = [level.applied() for level in self.levels]
        if self.stability:
            degraded = [replace(base, jpeg=80), replace(base, scale=0.75)]
        return (first, *(replace(first, perturbation=other) for other in degraded))

    def noise_seed(self, config: CfgNode) -> int:
        """Return the seed of the noise of a degradation."""
        seed: int = config.SEED
        return seed if self.seed is None else self.seed


def configured_perturbation(config: CfgNode) -> Perturbation | None:
    """Return the degradation that the TEST keys ask for, None for none."""
    test = config.TEST
    if not (
        test.JPEG_COMPRESSION
        or test.WEBP_COMPRESSION
        or test.GAUSSIAN_BLUR
        or test.GAUSSIAN_NOISE
        or test.SCALE
    ):
        return None
    try:
        return Perturbation(
            jpeg=test.JPEG_QUALITY if test.JPEG_COMPRESSION else None,
            webp=test.WEBP_QUALITY if test.WEBP_COMPRESSION else None,
            blur=test.GAUSSIAN_BLUR_KERNEL_SIZE if test.GAUSSIAN_BLUR else None,
            noise=test.GAUSSIAN_NOISE_SIGMA if test.GAUSSIAN_NOISE else None,
            scale=test.SCALE_FACTOR if test.SCALE else None,
        )
    except ValueError as error:
        raise ValueError(f"configuration keys TEST.*: {error}") from error


def default_workers(on_gpu: bool) -> int:
    """Return how many decoding processes suit this machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cores = cores or 1
    return min(8, cores) if on_gpu else min(4, cores - 1)


def score_relevant(config: CfgNode) -> dict[str, Any]:
    """Return the configuration keys that change a score, flat."""
    return {
        key: value
        for key, value in flatten(config)
        if key.startswith(SCORE_KEYS) and key not in NEUTRAL_KEYS
    }


def score_settings(
    file: DetectorFile, precision: str, backend: str, choices: ImageChoices
) -> dict[str, Any]:
    """Return what determines the scores, besides the input."""
    return {
        "model_sha256": file.sha256,
        "configuration": score_relevant(file.config),
        "precision": precision,
        "backend": backend,
        "resize_to": choices.longest_side(file.config),
        "max_pixels": choices.max_pixels,
        "stability": choices.stability,
        "lmdb": as_text(str(store.resolve())) if (store := choices.store(file.config)) else None,
        "seed": choices.noise_seed(file.config),
    }


def choose_backend(
    name: str,
    file: DetectorFile,
    inputs: Sequence[tuple[InputTable, Source]],
    choices: ImageChoices,
    *,
    device: torch.device,
    precision: str,
    compile_model: bool,
    max_patches: int | None = None,
) -> str:
    """Return what runs the patch encoder of a model file over some inputs.

    Args:
        name: a backend, or "auto", which may read the sizes of some images.
        file: of the model.
        inputs: tables, and where their images come from.
        choices: how images are read.
        device: where the model runs.
        precision: of the encoder.
        compile_model: torch.compile was asked for.
        max_patches: of an image, None for all.

    Raises:
        ValueError: the backend cannot run.
    """
    return file.choose_backend(
        name,
        device=device,
        precision=precision,
        compile_model=compile_model,
        enough=_enough_patches(
            inputs,
            build_cutter(file.config, max_patches),
            choices,
            choices.longest_side(file.config),
        ),
    )


def _enough_patches(
    inputs: Sequence[tuple[InputTable, Source]],
    cutter: Cutter,
    choices: ImageChoices,
    side: int | None,
) -> Callable[[int], bool]:
    """Return a function that tells whether inputs have at least so many patches.

    It reads the sizes of the first images, of as many as it needs.

    Args:
        inputs: tables, and where their images come from.
        cutter: how images become patches.
        choices: how images are read.
        side: longest side that images are shrunk to.
    """
    versions = 3 if choices.stability else 1

    def patches(record: ImageRecord, source: Source) -> int:
        try:
            with open_image(record.path, source, choices.max_pixels) as opened:
                height, width = opened.sides
        except ImageError:
            return 0
        scale = 1 if side is None else min(1, side / max(height, width))
        return versions * patch_count(cutter, round(height * scale), round(width * scale))

    def enough(wanted: int) -> bool:
        counts = (patches(record, source) for table, source in inputs for record in table.records)
        return any(total >= wanted for total in itertools.accumulate(counts))

    return enough


def source_of(table: InputTable, store: Path | None) -> Source:
    """Return where the images of an input come from: an LMDB store, or files with None."""
    return FileSource() if store is None else LmdbSource(store, table.root)


def describe_metrics(metrics: Metrics) -> str:
    """Return the metrics that the log shows, on one line; - for those that are not defined."""
    figures = (("loss", metrics.loss), ("ACC", metrics.acc), ("AP", metrics.ap))
    return ", ".join(
        f"{name} {'-' if value is None else f'{value:.4f}'}"
        for name, value in (*figures, ("AUC", metrics.auc))
    )
