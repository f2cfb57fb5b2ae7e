"""One run of `train` or `pretrain`: what it needs, what it shows, how it ends."""

import contextlib
import hashlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import Dataset
from yacs.config import CfgNode

from spai.cli import options
from spai.cli.scoring import default_workers
from spai.cli.training import RunOptions
from spai.cli.training_progress import Curves, show_training
from spai.config import config_to_yaml, flatten
from spai.data.batches import EpochBatches, ViewLoader
from spai.data.images import FileSource, LmdbSource, Source
from spai.data.records import ImageRecord, InputTable
from spai.data.training_records import drop_missing
from spai.data.views import Sample
from spai.engine.distributed import Ranks, ranks_of_run
from spai.engine.optim import OptimizerSettings, Schedule, build_optimizer
from spai.engine.state import RunFolder
from spai.engine.step import Task
from spai.engine.train import FitSettings, fit, steps_per_epoch

logger = logging.getLogger(__name__)

# Configuration keys that a resumed run may change: where things are and how fast they are read.
# The images and the precision in use are compared by themselves.
NEUTRAL_KEYS = (
    *("OUTPUT", "TAG", "PRETRAINED", "AMP_OPT_LEVEL", "PRINT_FREQ", "TRAIN.LAYER_DECAY"),
    *("DATA.DATA_PATH", "DATA.CSV_ROOT", "DATA.LMDB_PATH", "DATA.NUM_WORKERS", "DATA.PIN_MEMORY"),
    *("DATA.PREFETCH_FACTOR", "DATA.VAL_PREFETCH_FACTOR", "DATA.TEST_PREFETCH_FACTOR"),
    *("DATA.VAL_BATCH_SIZE", "DATA.TEST_BATCH_SIZE"),
)


