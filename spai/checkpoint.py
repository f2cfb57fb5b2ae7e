"""The only place that reads or writes model files.

Three kinds are read: the published pickle (`spai.pth`), the published-style pickles that training
writes, and safetensors with the configuration inside. Pickles go through torch's safe unpickler
with an allow-list of plain types; whatever else a file names is refused, never executed.
"""

import collections
import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from spai._version import __version__
from spai.config import config_to_yaml
from spai.files import file_sha256, replacing
from spai.models.backbone import build_backbone
from spai.models.features import FeaturesProcessor
from spai.models.spai import FixedResolutionSpai, ImageModel, PatchEncoder, Spai

FORMAT_VERSION = "1"

# Tensors of published files that the published model never reads, after the backbone's prefix.
DEAD_SPAI = r"(head|cls_blocks|fc_norm|intermediate_fc_norm)\..+|cls_pos_embed|actual_cls_token"
DEAD_MFM = r"(cls_blocks|cls_norm|norm)\..+|cls_pos_embed|actual_cls_token"

# What honest checkpoint files name besides tensors and containers.
SAFE_GLOBALS: list[Any] = [
    # The class itself would not do: the safe unpickler refuses to set items on it.
    (collections.OrderedDict, "yacs.config.CfgNode"),
    (np._core.multiarray.scalar, "numpy._core.multiarray.scalar"),  # type: ignore[attr-defined]
    (np._core.multiarray.scalar, "numpy.core.multiarray.scalar"),  # type: ignore[attr-defined]
    np.dtype,
    *(type(np.dtype(name)) for name in ("f8", "f4", "f2", "i8", "i4", "i2", "u1", "bool")),
]


@dataclass(frozen=True)
class ModelFile:
    """What a model file holds.

    Attributes:
        path: where it was read.
        sha256: of the file, hexadecimal.
        tensors: the state dict as stored.
        config_text: the configuration as YAML, when we wrote the file.
        foreign_config: the configuration that another program's pickle embeds.
        epoch: of training, when the file says it.
    """

    path: Path
    sha256: str
    tensors: dict[str, Tensor]
    config_text: str | None = None
    foreign_config: Mapping[str, Any] | None = None
    epoch: int | None = None


def build_model(config: CfgNode) -> ImageModel:
    """Build the model that a configuration describes, with random weights."""
    vit_config, fre = config.MODEL.VIT, config.MODEL.FRE
    layers = list(vit_config.INTERMEDIATE_LAYERS)
    vit = build_backbone(**backbone_settings(config), final_norm=False)
    processor = FeaturesProcessor(
        blocks=len(layers),
        width=vit_config.EMBED_DIM,
        projection_dim=vit_config.PROJECTION_DIM,
        dropout=config.MODEL.SID_DROPOUT,
        project=vit_config.PATCH_PROJECTION,
        project_per_block=vit_config.PATCH_PROJECTION_PER_FEATURE,
        last_activation=fre.PROJECTOR_LAST_LAYER_ACTIVATION_TYPE == "gelu",
        similarities=not fre.DISABLE_RECONSTRUCTION_SIMILARITY,
        context=fre.ORIGINAL_IMAGE_FEATURES_BRANCH,
    )
    encoder: dict[str, Any] = {
        "size": config.DATA.IMG_SIZE,
        "radius": fre.MASKING_RADIUS,
        "layers": layers,
        "use_checkpoint": config.TRAIN.USE_CHECKPOINT,
    }
    head: dict[str, Any] = {
        "head_ratio": config.MODEL.CLS_HEAD.MLP_RATIO,
        "dropout": config.MODEL.SID_DROPOUT,
    }
    if config.MODEL.RESOLUTION_MODE == "fixed":
        reduction = config.TEST.VIEWS_REDUCTION_APPROACH
        return FixedResolutionSpai(vit, processor, **encoder, **head, reduction=reduction)
    return Spai(
        PatchEncoder(vit, processor, **encoder),
        attention_width=config.MODEL.PATCH_VIT.ATTN_EMBED_DIM,
        heads=config.MODEL.PATCH_VIT.NUM_HEADS,
        **head,
    )


