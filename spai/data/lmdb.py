"""LMDB stores of images: many small files in one, which network disks read faster.

A key is the POSIX path of an image relative to a root (in bytes as the file system has them), the
value the bytes of its file, unchanged. `packing.py` makes them.
"""

import os
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

# lmdb opens a store once a process; whoever reads it shares the environment.
_environments: "WeakValueDictionary[tuple[Path, int], Any]" = WeakValueDictionary()


def store_key(path: Path, root: Path) -> bytes:
    """Return the key of an image: its POSIX path relative to `root`."""
    return os.fsencode(Path(os.path.relpath(path, root)).as_posix())


def open_store(store: Path) -> Any:
    """Open a store for reading, in this process: an environment must not cross a fork.

    Args:
        store: the LMDB file or folder.

    Returns:
        The `lmdb.Environment`; it closes when nobody holds it any more.

    Raises:
        ValueError: no LMDB store, or the package lmdb is not installed.
    """
    lmdb = lmdb_package()
    path, process = store.resolve(), os.getpid()
    for key, inherited in list(_environments.items()):
        if key[1] != process:
            inherited.close()  # of the parent process; lmdb would refuse to open it again
            del _environments[key]
    environment = _environments.get((path, process))
    if environment is None:
        try:
            environment = lmdb.open(
                str(store),
                subdir=store.is_dir(),
                readonly=True,
                create=False,
                lock=False,
                readahead=False,
            )
        except (lmdb.Error, OSError) as error:
            raise ValueError(f"{store}: no LMDB store: {error}") from error
        file = store / "data.mdb" if store.is_dir() else store
        needed = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
        if file.stat().st_size < needed:  # reading past its end would kill the process
            environment.close()
            raise ValueError(
                f"{store}: damaged LMDB store: {file.stat().st_size:,} bytes of {needed:,}"
            )
        _environments[path, process] = environment
    return environment


def lmdb_package() -> Any:
    """Return the module lmdb; ValueError when it is not installed."""
    try:
        import lmdb
    except ImportError as error:
        raise ValueError("LMDB stores need the package lmdb: pip install 'spai[lmdb]'") from error
    return lmdb
