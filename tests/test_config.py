"""The configuration: published defaults, safe reading, types, and errors that help."""

import logging
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from spai.config import (
    CHOICES,
    COUNTS,
    DEFAULTS,
    IGNORED_KEYS,
    TYPES_OF_OPTIONAL,
    adopt_config,
    as_plain,
    config_differences,
    config_to_yaml,
    default_config,
    flatten,
    load_config,
)

CONFIGS = Path(__file__).parent.parent / "configs"

PUBLISHED = """
BASE: ['']
DATA:
  DATASET: csv_sid
  IMG_SIZE: 224
  NUM_WORKERS: 8
  PIN_MEMORY: True
  BLUR_FREQUENCY: 0.3
  SR_FACTOR: 4
MODEL:
  TYPE: vit
  NAME: finetune
  LABEL_SMOOTHING: 0.1
  FEATURE_EXTRACTION_BATCH: 400
  VIT:
    EMBED_DIM: 768
    INIT_VALUES: None
    USE_APE: True
    USE_RPB: False
    USE_MEAN_POOLING: True
    FEATURES_PROCESSOR: rine
    INTERMEDIATE_LAYERS: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]
    PATCH_POOLING: mean
    DECODER:
      EMBED_DIM: 512
  SWIN:
    EMBED_DIM: 96
    DEPTHS: [2, 2, 6, 2]
  RESNET:
    LAYERS: [3, 4, 6, 3]
  FREQ_LOSS:
    LOSS_GAMMA: 1.0
    MATRIX_GAMMA: 1.0
TRAIN:
  EPOCHS: 35
  AUTO_RESUME: True
  START_EPOCH: 0
  BASE_LR: 5e-4
  WARMUP_LR: 2.5e-7
  LAYER_DECAY: 0.8
  CLIP_GRAD: None
  OPTIMIZER:
    BETAS: (0.9, 0.999)
AUG:
  MIXUP: 0.8
  MIXUP_PROB: 1.0
  CUTMIX_MINMAX: None
  AUTO_AUGMENT: rand-m9-mstd0.5-inc1
  REPROB: 0.25
  GAUSSIAN_BLUR_LIMIT: [3, 9]
TEST:
  MAX_SIZE: None
PRINT_FREQ: 100
SAVE_FREQ: 1
"""


def written(folder, text, name="c.yaml"):
    (folder / name).write_text(text)
    return folder / name


def option(key, value):
    """Return the value that an override gives a key."""
    return dict(flatten(load_config(overrides=[(key, value)])))[key]


# -- defaults -----------------------------------------------------------------------------------


def test_the_published_file_equals_the_defaults():
    assert config_differences(load_config(CONFIGS / "spai.yaml"), default_config()) == []


def test_the_published_file_lists_every_key_in_order():
    tree = yaml.safe_load((CONFIGS / "spai.yaml").read_text())
    assert [key for key, _ in flatten(tree)] == [key for key, _ in flatten(DEFAULTS)]


def test_the_tables_of_keys_name_keys_that_exist():
    known = dict(flatten(DEFAULTS))
    assert set(TYPES_OF_OPTIONAL) == {key for key, value in known.items() if value is None}
    assert set(CHOICES) <= set(known) and set(COUNTS) <= set(known)
    assert not set(IGNORED_KEYS) & set(known)


def test_each_tree_is_fresh():
    default_config().MODEL.VIT.INTERMEDIATE_LAYERS.append(12)
    layers = default_config().MODEL.VIT.INTERMEDIATE_LAYERS
    assert layers == list(range(12))


def test_a_tree_written_as_yaml_is_read_back_equal():
    changed = load_config(
        overrides=[
            ("MODEL.VIT.INIT_VALUES", "1e-5"),
            ("TEST.MAX_SIZE", 512),
            ("TAG", "None"),
            ("DATA.LMDB_PATH", "2024"),
            ("AUG.GAUSSIAN_BLUR_SIGMA", "(0.1, 0.2)"),
        ]
    )
    again = load_config(text=config_to_yaml(changed))
    assert again == changed and config_differences(again, changed) == []
    assert isinstance(again.TRAIN.OPTIMIZER.BETAS, tuple)


def test_differences_name_the_key_and_both_values():
    changed = load_config(overrides=[("SEED", "7")])
    assert config_differences(changed, default_config()) == ["SEED: 7, not 0"]


def test_a_plain_tree_holds_plain_types_only():
    plain = as_plain(default_config())
    assert yaml.safe_load(yaml.safe_dump(plain)) == plain
    assert type(plain) is dict and type(plain["MODEL"]["VIT"]) is dict


