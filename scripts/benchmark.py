"""Measure this machine: speed, memory and start-up of SPAI at full size, with formula weights.

Prints tables and writes JSON. Things that are compared run in turn, and medians are quoted, because
machines are noisy. Rates of matrix products are the best of several, so that utilisation is not
flattered.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from benchmark_backends import measure_backends  # noqa: E402
from benchmark_training import measure_training, measure_training_memory  # noqa: E402

from spai.checkpoint import save_safetensors  # noqa: E402
from spai.cli.scoring import default_workers  # noqa: E402
from spai.config import default_config, load_config  # noqa: E402
from spai.data.images import FileSource  # noqa: E402
from spai.data.loaders import LoadingOptions  # noqa: E402
from spai.data.records import read_folder  # noqa: E402
from spai.detectors import load_detector  # noqa: E402
from spai.detectors.spai import CHUNK, SpaiDetector  # noqa: E402
from spai.engine.predict import predict  # noqa: E402
from spai.models.patches import PatchCutter  # noqa: E402
from tests.helpers import REFERENCE, TINY, formula_model  # noqa: E402
from tests.recipe import reference_image  # noqa: E402

GFLOP_PER_PATCH = 131
PRECISIONS = ("fp32", "bf16")
MIXED_MEGAPIXELS = (0.1, 0.1, 0.3, 0.5, 1, 2, 4, 8, 12, 24)
MEMORY_MEGAPIXELS = (1, 12, 48, 100)
PAGE_PHOTOS = 4  # of 1 megapixel
SECTIONS = (
    "start",
    "speed",
    "backends",
    "precision",
    "memory",
    "folder",
    "pages",
    "training",
    "training memory",
)

# (rows a token, columns in, columns out, times a block) of the products of one block.
PRODUCTS = (
    (197, 768, 2304, 1),
    (197, 768, 768, 1),
    (197, 768, 3072, 1),
    (197, 3072, 768, 1),
    (196, 768, 1024, 1),
    (196, 1024, 1024, 1),
)


@click.command()
@click.option("--only", type=click.Choice(SECTIONS), multiple=True, help="Sections to run.")
@click.option("--rounds", default=3, show_default=True, help="Repetitions of what is compared.")
@click.option("--patches", default=32, show_default=True, help="Patches of a model-only round.")
@click.option(
    "--max-patches",
    default=64,
    show_default=True,
    help="Patches scored of an image of the mixed folder: fewer make decoding weigh more.",
)
@click.option(
    "--backend",
    type=click.Choice(["torch", "openvino"]),
    default="torch",
    show_default=True,
    help="What runs the patch encoder in the sections speed, precision, memory and folder.",
)
@click.option("--output", default=Path("benchmark.json"), type=click.Path(path_type=Path))
def main(
    only: Sequence[str], rounds: int, patches: int, max_patches: int, backend: str, output: Path
) -> None:
    """Measure this machine and write what was found to a JSON file."""
    chosen = only or SECTIONS
    results: dict[str, Any] = {"machine": machine()}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["SPAI_HOME"] = str(folder / "home")  # of models converted here
        model = folder / "full.safetensors"
        if {"speed", "backends", "precision", "memory", "pages"} & set(chosen):
            save_safetensors(formula_model(default_config()), default_config(), model, epoch=None)
        runs: dict[str, Callable[[], Any]] = {
            "start": lambda: measure_start(rounds),
            "speed": lambda: measure_speed(folder, model, rounds, patches, max_patches, backend),
            "backends": lambda: measure_backends(model, rounds, PRODUCTS, CHUNK["cpu"]),
            "precision": lambda: measure_precision(model, backend),
            "memory": lambda: measure_memory(folder, model, backend),
            "folder": lambda: measure_folder(folder, backend),
            "pages": lambda: measure_pages(folder, model, rounds, backend),
            "training": lambda: measure_training(rounds, {n: product_rate(n) for n in PRECISIONS}),
            "training memory": measure_training_memory,
        }
        for section in chosen:
            results[section] = runs[section]()
            show(section, results[section])
            output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    click.echo(f"\nwritten to {output}")


def machine() -> dict[str, Any]:
    """Return what the figures belong to."""
    return {
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def measure_start(rounds: int) -> dict[str, float]:
    """Return median seconds of starting the program and of importing the package."""
    commands = {
        "spai --help": [sys.executable, "-m", "spai", "--help"],
        "spai infer --help": [sys.executable, "-m", "spai", "infer", "--help"],
        "import spai": [sys.executable, "-c", "import spai"],
        "python alone": [sys.executable, "-c", "pass"],
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(2 * rounds + 1):
        for name, command in commands.items():
            run = partial(subprocess.run, command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
            seconds[name].append(timed(run))
    return {name: round(statistics.median(values), 3) for name, values in seconds.items()}


def measure_speed(
    folder: Path, model: Path, rounds: int, patches: int, max_patches: int, backend: str
) -> dict[str, Any]:
    """Compare the model, the products it is made of, and the whole command, in each precision."""
    photos = mixed_folder(folder / "mixed")
    image = torch.from_numpy(reference_image(224 * (patches // 8), 224 * 8, 3)).permute(2, 0, 1)
    detectors: dict[str, Any] = {
        name: load_detector(model, device="cpu", precision=name, backend=backend)
        for name in PRECISIONS
    }
    count = patches // 8 * 8
    alone: dict[str, list[float]] = {name: [] for name in PRECISIONS}
    rates: dict[str, list[float]] = {name: [] for name in PRECISIONS}
    whole: dict[str, list[float]] = {name: [] for name in PRECISIONS}
    for _ in range(rounds):
        for name, detector in detectors.items():
            rates[name].append(product_rate(name))
            alone[name].append(count / timed(partial(detector.score, [image])))
            rates[name].append(product_rate(name))
            whole[name].append(end_to_end(detector, photos, max_patches))
            alone[name].append(count / timed(partial(detector.score, [image])))
    found = {}
    for name in PRECISIONS:
        model_only, rate = statistics.median(alone[name]), max(rates[name])
        found[name] = {
            "model_patches_per_second": round(model_only, 3),
            "end_to_end_patches_per_second": round(statistics.median(whole[name]), 3),
            "end_to_end_over_model": round(statistics.median(whole[name]) / model_only, 3),
            "product_gflop_per_second": round(rate, 1),
            "utilisation": round(GFLOP_PER_PATCH * model_only / rate, 3),
        }
    return found


def end_to_end(detector: SpaiDetector, photos: Path, max_patches: int) -> float:
    """Return patches per second of decoding and scoring a folder, as `spai infer` does it."""
    records = read_folder(photos).records
    plain = detector.cutter
    assert isinstance(plain, PatchCutter)
    detector.cutter = replace(plain, maximum=max_patches)
    options = LoadingOptions(workers=default_workers(on_gpu=False))
    start = time.perf_counter()
    predictions = predict(detector, records, FileSource(), options)
    patches = sum(prediction.patches for prediction in predictions)
    seconds = time.perf_counter() - start
    detector.cutter = plain
    return patches / seconds


def product_rate(precision: str) -> float:
    """Return GFLOP/s of the model's own matrix products, each the best of several, of a chunk."""
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    flop, seconds = 0.0, 0.0
    for tokens, wide, narrow, times in PRODUCTS:
        rows = torch.randn(3 * CHUNK["cpu"] * tokens, wide, dtype=dtype)
        weight, bias = torch.randn(narrow, wide, dtype=dtype), torch.randn(narrow, dtype=dtype)
        multiply = partial(torch.nn.functional.linear, rows, weight, bias)
        with torch.inference_mode():
            best = min(timed(multiply) for _ in range(7))
        flop += times * 2e-9 * rows.shape[0] * wide * narrow
        seconds += times * best
    return flop / seconds


