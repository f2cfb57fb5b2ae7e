"""Shared fixtures: models with formula weights, photographs made by formula."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from yacs.config import CfgNode

from spai.checkpoint import save_safetensors
from spai.config import load_config
from tests.helpers import REFERENCE, TINY, formula_model
from tests.pages import Browser
from tests.recipe import reference_image


@pytest.fixture(scope="session")
def reference() -> Callable[[str], Any]:
    """Read a recorded file by its name."""
    return lambda name: json.loads((REFERENCE / name).read_text())


@pytest.fixture(scope="session")
def tiny_config() -> CfgNode:
    """Return the configuration of a very small model."""
    return load_config(overrides=list(TINY.items()))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory, tiny_config: CfgNode) -> Path:
    """Return a self-describing file of a very small model."""
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_safetensors(formula_model(tiny_config), tiny_config, path, epoch=None)
    return path


@pytest.fixture(scope="session")
def reduced_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file of the reduced model of the recorded numbers."""
    opts = json.loads((REFERENCE / "logits.json").read_text())["reduced"]["opts"]
    config = load_config(overrides=list(opts.items()))
    path = tmp_path_factory.mktemp("weights") / "reduced.safetensors"
    save_safetensors(formula_model(config), config, path, epoch=None)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Return a folder of seven small images of several sizes."""
    folder = tmp_path / "photos"
    folder.mkdir()
    sizes = ((224, 224), (300, 500), (80, 100), (448, 470), (230, 900), (1, 1), (460, 700))
    for seed, (height, width) in enumerate(sizes, 1):
        Image.fromarray(reference_image(height, width, seed)).save(folder / f"img{seed}.png")
    return folder


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Return a headless Chromium; without one the test is skipped."""
    chromium = Browser()
    yield chromium
    chromium.quit()


@pytest.fixture(autouse=True)
def no_user_cache(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keep converted models and downloads of tests out of the user's cache."""
    monkeypatch.setenv("SPAI_HOME", str(tmp_path_factory.getbasetemp() / "home"))


@pytest.fixture(autouse=True)
def torch_unless_asked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let "auto" be torch except where backends are tested: conversions would cost more."""
    if request.path.name != "test_backends.py":
        monkeypatch.setattr("spai.detectors.encoders.PATCHES_THAT_PAY", 10**9)


@pytest.fixture(autouse=True)
def doctest_folder(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Run doctests in a folder where weights/spai.pth is a very small model."""
    if isinstance(request.node, pytest.DoctestItem):
        tiny = request.getfixturevalue("tiny_model")
        (tmp_path / "weights").mkdir()
        (tmp_path / "weights" / "spai.pth").write_bytes(tiny.read_bytes())
        monkeypatch.chdir(tmp_path)
