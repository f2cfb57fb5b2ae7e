"""The configuration: a yacs tree whose defaults are the published SPAI configuration.

A tree is made from, in this order: the defaults below, a YAML file (with the files of its `BASE`
list first), and overrides of single keys. YAML is read with the safe loader and values of overrides
are Python literals, so nothing that a user's file says is ever executed; yacs' own
`merge_from_file`, which would run a `.py` file, is not used.

Keys of the published code that mean nothing here are accepted and reported in one warning.
"""

import ast
import difflib
import fnmatch
import functools
import logging
import operator
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from yacs.config import CfgNode

logger = logging.getLogger(__name__)

DEFAULTS: dict[str, Any] = {
    "DATA": {
        "BATCH_SIZE": 128,
        "VAL_BATCH_SIZE": None,
        "TEST_BATCH_SIZE": None,
        "DATA_PATH": "",
        "CSV_ROOT": "",
        "BALANCE_COLUMN": "",
        "TEST_DATA_PATH": [],
        "TEST_DATA_CSV_ROOT": [],
        "LMDB_PATH": None,
        "IMG_SIZE": 224,
        "MIN_CROP_SCALE": 0.2,
        "INTERPOLATION": "bicubic",
        "PIN_MEMORY": True,
        "NUM_WORKERS": None,
        "PREFETCH_FACTOR": 2,
        "VAL_PREFETCH_FACTOR": None,
        "TEST_PREFETCH_FACTOR": None,
        "AUGMENTED_VIEWS": 4,
        "FILTER_TYPE": "mfm",
        "SAMPLE_RATIO": 0.5,
        "MASK_RADIUS1": 16,
        "MASK_RADIUS2": 999,
    },
    "MODEL_WEIGHTS": "mfm",
    "MODEL": {
        "TYPE": "vit",
        "NAME": "finetune",
        "NUM_CLASSES": 2,
        "DROP_RATE": 0.0,
        "SID_DROPOUT": 0.5,
        "DROP_PATH_RATE": 0.1,
        "REQUIRED_NORMALIZATION": "positive_0_1",
        "SID_APPROACH": "freq_restoration",
        "RESOLUTION_MODE": "arbitrary",
        "FEATURE_EXTRACTION_BATCH": None,
        "RECOVER_TARGET_TYPE": "normal",
        "VIT": {
            "PATCH_SIZE": 16,
            "IN_CHANS": 3,
            "EMBED_DIM": 768,
            "DEPTH": 12,
            "NUM_HEADS": 12,
            "MLP_RATIO": 4,
            "QKV_BIAS": True,
            "INIT_VALUES": None,
            "USE_APE": True,
            "USE_RPB": False,
            "USE_SHARED_RPB": False,
            "USE_INTERMEDIATE_LAYERS": True,
            "INTERMEDIATE_LAYERS": [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11],
            "PROJECTION_DIM": 1024,
            "PROJECTION_LAYERS": 2,
            "PATCH_PROJECTION": True,
            "PATCH_PROJECTION_PER_FEATURE": True,
        },
        "FRE": {
            "MASKING_RADIUS": 16,
            "PROJECTOR_LAST_LAYER_ACTIVATION_TYPE": None,
            "ORIGINAL_IMAGE_FEATURES_BRANCH": True,
            "DISABLE_RECONSTRUCTION_SIMILARITY": False,
        },
        "PATCH_VIT": {
            "PATCH_STRIDE": 224,
            "NUM_HEADS": 12,
            "ATTN_EMBED_DIM": 1536,
            "MINIMUM_PATCHES": 4,
        },
        "CLS_HEAD": {"MLP_RATIO": 3},
        "FREQ_LOSS": {"LOSS_GAMMA": 1.0},
    },
    "TRAIN": {
        "EPOCHS": 35,
        "WARMUP_EPOCHS": 5,
        "WEIGHT_DECAY": 0.05,
        "BASE_LR": 5e-4,
        "WARMUP_LR": 2.5e-7,
        "MIN_LR": 2.5e-7,
        "CLIP_GRAD": None,
        "ACCUMULATION_STEPS": 1,
        "USE_CHECKPOINT": False,
        "MODE": "supervised",
        "LOSS": "bce",
        "TRIPLET_LOSS_MARGIN": 0.5,
        "LAYER_DECAY": 0.8,
        "SCALE_LR": False,
        "FREEZE_BACKBONE": True,
        "BACKBONE_LR_SCALE": 1.0,
        "STANDARDIZE_CONTEXT": False,
        "LR_SCHEDULER": {
            "NAME": "cosine",
            "DECAY_EPOCHS": 30,
            "DECAY_RATE": 0.1,
            "GAMMA": 0.1,
            "MULTISTEPS": [],
        },
        "OPTIMIZER": {"NAME": "adamw", "EPS": 1e-8, "BETAS": (0.9, 0.999), "MOMENTUM": 0.9},
    },
    "AUG": {
        "MIN_CROP_AREA": 0.2,
        "MAX_CROP_AREA": 1.0,
        "RESCALE_PROB": 0.0,
        "RESCALE_RANGE": (0.4, 1.0),
        "HORIZONTAL_FLIP_PROB": 0.5,
        "VERTICAL_FLIP_PROB": 0.5,
        "ROTATION_PROB": 0.5,
        "ROTATION_DEGREES": 90,
        "GAUSSIAN_BLUR_PROB": 0.5,
        "GAUSSIAN_BLUR_LIMIT": (3, 9),
        "GAUSSIAN_BLUR_SIGMA": (0.01, 0.5),
        "GAUSSIAN_NOISE_PROB": 0.5,
        "JPEG_COMPRESSION_PROB": 0.5,
        "JPEG_MIN_QUALITY": 50,
        "JPEG_MAX_QUALITY": 100,
        "JPEG_FULL_CHROMA_PROB": 0.0,
        "WEBP_COMPRESSION_PROB": 0.0,
        "WEBP_MIN_QUALITY": 50,
        "WEBP_MAX_QUALITY": 100,
        "COLOR_JITTER": 0.0,
        "COLOR_JITTER_BRIGHTNESS_RANGE": (0.8, 1.2),
        "COLOR_JITTER_CONTRAST_RANGE": (0.8, 1.2),
        "COLOR_JITTER_SATURATION_RANGE": (0.8, 1.2),
        "COLOR_JITTER_HUE_RANGE": (-0.1, 0.1),
        "SHARPEN_PROB": 0.0,
        "SHARPEN_ALPHA_RANGE": (0.01, 0.4),
        "SHARPEN_LIGHTNESS_RANGE": (0.95, 1.0),
    },
    "TEST": {
        "CROP": True,
        "MAX_SIZE": None,
        "ORIGINAL_RESOLUTION": True,
        "VIEWS_GENERATION_APPROACH": None,
        "VIEWS_REDUCTION_APPROACH": "mean",
        "EXPORT_IMAGE_PATCHES": False,
        "GAUSSIAN_BLUR": False,
        "GAUSSIAN_BLUR_KERNEL_SIZE": 3,
        "GAUSSIAN_NOISE": False,
        "GAUSSIAN_NOISE_SIGMA": 1.0,
        "JPEG_COMPRESSION": False,
        "JPEG_QUALITY": 100,
        "WEBP_COMPRESSION": False,
        "WEBP_QUALITY": 100,
        "SCALE": False,
        "SCALE_FACTOR": 1.0,
    },
    "AMP_OPT_LEVEL": "",
    "OUTPUT": "",
    "TAG": "default",
    "PRINT_FREQ": 100,
    "SEED": 0,
    "PRETRAINED": "",
}