def measure_precision(model: Path, backend: str) -> dict[str, Any]:
    """Return how far bf16 moves scores and logits on the reference images."""
    images = [
        torch.from_numpy(reference_image(case["height"], case["width"], case["seed"])).permute(
            2, 0, 1
        )
        for case in json.loads((REFERENCE / "logits.json").read_text())["full"]["images"]
    ]
    exact = load_detector(model, device="cpu", precision="fp32", backend="torch").score(images)
    rounded = load_detector(model, device="cpu", precision="bf16", backend=backend).score(images)
    return {
        "images": len(images),
        "largest_score_difference": float(
            (rounded.probabilities - exact.probabilities).abs().max()
        ),
        "largest_logit_difference": float((rounded.logits - exact.logits).abs().max()),
    }


def measure_memory(folder: Path, model: Path, backend: str) -> dict[str, Any]:
    """Return peak resident megabytes of `spai infer` by image size, 16 patches scored of each."""
    found = {}
    for megapixels in MEMORY_MEGAPIXELS:
        side = round((megapixels * 1e6) ** 0.5)
        photo = folder / f"{megapixels}.jpg"
        Image.fromarray(photograph(side, side, megapixels)).save(photo, quality=90)
        found[f"{megapixels} MP"] = peak_memory(
            ["--input", str(photo), "--model", str(model), "--max-patches", "16"],
            folder,
            backend,
        )
    base = found["1 MP"]["both"]
    for row in found.values():
        row["more_than_1_MP"] = round(row["both"] - base, 1)
    return found


