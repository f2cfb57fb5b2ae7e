import hashlib
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from spai import downloads, weights
from spai.cli import main

CONTENT = b"PK tiny model"
SHA256 = hashlib.sha256(CONTENT).hexdigest()
SCRIPT = Path(__file__).parents[2] / "scripts" / "download_weights.py"


@pytest.fixture(autouse=True)
def models(monkeypatch, tmp_path):
    spai = replace(
        weights.REGISTRY["spai"], size=len(CONTENT), minimum_size=len(CONTENT), sha256=SHA256
    )
    monkeypatch.setitem(weights.REGISTRY, "spai", spai)
    monkeypatch.setattr(downloads, "_gdown", lambda _, output, report: output.write_bytes(CONTENT))
    monkeypatch.setenv("SPAI_HOME", str(tmp_path / "my models \u00fc"))
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")


def run(*arguments):
    return CliRunner().invoke(main, ["weights", *arguments])


def test_list_shows_each_model_and_its_local_copy():
    before = run("list")
    assert before.exit_code == 0
    names = [line.split()[0] for line in before.stdout.splitlines()]
    assert names == ["NAME", "spai", "mfm", "mini"]
    assert before.stdout.count("not downloaded") == 2  # mini comes with the package
    run("download", "spai")
    after = run("list").stdout
    assert str(weights.home() / "spai.pth") in after
    assert after.count("not downloaded") == 1


def test_list_columns_are_aligned():
    run("download", "spai")
    header, *rows = run("list").stdout.splitlines()
    column = header.index("WHAT IT IS")
    for row, entry in zip(rows, weights.REGISTRY.values(), strict=True):
        assert row[column:] == entry.description


def test_download_prints_only_the_path_on_stdout():
    for _ in range(2):  # fetched, then found there
        result = run("download", "spai")
        assert result.exit_code == 0
        assert result.stdout == f"{weights.home() / 'spai.pth'}\n"
        assert SHA256 in result.stderr


def test_download_goes_to_the_destination(tmp_path):
    result = run("download", "spai", "--destination", str(tmp_path / "there"))
    assert result.exit_code == 0
    assert (tmp_path / "there" / "spai.pth").read_bytes() == CONTENT


def test_a_refused_download_fails_in_plain_words(monkeypatch):
    monkeypatch.setattr(downloads, "_gdown", lambda *_: None)
    result = run("download", "spai")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert "By hand: open https://drive.google.com" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("arguments", [("download", "spia"), ("verify", "no.pth")])
def test_an_unknown_name_is_a_usage_error(arguments):
    result = run(*arguments)
    assert result.exit_code == 2
    assert "spai, mfm" in result.stderr


def test_a_file_in_the_way_is_a_usage_error(tmp_path):
    own = weights.home() / "spai.pth"
    own.parent.mkdir()
    own.write_bytes(b"mine")
    assert run("download", "spai").exit_code == 2
    assert own.read_bytes() == b"mine"
    assert run("download", "spai", "--destination", str(own)).exit_code == 2


@pytest.mark.parametrize(
    "content, name, verdict, code",
    [
        (CONTENT, "any.bin", "OK", 0),
        (b"other", "spai.pth", "BAD", 1),
        (b"other", "any.bin", "UNKNOWN", 1),
    ],
)
def test_verify_succeeds_only_for_a_known_file(content, name, verdict, code):
    Path(name).write_bytes(content)
    result = run("verify", name)
    assert result.exit_code == code
    assert result.stdout.split()[:2] == [verdict, name]
    assert hashlib.sha256(content).hexdigest() in result.stdout


def test_verify_accepts_a_name():
    assert run("verify", "spai").exit_code == 2
    run("download", "spai")
    assert run("verify", "spai").exit_code == 0


def test_the_script_is_the_same_command():
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parents[1])}
    result = subprocess.run(
        [sys.executable, SCRIPT, "spia"], capture_output=True, text=True, env=environment
    )
    assert result.returncode == 2
    assert "spia: no such file or model" in result.stderr
