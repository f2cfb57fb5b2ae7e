"""Imports go one way: cli, then engine and report, detectors, backends, models and data."""

import ast
import sys
from pathlib import Path

import pytest

import spai

PACKAGE = Path(spai.__file__).parent

# Imports go to a lower level or stay in their room.
LEVELS = {
    "cli": 4,
    "engine": 3,
    "report": 3,
    "detectors": 2,
    "checkpoint": 2,
    "weights": 2,
    "downloads": 2,
    "backends": 1,
    "models": 0,
    "data": 0,
    "config": 0,
    "files": -1,
    "_version": -1,
}
# Arrows between rooms of one level.
SIDEWAYS = {
    ("report", "engine"),  # the metrics of a table
    ("detectors", "checkpoint"),  # a detector is built from a model file
    ("detectors", "weights"),  # which may be named
    ("downloads", "weights"),  # what there is to download
}
# The configuration is read by those who build from it; flatten works on any mapping.
READERS_OF_CONFIG = {"cli", "detectors", "checkpoint"}
PLAIN_HELPERS = {"flatten"}

MODELS_IMPORT = {"torch", "torchvision", "timm", "numpy"}
LEAVES = ("__init__", "__main__")  # spai/__init__.py and __main__.py name what users call


def modules():
    return sorted(PACKAGE.rglob("*.py"))


def name_of(path):
    """Return the dotted name of a module below spai, such as models.spai."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def imports_of(path):
    """Yield (module, names, at_top) for every import of a file, also those inside functions."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    top = {id(node) for node in tree.body}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, set(), id(node) in top
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import in line {node.lineno}"
            yield node.module, {alias.name for alias in node.names}, id(node) in top


def own_imports(path):
    """Yield (room, module, names, at_top) for the imports of our own modules."""
    for module, names, at_top in imports_of(path):
        if module == "spai":  # from spai import weights
            for name in names:
                yield name, name, set(), at_top
        elif module.startswith("spai."):
            inner = module.removeprefix("spai.")
            yield inner.split(".")[0], inner, names, at_top


def room_of(path):
    return name_of(path).split(".")[0]


def test_every_room_has_a_level():
    assert {room_of(path) for path in modules()} - set(LEAVES) <= set(LEVELS)


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_no_arrow_points_up(path):
    room = room_of(path)
    if room in LEAVES:
        return
    up = [
        module
        for target, module, _, _ in own_imports(path)
        if target != room and LEVELS[target] >= LEVELS[room] and (room, target) not in SIDEWAYS
    ]
    assert up == [], f"{name_of(path)} may not import {up}"


def test_every_exception_is_needed():
    rooms = {(room_of(path), arrow[0]) for path in modules() for arrow in own_imports(path)}
    assert rooms >= SIDEWAYS


def test_models_and_data_never_import_each_other_nor_the_configuration():
    for room in ("models", "data"):
        found = {
            target
            for path in (PACKAGE / room).rglob("*.py")
            for target, _, _, _ in own_imports(path)
        }
        assert found <= {room} | ({"files"} if room == "data" else set())


def test_models_import_only_tensor_libraries():
    for path in (PACKAGE / "models").rglob("*.py"):
        foreign = {module.split(".")[0] for module, _, _ in imports_of(path)}
        assert foreign - set(sys.stdlib_module_names) <= MODELS_IMPORT | {"spai"}, path


def test_the_configuration_imports_nothing_of_ours():
    assert list(own_imports(PACKAGE / "config.py")) == []


def test_only_cli_and_builders_read_the_configuration():
    for path in modules():
        if room_of(path) not in READERS_OF_CONFIG | {"config"}:
            names = [names for target, _, names, _ in own_imports(path) if target == "config"]
            assert all(some and some <= PLAIN_HELPERS for some in names), path
            foreign = {module.split(".")[0] for module, _, _ in imports_of(path)}
            assert "yacs" not in foreign or room_of(path) == "config", path


def test_one_module_opens_images_and_one_opens_model_files():
    """Only checkpoint.py calls torch.load and friends, only images.py calls Image.open."""
    calls = {
        ("Image", "open"): {"data.images"},
        ("torch", "load"): {"checkpoint"},
        ("torch", "save"): {"checkpoint"},
        ("safetensors", "safe_open"): {"checkpoint"},
        ("yaml", "safe_load"): {"config"},
    }
    found = {call: set() for call in calls}
    forbidden = set()
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                owner = node.func.value
                call = (getattr(owner, "id", None), node.func.attr)
                if call in calls:
                    found[call].add(name_of(path))
                if call in {("yaml", "load"), ("pickle", "load"), ("pickle", "loads")}:
                    forbidden.add(name_of(path))
            if isinstance(node, ast.Call) and getattr(node.func, "id", None) in {"eval", "exec"}:
                forbidden.add(name_of(path))
    assert {call: places - calls[call] for call, places in found.items()} == {
        call: set() for call in calls
    }
    assert forbidden == set()


def test_no_modules_import_each_other_at_their_top():
    graph = {
        name_of(path): {module for _, module, _, at_top in own_imports(path) if at_top}
        for path in modules()
    }
    seen, done = [], set()

    def visit(module):
        assert module not in seen, " -> ".join([*seen, module])
        if module not in done:
            seen.append(module)
            for target in sorted(graph.get(module, ())):
                visit(target)
            done.add(seen.pop())

    for module in sorted(graph):
        visit(module)