def measure_folder(folder: Path, backend: str) -> dict[str, Any]:
    """Return peak resident megabytes of scoring 10 and 10,000 images with a very small model."""
    config = load_config(overrides=list(TINY.items()))
    model = folder / "tiny.safetensors"
    save_safetensors(formula_model(config), config, model, epoch=None)
    found = {}
    for count in (10, 10_000):
        photos = folder / f"{count}_images"
        photos.mkdir()
        Image.fromarray(reference_image(224, 224, 1)).save(photos / "0.png")
        for number in range(1, count):
            (photos / f"{number}.png").hardlink_to(photos / "0.png")
        found[f"{count} images"] = peak_memory(
            ["--input", str(photos), "--model", str(model), "--opt"]
            + ["MODEL.PATCH_VIT.MINIMUM_PATCHES", "1"],
            folder,
            backend,
        )
    return found


def measure_pages(folder: Path, model: Path, rounds: int, backend: str) -> dict[str, float]:
    """Time `spai infer` on photos of 1 megapixel with and without heat maps and page."""
    photos = folder / "photos"
    photos.mkdir()
    for number in range(PAGE_PHOTOS):
        Image.fromarray(photograph(866, 1155, number)).save(photos / f"{number}.jpg", quality=92)
    command = [sys.executable, "-m", "spai", "infer", "--input", str(photos), "--device", "cpu"]
    command += ["--model", str(model), "--backend", backend, "--output", str(folder / "pages")]
    extra = {"plain": [], "maps and page": ["--attention-maps", "--report"]}
    seconds: dict[str, list[float]] = {name: [] for name in extra}
    for _ in range(rounds):
        for name, options in extra.items():
            run = partial(subprocess.run, [*command, *options], check=True, cwd=ROOT)
            seconds[name].append(timed(run))
    found = {f"{name}, seconds": round(statistics.median(t), 2) for name, t in seconds.items()}
    share = statistics.median(
        with_pages / plain - 1
        for plain, with_pages in zip(seconds["plain"], seconds["maps and page"], strict=True)
    )
    return {**found, "maps and page cost": round(share, 4)}


def peak_memory(arguments: Sequence[str], folder: Path, backend: str) -> dict[str, float]:
    """Run `spai infer` on its own and return the peaks of its processes in megabytes."""
    program = (
        "import json, resource, sys; from spai.cli import main; "
        "main(sys.argv[1:], standalone_mode=False); "
        "peak = lambda who: resource.getrusage(who).ru_maxrss / 1024; "
        "print(json.dumps([peak(resource.RUSAGE_SELF), peak(resource.RUSAGE_CHILDREN)]))"
    )
    output = ["--output", str(folder / "out"), "--device", "cpu", "--backend", backend]
    finished = subprocess.run(
        [sys.executable, "-c", program, "infer", *arguments, *output],
        check=True,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    scoring, decoding = json.loads(finished.stdout)
    return {
        "scoring": round(scoring, 1),
        "decoding": round(decoding, 1),
        "both": round(scoring + decoding, 1),
    }


def mixed_folder(folder: Path) -> Path:
    """Make JPEG and PNG files of the sizes of `MIXED_MEGAPIXELS`, 4:3."""
    folder.mkdir()
    for number, megapixels in enumerate(MIXED_MEGAPIXELS):
        height = round((megapixels * 1e6 * 3 / 4) ** 0.5)
        image = Image.fromarray(photograph(height, height * 4 // 3, number))
        if number % 2:
            image.save(folder / f"{number}.png", compress_level=3)
        else:
            image.save(folder / f"{number}.jpg", quality=92)
    return folder


def photograph(height: int, width: int, seed: int) -> np.ndarray:
    """Return [height, width, 3] uint8 of smooth areas with some noise, which costs like a photo."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 64 + 2, width // 64 + 2, 3), dtype=np.uint8)
    smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    noise = rng.integers(0, 16, (256, 256, 3), dtype=np.uint8)
    tiles = np.tile(noise, (height // 256 + 1, width // 256 + 1, 1))[:height, :width]
    return np.asarray(smooth) // 16 * 15 + tiles


def timed(action: Callable[[], Any]) -> float:
    """Return the seconds that an action takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def show(section: str, found: dict[str, Any]) -> None:
    """Print a section as a table."""
    click.echo(f"\n{section}")
    for name, value in found.items():
        if isinstance(value, dict):
            click.echo(f"  {name}")
            for key, number in value.items():
                click.echo(f"    {key:34} {number}")
        else:
            click.echo(f"  {name:36} {value}")


if __name__ == "__main__":
    main()