# -- values -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key, given, expected",
    [
        ("MODEL.PATCH_VIT.PATCH_STRIDE", "112", 112),
        ("MODEL.PATCH_VIT.PATCH_STRIDE", 112.0, 112),
        ("MODEL.SID_DROPOUT", "0", 0.0),
        ("MODEL.CLS_HEAD.MLP_RATIO", "2.5", 2.5),
        ("TRAIN.BASE_LR", "5e-4", 5e-4),
        ("TRAIN.CLIP_GRAD", "1", 1.0),
        ("TRAIN.CLIP_GRAD", "None", None),
        ("TRAIN.SCALE_LR", "True", True),
        ("MODEL.FEATURE_EXTRACTION_BATCH", "None", None),
        ("MODEL.FEATURE_EXTRACTION_BATCH", "400", 400),
        ("MODEL.RESOLUTION_MODE", "fixed", "fixed"),
        ("MODEL.RESOLUTION_MODE", "'fixed'", "fixed"),
        ("MODEL.VIT.INTERMEDIATE_LAYERS", "[0, 5]", [0, 5]),
        ("MODEL.VIT.INTERMEDIATE_LAYERS", "(0, 5)", [0, 5]),
        ("TRAIN.OPTIMIZER.BETAS", "[0.9, 1]", [0.9, 1.0]),
        ("DATA.TEST_DATA_PATH", "['a.csv', 'b.csv']", ["a.csv", "b.csv"]),
        ("TAG", "2024", "2024"),
        ("TAG", "True", "True"),
        ("DATA.LMDB_PATH", "2024", "2024"),
        ("DATA.LMDB_PATH", "1e5", "1e5"),
        ("DATA.LMDB_PATH", "None", None),
        ("OUTPUT", "{[]: 1}", "{[]: 1}"),
        ("OUTPUT", "{[1]}", "{[1]}"),
    ],
)
def test_an_override_is_a_literal_of_the_type_of_its_key(key, given, expected):
    found = option(key, given)
    assert found == expected and type(found) is type(expected)


@pytest.mark.parametrize(
    "key, given",
    [
        ("MODEL.PATCH_VIT.PATCH_STRIDE", "1.5"),
        ("MODEL.PATCH_VIT.PATCH_STRIDE", "True"),
        ("MODEL.PATCH_VIT.PATCH_STRIDE", "None"),
        ("MODEL.PATCH_VIT.PATCH_STRIDE", "many"),
        ("MODEL.PATCH_VIT.PATCH_STRIDE", "0"),
        ("MODEL.PATCH_VIT.PATCH_STRIDE", "-224"),
        ("MODEL.PATCH_VIT.PATCH_STRIDE", "{[]: 1}"),
        ("MODEL.SID_DROPOUT", "True"),
        ("MODEL.SID_DROPOUT", "half"),
        ("MODEL.FEATURE_EXTRACTION_BATCH", "0"),
        ("MODEL.RESOLUTION_MODE", "None"),
        ("MODEL.RESOLUTION_MODE", "any"),
        ("MODEL.VIT.INTERMEDIATE_LAYERS", "11"),
        ("MODEL.VIT.INTERMEDIATE_LAYERS", "[]"),
        ("MODEL.VIT.INTERMEDIATE_LAYERS", "[3, 1]"),
        ("MODEL.VIT.INTERMEDIATE_LAYERS", "[0, 12]"),
        ("MODEL.VIT.INTERMEDIATE_LAYERS", "['a']"),
        ("MODEL.VIT.INTERMEDIATE_LAYERS", "[0, 'a']"),
        ("MODEL.VIT.INTERMEDIATE_LAYERS", "[[0], [1]]"),
        ("MODEL.VIT.INTERMEDIATE_LAYERS", "[0.5]"),
        ("TRAIN.OPTIMIZER.BETAS", "(0.9,)"),
        ("TRAIN.OPTIMIZER.BETAS", "('a', 'b')"),
        ("DATA.TEST_DATA_PATH", "a.csv"),
        ("DATA.TEST_DATA_PATH", "[1]"),
        ("TRAIN.SCALE_LR", "1"),
        ("TRAIN.SCALE_LR", "yes"),
        ("DATA.IMG_SIZE", "0"),
        ("DATA.IMG_SIZE", "230"),
        ("MODEL.VIT.NUM_HEADS", "7"),
        ("MODEL.PATCH_VIT.NUM_HEADS", "7"),
        ("MODEL.VIT.USE_RPB", "True"),
        ("DATA.FILTER_TYPE", "sr"),
        ("TEST.MAX_SIZE", "'large'"),
    ],
)
def test_another_value_is_refused_with_the_name_of_its_key(key, given):
    with pytest.raises(ValueError, match=key.replace(".", r"\.")):
        load_config(overrides=[(key, given)])


