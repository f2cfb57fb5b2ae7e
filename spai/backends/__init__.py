"""What runs the patch encoder: torch, OpenVINO or onnxruntime. Patches in, vectors out.

BACKENDS says what each needs and can do. graph.py traces the encoder, cache.py keeps converted
graphs on disk; pytorch.py, openvino.py and onnxruntime.py run them, onnx.py writes files.
"""

import importlib
import importlib.metadata
import importlib.util
import os
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


class Backend(Protocol):
    """Something that runs the patch encoder."""

    def encode(self, patches: Tensor) -> Tensor:
        """Turn uint8 patches [P, 3, S, S] into vectors [P, V] float32, on the model's device."""
        ...


@dataclass(frozen=True)
class BackendKind:
    """What a backend needs and can do.

    Attributes:
        packages: what must be installed; its version is that of the first.
        precisions: of the encoder.
        devices: kinds of devices, None for any.
        extra: of this package, that installs it.
    """

    packages: tuple[str, ...]
    precisions: tuple[str, ...]
    devices: tuple[str, ...] | None = None
    extra: str | None = None

    @property
    def installed(self) -> bool:
        """Tell whether it can be imported, without importing it."""
        return all(importlib.util.find_spec(name) is not None for name in self.packages)

    @property
    def version(self) -> str:
        """The version of its first package."""
        name = self.packages[0]
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # such as onnxruntime-gpu
            return str(importlib.import_module(name).__version__)


BACKENDS = {
    "torch": BackendKind(("torch",), ("fp32", "bf16", "fp16")),
    "openvino": BackendKind(("openvino",), ("fp32", "bf16"), devices=("cpu",), extra="cpu"),
    "onnxruntime": BackendKind(
        ("onnxruntime", "onnx", "onnxscript"), ("fp32",), devices=("cpu",), extra="onnx"
    ),
}


def check_backend(name: str, *, device: str, precision: str) -> None:
    """Check that a backend can run here.

    Args:
        name: of the backend.
        device: kind of the device, such as "cuda".
        precision: of the encoder.

    Raises:
        ValueError: it cannot; the message says why and what to do.
    """
    if name not in BACKENDS:
        raise ValueError(f"--backend {name!r}: use auto, {', '.join(BACKENDS)}")
    kind = BACKENDS[name]
    if kind.devices is not None and device not in kind.devices:
        raise ValueError(
            f"--backend {name}: runs on {', '.join(kind.devices)}, not on {device}; "
            "use --backend torch or --device cpu"
        )
    if precision not in kind.precisions:
        raise ValueError(
            f"--backend {name}: has no --precision {precision}; use {' or '.join(kind.precisions)}"
        )
    if not kind.installed:
        raise ValueError(
            f"--backend {name}: is not installed; pip install 'spai[{kind.extra}]', "
            "or use --backend torch"
        )


def cpu_threads() -> int | None:
    """Return how many threads a backend may use; None for as many as it finds best.

    There is a limit when this process may not use all cores, or OMP_NUM_THREADS says one, as
    torchrun sets it.
    """
    cores = os.cpu_count() or 1
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdecimal() and int(asked):
        allowed = min(allowed, int(asked))
    return allowed if allowed < cores else None
