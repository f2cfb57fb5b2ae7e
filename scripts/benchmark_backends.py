"""Measure what runs the patch encoder: speed, start-up and memory; a part of benchmark.py."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spai.backends import BACKENDS
from spai.detectors import open_detector

ROOT = Path(__file__).resolve().parent.parent
COUNTS = (1, 8, 32)
GFLOP_PER_PATCH = 131

# Loads a model, scores one patch, then some more, and says what that took.
PROGRAM = """
import json, sys, time
start = time.perf_counter()
import pathlib, numpy, spai
from spai.detectors import open_detector, resolve_device
model, backend, precision = sys.argv[1:]
file = open_detector(pathlib.Path(model))
detector = file.build(device=resolve_device("cpu"), precision=precision, backend=backend)
del file
detector.score([numpy.zeros((224, 224, 3), numpy.uint8)])
seconds = time.perf_counter() - start
detector.score([numpy.random.default_rng(0).integers(0, 256, (448, 896, 3), numpy.uint8)])
import psutil
print(json.dumps([round(seconds, 2), round(psutil.Process().memory_info().rss / 1e6)]))
"""


def measure_backends(
    model: Path,
    rounds: int,
    products: Sequence[tuple[int, int, int, int]],
    chunk: int,
) -> dict[str, Any]:
    """Compare the backends in each precision, one after the other in every round.

    Args:
        model: a full-size model file.
        rounds: repetitions; medians are quoted, of products the best.
        products: rows a token, columns in, columns out, times a block.
        chunk: patches that the detector encodes at once.
    """
    names = [name for name, kind in BACKENDS.items() if kind.installed]
    found: dict[str, Any] = {
        f"{name} {precision}": _start(model, name, precision)
        for name in names
        for precision in ("fp32", "bf16")
        if precision in BACKENDS[name].precisions
    }
    for precision in ("fp32", "bf16"):
        chosen = [name for name in names if precision in BACKENDS[name].precisions]
        for name, figures in _speeds(model, chosen, precision, rounds, products, chunk).items():
            found.setdefault(f"{name} {precision}", {}).update(figures)
    return found


def _speeds(
    model: Path,
    names: Sequence[str],
    precision: str,
    rounds: int,
    products: Sequence[tuple[int, int, int, int]],
    chunk: int,
) -> dict[str, dict[str, Any]]:
    """Return patches per second by backend, and their share of what the machine can do."""
    file = open_detector(model)
    cpu = torch.device("cpu")
    backends = {
        name: file.build(device=cpu, precision=precision, backend=name).backend for name in names
    }
    rng = np.random.default_rng(0)
    patches = torch.from_numpy(rng.integers(0, 256, (max(COUNTS), 3, 224, 224), dtype=np.uint8))
    rates: dict[str, list[float]] = {}
    speeds: dict[tuple[str, int], list[float]] = {}
    for backend in backends.values():
        backend.encode(patches[:chunk])  # kernels are made at the first call
    for _ in range(rounds):
        for count in COUNTS:
            for name, backend in backends.items():
                start = time.perf_counter()
                for part in patches[:count].split(chunk):
                    backend.encode(part)
                speed = count / (time.perf_counter() - start)
                speeds.setdefault((name, count), []).append(speed)
            for name, multiply in _MULTIPLIERS.items():
                if name in backends:
                    rate = _product_rate(partial(multiply, precision), products, 3 * chunk)
                    rates.setdefault(name, []).append(rate)
    ceiling = max(max(values) for values in rates.values()) / GFLOP_PER_PATCH
    found: dict[str, dict[str, Any]] = {name: {} for name in names}
    for (name, count), values in speeds.items():
        speed = statistics.median(values)
        found[name][f"patches_per_second_at_{count}"] = round(speed, 3)
        found[name][f"share_of_ceiling_at_{count}"] = round(speed / ceiling, 3)
        pairs = zip(values, speeds["torch", count], strict=True)
        over = statistics.median(own / torchs for own, torchs in pairs)
        found[name][f"times_torch_at_{count}"] = round(over, 2)
    for name, values in rates.items():
        found[name]["product_gflop_per_second"] = round(max(values), 1)
    return found


def _product_rate(
    prepare: Callable[[int, int, int], Callable[[], object]],
    products: Sequence[tuple[int, int, int, int]],
    images: int,
) -> float:
    """Return GFLOP/s of the model's own matrix products, each the best of several."""
    flop, seconds = 0.0, 0.0
    for tokens, wide, narrow, times in products:
        multiply = prepare(images * tokens, wide, narrow)
        multiply()
        durations = []
        for _ in range(5):
            start = time.perf_counter()
            multiply()
            durations.append(time.perf_counter() - start)
        flop += times * 2e-9 * images * tokens * wide * narrow
        seconds += times * min(durations)
    return flop / seconds


def _torch_product(precision: str, rows: int, wide: int, narrow: int) -> Callable[[], object]:
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    values = torch.randn(rows, wide, dtype=dtype)
    weight, bias = torch.randn(narrow, wide, dtype=dtype), torch.randn(narrow, dtype=dtype)

    def multiply() -> object:
        with torch.inference_mode():
            return torch.nn.functional.linear(values, weight, bias)

    return multiply


def _openvino_product(precision: str, rows: int, wide: int, narrow: int) -> Callable[[], object]:
    from spai.backends.openvino import PRECISIONS, openvino

    ops = openvino.opset13
    rng = np.random.default_rng(0)
    given = ops.parameter([rows, wide], np.float32)
    weight = ops.constant(rng.standard_normal((narrow, wide), dtype=np.float32))
    bias = ops.constant(rng.standard_normal((1, narrow), dtype=np.float32))
    result = ops.add(ops.matmul(given, weight, False, True), bias)
    graph = openvino.Model([result], [given])
    settings = {"INFERENCE_PRECISION_HINT": PRECISIONS[precision]}
    request = openvino.Core().compile_model(graph, "CPU", settings).create_infer_request()
    request.set_input_tensor(openvino.Tensor(rng.standard_normal((rows, wide), dtype=np.float32)))
    return request.infer


_MULTIPLIERS = {"torch": _torch_product, "openvino": _openvino_product}


def _start(model: Path, backend: str, precision: str) -> dict[str, float]:
    """Return seconds from import to the first score, before and after the model was converted."""
    command = [sys.executable, "-c", PROGRAM, str(model), backend, precision]
    with tempfile.TemporaryDirectory() as home:
        run = partial(
            subprocess.run,
            command,
            check=True,
            cwd=ROOT,
            env={**os.environ, "SPAI_HOME": home},
            stdout=subprocess.PIPE,
            text=True,
        )
        runs = [json.loads(run().stdout.splitlines()[-1]) for _ in range(2)]
    return {
        "first_start_seconds": runs[0][0],
        "start_seconds": runs[1][0],
        "resident_megabytes": runs[1][1],
    }
