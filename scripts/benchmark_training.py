"""The training part of the benchmark: time and memory of a step at full size, waiting for data."""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from spai.config import default_config
from spai.data.augment import ViewSettings
from spai.data.batches import EpochBatches, ViewLoader
from spai.data.images import FileSource
from spai.data.records import ImageRecord
from spai.data.views import LabelledViews
from spai.models.patches import PatchBatch
from spai.models.spai import ImageModel
from tests.helpers import formula_model
from tests.recipe import reference_image

ROOT = Path(__file__).resolve().parent.parent
IMAGES, VIEWS = 8, 4
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

# GFLOP of the unavoidable matrix products of one patch in a training step with a frozen backbone:
# three passes of the backbone and of the projectors forward; backward, of each projector the
# gradients of both weights and of the input of the second product.
BACKBONE, FIRST, SECOND = 105.4, 11.1, 14.8
STEP_GFLOP_PER_PATCH = BACKBONE + FIRST + SECOND + FIRST + 2 * SECOND


def training_model(use_checkpoint: bool) -> ImageModel:
    """Return the full-size model as stage 2 trains it, its backbone frozen."""
    config = default_config()
    config.TRAIN.USE_CHECKPOINT = use_checkpoint
    model = formula_model(config).train()
    model.backbone.requires_grad_(False)
    return model


def training_step(
    model: ImageModel, optimizer: torch.optim.Optimizer, views: torch.Tensor, dtype: torch.dtype
) -> None:
    """Make one optimiser step on views [B, V, 3, 224, 224] uint8."""
    targets = torch.arange(len(views)) % 2
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        logits = model(PatchBatch.from_views(views)).logits
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets.float())
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def make_step(use_checkpoint: bool) -> tuple[ImageModel, torch.optim.Optimizer]:
    """Return a model and its optimiser."""
    model = training_model(use_checkpoint)
    parameters = [p for p in model.parameters() if p.requires_grad]
    return model, torch.optim.AdamW(parameters, lr=1e-6)


def measure_training(rounds: int, rates: dict[str, float]) -> dict[str, Any]:
    """Return seconds of a step over those of its products, and the share of waiting for data.

    Args:
        rounds: steps of each precision; the first is not counted.
        rates: GFLOP/s of the model's products in each precision.
    """
    model, optimizer = make_step(use_checkpoint=False)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        for precision, dtype in DTYPES.items():
            waiting, working = [], []
            batches = iter(_loader(Path(name), rounds + 1).epoch(0))
            for _ in range(rounds + 1):
                start = time.perf_counter()
                views = next(batches).images
                loaded = time.perf_counter()
                training_step(model, optimizer, views, dtype)
                waiting.append(loaded - start)
                working.append(time.perf_counter() - loaded)
            step = sorted(working[1:])[len(working[1:]) // 2]
            products = STEP_GFLOP_PER_PATCH * IMAGES * VIEWS / rates[precision]
            found[precision] = {
                "step_seconds": round(step, 2),
                "product_seconds": round(products, 2),
                "step_over_products": round(step / products, 3),
                "share_waiting_for_data": round(
                    sum(waiting[1:]) / sum(waiting[1:] + working[1:]), 4
                ),
            }
    return found


def measure_training_memory() -> dict[str, Any]:
    """Return peak megabytes of a step in fp32, with and without recomputation."""
    found = {}
    for use_checkpoint in (False, True):
        program = (
            "import json, resource, sys; sys.path[:0] = sys.argv[1:]; import torch; "
            "from benchmark_training import *; "
            "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024; "
            f"model, optimizer = make_step({use_checkpoint}); before = peak(); "
            f"views = torch.zeros({IMAGES}, {VIEWS}, 3, 224, 224, dtype=torch.uint8); "
            "training_step(model, optimizer, views, torch.float32); "
            "print(json.dumps([before, peak()]))"
        )
        finished = subprocess.run(
            [sys.executable, "-c", program, str(ROOT), str(ROOT / "scripts")],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
        before, after = json.loads(finished.stdout)
        found["with --use-checkpoint" if use_checkpoint else "without"] = {
            "peak_megabytes": round(after),
            "of_the_step": round(after - before),
        }
    with_it, without = found["with --use-checkpoint"], found["without"]
    found["with over without"] = {
        key: round(with_it[key] / without[key], 3) for key in ("peak_megabytes", "of_the_step")
    }
    return found


def _loader(folder: Path, batches: int) -> ViewLoader:
    """Return batches of augmented views of photographs of 0.3 megapixels, as in COCO."""
    records = []
    for number in range(IMAGES * batches):
        path = folder / f"{number}.jpg"
        if not path.exists():
            Image.fromarray(reference_image(480, 640, number)).save(path, quality=90)
        records.append(ImageRecord(path, path.name, number % 2, number))
    dataset = LabelledViews(records, FileSource(), ViewSettings(), views=VIEWS, seed=0)
    return ViewLoader(dataset, EpochBatches(len(records), IMAGES, seed=0), workers=1)