def backbone_settings(config: CfgNode) -> dict[str, Any]:
    """Return the arguments of `build_backbone` that both training stages share."""
    vit = config.MODEL.VIT
    return {
        "image_size": config.DATA.IMG_SIZE,
        "patch_size": vit.PATCH_SIZE,
        "width": vit.EMBED_DIM,
        "depth": vit.DEPTH,
        "heads": vit.NUM_HEADS,
        "mlp_ratio": vit.MLP_RATIO,
        "qkv_bias": vit.QKV_BIAS,
        "layer_scale": vit.INIT_VALUES,
        "absolute_positions": vit.USE_APE,
        "dropout": config.MODEL.DROP_RATE,
        "drop_path": config.MODEL.DROP_PATH_RATE,
    }


def read_model_file(path: Path) -> ModelFile:
    """Read a SPAI model file of any kind.

    Raises:
        ValueError: not a model file, damaged, or a pickle that names anything but plain data.
    """
    try:
        sha256 = file_sha256(path)
    except OSError as error:
        raise ValueError(f"{path}: model file cannot be read: {error.strerror}") from error
    if is_safetensors(path):
        tensors, metadata = _read_safetensors(path)
        said = metadata.get("epoch", "")
        return ModelFile(
            path,
            sha256,
            tensors,
            config_text=metadata.get("config"),
            epoch=int(said) if said.isdecimal() else None,
        )
    content = read_pickle(path)
    tensors = _state_dict(content, path)
    config, epoch = content.get("config"), content.get("epoch")
    return ModelFile(
        path,
        sha256,
        tensors,
        config_text=config if isinstance(config, str) else None,
        foreign_config=config if isinstance(config, Mapping) else None,
        epoch=int(epoch) if isinstance(epoch, (int, np.integer)) else None,
    )


def load_weights(model: ImageModel, file: ModelFile, *, encoder: bool = True) -> None:
    """Put a file's tensors into a model: dead ones dropped by name, everything else strict.

    They are copied, or become the model's own where it was built on the meta device.

    Args:
        model: built for the file's configuration.
        file: all of its tensors are checked.
        encoder: False leaves out the weights of the encoder, which something else runs.

    Raises:
        ValueError: a tensor is missing, unexpected or of another shape, or the frequency mask is
            that of another radius. The message names the first ones.
    """
    mismatch = weights_mismatch(model, file)
    if mismatch:
        raise ValueError(f"{file.path}: does not fit the configuration: {mismatch}")
    tensors, state = _live_tensors(model, file), model.state_dict()
    for name, expected in state.items():
        if name.endswith("frequencies_mask") and not torch.equal(tensors[name], expected):
            raise ValueError(
                f"{file.path}: its {name} has {int(tensors[name].sum())} bins in the low band, the "
                f"configured MODEL.FRE.MASKING_RADIUS {model.encoder.radius:g} gives "
                f"{int(expected.sum())}; set the radius that the model was trained with"
            )
    on_meta = any(parameter.is_meta for parameter in model.parameters())
    # Copies: products round by how their operands are aligned, and files align them anyhow.
    converted = {
        name: tensor.to(state[name].dtype, copy=True)
        for name, tensor in tensors.items()
        if encoder or not name.removeprefix("mfvit.").startswith(("vit.", "features_processor."))
    }
    model.load_state_dict(converted, assign=on_meta, strict=encoder)


def weights_mismatch(model: ImageModel, file: ModelFile) -> str:
    """Say how a file's live tensors differ from a model's; empty when they fit."""
    return describe_mismatch(model.state_dict(), _live_tensors(model, file))


def _live_tensors(model: ImageModel, file: ModelFile) -> dict[str, Tensor]:
    prefix = "mfvit.vit." if isinstance(model, Spai) else "vit."
    return without_dead(file.tensors, prefix, DEAD_SPAI)


