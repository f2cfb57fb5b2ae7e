"""What README.md and docs/ say exists: commands, options, files, the Python example."""

import doctest
import re
import shlex
from pathlib import Path

import click
import numpy as np
import pytest
import torch
from PIL import Image

import spai
from spai.cli import main
from tests.recipe import reference_image

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands(page):
    """Yield the words of each `spai` or scripts/ command in the page's code blocks."""
    for block in re.findall(r"```\w*\n(.*?)```", page.read_text(encoding="utf-8"), re.S):
        for line in block.replace("\\\n", " ").splitlines():
            if re.match(r"\s*([\w./]+/)?(spai|python -m spai|python scripts/\S+) ", line):
                yield shlex.split(line, comments=True)
            elif "-m spai " in line:
                yield ["spai", *shlex.split(line, comments=True)[line.split().index("spai") + 1 :]]


def resolve(words):
    """Return the click command that the words call, and its own words."""
    words = words[3:] if words[:3] == ["python", "-m", "spai"] else words[1:]
    context, command = click.Context(main), main
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        command = command.get_command(context, words[0])
        assert command is not None, f"no command {words[0]}"
        words = words[1:]
    return command, words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_and_option_on_a_page_exists(page):
    for words in commands(page):
        if len(words) > 1 and words[1].startswith("scripts/"):
            assert (ROOT / words[1]).is_file(), words
            continue
        command, rest = resolve(words)
        known = {opt for p in command.params for opt in (*p.opts, *p.secondary_opts)}
        known |= {"--help", "--version", "..."}
        unknown = {word.split("=")[0] for word in rest if word.startswith("--")} - known
        assert not unknown, f"{page.name}: {shlex.join(words)}: {unknown}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_linked_file_exists(page):
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name} links {target}"


@pytest.fixture
def folder(tiny_model, tmp_path, monkeypatch):
    """Work in a folder with a photo.jpg and a very small model as weights/spai.pth."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "spai.pth").write_bytes(tiny_model.read_bytes())
    Image.fromarray(reference_image(230, 240, 1)).save("photo.jpg")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_computes_is_right(page, folder):
    text = re.sub(r"^```.*$", "", page.read_text(encoding="utf-8"), flags=re.M)
    examples = doctest.DocTestParser().get_doctest(text, {}, page.name, str(page), 0)
    assert doctest.DocTestRunner().run(examples).failed == 0


def test_interpreting_computes_something():
    page = (ROOT / "docs" / "interpreting.md").read_text(encoding="utf-8")
    assert page.count(">>>") >= 10


def test_the_python_example_runs(folder):
    block = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S).group(1)
    array = reference_image(230, 240, 1)
    names = {
        "pillow_image": Image.fromarray(array),
        "uint8_array": array,
        "uint8_tensor": torch.from_numpy(array).permute(2, 0, 1),
    }
    exec(compile(block, "README.md", "exec"), names)  # our own page
    assert np.isfinite(names["scores"].probabilities.numpy()).all()


def test_make_targets_of_the_readme_exist():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"make ([\w-]+)", (ROOT / "README.md").read_text())) <= targets


def test_version_is_one():
    assert spai.__version__ in (ROOT / "CHANGELOG.md").read_text()