@pytest.mark.parametrize("key", [key for key, kind in TYPES_OF_OPTIONAL.items() if kind is str])
def test_an_override_can_take_back_an_optional_text_of_the_file(tmp_path, key):
    value = (CHOICES[key][1:] or ["some/path"])[0] if key in CHOICES else "some/path"
    assert dict(flatten(load_config(overrides=[(key, value)])))[key] == value
    found = load_config(overrides=[(key, value), (key, "None")])
    assert dict(flatten(found))[key] is None


@pytest.mark.parametrize(
    "code",
    [
        "__import__('pathlib').Path({path!r}).touch()",
        "[open({path!r}, 'w')]",
        "!!python/object/apply:os.system ['touch {path}']",
        "$(touch {path})",
    ],
)
def test_an_override_is_never_run_as_code(tmp_path, monkeypatch, code):
    monkeypatch.chdir(tmp_path)
    target = str(tmp_path / "ran")
    given = code.format(path=target)
    for key in ("MODEL.SID_DROPOUT", "DATA.TEST_DATA_PATH", "MODEL.FEATURE_EXTRACTION_BATCH"):
        with pytest.raises(ValueError):
            load_config(overrides=[(key, given)])
    assert option("TAG", given) == given
    assert list(tmp_path.iterdir()) == []


@given(st.sampled_from([key for key, _ in flatten(DEFAULTS)]), st.text(max_size=20))
def test_any_text_is_a_value_or_a_value_error(key, text):
    try:
        found = load_config(overrides=[(key, text)])
    except ValueError as error:
        assert key in str(error) or key.split(".")[-1] in str(error)
    else:
        assert load_config(text=config_to_yaml(found)) == found


def test_settings_that_leave_no_features_are_refused():
    with pytest.raises(ValueError, match="leave no features"):
        load_config(
            overrides=[
                ("MODEL.FRE.DISABLE_RECONSTRUCTION_SIMILARITY", "True"),
                ("MODEL.FRE.ORIGINAL_IMAGE_FEATURES_BRANCH", "False"),
            ]
        )


