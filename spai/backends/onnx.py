"""The model as ONNX files."""

import contextlib
import io
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import torch

from spai.backends.graph import Traced
from spai.files import replacing

# The newest that the exporter writes by itself; runtimes lag behind the newest there is.
OPSET = 20


def to_onnx(traced: Traced, metadata: Mapping[str, str] | None = None) -> onnx.ModelProto:
    """Convert a traced module to ONNX, with metadata inside."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        _quiet()
        program = torch.onnx.export(
            traced.program,
            dynamo=True,
            opset_version=OPSET,
            input_names=list(traced.inputs),
            output_names=[traced.output],
            verbose=False,
        )
    assert program is not None
    shape: Any = program.model.graph.inputs[0].shape
    program.rename_axes({str(shape[i].value): axis for i, axis in enumerate(traced.axes)})
    model: Any = program.model_proto
    onnx.helper.set_model_props(model, dict(metadata or {}))
    return model


def save_onnx(model: onnx.ModelProto, path: Path) -> None:
    """Write an ONNX file, beside and renamed."""
    with replacing(path) as partial:
        partial.write_bytes(model.SerializeToString())


def _quiet() -> None:
    for name in ("torch.onnx", "onnxscript", "onnx_ir"):
        logging.getLogger(name).setLevel(logging.ERROR)
