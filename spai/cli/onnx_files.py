"""What `spai export-onnx` and `spai validate-onnx` do."""

import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click
import torch
from torch import Tensor
from yacs.config import CfgNode

from spai import weights
from spai._version import __version__
from spai.backends import check_backend
from spai.cli.options import Failure
from spai.config import as_plain
from spai.data.images import FileSource, ImageError, open_image
from spai.data.records import ImageRecord, read_input
from spai.detectors.spai import CHUNK, SpaiFile, build_cutter
from spai.models.spai import ImageModel, SpectralEncoder

logger = logging.getLogger(__name__)

ENCODER, AGGREGATOR = "patch_encoder.onnx", "patch_aggregator.onnx"
TOLERANCE = 1e-4
# Patches at once in the comparison with random patches; other than what was traced.
BATCHES = (1, 3)
SHA256 = "spai.model_sha256"


class Row(NamedTuple):
    """One comparison: what was compared, over how much, and the largest difference."""

    what: str
    over: int
    difference: float


def run_export(
    *,
    model: str | None,
    cfg: Path | None,
    overrides: Sequence[tuple[str, str]],
    output: Path,
    tag: str | None,
    exclude_preprocessing: bool,
) -> None:
    """Write the files; the arguments are the options of the command.

    Raises:
        ValueError: a mistake in what was asked.
    """
    check_backend("onnxruntime", device="cpu", precision="fp32")
    file = _open(model, cfg, overrides)
    folder = _folder(output, tag)
    loaded = file.load_model()
    from spai.backends.graph import trace_aggregator, trace_encoder, trace_views
    from spai.backends.onnx import save_onnx, to_onnx

    logger.info("converting %s, once; this takes up to a minute", file.file.path)
    metadata = {
        SHA256: file.sha256,
        "spai.configuration": json.dumps(as_plain(file.config)),
        "spai.version": __version__,
    }
    encoder = loaded.encoder
    traced = (
        trace_views(encoder) if exclude_preprocessing else trace_encoder(encoder, torch.float32)
    )
    for name, graph in ((ENCODER, traced), (AGGREGATOR, trace_aggregator(loaded))):
        save_onnx(to_onnx(graph, metadata), folder / name)
        click.echo(folder / name)


def run_validate(
    *,
    model: str | None,
    cfg: Path | None,
    overrides: Sequence[tuple[str, str]],
    output: Path,
    tag: str | None,
    inputs: Sequence[Path],
) -> None:
    """Compare the files with the model and print a table.

    Raises:
        ValueError: a mistake in what was asked, or the files are of another model.
        Failure: they differ.
    """
    check_backend("onnxruntime", device="cpu", precision="fp32")
    tables = [read_input(path) for path in inputs]
    file = _open(model, cfg, overrides)
    folder = _folder(output, tag)
    encoder, aggregator = (_session(folder / name, file) for name in (ENCODER, AGGREGATOR))
    loaded = file.load_model().requires_grad_(False)
    rows = list(_compare_random(loaded, encoder, aggregator))
    if tables:
        records = [record for table in tables for record in table.records]
        rows.append(_compare_images(loaded, file.config, encoder, aggregator, records))
    for what, over, difference in rows:
        verdict = "ok" if difference <= TOLERANCE else "DIFFERS"
        click.echo(f"{what:32} {over:6d}  {difference:.1e}  {verdict}")
    if not all(row.difference <= TOLERANCE for row in rows):  # NaN is no agreement either
        raise Failure(f"{folder}: differs from the model by more than {TOLERANCE:g}")


