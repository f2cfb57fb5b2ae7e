"""Files that are whole or not there: written beside, then renamed. Imports nothing of ours."""

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a name beside `path` for a file that takes its place when the block ends well.

    The folder is made when missing. Nothing is left of a file whose block fails.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def remove_leftovers(path: Path) -> None:
    """Delete what processes that were killed while writing `path` left beside it.

    Call it only where no other process can be writing the file.
    """
    for other in path.parent.iterdir():
        if other.name.startswith(f".{path.name}.") and other.name.endswith(".partial"):
            other.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_text(path: Path, *, errors: str = "backslashreplace") -> Iterator[IO[str]]:
    """Open a UTF-8 text file beside `path` that takes its place when the block ends well.

    Args:
        path: of the file.
        errors: what becomes of file names that are not UTF-8, as of `open`.
    """
    with (
        replacing(path) as partial,
        partial.open("w", encoding="utf-8", errors=errors, newline="") as file,
    ):
        yield file


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, hexadecimal.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