@contextlib.contextmanager
def ranks_of_training(device: torch.device) -> Iterator[Ranks]:
    """Join the processes that train together; all but the first log errors only."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    with ranks_of_run(device) as ranks:
        if not ranks.is_main:
            logging.getLogger().setLevel(logging.ERROR)
        yield ranks


def existing_images(table: InputTable, config: CfgNode, run: RunOptions) -> list[ImageRecord]:
    """Return the images of a table that exist, after naming the others.

    Raises:
        ValueError: some do not exist and `--missing skip` was not given.
    """
    records, text = drop_missing(
        table.records,
        image_source(table, config),
        skip=run.skip_missing,
        where=str(table.source),
    )
    if text:
        logger.warning("%s\nThey are left out", text)
    return records


def image_source(table: InputTable, config: CfgNode) -> Source:
    """Return where the images of a table come from."""
    store = config.DATA.LMDB_PATH
    return FileSource() if store is None else LmdbSource(Path(store), table.root)


def open_folder(
    config: CfgNode, run: RunOptions, ranks: Ranks, images: Sequence[ImageRecord]
) -> tuple[RunFolder, dict[str, Any] | None]:
    """Lay claim to the output folder.

    Args:
        config: the configuration.
        run: the other options.
        ranks: the processes of the run; the first claims.
        images: all that training and validation read, in order.

    Returns:
        The folder, and the state to go on from; None starts anew.

    Raises:
        ValueError: it cannot be written, another run writes it or is finished in it, or a run to
            be resumed had other settings.
    """
    path = Path(config.OUTPUT or "output/train") / config.MODEL.NAME / config.TAG
    names = "\n".join(f"{image.name}\t{image.label}" for image in images)
    settings = {key: value for key, value in flatten(config) if key not in NEUTRAL_KEYS}
    settings |= {
        "precision": run.precision,
        "processes": ranks.world,
        "images": hashlib.sha256(names.encode("utf-8", "backslashreplace")).hexdigest()[:16],
    }
    folder = RunFolder(path, config=config_to_yaml(config), settings=settings)
    if ranks.is_main:
        folder.claim()
    ranks.wait()
    earlier = folder.read_last(resume=run.resume)
    if run.resume and earlier is None:
        logger.info("%s: nothing to resume; starting anew", folder.last)
    return folder, earlier


def epoch_batches(
    images: int, config: CfgNode, ranks: Ranks, shares: NDArray[np.float64] | None = None
) -> EpochBatches:
    """Return the order of the training images.

    Args:
        images: how many there are.
        config: the batch size and the seed.
        ranks: the processes that share each batch.
        shares: how often each image is drawn; None for each once an epoch.

    Raises:
        ValueError: they do not fill a batch.
    """
    return EpochBatches(
        images,
        config.DATA.BATCH_SIZE,
        seed=config.SEED,
        shares=shares,
        rank=ranks.rank,
        world=ranks.world,
    )


def view_loader(
    dataset: Dataset[Sample], batches: EpochBatches, config: CfgNode, device: torch.device
) -> ViewLoader:
    """Return the loader of training batches."""
    on_gpu = device.type == "cuda"
    return ViewLoader(
        dataset,
        batches,
        workers=worker_count(config, on_gpu),
        prefetch=config.DATA.PREFETCH_FACTOR,
        pin_memory=on_gpu and config.DATA.PIN_MEMORY,
    )


def worker_count(config: CfgNode, on_gpu: bool) -> int:
    """Return the number of decoding processes."""
    workers: int | None = config.DATA.NUM_WORKERS
    return default_workers(on_gpu) if workers is None else workers


def train_model(
    task: Task,
    loader: ViewLoader,
    config: CfgNode,
    run: RunOptions,
    *,
    folder: RunFolder,
    earlier: dict[str, Any] | None,
    ranks: Ranks,
    exempt: tuple[str, ...] = (),
    backbone: nn.Module | None = None,
) -> None:
    """Train a task and show how it goes.

    Args:
        task: what is trained.
        loader: its batches.
        config: the configuration.
        run: the other options.
        folder: for the files.
        earlier: the state to go on from.
        ranks: the processes of the run.
        exempt: last parts of the names of parameters without weight decay.
        backbone: the part whose learning rate TRAIN.BACKBONE_LR_SCALE scales.
    """
    if run.compile_model:
        task.model.compile()
    schedule = build_schedule(config, len(loader), ranks.world)
    settings = FitSettings(
        epochs=config.TRAIN.EPOCHS,
        accumulation=config.TRAIN.ACCUMULATION_STEPS,
        clip_norm=config.TRAIN.CLIP_GRAD,
        precision=run.precision,
        save_all=run.save_all,
        save_every_steps=run.save_every_steps,
        max_steps=run.max_steps,
        seed=config.SEED,
    )
    optimizer = build_optimizer(
        task.model,
        _optimizer_settings(config, exempt),
        scaled=backbone,
        scale=config.TRAIN.BACKBONE_LR_SCALE,
    )
    events = fit(
        task,
        loader,
        optimizer,
        schedule,
        settings,
        folder,
        device=run.device,
        ranks=ranks,
        earlier=earlier,
    )
    done = earlier["progress"]["step"] if earlier is not None else 0
    try:
        if ranks.is_main:
            curves = Curves(folder.metrics, every=config.PRINT_FREQ, step=done)
            for event in show_training(events, total=schedule.steps, done=done):
                curves.add(event)
            curves.close()
            logger.info("%s: done", folder.path)
        else:
            for _ in events:
                pass
    except KeyboardInterrupt as error:
        raise options.Failure(
            f"interrupted; the same command with --resume goes on from {folder.last}"
        ) from error
    finally:
        folder.release()


def build_schedule(config: CfgNode, batches: int, world: int) -> Schedule:
    """Return the learning rate of each step."""
    train = config.TRAIN
    steps = steps_per_epoch(batches, train.ACCUMULATION_STEPS)
    total_batch = config.DATA.BATCH_SIZE * world * train.ACCUMULATION_STEPS
    scale = total_batch / 512 if train.SCALE_LR else 1.0
    named = train.LR_SCHEDULER
    return Schedule(
        named.NAME,
        base_lr=train.BASE_LR * scale,
        warmup_lr=train.WARMUP_LR * scale,
        min_lr=train.MIN_LR * scale,
        steps=train.EPOCHS * steps,
        warmup_steps=int(train.WARMUP_EPOCHS * steps),
        decay_steps=int(named.DECAY_EPOCHS * steps),
        decay_rate=named.GAMMA if named.NAME == "multistep" else named.DECAY_RATE,
        milestones=tuple(int(epoch * steps) for epoch in named.MULTISTEPS),
    )


def _optimizer_settings(config: CfgNode, exempt: tuple[str, ...]) -> OptimizerSettings:
    named = config.TRAIN.OPTIMIZER
    return OptimizerSettings(
        named.NAME,
        weight_decay=config.TRAIN.WEIGHT_DECAY,
        betas=tuple(named.BETAS),
        eps=named.EPS,
        momentum=named.MOMENTUM,
        exempt=exempt,
    )
