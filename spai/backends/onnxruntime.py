"""ONNX graphs run by onnxruntime, on the CPU."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor

from spai.backends import cpu_threads
from spai.backends.graph import Views, split_views, trace_views
from spai.backends.onnx import to_onnx
from spai.models.spai import SpectralEncoder

FILE = "encoder.onnx"


class OnnxRuntime:
    """Makes, keeps and reads graphs of onnxruntime."""

    name = "onnxruntime"

    def convert(self, encoder: SpectralEncoder) -> bytes | Path:
        """Make the graph from the views of patches to vectors."""
        model: onnx.ModelProto = to_onnx(trace_views(encoder))
        content: bytes = model.SerializeToString()
        return content

    def save(self, graph: bytes, folder: Path) -> None:
        """Write a graph into a folder."""
        (folder / FILE).write_bytes(graph)

    def load(self, folder: Path) -> bytes | Path:
        """Return what onnxruntime reads."""
        return folder / FILE


class OnnxruntimeBackend:
    """Runs the encoder as a graph of onnxruntime."""

    def __init__(self, graph: bytes | Path, views: Views) -> None:
        """Load a graph of `OnnxRuntime`; `views` splits and normalises patches."""
        self._session = open_session(graph)
        self._views = views

    def encode(self, patches: Tensor) -> Tensor:
        """Turn uint8 patches [P, 3, S, S] into vectors [P, V]."""
        parts = split_views(self._views, patches)
        return torch.from_numpy(run_session(self._session, *(part.numpy() for part in parts)))


def open_session(graph: bytes | Path) -> onnxruntime.InferenceSession:
    """Load an ONNX model, given by its content or its file."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = cpu_threads() or 0  # 0: its default
    options.log_severity_level = 3
    source = graph if isinstance(graph, bytes) else str(graph)
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def run_session(session: onnxruntime.InferenceSession, *inputs: np.ndarray) -> np.ndarray:
    """Return the first output for the inputs in their order."""
    names = [argument.name for argument in session.get_inputs()]
    found: np.ndarray = session.run(None, dict(zip(names, inputs, strict=True)))[0]
    return found