# -- names --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key, nearest",
    [
        ("MODEL.PATCH_VIT.PATCH_STRID", "MODEL.PATCH_VIT.PATCH_STRIDE"),
        ("model.patch_vit.minimum_patches", "MODEL.PATCH_VIT.MINIMUM_PATCHES"),
        ("MINIMUM_PATCHES", "MODEL.PATCH_VIT.MINIMUM_PATCHES"),
        ("MODEL.FRE.MASK_RADIUS", "MODEL.FRE.MASKING_RADIUS"),
        ("TRAIN.EPOCH", "TRAIN.EPOCHS"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_names(tmp_path, key, nearest):
    with pytest.raises(ValueError, match=f"--opt {key}: unknown.*nearest.*{nearest}"):
        load_config(overrides=[(key, "1")])
    path = written(tmp_path, yaml.safe_dump({key: 1}))
    with pytest.raises(ValueError, match=f"c.yaml: unknown configuration key {key!r}.*{nearest}"):
        load_config(path)


@pytest.mark.parametrize("key", ["", ".", "MODEL", "MODEL.VIT", "SEED.X", "MODEL..VIT", "zzz"])
def test_what_is_no_key_is_refused(key):
    with pytest.raises(ValueError, match="unknown configuration key"):
        load_config(overrides=[(key, "1")])


def test_a_published_file_loads_with_one_warning_about_what_is_ignored(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        config = load_config(written(tmp_path, PUBLISHED), [("AUG.CUTMIX", "1.0")])
    (record,) = caplog.records
    for key in (
        *("AUG.AUTO_AUGMENT", "AUG.CUTMIX", "AUG.CUTMIX_MINMAX", "AUG.MIXUP", "AUG.MIXUP_PROB"),
        *("AUG.REPROB", "DATA.BLUR_FREQUENCY", "DATA.DATASET", "DATA.SR_FACTOR", "SAVE_FREQ"),
        *("MODEL.FREQ_LOSS.MATRIX_GAMMA", "MODEL.LABEL_SMOOTHING", "MODEL.RESNET.LAYERS"),
        *("MODEL.SWIN.DEPTHS", "MODEL.SWIN.EMBED_DIM", "MODEL.VIT.DECODER.EMBED_DIM"),
        *("MODEL.VIT.FEATURES_PROCESSOR", "MODEL.VIT.PATCH_POOLING", "TRAIN.AUTO_RESUME"),
    ):
        assert key in record.getMessage()
    assert "LOSS_GAMMA" not in record.getMessage()
    assert config_differences(config, default_config()) == [
        "DATA.NUM_WORKERS: 8, not None",
        "MODEL.FEATURE_EXTRACTION_BATCH: 400, not None",
    ]


def test_the_defaults_give_no_warning(caplog):
    with caplog.at_level(logging.WARNING):
        load_config(CONFIGS / "spai.yaml")
    assert caplog.records == []


# -- files --------------------------------------------------------------------------------------


def test_overrides_win_over_the_file_and_the_file_over_its_base(tmp_path):
    (tmp_path / "sub").mkdir()
    written(tmp_path, "SEED: 1\nPRINT_FREQ: 1\nTAG: base", "base.yaml")
    written(tmp_path / "sub", "BASE: [../base.yaml]\nSEED: 2\nPRINT_FREQ: 2", "middle.yaml")
    path = written(tmp_path, "BASE: ['sub/middle.yaml']\nSEED: 3")
    config = load_config(path, [("SEED", "4")])
    assert (config.SEED, config.PRINT_FREQ, config.TAG) == (4, 2, "base")
    assert load_config(path).SEED == 3


def test_a_base_may_be_included_twice_but_not_by_itself(tmp_path):
    written(tmp_path, "SEED: 1", "base.yaml")
    written(tmp_path, "BASE: [base.yaml]", "left.yaml")
    written(tmp_path, "BASE: [base.yaml]", "right.yaml")
    assert load_config(written(tmp_path, "BASE: [left.yaml, right.yaml]")).SEED == 1
    written(tmp_path, "BASE: [second.yaml]", "first.yaml")
    written(tmp_path, "BASE: [./first.yaml]", "second.yaml")
    with pytest.raises(ValueError, match="first.yaml: BASE includes itself through .*second.yaml"):
        load_config(tmp_path / "first.yaml")


@pytest.mark.parametrize("base", ["other.yaml", "[1]", "{a: b}"])
def test_a_base_that_is_no_list_of_names_is_refused(tmp_path, base):
    with pytest.raises(ValueError, match="c.yaml: BASE is a list"):
        load_config(written(tmp_path, f"BASE: {base}"))


def test_a_missing_base_is_named(tmp_path):
    with pytest.raises(ValueError, match="absent.yaml: configuration cannot be read"):
        load_config(written(tmp_path, "BASE: [absent.yaml]"))


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.system ['touch ran']",
        "TAG: !!python/object/apply:os.system ['touch ran']",
        "TAG: !!python/name:os.system",
        "SEED: !!python/object/new:type {}",
        "import os; os.system('touch ran')",
        "import os\nos.system('touch ran')\ncfg = {}",
        "- a list",
        "SEED: [1",
        "SEED: '\0'",
        "TAG: 2024-99-99",
        "? [a]\n: 1",
        "[" * 5000,
    ],
)
@pytest.mark.parametrize("name", ["c.yaml", "c.py"])
def test_a_file_that_is_no_plain_mapping_is_refused_and_never_run(
    tmp_path, monkeypatch, text, name
):
    monkeypatch.chdir(tmp_path)
    path = written(tmp_path, text, name)
    with pytest.raises(ValueError, match=name):
        load_config(path)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("text", ["", "# nothing\n", "{}", "MODEL: {}\nBASE:"])
def test_a_file_without_keys_gives_the_defaults(tmp_path, text):
    assert load_config(written(tmp_path, text)) == default_config()


def test_an_unreadable_file_is_named(tmp_path):
    (tmp_path / "latin.yaml").write_bytes(b"TAG: caf\xe9")
    for name in ("latin.yaml", "absent.yaml", "."):
        with pytest.raises(ValueError, match="configuration cannot be read"):
            load_config(tmp_path / name)


def test_what_is_known_of_a_foreign_configuration_is_taken_over():
    tree = {"MODEL": {"PATCH_VIT": {"MINIMUM_PATCHES": 1}, "SWIN": {"DEPTHS": []}}, "NEW": {}}
    assert config_differences(adopt_config(tree), default_config()) == [
        "MODEL.PATCH_VIT.MINIMUM_PATCHES: 1, not 4"
    ]
    with pytest.raises(ValueError, match="embedded configuration: SEED"):
        adopt_config({"SEED": "none"})


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_every_file_that_we_ship_loads_without_a_warning(path, caplog):
    with caplog.at_level(logging.WARNING):
        load_config(path)
    assert caplog.records == []