# What a key whose default is None accepts besides None.
TYPES_OF_OPTIONAL: dict[str, type] = {
    "DATA.VAL_BATCH_SIZE": int,
    "DATA.TEST_BATCH_SIZE": int,
    "DATA.LMDB_PATH": str,
    "DATA.NUM_WORKERS": int,
    "DATA.VAL_PREFETCH_FACTOR": int,
    "DATA.TEST_PREFETCH_FACTOR": int,
    "MODEL.FEATURE_EXTRACTION_BATCH": int,
    "MODEL.VIT.INIT_VALUES": float,
    "MODEL.FRE.PROJECTOR_LAST_LAYER_ACTIVATION_TYPE": str,
    "TRAIN.CLIP_GRAD": float,
    "TEST.MAX_SIZE": int,
    "TEST.VIEWS_GENERATION_APPROACH": str,
}

# What a list that is empty by default holds.
TYPES_OF_ITEMS: dict[str, type] = {
    "DATA.TEST_DATA_PATH": str,
    "DATA.TEST_DATA_CSV_ROOT": str,
    "TRAIN.LR_SCHEDULER.MULTISTEPS": int,
}

# Keys of the published code without a meaning here.
IGNORED_KEYS = (
    "DATA.DATASET",
    "DATA.BLUR*",
    "DATA.NOISE*",
    "DATA.SR_FACTOR*",
    "MODEL.LABEL_SMOOTHING",
    "MODEL.SWIN*",
    "MODEL.RESNET*",
    "MODEL.VIT.USE_MEAN_POOLING",
    "MODEL.VIT.FEATURES_PROCESSOR",
    "MODEL.VIT.PATCH_POOLING",
    "MODEL.VIT.DECODER*",
    "MODEL.FREQ_LOSS.*",
    "TRAIN.START_EPOCH",
    "TRAIN.AUTO_RESUME",
    "AUG.AUTO_AUGMENT",
    "AUG.REPROB",
    "AUG.REMODE",
    "AUG.RECOUNT",
    "AUG.BLUR_PROB",
    "AUG.MIXUP*",
    "AUG.CUTMIX*",
    "SAVE_FREQ",
    "EVAL_MODE",
    "THROUGHPUT_MODE",
    "LOCAL_RANK",
)

