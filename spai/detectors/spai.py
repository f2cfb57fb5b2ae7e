"""The SPAI detector: cuts images, fills chunks with patches of several, pools them per image."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor
from yacs.config import CfgNode

from spai.backends import BACKENDS, Backend
from spai.backends.pytorch import TorchBackend
from spai.checkpoint import (
    ModelFile,
    build_model,
    load_weights,
    read_model_file,
    weights_mismatch,
)
from spai.config import adopt_config, as_plain, config_differences, load_config
from spai.data.images import to_pixels
from spai.detectors import PRECISIONS, ImageFeatures, ImageScore, Scores
from spai.detectors.encoders import Enough, choose_backend, graph_backend
from spai.models.patches import CentreCutter, Cutter, PatchCutter, PatchLayout, PatchPiece
from spai.models.spai import ImageModel
from spai.weights import describe

# Patches encoded at once, unless the configuration sets a lower bound: measured best on CPUs;
# on a GPU large enough to keep it busy and small enough for 8 GB.
CHUNK = {"cpu": 4, "mps": 16, "cuda": 64}


@dataclass(frozen=True)
class SpaiFile:
    """A SPAI model file with the configuration that its model will have."""

    file: ModelFile
    config: CfgNode

    @classmethod
    def read(
        cls, path: Path, *, cfg: Path | None = None, overrides: Sequence[tuple[str, Any]] = ()
    ) -> "SpaiFile":
        """Read a model file and settle the configuration.

        It is `cfg` where that is given, else the one in a file that we wrote, else the published
        one; `overrides` come last.

        Raises:
            ValueError: the file or the configuration is wrong.
        """
        config = load_config(cfg, overrides) if cfg is not None else None
        file = read_model_file(path)
        if config is None:
            # Where the training data lay and how many workers read it is not the user's machine.
            neutral = [("DATA.LMDB_PATH", None), ("DATA.NUM_WORKERS", None)]
            config = load_config(overrides=[*neutral, *overrides], text=file.config_text)
        return cls(file, config)

    @property
    def sha256(self) -> str:
        """Of the file, hexadecimal."""
        return self.file.sha256

    @property
    def has_attention(self) -> bool:
        """Whether the model pools patches by attention; at fixed resolution it has one view."""
        return bool(self.config.MODEL.RESOLUTION_MODE != "fixed")

    def build(
        self,
        *,
        device: torch.device,
        precision: str,
        compile_model: bool = False,
        max_patches: int | None = None,
        keep_features: bool = False,
        backend: str = "torch",
    ) -> "SpaiDetector":
        """Build the model and put it on its device.

        Args:
            device: where the model runs.
            precision: "fp32", "bf16" or "fp16", of the patch encoder.
            compile_model: run the patch encoder through torch.compile.
            max_patches: score at most this many patches of an image, evenly spread.
            keep_features: give the vectors of images and patches with their scores.
            backend: what runs the patch encoder, as of `choose_backend`.

        Raises:
            ValueError: the tensors do not fit the configuration.
        """
        runner: Backend | None = None
        if backend == "torch":
            model = self.load_model()
        else:
            model = self._build(encoder=False)
            runner = graph_backend(
                backend,
                self.sha256,
                self.config,
                model,
                partial(self._load, model),
                precision=precision,
            )
        facts = {
            "name": self.file.path.name,
            "path": str(self.file.path),
            "sha256": self.file.sha256,
            "description": describe(self.file.sha256),
            "epoch": self.file.epoch,
            "configuration": as_plain(self.config),
            "device": str(device),
            "precision": precision,
            "backend": backend,
            "backend_version": BACKENDS[backend].version,
        }
        return SpaiDetector(
            model,
            build_cutter(self.config, max_patches),
            facts,
            device=device,
            chunk=chunk_size(self.config, device),
            compile_model=compile_model,
            keep_features=keep_features,
            backend=runner,
        )

    def choose_backend(
        self,
        name: str,
        *,
        device: torch.device,
        precision: str,
        compile_model: bool = False,
        enough: Enough = lambda patches: False,
    ) -> str:
        """Return the backend that runs the patch encoder; see `spai.detectors.encoders`."""
        return choose_backend(
            name,
            self.sha256,
            self.config,
            device=device,
            precision=precision,
            compile_model=compile_model,
            enough=enough,
        )

    def load_model(self) -> ImageModel:
        """Build the model with its weights, in float32 on the CPU.

        Raises:
            ValueError: the tensors do not fit the configuration.
        """
        return self._build()

    def _build(self, *, encoder: bool = True) -> ImageModel:
        with torch.device("meta"):  # neither time nor memory for weights that are replaced
            model = build_model(self.config)
        self._load(model, encoder=encoder)
        return model.eval()

    def _load(self, model: ImageModel, *, encoder: bool = True) -> None:
        try:
            load_weights(model, self.file, encoder=encoder)
        except ValueError as error:
            raise ValueError(f"{error}{self._fitting_config()}") from error

    def _fitting_config(self) -> str:
        """Say how to use the configuration that the file itself embeds, when that would fit."""
        foreign, own = self.file.foreign_config, self.file.config_text
        if foreign is None and own is None:
            return ""
        try:
            embedded = load_config(text=own) if foreign is None else adopt_config(foreign)
            with torch.device("meta"):
                model = build_model(embedded)
        except ValueError:
            return ""
        if weights_mismatch(model, self.file):
            return ""
        if foreign is None:
            return "; the configuration inside the file would fit: leave out --cfg and --opt"
        keys = "; MODEL.".join(config_differences(embedded.MODEL, self.config.MODEL)[:8])
        return f"; the configuration inside the file would fit; there, MODEL.{keys}"


@dataclass
class _Pending:
    """An image whose patches are still being encoded."""

    layout: PatchLayout
    vectors: list[Tensor] = field(default_factory=list)
    encoded: int = 0


class SpaiDetector:
    """Scores images with a SPAI model on one device."""

    def __init__(
        self,
        model: ImageModel,
        cutter: Cutter,
        facts: dict[str, Any],
        *,
        device: torch.device,
        chunk: int = CHUNK["cpu"],
        compile_model: bool = False,
        keep_features: bool = False,
        backend: Backend | None = None,
    ) -> None:
        """Take over a model: it is moved to the device and set to evaluation.

        Args:
            model: with its weights.
            cutter: how images become patches.
            facts: what reports say of it; its `precision` is that of the patch encoder.
            device: where it runs.
            chunk: patches encoded at once.
            compile_model: run the patch encoder through torch.compile.
            keep_features: give the vectors of images and patches with their scores.
            backend: runs the patch encoder instead of torch.
        """
        self.facts = facts
        self.cutter = cutter
        self.chunk = chunk
        self._keep_features = keep_features
        self._device = device
        self._model = model.eval().requires_grad_(False)
        if backend is None:
            backend = TorchBackend(
                model.to(device).encoder,
                device=device,
                dtype=PRECISIONS[facts["precision"]],
                chunk=chunk,
                compile_model=compile_model,
            )
        self.backend: Backend = backend

    def score(self, images: Sequence[Any]) -> Scores:
        """Score images: paths, Pillow images, uint8 arrays [H, W, 3] or tensors [3, H, W].

        Raises:
            ValueError: an image cannot be read or is of no such kind, or `images` is one image.
        """
        if isinstance(images, (str, os.PathLike, np.ndarray, Tensor, Image)):
            raise ValueError(f"give a list of images, found one {type(images).__name__}")
        images = list(images)
        pieces = (
            (key, piece)
            for key, image in enumerate(images)
            for piece in self.cutter(to_pixels(image))
        )
        results = {key: result for key, result in self.stream(pieces) if result is not None}
        ordered = [results[key] for key in range(len(images))]
        logits = torch.tensor([result.logit for result in ordered], dtype=torch.float32)
        return Scores(
            logits, logits.double().sigmoid(), tuple(result.attention for result in ordered)
        )

    def stream(
        self, pieces: Iterable[tuple[int, PatchPiece | None]]
    ) -> Iterator[tuple[int, ImageScore | None]]:
        """Score images as their pieces arrive, in chunks filled across images.

        Args:
            pieces: (key, piece), the pieces of an image in order; None forgets an image.

        Yields:
            (key, score) as soon as an image is complete; (key, None) for a forgotten one.
        """
        pending: dict[int, _Pending] = {}
        waiting: list[tuple[int, Tensor]] = []  # patches [n, 3, S, S] not yet encoded
        count = 0
        for key, piece in pieces:
            if piece is None:
                pending.pop(key, None)
                waiting = [(owner, patches) for owner, patches in waiting if owner != key]
                count = sum(len(patches) for _, patches in waiting)
                yield key, None
                continue
            if piece.layout is not None:
                pending[key] = _Pending(piece.layout)
            waiting.append((key, piece.patches))
            count += len(piece.patches)
            while count >= self.chunk:
                chunk, waiting = _take(waiting, self.chunk)
                count -= self.chunk
                yield from self._advance(chunk, pending)
        if waiting:
            yield from self._advance(waiting, pending)

    def _advance(
        self, chunk: list[tuple[int, Tensor]], pending: dict[int, _Pending]
    ) -> list[tuple[int, ImageScore]]:
        """Encode a chunk and return the images that it completes."""
        vectors = self.backend.encode(torch.cat([patches for _, patches in chunk]))
        complete = []
        for (key, _), part in zip(
            chunk, vectors.split([len(patches) for _, patches in chunk]), strict=True
        ):
            image = pending[key]
            image.vectors.append(part)
            image.encoded += len(part)
            if image.encoded == len(image.layout.corners):
                complete.append((key, self._pool(pending.pop(key))))
        return complete

    @torch.inference_mode()
    def _pool(self, image: _Pending) -> ImageScore:
        """Score one image by its patch vectors, in float32."""
        members = torch.tensor(image.layout.members, device=self._device)
        vectors = torch.cat(image.vectors)
        output = self._model.pool(vectors[members][None])
        attention = output.attention[0]
        features = None
        if self._keep_features:
            encoder = self._model.encoder
            similarities = 6 * len(encoder.layers) * encoder.features_processor.similarities
            # Without attention (fixed resolution) there is no vector of the image as such.
            pooled = None if attention is None else output.features[0].cpu()
            features = ImageFeatures(pooled, vectors.float().cpu(), similarities)
        attention = None if attention is None else attention.cpu()
        return ImageScore(output.logits.item(), attention, image.layout, features)


def chunk_size(config: CfgNode, device: torch.device) -> int:
    """Return how many patches are encoded at once on a device."""
    chunk = CHUNK.get(device.type, CHUNK["cpu"])
    bound = config.MODEL.FEATURE_EXTRACTION_BATCH
    return chunk if bound is None else min(chunk, bound)


def build_cutter(config: CfgNode, max_patches: int | None = None) -> Cutter:
    """Return the function that cuts images for this configuration."""
    if config.MODEL.RESOLUTION_MODE == "fixed":
        return CentreCutter(
            config.DATA.IMG_SIZE,
            crop=config.TEST.CROP,
            ten_crop=config.TEST.VIEWS_GENERATION_APPROACH == "tencrop",
        )
    patches = config.MODEL.PATCH_VIT
    return PatchCutter(
        config.DATA.IMG_SIZE,
        stride=patches.PATCH_STRIDE,
        minimum=patches.MINIMUM_PATCHES,
        maximum=max_patches,
    )


def _take(
    waiting: list[tuple[int, Tensor]], count: int
) -> tuple[list[tuple[int, Tensor]], list[tuple[int, Tensor]]]:
    """Split off exactly the first `count` patches."""
    taken = []
    rest = list(waiting)
    while count:
        key, patches = rest.pop(0)
        taken.append((key, patches[:count]))
        if len(patches) > count:
            rest.insert(0, (key, patches[count:]))
        count -= len(taken[-1][1])
    return taken, rest
