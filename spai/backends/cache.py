"""Graphs kept on disk, so that a model is converted once.

Each entry is a folder `<runtime>-<key>` with the graph and `entry.json`, which says what the graph
was made from and the size and SHA-256 of each file. An entry is written beside and renamed, so it
is whole or not there; one that does not match its `entry.json` counts as absent and is replaced.
"""

import contextlib
import hashlib
import importlib.metadata
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock

from spai._version import __version__
from spai.backends import BACKENDS
from spai.backends.graph import GraphRuntime
from spai.files import file_sha256
from spai.models.spai import SpectralEncoder

logger = logging.getLogger(__name__)

ENTRY = "entry.json"
# Changes when graphs are made or used in another way than before.
FORMAT = 1


@dataclass(frozen=True)
class CacheEntry:
    """A graph on disk; `facts` say what it was made from, None when they cannot be read."""

    folder: Path
    facts: Mapping[str, Any] | None

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())


class GraphCache:
    """The graphs of one runtime in a folder that need not exist."""

    def __init__(self, folder: Path, runtime: str, facts: Mapping[str, Any]) -> None:
        """Look for the graph of a model.

        Args:
            folder: of all graphs.
            runtime: name of the backend.
            facts: what determines the graph: SHA-256 of the model file and configuration.
        """
        self._facts = {
            **facts,
            "runtime": runtime,
            "versions": {
                **{name: importlib.metadata.version(name) for name in ("torch", "timm")},
                **{runtime: BACKENDS[runtime].version, "spai": __version__},
            },
            "format": FORMAT,
        }
        text = json.dumps(self._facts, sort_keys=True)
        self._name = f"{runtime}-{hashlib.sha256(text.encode()).hexdigest()[:24]}"
        self._parent = folder
        self.folder = folder / self._name

    def has(self) -> bool:
        """Tell, without reading the graph, whether it is there."""
        facts = _read_facts(self.folder)
        return facts is not None and facts.get("facts") == self._facts

    def find(self) -> Path | None:
        """Return the folder of the graph when it is there and intact."""
        if not self.has():
            return None
        files = (_read_facts(self.folder) or {}).get("files", {})
        try:
            intact = bool(files) and all(
                (self.folder / name).stat().st_size == size
                and file_sha256(self.folder / name) == sha256
                for name, (size, sha256) in files.items()
            )
        except (OSError, TypeError, ValueError):
            intact = False
        if not intact:
            logger.warning("%s: is damaged; it will be made anew", self.folder)
            return None
        return self.folder

    @contextlib.contextmanager
    def claimed(self) -> Iterator[None]:
        """Let one process at a time make the graph; the others wait where they can."""
        lock: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
        with contextlib.suppress(OSError, NotImplementedError):
            self._parent.mkdir(parents=True, exist_ok=True)
            held = filelock.FileLock(self._parent / f".{self._name}.lock")
            try:
                held.acquire(timeout=0)
            except filelock.Timeout:
                logger.info("waiting for another process that converts the model")
                held.acquire()
            lock = held
        with lock:
            yield

    def store(self, write: Callable[[Path], None]) -> Path:
        """Keep a graph and return its folder.

        Args:
            write: puts the files of the graph into the empty folder that it is given.

        Raises:
            OSError: it cannot be written.
        """
        self._parent.mkdir(parents=True, exist_ok=True)
        self._sweep()
        beside = self._parent / f".{self._name}.{os.getpid()}"
        beside.mkdir()
        try:
            write(beside)
            files = {
                path.name: [path.stat().st_size, file_sha256(path)]
                for path in sorted(beside.iterdir())
            }
            content = {"facts": self._facts, "files": files}
            (beside / ENTRY).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
            shutil.rmtree(self.folder, ignore_errors=True)
            os.replace(beside, self.folder)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
        return self.folder

    def _sweep(self) -> None:
        """Remove what a killed process left of this entry; the lock is held."""
        for path in self._parent.glob(f".{self._name}.*"):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)


def obtain_graph(
    cache: GraphCache, runtime: GraphRuntime, encoder: Callable[[], SpectralEncoder]
) -> Any:
    """Return the graph of a model from the cache, else convert the model and keep it.

    A cache that cannot be written costs the time of converting again.

    Args:
        cache: where the graph may be.
        runtime: makes, writes and reads it.
        encoder: gives the encoder with its weights, when it is needed.
    """
    found = cache.find()
    if found is not None:
        return runtime.load(found)
    with cache.claimed():
        found = cache.find()  # another process may have made it
        if found is not None:
            return runtime.load(found)
        logger.info("converting the model for %s, once; this takes up to a minute", runtime.name)
        started = time.monotonic()
        graph = runtime.convert(encoder())
        try:
            folder = cache.store(lambda folder: runtime.save(graph, folder))
            loaded = runtime.load(folder)
        except (OSError, RuntimeError) as error:
            logger.warning("%s: cannot keep the converted model: %s", cache.folder, error)
            return graph
    seconds = time.monotonic() - started
    logger.info("converted in %.0f s, kept in %s", seconds, folder)
    return loaded


def list_entries(folder: Path) -> list[CacheEntry]:
    """Return the entries of a cache folder, also damaged and unfinished ones, by name."""
    if not folder.is_dir():
        return []
    names = tuple(f"{name}-" for name in BACKENDS)
    return [
        CacheEntry(path, (_read_facts(path) or {}).get("facts"))
        for path in sorted(folder.iterdir())
        if path.is_dir() and not path.is_symlink() and path.name.lstrip(".").startswith(names)
    ]


def remove_entry(entry: CacheEntry) -> None:
    """Delete an entry.

    Raises:
        OSError: it cannot be deleted.
    """
    shutil.rmtree(entry.folder)
    lock = entry.folder.with_name(f".{entry.folder.name}.lock")
    lock.unlink(missing_ok=True)


def _read_facts(folder: Path) -> dict[str, Any] | None:
    try:
        content = json.loads((folder / ENTRY).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