class OnnxEncoder:
    """An exported encoder as a backend, whichever inputs it takes."""

    def __init__(self, session: Any, encoder: SpectralEncoder) -> None:
        """Take the session of the file and the encoder that it was made from."""
        self._session, self._encoder = session, encoder

    @torch.inference_mode()
    def encode(self, patches: Tensor) -> Tensor:
        """Turn uint8 patches [P, 3, S, S] into vectors [P, V]."""
        from spai.backends.graph import split_views
        from spai.backends.onnxruntime import run_session

        parts: tuple[Tensor, ...] = (patches.float() / 255,)
        if self._session.get_inputs()[0].name != "patches":
            parts = split_views(self._encoder.spectral_views, patches)
        return torch.from_numpy(run_session(self._session, *(part.numpy() for part in parts)))


def _open(model: str | None, cfg: Path | None, overrides: Sequence[tuple[str, str]]) -> SpaiFile:
    path = weights.chosen_weights(model)
    return SpaiFile.read(path, cfg=cfg, overrides=overrides)


def _folder(output: Path, tag: str | None) -> Path:
    if tag is None:
        return output
    if not tag.strip() or Path(tag).name != tag:
        raise ValueError(f"--tag {tag!r}: is the name of a folder below --output")
    return output / tag


def _session(path: Path, file: SpaiFile) -> Any:
    """Open an exported file.

    Raises:
        ValueError: it is not there, is damaged, or was made from another model.
    """
    from spai.backends.onnxruntime import open_session

    if not path.is_file():
        raise ValueError(f"{path}: no such file; write it with spai export-onnx")
    try:
        session = open_session(path)
    except Exception as error:  # onnxruntime has an exception of its own for each kind of damage
        raise ValueError(f"{path}: onnxruntime cannot read it: {error}") from error
    made_from = session.get_modelmeta().custom_metadata_map.get(SHA256)
    if made_from != file.sha256:
        raise ValueError(
            f"{path}: was made from the model with SHA-256 {made_from}, not from "
            f"{file.file.path} ({file.sha256})"
        )
    return session


@torch.inference_mode()
def _compare_random(model: ImageModel, encoder: Any, aggregator: Any) -> Iterator[Row]:
    from spai.backends.onnxruntime import run_session

    exported = OnnxEncoder(encoder, model.encoder)
    generator = torch.Generator().manual_seed(0)
    size = model.encoder.frequencies_mask.shape[0]
    for count in BATCHES:
        patches = torch.randint(
            0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator
        )
        vectors = model.encode(patches)
        found = exported.encode(patches)
        yield Row("random patches: vectors", count, float((found - vectors).abs().max()))
        images = torch.stack([vectors, vectors.flip(1)])  # [2, K, V]
        logits = torch.from_numpy(run_session(aggregator, images.numpy()))[:, 0]
        difference = (logits - model.aggregate(images)[0]).abs().max()
        yield Row("random vectors: logits", len(images), float(difference))


@torch.inference_mode()
def _compare_images(
    model: ImageModel,
    config: CfgNode,
    encoder: Any,
    aggregator: Any,
    records: Sequence[ImageRecord],
) -> Row:
    """Compare the logits of images, each computed by one program from patches to the logit."""
    from spai.backends.onnxruntime import run_session

    cutter, exported = build_cutter(config), OnnxEncoder(encoder, model.encoder)
    worst, count = 0.0, 0
    for record in records:
        try:
            with open_image(record.path, FileSource()) as opened:
                pieces = list(cutter(opened.decode()))
        except ImageError as error:
            logger.warning("%s: %s", record.name, error)
            continue
        layout = pieces[0].layout
        assert layout is not None
        parts = [part for piece in pieces for part in piece.patches.split(CHUNK["cpu"])]
        members = torch.tensor(layout.members)
        own = torch.cat([model.encode(part) for part in parts])[members][None]
        other = torch.cat([exported.encode(part) for part in parts])[members][None]
        logit = torch.from_numpy(run_session(aggregator, other.numpy()))[:, 0]
        difference = float((logit - model.aggregate(own)[0]).abs().max())
        worst = difference if difference != difference else max(worst, difference)
        count += 1
    return Row("images: logits", count, worst)