# Keys with a closed set of values.
CHOICES: dict[str, tuple[Any, ...]] = {
    "DATA.INTERPOLATION": ("bicubic", "bilinear"),
    "DATA.FILTER_TYPE": ("mfm",),
    "MODEL_WEIGHTS": ("mfm",),
    "MODEL.TYPE": ("vit",),
    "MODEL.NUM_CLASSES": (2,),
    "MODEL.REQUIRED_NORMALIZATION": ("positive_0_1",),
    "MODEL.SID_APPROACH": ("freq_restoration",),
    "MODEL.RESOLUTION_MODE": ("arbitrary", "fixed"),
    "MODEL.RECOVER_TARGET_TYPE": ("normal", "masked"),
    "MODEL.VIT.USE_RPB": (False,),
    "MODEL.VIT.USE_SHARED_RPB": (False,),
    "MODEL.VIT.USE_INTERMEDIATE_LAYERS": (True,),
    "MODEL.VIT.IN_CHANS": (3,),
    "MODEL.VIT.PROJECTION_LAYERS": (2,),
    "MODEL.FRE.PROJECTOR_LAST_LAYER_ACTIVATION_TYPE": (None, "gelu"),
    "TRAIN.MODE": ("supervised", "contrastive"),
    "TRAIN.LOSS": ("bce", "supcont", "triplet"),
    "TRAIN.LR_SCHEDULER.NAME": ("cosine", "linear", "step", "multistep"),
    "TRAIN.OPTIMIZER.NAME": ("adamw", "sgd"),
    "TEST.VIEWS_GENERATION_APPROACH": (None, "tencrop"),
    "TEST.VIEWS_REDUCTION_APPROACH": ("mean", "max"),
    "AMP_OPT_LEVEL": ("", "O0", "O1", "O2"),
}

# Keys that count something: whole numbers of at least 1.
COUNTS = (
    "DATA.BATCH_SIZE",
    "DATA.VAL_BATCH_SIZE",
    "DATA.TEST_BATCH_SIZE",
    "DATA.AUGMENTED_VIEWS",
    "DATA.IMG_SIZE",
    "DATA.PREFETCH_FACTOR",
    "DATA.VAL_PREFETCH_FACTOR",
    "DATA.TEST_PREFETCH_FACTOR",
    "MODEL.FEATURE_EXTRACTION_BATCH",
    "MODEL.VIT.PATCH_SIZE",
    "MODEL.VIT.EMBED_DIM",
    "MODEL.VIT.DEPTH",
    "MODEL.VIT.NUM_HEADS",
    "MODEL.VIT.PROJECTION_DIM",
    "MODEL.PATCH_VIT.PATCH_STRIDE",
    "MODEL.PATCH_VIT.NUM_HEADS",
    "MODEL.PATCH_VIT.ATTN_EMBED_DIM",
    "MODEL.PATCH_VIT.MINIMUM_PATCHES",
    "TRAIN.EPOCHS",
    "TRAIN.ACCUMULATION_STEPS",
    "TEST.MAX_SIZE",
)


def default_config() -> CfgNode:
    """Return a fresh tree with the published SPAI configuration."""
    return CfgNode(DEFAULTS)


