"""Model files: what loads, what is refused and in which words, and that nothing is ever run."""

import collections
import io
import os
import pickle
import zipfile

import numpy as np
import pytest
import safetensors.torch
import torch
from yacs.config import CfgNode

from spai.checkpoint import (
    ModelFile,
    backbone_settings,
    build_model,
    file_sha256,
    is_safetensors,
    load_mfm_encoder,
    load_weights,
    read_model_file,
    read_pickle,
    save_pickle,
    save_safetensors,
)
from spai.config import as_plain, config_to_yaml, default_config, load_config
from spai.models.backbone import build_backbone
from tests.helpers import TINY, formula_model
from tests.recipe import reference_weight

ELEMENTS, NAMES, DEAD = 139_945_243, 324, 43


def linear(name, width_in, width_out):
    return {f"{name}.weight": (width_out, width_in), f"{name}.bias": (width_out,)}


def norm(name, width):
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def block(name, width):
    return {
        **norm(f"{name}.norm1", width),
        f"{name}.attn.q_bias": (width,),
        f"{name}.attn.v_bias": (width,),
        f"{name}.attn.qkv.weight": (3 * width, width),
        **linear(f"{name}.attn.proj", width, width),
        **norm(f"{name}.norm2", width),
        **linear(f"{name}.mlp.fc1", width, 4 * width),
        **linear(f"{name}.mlp.fc2", 4 * width, width),
    }


def live_shapes():
    """Return the names and shapes of model.md that the model reads."""
    features = "mfvit.features_processor"
    context = f"{features}.original_features_processor"
    shapes = {
        "patch_aggregator": (12, 1, 128),
        "to_kv.weight": (3072, 1096),
        "to_out.0.weight": (1096, 1536),
        **norm("norm", 1096),
        **linear("cls_head.head.0", 1096, 3288),
        **linear("cls_head.head.3", 3288, 3288),
        **linear("cls_head.head.6", 3288, 1),
        "mfvit.frequencies_mask": (224, 224),
        "mfvit.vit.cls_token": (1, 1, 768),
        "mfvit.vit.pos_embed": (1, 197, 768),
        "mfvit.vit.patch_embed.proj.weight": (768, 3, 16, 16),
        "mfvit.vit.patch_embed.proj.bias": (768,),
        f"{context}.alpha": (1, 12, 1024),
        **linear(f"{context}.proj1.projector.1", 2048, 1024),
        **linear(f"{context}.proj2.projector.1", 1024, 1024),
    }
    for number in (1, 2):
        shapes |= linear(f"{context}.proj{number}.projector.4", 1024, 1024)
        shapes |= norm(f"{context}.proj{number}.norm2", 1024)
    for number in range(12):
        shapes |= block(f"mfvit.vit.blocks.{number}", 768)
        projector = f"{features}.patch_projector.projectors.{number}"
        shapes |= norm(f"{projector}.norm1", 768)
        shapes |= linear(f"{projector}.projector.1", 768, 1024)
        shapes |= linear(f"{projector}.projector.4", 1024, 1024)
        shapes |= norm(f"{projector}.norm2", 1024)
    return shapes


def dead_shapes(prefix="mfvit.vit.", width=768, depth=12, tokens=197):
    """Return the names and shapes of a published file that nothing reads."""
    shapes = {
        "cls_pos_embed": (1, tokens, width),
        "actual_cls_token": (1, 1, width),
        **norm("fc_norm", width),
        **linear("head", depth * width, 2),
        **block("cls_blocks.0", width),
    }
    for number in range(depth):
        shapes |= norm(f"intermediate_fc_norm.{number}", width)
    return {f"{prefix}{name}": shape for name, shape in shapes.items()}


def dead_tensors():
    shapes = dead_shapes(width=32, depth=2)
    return {name: torch.randn(shape) for name, shape in shapes.items()}


def published_content(tiny_config, state):
    """Return what the published training code saves."""
    config = CfgNode(as_plain(tiny_config))
    config.SWIN_LIKE = CfgNode({"DEPTHS": [2, 2], "RATE": 0.5, "NAME": "x"})
    config.freeze()
    return {
        "model": collections.OrderedDict(state),
        "optimizer": {
            "state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(2)}},
            "param_groups": [{"lr": np.float64(5e-4), "betas": (0.9, 0.999), "params": [0]}],
        },
        "lr_scheduler": {"base_values": [np.float64(1e-3)], "t_initial": np.int64(10)},
        "max_accuracy": np.float32(0.9),
        "found": np.bool_(True),
        "epoch": 33,
        "config": config,
    }


