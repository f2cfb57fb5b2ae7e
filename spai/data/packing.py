"""Pack image files into an LMDB store; `images.LmdbSource` reads it."""

import contextlib
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from spai.data.lmdb import lmdb_package, store_key
from spai.data.names import inner_name
from spai.data.records import IMAGE_COLUMN, read_folder, read_table
from spai.files import replacing

MISSING_CHOICES = ("error", "skip")
MAX_KEY_BYTES = 511
FIRST_MAP_BYTES = 1 << 24
BATCH_BYTES = 1 << 26  # of images between two commits

logger = logging.getLogger(__name__)


class StoreEntry(NamedTuple):
    """A file to pack, and its key."""

    key: bytes
    path: Path


def list_entries(source: Path, *, root: Path | None = None) -> list[StoreEntry]:
    """List the images of a folder, as `spai infer` takes them, or of a CSV, in every split.

    Args:
        source: a folder, or a CSV with a column `image`.
        root: what keys and the paths of a CSV are relative to; the folder (of the CSV) by default.

    Raises:
        ValueError: no image, no such column, or a path that leaves the root.
    """
    base = root or (source if source.is_dir() else source.parent)
    if source.is_dir():
        paths = [record.path for record in read_folder(source).records]
        for path in paths:
            inner_name(os.path.relpath(path, base), where=f"{path}, from the root {base}")
        return [StoreEntry(store_key(path, base), path) for path in paths]
    frame = read_table(source)
    if IMAGE_COLUMN not in frame:
        raise ValueError(
            f"{source}: no column {IMAGE_COLUMN!r}; its columns are {', '.join(frame.columns)}"
        )
    paths = [
        base / inner_name(name, where=f"{source}, row {row}")
        for row, name in enumerate(frame[IMAGE_COLUMN], start=1)
    ]
    return [StoreEntry(store_key(path, base), path) for path in paths]


def pack_files(entries: Sequence[StoreEntry], store: Path, *, missing: str = "error") -> int:
    """Write the bytes of files into a new store, a single file that appears when it is complete.

    Args:
        entries: what to pack; a key that occurs again is packed once.
        store: the file to make.
        missing: what to do about files that do not exist or cannot be read, error or skip.

    Returns:
        The number of images in the store.

    Raises:
        ValueError: nothing to pack, files that are missing (all are looked for before anything is
            written), a key that is too long, or `store` exists.
        OSError: the disk is full, or a file cannot be read.
    """
    unique = list({entry.key: entry for entry in entries}.values())
    too_long = [entry.key for entry in unique if len(entry.key) > MAX_KEY_BYTES]
    if too_long:
        raise ValueError(
            f"{os.fsdecode(too_long[0])!r}: longer than the {MAX_KEY_BYTES} bytes of an LMDB key "
            f"({len(too_long)} such names); rename it, or choose a root that is nearer"
        )
    present = _without_missing(unique, missing)
    if not present:
        raise ValueError(f"{store}: not written, there are no images to pack")
    with _new_file(store) as partial:
        return _write(partial, tqdm(present, unit="image", disable=None), missing)


def _write(partial: Path, entries: Iterable[StoreEntry], missing: str) -> int:
    """Put files into a store in large commits; return how many."""
    lmdb = lmdb_package()
    count = 0
    try:
        with lmdb.open(
            str(partial), subdir=False, lock=False, sync=False, map_size=FIRST_MAP_BYTES
        ) as environment:
            for batch in _batches(_contents(entries, missing)):
                _put(environment, batch)
                count += len(batch)
            environment.sync(True)
    except lmdb.Error as error:
        raise OSError(
            f"{partial.parent}: the store cannot be written: {error}; is the disk full?"
        ) from error
    return count


def _put(environment: Any, batch: Sequence[tuple[bytes, bytes]]) -> None:
    """Commit a batch, enlarging the store's address space as often as it needs."""
    lmdb = lmdb_package()
    while True:
        try:
            with environment.begin(write=True) as transaction:
                for key, content in batch:
                    transaction.put(key, content)
            return
        except lmdb.MapFullError:
            environment.set_mapsize(2 * environment.info()["map_size"])


def _contents(entries: Iterable[StoreEntry], missing: str) -> Iterator[tuple[bytes, bytes]]:
    for entry in entries:
        try:
            content = entry.path.read_bytes()
        except OSError as error:
            if missing == "error":
                raise
            logger.warning("left out: %s: %s", entry.path, error.strerror)
            continue
        yield entry.key, content


def _batches(items: Iterable[tuple[bytes, bytes]]) -> Iterator[list[tuple[bytes, bytes]]]:
    """Group items so that each group has a little over BATCH_BYTES, and the last one the rest."""
    batch: list[tuple[bytes, bytes]] = []
    size = 0
    for item in items:
        batch.append(item)
        size += len(item[1])
        if size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _without_missing(entries: Sequence[StoreEntry], missing: str) -> list[StoreEntry]:
    if missing not in MISSING_CHOICES:
        raise ValueError(f"missing={missing!r}: expected one of {MISSING_CHOICES}")
    absent = {entry.key for entry in entries if not entry.path.is_file()}
    if not absent:
        return list(entries)
    paths = [str(entry.path) for entry in entries if entry.key in absent]
    listing = "\n  ".join(paths[:10])
    message = f"{len(paths)} files are missing; the first of them:\n  {listing}"
    if missing == "error":
        raise ValueError(f"{message}\nCheck the root, or leave such files out: --missing skip")
    logger.warning("left out: %s", message)
    return [entry for entry in entries if entry.key not in absent]


@contextlib.contextmanager
def _new_file(path: Path) -> Iterator[Path]:
    """Yield a name beside `path` for a file that gets its name when the block ends well."""
    if os.path.lexists(path):
        raise ValueError(f"{path}: exists already; delete it, or choose another name")
    with replacing(path) as partial:
        yield partial
