"""Converted graphs on disk: whole or not there, made once, replaced when damaged."""

import json
import os
import threading

import filelock
import pytest

from spai.backends.cache import ENTRY, GraphCache, list_entries, obtain_graph

FACTS = {"model_sha256": "00", "configuration": {"a": 1}}


class TextRuntime:
    """A runtime whose graphs are texts."""

    name = "torch"

    def __init__(self):
        self.converted = 0

    def convert(self, encoder):
        self.converted += 1
        return f"graph of {encoder}"

    def save(self, graph, folder):
        (folder / "graph.txt").write_text(graph)

    def load(self, folder):
        return (folder / "graph.txt").read_text()


@pytest.fixture
def runtime():
    return TextRuntime()


def cache_in(folder, facts=FACTS):
    return GraphCache(folder, "torch", facts)


def obtain(folder, runtime, facts=FACTS):
    return obtain_graph(cache_in(folder, facts), runtime, lambda: "model")


def test_a_model_is_converted_once(tmp_path, runtime):
    assert not cache_in(tmp_path).has()
    assert [obtain(tmp_path, runtime) for _ in range(3)] == ["graph of model"] * 3
    assert runtime.converted == 1 and cache_in(tmp_path).has()


def test_another_model_configuration_or_version_is_another_graph(tmp_path, runtime, monkeypatch):
    obtain(tmp_path, runtime)
    obtain(tmp_path, runtime, {**FACTS, "model_sha256": "01"})
    obtain(tmp_path, runtime, {**FACTS, "configuration": {"a": 2}})
    monkeypatch.setattr("spai.backends.cache.__version__", "99")
    obtain(tmp_path, runtime)
    assert runtime.converted == 4 and len(list_entries(tmp_path)) == 4


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "graph.txt").write_text("graph of mode1"),
        lambda folder: (folder / "graph.txt").write_text(""),
        lambda folder: (folder / "graph.txt").unlink(),
        lambda folder: (folder / ENTRY).write_text("{"),
        lambda folder: (folder / ENTRY).write_text("[]"),
        lambda folder: (folder / ENTRY).unlink(),
        lambda folder: (folder / ENTRY).write_text(
            json.dumps({**json.loads((folder / ENTRY).read_text()), "files": {}})
        ),
        lambda folder: (folder / ENTRY).write_text(
            json.dumps({**json.loads((folder / ENTRY).read_text()), "files": {"graph.txt": 3}})
        ),
    ],
)
def test_a_damaged_entry_is_made_anew(damage, tmp_path, runtime):
    obtain(tmp_path, runtime)
    damage(cache_in(tmp_path).folder)
    assert obtain(tmp_path, runtime) == "graph of model" and runtime.converted == 2
    assert cache_in(tmp_path).find() is not None


def test_a_foreign_entry_is_not_used(tmp_path, runtime):
    obtain(tmp_path, runtime, {**FACTS, "model_sha256": "01"})
    other = cache_in(tmp_path, {**FACTS, "model_sha256": "01"}).folder
    os.rename(other, cache_in(tmp_path).folder)
    (cache_in(tmp_path).folder / "graph.txt").write_text("foreign")
    assert obtain(tmp_path, runtime) == "graph of model"


def test_a_cache_that_cannot_be_written_costs_only_time(tmp_path, runtime, caplog):
    in_the_way = tmp_path / "file"
    in_the_way.write_text("no folder")
    assert obtain(in_the_way, runtime) == obtain(in_the_way, runtime) == "graph of model"
    assert runtime.converted == 2 and "cannot keep" in caplog.text


@pytest.mark.parametrize("error", [OSError("No space left on device"), RuntimeError("cannot save")])
def test_a_full_disk_leaves_nothing_behind(error, tmp_path, runtime, monkeypatch):
    def full(graph, folder):
        (folder / "graph.txt").write_text("half")
        raise error

    monkeypatch.setattr(runtime, "save", full)
    assert obtain(tmp_path, runtime) == "graph of model"
    assert list_entries(tmp_path) == []


def test_processes_at_once_convert_once(tmp_path, runtime):
    lock = filelock.FileLock(tmp_path / f".{cache_in(tmp_path).folder.name}.lock")
    found = []
    with lock:
        other = threading.Thread(target=lambda: found.append(obtain(tmp_path, runtime)))
        other.start()
        other.join(0.3)
        assert found == []  # it waits
        cache_in(tmp_path).store(lambda folder: (folder / "graph.txt").write_text("theirs"))
    other.join()
    assert found == ["theirs"] and runtime.converted == 0


def test_what_a_killed_process_left_is_removed(tmp_path, runtime):
    left = tmp_path / f".{cache_in(tmp_path).folder.name}.abc"
    left.mkdir()
    obtain(tmp_path, runtime)
    assert not left.exists()