@pytest.fixture
def state(tiny_config):
    """Return the live tensors of the tiny model."""
    return formula_model(tiny_config).state_dict()


@pytest.fixture
def load(tiny_config, tmp_path):
    """Save tensors as a published file and load them into a tiny model."""

    def run(tensors, config=tiny_config):
        torch.save(published_content(tiny_config, tensors), tmp_path / "spai.pth")
        model = build_model(config)
        load_weights(model, read_model_file(tmp_path / "spai.pth"))
        return model

    return run


def assert_equal_states(found, expected):
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


# -- the full-size model ------------------------------------------------------------------------


def test_the_full_size_model_has_the_published_names_and_shapes():
    with torch.device("meta"):
        state = build_model(default_config()).state_dict()
    live, dead = live_shapes(), dead_shapes()
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == live
    assert state["mfvit.frequencies_mask"].dtype == torch.int64
    assert len(dead) == DEAD and len(live | dead) == NAMES
    assert sum(int(np.prod(shape)) for shape in (live | dead).values()) == ELEMENTS


def test_a_full_size_published_state_fits_after_the_dead_tensors_are_dropped(tmp_path):
    shapes = live_shapes() | dead_shapes()
    with torch.device("meta"):
        model = build_model(default_config())
        tensors = {name: torch.empty(shape) for name, shape in shapes.items()}
    mask = build_model(load_config(overrides=list(TINY.items()))).mfvit.frequencies_mask
    assert mask.sum() == 856
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "equal", lambda first, second: True)  # meta tensors have no values
        load_weights(model, ModelFile(tmp_path, "", tensors))
    del tensors["norm.weight"]
    with pytest.raises(ValueError, match="norm.weight is missing"):
        load_weights(model, ModelFile(tmp_path, "", tensors))


# -- the published pickle -----------------------------------------------------------------------


@pytest.mark.parametrize("zipped", [True, False])
def test_a_published_file_is_read_with_its_configuration(tmp_path, tiny_config, state, zipped):
    path = tmp_path / "spai.pth"
    content = published_content(tiny_config, state)
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    file = read_model_file(path)
    assert_equal_states(file.tensors, state)
    assert (file.epoch, file.config_text, file.sha256) == (33, None, file_sha256(path))
    assert as_plain(file.foreign_config) == as_plain(content["config"])
    everything = read_pickle(path)
    assert everything["max_accuracy"] == np.float32(0.9) and everything["found"]
    assert everything["lr_scheduler"] == content["lr_scheduler"]


def test_the_older_spelling_of_numpy_scalars_is_read(tmp_path):
    path = tmp_path / "old.pth"
    torch.save(
        {"a": np.float64(0.25), "b": np.int64(7)}, path, _use_new_zipfile_serialization=False
    )
    new, old = b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"
    assert new in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(new, old))
    assert read_pickle(path) == {"a": 0.25, "b": 7}


def test_dead_tensors_are_dropped_by_name(load, state):
    assert_equal_states(load({**state, **dead_tensors()}).state_dict(), state)


@pytest.mark.parametrize(
    "name",
    [
        *("mfvit.vit.heads.weight", "mfvit.vit.norm.weight", "vit.head.weight", "head.weight"),
        *("mfvit.vit.cls_pos_embed.x", "xmfvit.vit.head.weight", "module.norm.weight"),
        *("mfvit.vit.blocks.0.attn.k_bias", "mfvit.vit.intermediate_fc_norm", "fc_norm.bias"),
    ],
)
def test_a_name_that_only_looks_dead_is_unexpected(load, state, name):
    with pytest.raises(ValueError, match=f"spai.pth: does not fit.*{name} is unexpected"):
        load({**state, name: torch.zeros(2)})


def test_missing_tensors_are_named(load, state):
    del state["to_kv.weight"]
    with pytest.raises(ValueError, match=r"to_kv\.weight is missing$"):
        load(state)


