"""Which backend runs the patch encoder of a SPAI model, and where its graph is kept."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from yacs.config import CfgNode

from spai.backends import BACKENDS, Backend, check_backend
from spai.config import as_plain
from spai.models.spai import ImageModel, SpectralEncoder
from spai.weights import home

logger = logging.getLogger(__name__)

# Fewer patches than this are scored before a model is converted.
PATCHES_THAT_PAY = 300

Enough = Callable[[int], bool]


def compiled_folder() -> Path:
    """Return the folder of converted models."""
    return home() / "compiled"


def choose_backend(
    name: str,
    sha256: str,
    config: CfgNode,
    *,
    device: torch.device,
    precision: str,
    compile_model: bool,
    enough: Enough,
) -> str:
    """Return the backend that runs the patch encoder.

    "auto" is OpenVINO on the CPU when it is installed and pays: the model was converted before, or
    there are at least `PATCHES_THAT_PAY` patches; else torch.

    Args:
        name: "auto" or a backend.
        sha256: of the model file.
        config: of the model.
        device: where the model runs.
        precision: of the encoder.
        compile_model: torch.compile was asked for.
        enough: tells whether there are at least so many patches to score; asked only when needed.

    Raises:
        ValueError: the backend that was asked for cannot run.
    """
    if name != "auto":
        check_backend(name, device=device.type, precision=precision)
        if compile_model and name != "torch":
            raise ValueError(f"--compile: is of torch; leave it out with --backend {name}")
        return name
    kind = BACKENDS["openvino"]
    suits = device.type == "cpu" and precision in kind.precisions and kind.installed
    if compile_model or not suits or (precision == "bf16" and not _has_bf16()):
        return "torch"
    pays = _cache("openvino", sha256, config).has() or enough(PATCHES_THAT_PAY)
    return "openvino" if pays else "torch"


def graph_backend(
    name: str,
    sha256: str,
    config: CfgNode,
    model: ImageModel,
    load: Callable[[], object],
    *,
    precision: str,
) -> Backend:
    """Return a backend that runs a graph of the encoder, converted if it is not in the cache.

    Args:
        name: "openvino" or "onnxruntime".
        sha256: of the model file.
        config: of the model.
        model: with or without its weights; the weights of its encoder are given up.
        load: puts the weights into the model; called only when the model has to be converted.
        precision: of the encoder.
    """
    from spai.backends.cache import obtain_graph

    encoder = model.encoder

    def loaded() -> SpectralEncoder:
        load()
        return encoder

    cache = _cache(name, sha256, config)
    views = encoder.spectral_views
    if name == "openvino":
        from spai.backends.openvino import OpenVinoBackend, OpenVinoRuntime

        graph = obtain_graph(cache, OpenVinoRuntime(), loaded)
        _give_up_weights(encoder)
        return OpenVinoBackend(graph, views, precision=precision)
    from spai.backends.onnxruntime import OnnxRuntime, OnnxruntimeBackend

    graph = obtain_graph(cache, OnnxRuntime(), loaded)
    _give_up_weights(encoder)
    return OnnxruntimeBackend(graph, views)


def _cache(name: str, sha256: str, config: CfgNode) -> Any:
    from spai.backends.cache import GraphCache

    plain = as_plain(config)
    graph = {
        "VIT": plain["MODEL"]["VIT"],
        "FRE": plain["MODEL"]["FRE"],
        "IMG_SIZE": plain["DATA"]["IMG_SIZE"],
    }
    return GraphCache(compiled_folder(), name, {"model_sha256": sha256, "configuration": graph})


def _has_bf16() -> bool:
    from spai.backends.openvino import has_bf16

    return has_bf16()


def _give_up_weights(encoder: SpectralEncoder) -> None:
    """Free what the graph holds as well; the frequency filter stays."""
    encoder.vit.to("meta")
    encoder.features_processor.to("meta")
