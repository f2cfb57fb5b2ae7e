"""The patch encoder run by OpenVINO, on the CPU.

torch splits the patches into their frequencies, in float32 at every precision; the graph does the
rest. One graph serves all precisions: it is stored in float32 and rounded when it is compiled.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Importing openvino reports to its makers unless this module is absent.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

import openvino  # noqa: E402

from spai.backends import cpu_threads  # noqa: E402
from spai.backends.graph import Views, split_views, trace_views  # noqa: E402
from spai.models.spai import SpectralEncoder  # noqa: E402

FILE = "encoder.xml"
PRECISIONS = {"fp32": "f32", "bf16": "bf16"}


class OpenVinoRuntime:
    """Makes, keeps and reads graphs of OpenVINO."""

    name = "openvino"

    def convert(self, encoder: SpectralEncoder) -> openvino.Model:
        """Make the graph from the views of patches to vectors."""
        traced = trace_views(encoder)
        graph = openvino.convert_model(traced.program)
        size = encoder.frequencies_mask.shape[0]
        graph.reshape({name: [-1, 3, size, size] for name in traced.inputs})
        return graph

    def save(self, graph: openvino.Model, folder: Path) -> None:
        """Write a graph into a folder."""
        openvino.save_model(graph, folder / FILE, compress_to_fp16=False)

    def load(self, folder: Path) -> openvino.Model:
        """Read what `save` wrote; the weights stay on disk until they are needed."""
        return openvino.Core().read_model(folder / FILE)


class OpenVinoBackend:
    """Runs a graph of OpenVINO."""

    def __init__(self, graph: openvino.Model, views: Views, *, precision: str) -> None:
        """Compile a graph for this machine.

        Args:
            graph: of `OpenVinoRuntime`.
            views: splits and normalises patches.
            precision: "fp32" or "bf16".

        Raises:
            ValueError: the processor has no such precision.
        """
        if precision == "bf16" and not has_bf16():
            raise ValueError(
                "--precision bf16: this processor has no bfloat16 arithmetic for OpenVINO; "
                "use --precision fp32"
            )
        settings: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": PRECISIONS[precision],
            "PERFORMANCE_HINT": "LATENCY",
        }
        threads = cpu_threads()
        if threads is not None:
            settings["INFERENCE_NUM_THREADS"] = threads
        compiled = openvino.Core().compile_model(graph, "CPU", settings)
        self._request = compiled.create_infer_request()
        self._views = views

    def encode(self, patches: Tensor) -> Tensor:
        """Turn uint8 patches [P, 3, S, S] into vectors [P, V]."""
        inputs = [part.numpy() for part in split_views(self._views, patches)]
        found = self._request.infer(inputs, share_inputs=True)
        return torch.from_numpy(np.array(found[0], dtype=np.float32))


def has_bf16() -> bool:
    """Tell whether the processor multiplies bfloat16 itself, or OpenVINO would use float32."""
    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
