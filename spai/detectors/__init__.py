"""Detectors: from a model file to scores, behind one protocol."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from yacs.config import CfgNode

from spai.models.patches import PatchLayout, PatchPiece, Pixels
from spai.weights import find_weights

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Scores:
    """What a detector says of B images.

    Attributes:
        logits: [B] float32, log-odds of being generated.
        probabilities: [B] float64 in [0, 1], the scores: higher = more likely generated.
        attention: one [heads, K_i] for each image, which of its patches counted; None where the
            detector has none.
    """

    logits: Tensor
    probabilities: Tensor
    attention: tuple[Tensor | None, ...]


class ImageFeatures(NamedTuple):
    """The vectors behind the score of one image, on the CPU.

    pooled: [V] float32, the image's vector; None where a detector pools no patches.
    patches: [P, V] float32, that of each distinct patch, in the order of the layout's corners.
    similarities: how many of the V are SRS; they come first, the others are SCV.
    """

    pooled: Tensor | None
    patches: Tensor
    similarities: int


class ImageScore(NamedTuple):
    """What a detector says of one image.

    logit: log-odds of being generated.
    attention: [heads, K], or None.
    layout: where its patches lie.
    features: None unless the detector was built to keep them.
    """

    logit: float
    attention: Tensor | None
    layout: PatchLayout
    features: ImageFeatures | None = None


class Detector(Protocol):
    """Something that scores images of any size."""

    @property
    def facts(self) -> dict[str, Any]:
        """What a report says of the model: name, SHA-256, configuration, device, precision."""
        ...

    @property
    def cutter(self) -> Callable[[Pixels], Iterator[PatchPiece]]:
        """A picklable function that prepares a decoded image, to be run in worker processes."""
        ...

    def stream(
        self, pieces: Iterable[tuple[int, PatchPiece | None]]
    ) -> Iterator[tuple[int, ImageScore | None]]:
        """Score images as their pieces arrive.

        Args:
            pieces: (key, piece), the pieces of an image in order; None forgets an image.

        Yields:
            (key, score) as soon as an image is complete; (key, None) for a forgotten one.
        """
        ...

    def score(self, images: Sequence[Any]) -> Scores:
        """Score images: paths, Pillow images, uint8 arrays [H, W, 3] or tensors [3, H, W]."""
        ...


class DetectorFile(Protocol):
    """A model file that was read and checked, before the model is built."""

    @property
    def sha256(self) -> str:
        """Of the file, hexadecimal."""
        ...

    @property
    def config(self) -> CfgNode:
        """The configuration that the model will have."""
        ...

    @property
    def has_attention(self) -> bool:
        """Whether its detector says which patches of an image counted."""
        ...

    def build(
        self,
        *,
        device: torch.device,
        precision: str,
        compile_model: bool = False,
        max_patches: int | None = None,
        keep_features: bool = False,
        backend: str = "torch",
    ) -> Detector:
        """Make the detector."""
        ...

    def choose_backend(
        self,
        name: str,
        *,
        device: torch.device,
        precision: str,
        compile_model: bool = False,
        enough: Callable[[int], bool] = ...,
    ) -> str:
        """Return what runs the patch encoder: `name`, or for "auto" what suits.

        `enough` tells whether there are at least so many patches to score.

        Raises:
            ValueError: the backend that was asked for cannot run here.
        """
        ...


def _open_spai(path: Path, cfg: Path | None, overrides: Sequence[tuple[str, Any]]) -> DetectorFile:
    from spai.detectors.spai import SpaiFile  # it builds on this module

    return SpaiFile.read(path, cfg=cfg, overrides=overrides)


# The kinds of detectors: how each reads its model files.
DETECTORS: dict[str, Callable[[Path, Path | None, Sequence[tuple[str, Any]]], DetectorFile]] = {
    "spai": _open_spai
}


def open_detector(
    path: Path, *, cfg: Path | None = None, overrides: Sequence[tuple[str, Any]] = ()
) -> DetectorFile:
    """Read a model file and settle its configuration, without building the model.

    Args:
        path: the model file.
        cfg: a configuration file instead of the one that the model file says.
        overrides: single configuration keys, applied last.

    Raises:
        ValueError: the file or the configuration is wrong.
    """
    return DETECTORS["spai"](path, cfg, overrides)


def load_detector(
    model: str | Path,
    *,
    device: str = "auto",
    precision: str = "auto",
    backend: str = "auto",
    cfg: Path | None = None,
    overrides: Sequence[tuple[str, Any]] = (),
) -> Detector:
    """Load a detector for use from Python.

    Args:
        model: a model file, or the name of a registered one (see `spai weights list`).
        device: "auto", "cpu", "cuda", "cuda:1", "mps" ...
        precision: "auto", "fp32", "bf16" or "fp16".
        backend: "auto", "torch", "openvino" or "onnxruntime"; auto is OpenVINO on the CPU when the
            model was converted for it before (`spai weights compile`), else torch.
        cfg: a configuration file instead of the one that the model file says.
        overrides: single configuration keys such as `("MODEL.PATCH_VIT.MINIMUM_PATCHES", 1)`.

    Returns:
        A detector whose `score` takes paths, Pillow images, arrays and tensors.

    Raises:
        ValueError: the model file, device or configuration is wrong.

    Example:
        >>> import numpy as np, spai
        >>> detector = spai.load_detector("weights/spai.pth", device="cpu")
        >>> photo = np.zeros((300, 500, 3), dtype=np.uint8)
        >>> scores = detector.score([photo, photo[:100]])
        >>> scores.probabilities.shape
        torch.Size([2])
        >>> [weights.shape[1] for weights in scores.attention]  # patches of each image
        [5, 5]
    """
    chosen = resolve_device(device)
    file = open_detector(find_weights(model), cfg=cfg, overrides=overrides)
    settings: dict[str, Any] = {"device": chosen, "precision": resolve_precision(precision, chosen)}
    return file.build(**settings, backend=file.choose_backend(backend, **settings))


def resolve_device(name: str, *, local_rank: int = 0) -> torch.device:
    """Return the device of that name; "auto" prefers CUDA, then MPS, then the CPU.

    Args:
        name: "auto" or what torch calls a device.
        local_rank: which GPU this process takes when the name does not say.

    Raises:
        ValueError: unknown, or not on this machine.
    """
    if name == "auto":
        name = (
            "cuda"
            if torch.cuda.is_available()
            else "mps"
            if torch.backends.mps.is_available()
            else "cpu"
        )
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"--device {name!r}: use auto, cpu, cuda, cuda:N or mps") from error
    if device.type == "cuda":
        count = torch.cuda.device_count()
        device = torch.device("cuda", local_rank if device.index is None else device.index)
        if not torch.cuda.is_available() or (device.index or 0) >= count:
            raise ValueError(f"--device {name}: this machine has {count} usable CUDA devices")
    elif device.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError("--device mps: not available on this machine; use auto or cpu")
    elif device.type not in ("cpu", "cuda", "mps"):
        raise ValueError(f"--device {name!r}: use auto, cpu, cuda, cuda:N or mps")
    return device


def resolve_precision(name: str, device: torch.device) -> str:
    """Return "fp32", "bf16" or "fp16"; "auto" is fp16 on CUDA and fp32 elsewhere.

    float16 keeps 11 bits of mantissa against 8 of bfloat16, so its scores are closest to float32.

    Raises:
        ValueError: unknown name.
    """
    if name == "auto":
        return "fp16" if device.type == "cuda" else "fp32"
    if name not in PRECISIONS:
        raise ValueError(f"--precision {name!r}: use auto, {', '.join(PRECISIONS)}")
    return name