def load_config(
    path: Path | None = None,
    overrides: Sequence[tuple[str, Any]] = (),
    *,
    text: str | None = None,
) -> CfgNode:
    """Build the configuration from a file or a text, then single keys.

    Args:
        path: a YAML file; the files of its `BASE` list are merged first.
        overrides: (key, value) pairs such as `("MODEL.PATCH_VIT.PATCH_STRIDE", "112")`; a string
            is parsed as a Python literal where it is one.
        text: YAML to use instead of a file (a configuration embedded in a model file).

    Raises:
        ValueError: the file cannot be read, a key is unknown, or a value has another type or is
            not one of the choices. The message names the source and the remedy.
    """
    config = default_config()
    ignored: set[str] = set()
    if path is not None:
        ignored |= _merge_file(config, path, including=())
    elif text is not None:
        ignored |= _merge_tree(config, _parse_yaml(text, "embedded configuration"), "it")
    for key, value in overrides:
        _assign(config, key, value, source=f"--opt {key}", ignored=ignored)
    if ignored:
        logger.warning("Configuration keys without effect here: %s", ", ".join(sorted(ignored)))
    _check_values(config)
    return config


def adopt_config(tree: Mapping[str, Any]) -> CfgNode:
    """Take over the keys that we know of another program's configuration.

    Raises:
        ValueError: a value has another type or is not one of the choices.
    """
    config = default_config()
    known = dict(flatten(DEFAULTS))
    for key, value in flatten(_with_text_keys(tree)):
        if key in known:
            _assign(config, key, value, source="embedded configuration", ignored=set())
    _check_values(config)
    return config


def config_to_yaml(config: CfgNode) -> str:
    """Return the tree as YAML that `load_config(text=...)` reads back to an equal tree."""
    return yaml.safe_dump(as_plain(config), sort_keys=False)


def config_differences(first: CfgNode, second: CfgNode) -> list[str]:
    """Return one line `KEY: a, not b` for each key on which two trees differ."""
    a, b = dict(flatten(first)), dict(flatten(second))
    return [
        f"{key}: {a.get(key)!r}, not {b.get(key)!r}"
        for key in sorted(a.keys() | b.keys())
        if a.get(key) != b.get(key)
    ]


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) for each leaf of a nested mapping, tuples as lists."""
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping):
            yield from flatten(value, f"{key}.")
        else:
            yield key, list(value) if isinstance(value, tuple) else value


def as_plain(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return a nested mapping as plain dicts, lists and scalars."""
    return {
        name: as_plain(value)
        if isinstance(value, Mapping)
        else list(value)
        if isinstance(value, tuple)
        else value
        for name, value in tree.items()
    }


def _merge_file(config: CfgNode, path: Path, *, including: tuple[Path, ...]) -> set[str]:
    """Merge a YAML file and the files of its BASE list; return the ignored keys."""
    resolved = path.resolve()
    if resolved in including:
        raise ValueError(f"{path}: BASE includes itself through {including[-1]}")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: configuration cannot be read: {error}") from error
    tree = _parse_yaml(text, str(path))
    ignored: set[str] = set()
    bases = tree.pop("BASE", None) or []
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise ValueError(f"{path}: BASE is a list of file names, found {bases!r}")
    for base in filter(None, bases):
        ignored |= _merge_file(config, path.parent / base, including=(*including, resolved))
    return ignored | _merge_tree(config, tree, str(path))


def _parse_yaml(text: str, source: str) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(text)
        if isinstance(tree, Mapping):
            return _with_text_keys(tree)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # such as a 13th month
        raise ValueError(f"{source}: not a YAML configuration: {error}") from error
    if tree is not None:
        raise ValueError(f"{source}: a configuration is a mapping, found {type(tree).__name__}")
    return {}


def _merge_tree(config: CfgNode, tree: Mapping[str, Any], source: str) -> set[str]:
    ignored: set[str] = set()
    for key, value in flatten(tree):
        _assign(config, key, value, source=source, ignored=ignored)
    return ignored


def _with_text_keys(tree: Mapping[Any, Any]) -> dict[str, Any]:
    return {
        str(name): _with_text_keys(value) if isinstance(value, Mapping) else value
        for name, value in tree.items()
    }


def _assign(config: CfgNode, key: str, value: Any, *, source: str, ignored: set[str]) -> None:
    """Set one dotted key after checking its name and type."""
    *parents, name = key.split(".")
    node: Any = config
    for parent in parents:
        node = node.get(parent) if isinstance(node, CfgNode) else None
    if not isinstance(node, CfgNode) or name not in node or isinstance(node[name], CfgNode):
        if any(fnmatch.fnmatchcase(key, pattern) for pattern in IGNORED_KEYS):
            ignored.add(key)
            return
        raise ValueError(_unknown_key(key, source))
    node[name] = _coerce(key, value, source)


