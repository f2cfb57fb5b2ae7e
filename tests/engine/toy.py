"""A training run small enough to be repeated often: a tiny SPAI on a dozen tiny images."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from spai.checkpoint import build_model
from spai.config import config_to_yaml, load_config
from spai.data.augment import ViewSettings
from spai.data.batches import EpochBatches, ViewLoader
from spai.data.images import FileSource
from spai.data.loaders import LoadingOptions
from spai.data.training_records import read_labelled
from spai.data.views import LabelledViews
from spai.detectors.spai import SpaiDetector, build_cutter
from spai.engine.distributed import Ranks
from spai.engine.optim import OptimizerSettings, Schedule, build_optimizer
from spai.engine.state import RunFolder, seed_everything
from spai.engine.tasks import EvaluationSet, SupervisedTask
from spai.engine.train import FitSettings, fit
from spai.models.backbone import use_fused_attention

DEVICE = torch.device("cpu")
TINY = {
    "DATA.IMG_SIZE": 32,
    "DATA.AUGMENTED_VIEWS": 2,
    "DATA.BATCH_SIZE": 4,
    "DATA.NUM_WORKERS": 0,
    "MODEL.SID_DROPOUT": 0.1,
    "MODEL.VIT.PATCH_SIZE": 8,
    "MODEL.VIT.EMBED_DIM": 16,
    "MODEL.VIT.DEPTH": 2,
    "MODEL.VIT.NUM_HEADS": 2,
    "MODEL.VIT.INTERMEDIATE_LAYERS": [0, 1],
    "MODEL.VIT.PROJECTION_DIM": 16,
    "MODEL.FRE.MASKING_RADIUS": 4,
    "MODEL.PATCH_VIT.PATCH_STRIDE": 32,
    "MODEL.PATCH_VIT.ATTN_EMBED_DIM": 16,
    "MODEL.PATCH_VIT.NUM_HEADS": 2,
    "TRAIN.EPOCHS": 3,
    "TRAIN.WARMUP_EPOCHS": 1,
}
TINY_OPTIONS = [part for key, value in TINY.items() for part in ("--opt", key, str(value))]


def write_images(folder: Path, train: int = 16, val: int = 6) -> Path:
    """Write noise of two brightnesses and the CSV that lists it."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for index in range(train + val):
        label = index % 2
        rng = np.random.default_rng(index)
        pixels = rng.integers(0, 200, (40, 36 + index, 3)) + 50 * label
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index}.png")
        rows.append((f"{index}.png", label, "train" if index < train else "val"))
    csv = folder / "list.csv"
    pd.DataFrame(rows, columns=["image", "class", "split"]).to_csv(csv, index=False)
    return csv


def toy_fit(
    csv: Path,
    path: Path,
    *,
    settings: FitSettings,
    resume: bool = False,
    overrides: dict | None = None,
    ranks: Ranks | None = None,
):
    """Return the events of a run in `path`."""
    ranks = ranks or Ranks()
    config = load_config(overrides=[*TINY.items(), *(overrides or {}).items()])
    folder = RunFolder(path, config=config_to_yaml(config), settings={"epochs": settings.epochs})
    if ranks.is_main:
        folder.claim()
    ranks.wait()
    earlier = folder.read_last(resume=resume)
    seed_everything(0)
    model = build_model(config)
    use_fused_attention(model.backbone, False)
    train, val = (read_labelled(csv, split=split, root=None) for split in ("train", "val"))
    views = LabelledViews(
        train.records, FileSource(), ViewSettings(size=config.DATA.IMG_SIZE), views=2, seed=0
    )
    order = EpochBatches(
        len(views), config.DATA.BATCH_SIZE, seed=0, rank=ranks.rank, world=ranks.world
    )
    loader = ViewLoader(views, order)
    task = SupervisedTask(
        model,
        lambda copied: SpaiDetector(
            copied, build_cutter(config), {"precision": "fp32"}, device=DEVICE
        ),
        [EvaluationSet("val", val.records, FileSource(), LoadingOptions())],
        ranks,
    )
    steps = -(-len(loader) // settings.accumulation)
    schedule = Schedule("cosine", 1e-2, 1e-4, 1e-5, steps * settings.epochs, steps)
    optimizer = build_optimizer(model, OptimizerSettings())
    yield from fit(
        task,
        loader,
        optimizer,
        schedule,
        settings,
        folder,
        device=DEVICE,
        ranks=ranks,
        earlier=earlier,
    )