def describe_mismatch(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    """Say how two sets of tensors differ in names and shapes; empty when they do not."""
    wrong_shape = [
        f"{name} has shape {list(found[name].shape)}, expected {list(tensor.shape)}"
        for name, tensor in expected.items()
        if name in found and found[name].shape != tensor.shape
    ]
    missing = [f"{name} is missing" for name in expected if name not in found]
    unexpected = [f"{name} is unexpected" for name in found if name not in expected]
    problems = wrong_shape + missing + unexpected
    more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
    return "; ".join(problems[:3]) + more


def load_mfm_encoder(path: Path, vit: nn.Module) -> None:
    """Load the encoder of a masked-frequency-modelling checkpoint into a backbone.

    The tensors lie under `model`, or bare, as `encoder.*`; the decoder and the final norm are left.

    Raises:
        ValueError: unreadable, or a tensor is missing, unexpected or of another shape.
    """
    if is_safetensors(path):
        stored, _ = _read_safetensors(path)
    else:
        stored = _state_dict(read_pickle(path), path)
    if not any(name.startswith("encoder.") for name in stored):
        raise ValueError(
            f"{path}: no tensors named encoder.*; this is not an MFM checkpoint "
            f"(found {', '.join(list(stored)[:3]) or 'nothing'})"
        )
    others = [name for name in stored if not name.startswith(("encoder.", "decoder."))]
    encoder = {
        name.removeprefix("encoder."): tensor
        for name, tensor in without_dead(stored, "encoder.", DEAD_MFM).items()
        if name.startswith("encoder.")
    }
    expected = vit.state_dict()
    mismatch = describe_mismatch(expected, {**encoder, **{name: stored[name] for name in others}})
    if mismatch:
        raise ValueError(f"{path}: does not fit the configured backbone: {mismatch}")
    vit.load_state_dict(encoder)


def without_dead(tensors: Mapping[str, Tensor], prefix: str, dead: str) -> dict[str, Tensor]:
    """Return the tensors whose name is not `prefix` followed by one of the `dead` names."""
    pattern = re.compile(f"{re.escape(prefix)}({dead})")
    return {name: tensor for name, tensor in tensors.items() if not pattern.fullmatch(name)}


def save_safetensors(model: nn.Module, config: CfgNode, path: Path, *, epoch: int | None) -> None:
    """Write a self-describing model file for distribution, beside and renamed."""
    metadata = {
        "config": config_to_yaml(config),
        "spai_version": __version__,
        "format_version": FORMAT_VERSION,
    }
    if epoch is not None:
        metadata["epoch"] = str(epoch)
    tensors = {name: tensor.contiguous().cpu() for name, tensor in model.state_dict().items()}
    with replacing(path) as partial:
        safetensors.torch.save_file(tensors, partial, metadata=metadata)


def save_pickle(content: Mapping[str, Any], path: Path) -> None:
    """Write plain containers and tensors so that `weights_only` reads them, beside and renamed."""
    with replacing(path) as partial:
        torch.save(dict(content), partial)


def read_pickle(path: Path) -> dict[str, Any]:
    """Read a pickle of plain data and tensors.

    Raises:
        ValueError: it names a type or function outside the allow-list, or it is no such file.
    """
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(SAFE_GLOBALS):
            warnings.simplefilter("ignore")  # of torch, on how the file was written
            content = torch.load(
                path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
            )
    except pickle.UnpicklingError as error:
        raise ValueError(_refusal(path, str(error))) from error
    except Exception as error:  # a damaged pickle makes the unpickler raise nearly anything
        raise ValueError(f"{path}: damaged or not a model file ({type(error).__name__})") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{path}: holds a {type(content).__name__}, not a checkpoint")
    return dict(content)


def is_safetensors(path: Path) -> bool:
    """Tell by its first bytes whether a file is in the safetensors format.

    Raises:
        ValueError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            head = file.read(9)
    except OSError as error:
        raise ValueError(f"{path}: model file cannot be read: {error.strerror}") from error
    return len(head) == 9 and head[8:] == b"{"


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, dict(file.metadata() or {})
    except (safetensors.SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: damaged safetensors file ({error})") from error


def _state_dict(content: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """Find the tensors of a checkpoint: under `model`, or the content itself."""
    state = content.get("model", content)
    if not isinstance(state, Mapping) or not state or not _all_tensors(state.values()):
        keys = ", ".join(map(str, list(content)[:5])) or "nothing"
        raise ValueError(f"{path}: no model in this file; it holds {keys}")
    return {str(name): tensor for name, tensor in state.items()}


def _all_tensors(values: Iterable[Any]) -> bool:
    return all(isinstance(value, Tensor) for value in values)


def _refusal(path: Path, message: str) -> str:
    named = re.search(r"(?:GLOBAL|global|Unsupported class|function) [`']?([\w.]+)", message)
    if named is None:
        return f"{path}: not a model file, or damaged: it is no checkpoint of plain tensors"
    return (
        f"{path}: refused: the file names {named.group(1)!r}, which is no plain data; "
        "loading it could run code. Convert it where you trust it, or get the original file"
    )