def test_wrong_shapes_are_named_with_both_shapes_and_the_rest_counted(load, state):
    state["to_kv.weight"] = torch.zeros(2, 3)
    expected = list(state["norm.weight"].shape)
    state["norm.weight"] = torch.zeros(5)
    for name in ("a", "b"):
        state[name] = torch.zeros(1)
    with pytest.raises(ValueError) as caught:
        load(state)
    assert "to_kv.weight has shape [2, 3], expected [48, 28]" in str(caught.value)
    assert f"norm.weight has shape [5], expected {expected}" in str(caught.value)
    assert "and 1 more" in str(caught.value)


def test_a_mask_of_another_radius_is_refused_with_both(load, state):
    other = load_config(overrides=[*TINY.items(), ("MODEL.FRE.MASKING_RADIUS", 10)])
    expected = int(build_model(other).mfvit.frequencies_mask.sum())
    with pytest.raises(ValueError, match=f"856 bins.*MASKING_RADIUS 10 gives {expected}"):
        load(state, other)


def test_half_precision_tensors_are_widened(load, state):
    halves = {
        name: tensor.half() if tensor.is_floating_point() else tensor
        for name, tensor in state.items()
    }
    found = load(halves).state_dict()
    assert found["norm.weight"].dtype == torch.float32
    assert torch.equal(found["to_kv.weight"], halves["to_kv.weight"].float())


def test_the_fixed_resolution_model_has_names_without_prefix(tmp_path):
    config = load_config(overrides=[*TINY.items(), ("MODEL.RESOLUTION_MODE", "fixed")])
    state = formula_model(config).state_dict()
    assert "frequencies_mask" in state and "vit.cls_token" in state
    assert not any(name.startswith(("mfvit.", "to_", "norm.")) for name in state)
    dead = {name.removeprefix("mfvit."): tensor for name, tensor in dead_tensors().items()}
    torch.save({"model": {**state, **dead}}, tmp_path / "fixed.pth")
    model = build_model(config)
    load_weights(model, read_model_file(tmp_path / "fixed.pth"))
    assert_equal_states(model.state_dict(), state)


# -- what is refused ----------------------------------------------------------------------------


