"""What `spai pretrain` does: real images in, a backbone out."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from yacs.config import CfgNode

from spai.checkpoint import backbone_settings
from spai.cli.training import configure
from spai.cli.training_run import (
    epoch_batches,
    existing_images,
    image_source,
    open_folder,
    ranks_of_training,
    train_model,
    view_loader,
)
from spai.data.images import Source
from spai.data.records import CLASS_COLUMN, ImageRecord, InputTable, read_csv, read_folder
from spai.data.views import PretrainingViews
from spai.engine.tasks import PretrainingTask
from spai.models.backbone import build_backbone, use_fused_attention
from spai.models.mfm import MaskedFrequencyModel

logger = logging.getLogger(__name__)

# Images whose restoration is shown.
SHOWN = 4
# Of the backbone; they have no weight decay.
EXEMPT = ("pos_embed", "cls_token")


def run_pretrain(*, cfg: Path, overrides: Sequence[tuple[str, str]], **given: Any) -> None:
    """Pre-train a backbone; the arguments are the options of the command.

    Raises:
        ValueError: a mistake in what was asked, found before training.
    """
    config, run = configure(cfg, given, overrides)
    table = _images(config)
    source = image_source(table, config)
    with ranks_of_training(run.device) as ranks:
        records = existing_images(table, config, run)
        batches = epoch_batches(len(records), config, ranks)
        views = _views(records, source, config)
        shown = torch.stack([views[0, i].images for i in range(min(SHOWN, len(records)))])
        loader = view_loader(views, batches, config, run.device)
        folder, earlier = open_folder(config, run, ranks, records)
        torch.manual_seed(config.SEED)
        model = _build(config).to(run.device)
        use_fused_attention(model.backbone, run.device.type != "cpu")
        task = PretrainingTask(model, shown=shown.to(run.device), folder=folder.path, ranks=ranks)
        train_model(
            task,
            loader,
            config,
            run,
            folder=folder,
            earlier=earlier,
            ranks=ranks,
            exempt=EXEMPT,
        )


def _images(config: CfgNode) -> InputTable:
    """List the images: of a folder, or the real ones of a CSV."""
    if not config.DATA.DATA_PATH:
        raise ValueError("--data-path: give a folder of real images, or a CSV")
    path, root = Path(config.DATA.DATA_PATH), config.DATA.CSV_ROOT
    if path.is_dir():
        return read_folder(path)
    if not path.exists():
        raise ValueError(f"{path}: no such file or folder")
    table = read_csv(path, split="train", root=Path(root) if root else None)
    if CLASS_COLUMN not in table.frame:
        return table
    real = [record for record in table.records if record.label == 0]
    if not real:
        raise ValueError(f"{path}: no row of class 0; the backbone learns from real images only")
    logger.info("%s: %d real images of %d", path, len(real), len(table.records))
    return InputTable(path, table.name, table.root, real, table.frame)


def _views(records: list[ImageRecord], source: Source, config: CfgNode) -> PretrainingViews:
    return PretrainingViews(
        records,
        source,
        size=config.DATA.IMG_SIZE,
        min_area=config.DATA.MIN_CROP_SCALE,
        interpolation=config.DATA.INTERPOLATION,
        low_ratio=config.DATA.SAMPLE_RATIO,
        seed=config.SEED,
    )


def _build(config: CfgNode) -> MaskedFrequencyModel:
    return MaskedFrequencyModel(
        build_backbone(**backbone_settings(config), final_norm=True),
        size=config.DATA.IMG_SIZE,
        radius=config.DATA.MASK_RADIUS1,
        outer_radius=config.DATA.MASK_RADIUS2,
        gamma=config.MODEL.FREQ_LOSS.LOSS_GAMMA,
        only_missing=config.MODEL.RECOVER_TARGET_TYPE == "masked",
    )
