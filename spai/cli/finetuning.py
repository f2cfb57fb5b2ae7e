"""What `spai train` does: labelled images in, a SPAI model out."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from yacs.config import CfgNode

from spai.checkpoint import build_model, load_mfm_encoder
from spai.cli.scoring import ImageChoices
from spai.cli.training import RunOptions, configure
from spai.cli.training_run import (
    epoch_batches,
    existing_images,
    image_source,
    open_folder,
    ranks_of_training,
    train_model,
    view_loader,
    worker_count,
)
from spai.data.augment import ViewSettings
from spai.data.batches import EpochBatches, balanced_shares
from spai.data.images import Source
from spai.data.loaders import LoadingOptions
from spai.data.records import ImageRecord, InputTable
from spai.data.training_records import check_classes, read_labelled
from spai.data.views import LabelledViews, Triplets
from spai.detectors import Detector
from spai.detectors.spai import SpaiDetector, build_cutter, chunk_size
from spai.engine.distributed import Ranks
from spai.engine.initialise import standardize_context
from spai.engine.step import Task
from spai.engine.tasks import ContrastiveTask, EvaluationSet, SupervisedTask
from spai.models.backbone import use_fused_attention
from spai.models.spai import ImageModel

logger = logging.getLogger(__name__)


def run_train(
    *,
    cfg: Path | None,
    test_csvs: Sequence[Path],
    test_roots: Sequence[Path],
    overrides: Sequence[tuple[str, str]],
    **given: Any,
) -> None:
    """Train on labelled images; the arguments are the options of the command.

    Raises:
        ValueError: a mistake in what was asked, found before training.
    """
    config, run = configure(cfg, given, overrides)
    _check_mode(config)
    train, val = (_labelled(config, split) for split in ("train", "val"))
    tests = _test_tables(config, test_csvs, test_roots)
    with ranks_of_training(run.device) as ranks:
        records = existing_images(train, config, run)
        check_classes(records, f"{train.source}, split=train")
        val_records = existing_images(val, config, run)
        sets = [_evaluation_set("val", val, val_records, config, run)]
        for table in tests:
            images = existing_images(table, config, run)
            sets.append(_evaluation_set(f"test_{table.name}", table, images, config, run))
        shares = _shares(train, records, config.DATA.BALANCE_COLUMN)
        batches = epoch_batches(len(records), config, ranks, shares)
        views = _views(records, image_source(train, config), config)
        dataset = Triplets(views) if config.TRAIN.LOSS == "triplet" else views
        loader = view_loader(dataset, batches, config, run.device)
        folder, earlier = open_folder(config, run, ranks, [*records, *val_records])
        torch.manual_seed(config.SEED)
        model = _build(config, resumed=earlier is not None).to(run.device)
        if config.TRAIN.STANDARDIZE_CONTEXT and earlier is None:
            standardize_context(model, views, run.device)
        task = _task(model, sets, config, run, ranks)
        train_model(
            task,
            loader,
            config,
            run,
            folder=folder,
            earlier=earlier,
            ranks=ranks,
            backbone=model.backbone,
        )


def _check_mode(config: CfgNode) -> None:
    mode, loss = config.TRAIN.MODE, config.TRAIN.LOSS
    if (mode == "supervised") != (loss == "bce"):
        raise ValueError(
            f"TRAIN.MODE {mode} and TRAIN.LOSS {loss} do not go together; use supervised with "
            "bce, or contrastive with supcont or triplet"
        )


def _labelled(config: CfgNode, split: str) -> InputTable:
    if not config.DATA.DATA_PATH:
        raise ValueError("--data-path: give a CSV with the columns image, class and split")
    csv, root = Path(config.DATA.DATA_PATH), config.DATA.CSV_ROOT
    if not csv.is_file():
        raise ValueError(f"{csv}: no such file; --data-path is a CSV")
    return read_labelled(csv, split=split, root=Path(root) if root else None)


def _shares(
    table: InputTable, records: Sequence[ImageRecord], column: str
) -> NDArray[np.float64] | None:
    """Return how often each image is drawn: balanced by class and a column, or None."""
    if not column:
        return None
    if column not in table.frame:
        found = ", ".join(map(str, table.frame.columns))
        raise ValueError(f"{table.source}: DATA.BALANCE_COLUMN {column!r}: no such column; {found}")
    cells = table.frame[column]
    return balanced_shares([(int(r.label or 0), str(cells[r.row])) for r in records])


def _test_tables(config: CfgNode, csvs: Sequence[Path], roots: Sequence[Path]) -> list[InputTable]:
    """Read the CSVs that are scored after each epoch."""
    csvs = csvs or [Path(csv) for csv in config.DATA.TEST_DATA_PATH]
    roots = roots or [Path(root) for root in config.DATA.TEST_DATA_CSV_ROOT]
    if csvs and config.TRAIN.MODE == "contrastive":
        raise ValueError("--test-csv: a model trained by contrast has no head that could score")
    if len(roots) not in (0, 1, len(csvs)):
        raise ValueError(
            f"--test-csv-root-dir: {len(roots)} given for {len(csvs)} --test-csv; give none, one "
            "for all or one each"
        )
    each: Sequence[Path | None] = roots
    if len(roots) != len(csvs):
        each = [roots[0] if roots else None] * len(csvs)
    tables = [
        read_labelled(csv, split="test", root=root) for csv, root in zip(csvs, each, strict=True)
    ]
    names = [table.name for table in tables]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"--test-csv: two files are called {name}; rename one")
    return tables


def _evaluation_set(
    name: str, table: InputTable, records: list[ImageRecord], config: CfgNode, run: RunOptions
) -> EvaluationSet:
    on_gpu = run.device.type == "cuda"
    data = config.DATA
    if name == "val":
        size, ahead = data.VAL_BATCH_SIZE, data.VAL_PREFETCH_FACTOR
    else:
        size, ahead = data.TEST_BATCH_SIZE, data.TEST_PREFETCH_FACTOR
    workers = worker_count(config, on_gpu)
    # The keys count images handed over at once, to all workers together.
    images = (size or data.BATCH_SIZE) * (ahead or data.PREFETCH_FACTOR)
    loading = LoadingOptions(
        workers=workers,
        prefetch=max(2, images // max(1, workers)),
        preparations=ImageChoices().preparations(config),
        pin_memory=on_gpu and data.PIN_MEMORY,
    )
    return EvaluationSet(name, records, image_source(table, config), loading)


def _views(records: Sequence[ImageRecord], source: Source, config: CfgNode) -> LabelledViews:
    settings = {name.lower(): value for name, value in config.AUG.items()}
    return LabelledViews(
        records,
        source,
        ViewSettings(**settings, size=config.DATA.IMG_SIZE),
        views=config.DATA.AUGMENTED_VIEWS,
        seed=config.SEED,
    )


def _build(config: CfgNode, *, resumed: bool) -> ImageModel:
    """Build the model; a resumed one gets its weights and frozen parts later."""
    logger.info(
        "TRAIN.LAYER_DECAY %s has no effect, as in the published code", config.TRAIN.LAYER_DECAY
    )
    model = build_model(config)
    vit = model.backbone
    for block in vit.blocks[config.MODEL.VIT.INTERMEDIATE_LAYERS[-1] + 1 :]:
        block.requires_grad_(False)  # never run
    if resumed:
        return model
    if config.PRETRAINED:
        load_mfm_encoder(Path(config.PRETRAINED), vit)
    if config.PRETRAINED and config.TRAIN.FREEZE_BACKBONE:
        vit.requires_grad_(False)
        logger.info("The backbone of %s is frozen", config.PRETRAINED)
    elif config.PRETRAINED:
        logger.info("The backbone of %s is trained too", config.PRETRAINED)
    else:
        logger.warning("No --pretrained backbone: a random one is trained too")
    return model


def _task(
    model: ImageModel,
    sets: Sequence[EvaluationSet],
    config: CfgNode,
    run: RunOptions,
    ranks: Ranks,
) -> Task:
    use_fused_attention(model.backbone, run.device.type != "cpu")
    if config.TRAIN.MODE == "supervised":

        def detector(trained: ImageModel) -> Detector:
            return SpaiDetector(
                trained,
                build_cutter(config),
                {"precision": run.precision},
                device=run.device,
                chunk=chunk_size(config, run.device),
            )

        return SupervisedTask(model, detector, sets, ranks)
    return _contrastive_task(model, sets[0], config, run, ranks)


def _contrastive_task(
    model: ImageModel, val: EvaluationSet, config: CfgNode, run: RunOptions, ranks: Ranks
) -> ContrastiveTask:
    views = _views(val.records, val.source, config)
    triplets = config.TRAIN.LOSS == "triplet"
    size = min(config.DATA.BATCH_SIZE, max(1, len(val.records) // ranks.world))
    batches = EpochBatches(
        len(val.records), size, seed=config.SEED, rank=ranks.rank, world=ranks.world
    )
    dataset = Triplets(views) if triplets else views
    return ContrastiveTask(
        model,
        view_loader(dataset, batches, config, run.device),
        margin=config.TRAIN.TRIPLET_LOSS_MARGIN if triplets else None,
        device=run.device,
        ranks=ranks,
    )