class Attack:
    """Pickles as a call."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def attacks(target):
    command = f"touch {target}"
    return {
        "system": Attack(os.system, command),
        "eval": Attack(eval, f"open({str(target)!r}, 'w')"),
        "getattr": Attack(getattr, int, "from_bytes"),
        "open": Attack(open, str(target), "w"),
        "load": Attack(pickle.loads, pickle.dumps(Attack(os.system, command))),
        "fromfile": Attack(np.fromfile, str(target)),
    }


@pytest.mark.parametrize("kind", ["system", "eval", "getattr", "open", "load", "fromfile"])
@pytest.mark.parametrize("place", ["value", "model", "config", "bare", "plain pickle"])
def test_a_pickle_that_would_run_code_is_refused_by_name(tmp_path, state, kind, place):
    target, path = tmp_path / "ran", tmp_path / "spai.pth"
    attack = attacks(target)[kind]
    if place == "plain pickle":
        path.write_bytes(pickle.dumps({"model": attack}, protocol=2))
    elif place == "bare":
        torch.save(attack, path)
    else:
        torch.save({"model": state, place: attack}, path)
    function = "pickle.loads" if kind == "load" else kind
    for read in (read_model_file, read_pickle, lambda path: load_mfm_encoder(path, None)):
        with pytest.raises(ValueError, match=f"{path}: refused: the file names '.*{function}'"):
            read(path)
    assert not target.exists()


@pytest.mark.parametrize(
    "value", [np.zeros(3), {1, 2}, pickle.Pickler, collections.deque(), io.BytesIO(), complex(1, 2)]
)
def test_nothing_but_plain_data_leaves_a_file_or_it_is_refused(tmp_path, value):
    torch.save({"model": {}, "value": value}, tmp_path / "f.pth")
    try:
        found = read_pickle(tmp_path / "f.pth")["value"]
    except ValueError as error:
        assert "refused" in str(error) and str(tmp_path) in str(error)
    else:
        assert found == value and isinstance(found, (set, complex))


def test_a_configuration_in_a_pickle_is_a_plain_mapping(tmp_path, tiny_config, state):
    torch.save(published_content(tiny_config, state), tmp_path / "f.pth")
    found = read_pickle(tmp_path / "f.pth")["config"]
    assert type(found) is collections.OrderedDict and not isinstance(found, CfgNode)


def cuts(size):
    """Return where to cut a file: every byte of its ends, and some between."""
    return sorted({*range(0, 200), *range(200, size - 200, size // 60), *range(size - 200, size)})


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors", "pickle"])
def test_a_truncated_file_is_one_clear_error_that_names_it(tmp_path, tiny_config, kind):
    tensors = {"norm.weight": torch.randn(50), "norm.bias": torch.randn(50)}
    whole, path = tmp_path / "whole", tmp_path / "cut.pth"
    content = published_content(tiny_config, tensors)
    if kind == "safetensors":
        safetensors.torch.save_file(tensors, whole, metadata={"epoch": "1"})
    elif kind == "pickle":
        whole.write_bytes(pickle.dumps({"model": [1.5] * 30, "config": "SEED: 1"}))
    else:
        torch.save(content, whole, _use_new_zipfile_serialization=kind == "zip")
    data = whole.read_bytes()
    for size in cuts(len(data)):
        path.write_bytes(data[:size])
        with pytest.raises(ValueError, match="cut.pth: "):
            read_model_file(path)


def test_a_damaged_file_is_read_or_is_one_clear_error(tmp_path, tiny_config):
    rng = np.random.default_rng(3)
    path = tmp_path / "f.pth"
    tensors = {"norm.weight": torch.randn(50)}
    for zipped in (True, False):
        torch.save(
            published_content(tiny_config, tensors), path, _use_new_zipfile_serialization=zipped
        )
        whole = np.frombuffer(path.read_bytes(), np.uint8)
        for _ in range(150):
            damaged = whole.copy()
            places = rng.integers(0, min(len(whole), 3000), 3)
            damaged[places] = rng.integers(0, 256, 3)
            path.write_bytes(damaged.tobytes())
            try:
                read_model_file(path)
            except ValueError as error:
                assert str(path) in str(error)


@pytest.mark.parametrize(
    "content",
    [b"", b"text\n", b"\x89PNG\r\n\x1a\n", b"{}", b"\0" * 100, b"PK\x03\x04" + b"\0" * 50],
)
def test_what_is_no_model_file_is_a_value_error(tmp_path, content):
    (tmp_path / "f.pth").write_bytes(content)
    with pytest.raises(ValueError, match="f.pth: "):
        read_model_file(tmp_path / "f.pth")


def test_an_archive_that_is_no_model_is_a_value_error(tmp_path):
    with zipfile.ZipFile(tmp_path / "f.pth", "w") as archive:
        archive.writestr("a.txt", "text")
    with pytest.raises(ValueError, match="f.pth: "):
        read_model_file(tmp_path / "f.pth")


@pytest.mark.parametrize(
    "content", [[1, 2], {"epoch": 1, "x": "y"}, {"model": {}}, {"model": {"a": 1}}, {"model": 3}]
)
def test_a_file_without_a_model_says_so(tmp_path, content):
    torch.save(content, tmp_path / "f.pth")
    with pytest.raises(ValueError, match="f.pth: (no model in this file|holds a list)"):
        read_model_file(tmp_path / "f.pth")


def test_a_missing_file_and_a_folder_are_value_errors(tmp_path):
    for path in (tmp_path / "absent.pth", tmp_path):
        with pytest.raises(ValueError, match=f"{path}: model file cannot be read"):
            read_model_file(path)


# -- files that we write ------------------------------------------------------------------------


@pytest.mark.parametrize("epoch", [None, 0, 34])
def test_a_safetensors_file_gives_back_model_configuration_and_epoch(tmp_path, tiny_config, epoch):
    model = formula_model(tiny_config)
    path = tmp_path / "new" / "spai-x.safetensors"
    save_safetensors(model, tiny_config, path, epoch=epoch)
    assert is_safetensors(path) and os.listdir(path.parent) == [path.name]
    file = read_model_file(path)
    assert load_config(text=file.config_text) == tiny_config
    assert (file.epoch, file.foreign_config) == (epoch, None)
    fresh = build_model(tiny_config)
    load_weights(fresh, file)
    assert_equal_states(fresh.state_dict(), model.state_dict())
    with safetensors.safe_open(path, "pt") as opened:
        assert set(opened.metadata()) >= {"config", "spai_version", "format_version"}


def test_a_training_checkpoint_needs_no_allow_list(tmp_path, tiny_config):
    model = formula_model(tiny_config)
    content = {
        "model": model.state_dict(),
        "epoch": 3,
        "max_accuracy": 0.5,
        "config": config_to_yaml(tiny_config),
    }
    save_pickle(content, tmp_path / "ckpt_epoch_3.pth")
    assert os.listdir(tmp_path) == ["ckpt_epoch_3.pth"]
    plain = torch.load(tmp_path / "ckpt_epoch_3.pth", weights_only=True)
    assert_equal_states(plain["model"], model.state_dict())
    file = read_model_file(tmp_path / "ckpt_epoch_3.pth")
    assert load_config(text=file.config_text) == tiny_config and file.epoch == 3


def test_a_failed_write_leaves_the_earlier_file_and_nothing_else(
    tmp_path, tiny_config, monkeypatch
):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    path = tmp_path / "m"
    path.write_text("old")
    model = formula_model(tiny_config)
    monkeypatch.setattr(os, "replace", full)
    monkeypatch.setattr(os, "fsync", full)
    for write in (
        lambda: save_pickle({"model": {}}, path),
        lambda: save_safetensors(model, tiny_config, path, epoch=1),
    ):
        with pytest.raises(OSError, match="No space left"):
            write()
        assert path.read_text() == "old"
        assert os.listdir(tmp_path) == ["m"]


# -- stage 1 ------------------------------------------------------------------------------------


def encoder(config, *, final_norm):
    return build_backbone(**backbone_settings(config), final_norm=final_norm)


def mfm_state(config, *, dead):
    """Return the tensors of a masked-frequency-modelling checkpoint."""
    shapes = {
        name: tuple(tensor.shape)
        for name, tensor in encoder(config, final_norm=True).state_dict().items()
    }
    assert {"norm.weight", "norm.bias"} <= shapes.keys()
    if dead:
        shapes |= {"cls_pos_embed": (1, 197, 32), "actual_cls_token": (1, 1, 32)}
        shapes |= block("cls_blocks.0", 32) | norm("cls_norm", 32)
    state = {f"encoder.{name}": shape for name, shape in shapes.items()}
    state |= {"decoder.0.weight": (768, 32, 1, 1), "decoder.0.bias": (768,)}
    return {
        name: torch.from_numpy(np.asarray(reference_weight(name, shape)))
        for name, shape in state.items()
    }


@pytest.mark.parametrize("kind", ["model", "bare", "safetensors"])
@pytest.mark.parametrize("dead", [True, False])
def test_the_encoder_of_stage_1_loads_with_and_without_dead_tensors(
    tmp_path, tiny_config, dead, kind
):
    state, path = mfm_state(tiny_config, dead=dead), tmp_path / "mfm.pth"
    if kind == "safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save({"model": state, "epoch": 299} if kind == "model" else state, path)
    vit = encoder(tiny_config, final_norm=False)
    load_mfm_encoder(path, vit)
    found = vit.state_dict()
    assert_equal_states(found, {name: state[f"encoder.{name}"] for name in found})


@pytest.mark.parametrize(
    "name", ["encoder.head.weight", "encoder.blocks.9.norm1.weight", "other.weight", "norm.weight"]
)
def test_an_unexpected_tensor_of_stage_1_is_named(tmp_path, tiny_config, name):
    state = {**mfm_state(tiny_config, dead=True), name: torch.zeros(2)}
    torch.save({"model": state}, tmp_path / "mfm.pth")
    with pytest.raises(ValueError, match=f"mfm.pth: does not fit.*{name.split('.')[-2]}"):
        load_mfm_encoder(tmp_path / "mfm.pth", encoder(tiny_config, final_norm=False))


def test_a_missing_tensor_of_stage_1_and_another_file_are_named(tmp_path, tiny_config, state):
    tensors = mfm_state(tiny_config, dead=False)
    del tensors["encoder.pos_embed"]
    torch.save({"model": tensors}, tmp_path / "mfm.pth")
    vit = encoder(tiny_config, final_norm=False)
    with pytest.raises(ValueError, match="mfm.pth: does not fit.*pos_embed is missing"):
        load_mfm_encoder(tmp_path / "mfm.pth", vit)
    torch.save({"model": state}, tmp_path / "spai.pth")
    with pytest.raises(ValueError, match="spai.pth: no tensors named encoder"):
        load_mfm_encoder(tmp_path / "spai.pth", vit)
    with pytest.raises(ValueError, match="absent.pth: model file cannot be read"):
        load_mfm_encoder(tmp_path / "absent.pth", vit)