def _unknown_key(key: str, source: str) -> str:
    known = [name for name, _ in flatten(DEFAULTS)]
    by_name = {name: name.rsplit(".", 1)[-1] for name in known}
    near = difflib.get_close_matches(key.upper(), known, n=3, cutoff=0.6)
    last = key.rsplit(".", 1)[-1].upper()
    near += [name for name, end in by_name.items() if end == last and name not in near]
    hint = f"; the nearest are {', '.join(near[:3])}" if near else ""
    return f"{source}: unknown configuration key {key!r}{hint}"


def _literal(value: Any) -> Any:
    """Parse a string as a Python literal where it is one; anything else stays as it is."""
    if not isinstance(value, str):
        return value
    try:
        return ast.literal_eval(value)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return value


def _coerce(key: str, given: Any, source: str) -> Any:
    """Return a value with the type of the key's default, or raise ValueError."""
    default: Any = functools.reduce(operator.getitem, key.split("."), DEFAULTS)
    kind = TYPES_OF_OPTIONAL.get(key, type(default))
    value = _literal(given)
    if value is None and key in TYPES_OF_OPTIONAL:
        return None
    if kind is str and isinstance(given, str) and not isinstance(value, str):
        return given  # a tag or path that happens to look like a literal
    if key.endswith("MLP_RATIO") and isinstance(value, float):
        return value
    try:
        if kind in (list, tuple) and isinstance(value, (list, tuple)):
            items = TYPES_OF_ITEMS.get(key) or type(default[0])
            if kind is list or len(value) == len(default):
                return kind(_of_kind(items, item) for item in value)
        return _of_kind(kind, value)
    except (TypeError, OverflowError) as error:
        like = f" (such as {default!r})" if default else ""
        raise ValueError(
            f"{source}: {key} is of type {kind.__name__}{like}, found {value!r}"
        ) from error


def _of_kind(kind: type, value: Any) -> Any:
    """Return a value as this type when nothing is lost; raise TypeError otherwise."""
    if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if type(value) is not kind or kind is tuple:
        raise TypeError(kind)
    return value


def _check_values(config: CfgNode) -> None:
    """Raise ValueError for values that no part of the package can use."""
    values = dict(flatten(config))
    for key, choices in CHOICES.items():
        if values[key] not in choices:
            listed = ", ".join(map(repr, choices))
            raise ValueError(f"{key} is {values[key]!r}; what works here is {listed}")
    for key in COUNTS:
        if values[key] is not None and values[key] < 1:
            raise ValueError(f"{key} is {values[key]!r}; it counts something: 1 or more")
    vit = config.MODEL.VIT
    layers = vit.INTERMEDIATE_LAYERS
    if (
        not layers
        or sorted(set(layers)) != list(layers)
        or not 0 <= layers[0] <= layers[-1] < (vit.DEPTH)
    ):
        raise ValueError(
            f"MODEL.VIT.INTERMEDIATE_LAYERS is {layers}; it lists increasing blocks "
            f"from 0 to {vit.DEPTH - 1} (MODEL.VIT.DEPTH - 1)"
        )
    fre = config.MODEL.FRE
    if fre.DISABLE_RECONSTRUCTION_SIMILARITY and not fre.ORIGINAL_IMAGE_FEATURES_BRANCH:
        raise ValueError(
            "MODEL.FRE.DISABLE_RECONSTRUCTION_SIMILARITY True and "
            "MODEL.FRE.ORIGINAL_IMAGE_FEATURES_BRANCH False leave no features; enable one of them"
        )
    if config.DATA.IMG_SIZE % vit.PATCH_SIZE or config.DATA.IMG_SIZE % 2:
        raise ValueError(
            f"DATA.IMG_SIZE {config.DATA.IMG_SIZE} is not an even multiple of "
            f"MODEL.VIT.PATCH_SIZE {vit.PATCH_SIZE}"
        )
    for width, heads in (
        ("MODEL.VIT.EMBED_DIM", "MODEL.VIT.NUM_HEADS"),
        ("MODEL.PATCH_VIT.ATTN_EMBED_DIM", "MODEL.PATCH_VIT.NUM_HEADS"),
    ):
        if values[width] % values[heads]:
            raise ValueError(
                f"{width} {values[width]} is not a multiple of {heads} {values[heads]}"
            )
