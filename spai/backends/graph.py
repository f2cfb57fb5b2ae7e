"""The model as graphs that other programs can run, traced from the modules that torch runs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from spai.models.backbone import use_fused_attention
from spai.models.spai import ImageModel, SpectralEncoder

VIEWS = ("x", "x_low", "x_high")


class GraphRuntime(Protocol):
    """What makes, keeps and runs graphs of one kind."""

    name: str

    def convert(self, encoder: SpectralEncoder) -> Any:
        """Make the graph from the views of patches to vectors."""
        ...

    def save(self, graph: Any, folder: Any) -> None:
        """Write a graph into an empty folder."""
        ...

    def load(self, folder: Any) -> Any:
        """Read what `save` wrote."""
        ...


class EncoderGraph(nn.Module):
    """Patches [P, 3, S, S], float in [0, 1] or uint8, to vectors [P, V]."""

    def __init__(self, encoder: SpectralEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, patches: Tensor) -> Tensor:
        """Return the vectors."""
        return self.encoder.encode(patches)


class ViewsGraph(nn.Module):
    """What is left of the encoder when the caller filters and normalises the patches."""

    def __init__(self, encoder: SpectralEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(
        self, x: Tensor, x_low: Tensor | None = None, x_high: Tensor | None = None
    ) -> Tensor:
        """Return the vectors [P, V] of normalised originals, low and high parts [P, 3, S, S].

        A model that compares nothing takes the originals alone.
        """
        views = x if x_low is None or x_high is None else torch.cat([x, x_low, x_high])
        return self.encoder.features_processor.combine(self.encoder.summarise(views))


class AggregatorGraph(nn.Module):
    """Patch vectors [B, K, V] of images with the same number of patches to logits [B, 1]."""

    def __init__(self, model: ImageModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, vectors: Tensor) -> Tensor:
        """Return the logits."""
        return self.model.aggregate(vectors)[0][:, None]


@dataclass(frozen=True)
class Traced:
    """A traced module, with the names of what goes in and out, and which of their axes vary."""

    program: ExportedProgram
    inputs: tuple[str, ...]
    output: str
    axes: tuple[str, ...]


def trace_encoder(encoder: SpectralEncoder, dtype: torch.dtype) -> Traced:
    """Trace the encoder from patches of a type, uint8 or float, to vectors."""
    example = torch.zeros(2, *_patch_shape(encoder), dtype=dtype)
    return _trace(EncoderGraph(encoder), (example,), ("patches",), "vectors", ("P",))


def trace_views(encoder: SpectralEncoder) -> Traced:
    """Trace the encoder from filtered and normalised patches to vectors."""
    names = VIEWS if encoder.features_processor.similarities else VIEWS[:1]
    examples = tuple(torch.zeros(2, *_patch_shape(encoder)) for _ in names)
    return _trace(ViewsGraph(encoder), examples, names, "vectors", ("P",))


def trace_aggregator(model: ImageModel) -> Traced:
    """Trace the part of the model that pools patch vectors."""
    example = torch.zeros(2, 3, model.encoder.features_processor.vector_size)
    return _trace(AggregatorGraph(model), (example,), ("vectors",), "logits", ("B", "K"))


def _patch_shape(encoder: SpectralEncoder) -> tuple[int, int, int]:
    size = encoder.frequencies_mask.shape[0]
    return 3, size, size


def _trace(
    module: nn.Module,
    examples: tuple[Tensor, ...],
    inputs: tuple[str, ...],
    output: str,
    axes: tuple[str, ...],
) -> Traced:
    module.eval().requires_grad_(False)
    for part in module.modules():
        if isinstance(part, SpectralEncoder):
            use_fused_attention(part.vit, True)  # one operator, for the other program to arrange
    varying = {axis: Dim(name) for axis, name in enumerate(axes)}
    with torch.no_grad():
        program = torch.export.export(
            module, examples, dynamic_shapes=(varying,) * len(examples), strict=False
        )
    return Traced(program, inputs, output, axes)


Views = Callable[[Tensor], Tensor]


def split_views(views: Views, patches: Tensor) -> tuple[Tensor, ...]:
    """Return the inputs of a `ViewsGraph` for uint8 patches [P, 3, S, S]."""
    with torch.inference_mode():
        return views(patches).split(len(patches))
