"""Downloads of registered models, verified before a file gets its name.

While a download runs, everything received lies in the folder `<file name>.part` beside the final
name; the final name appears only once size and SHA-256 are right. Nothing under the final name is
ever replaced or deleted.
"""

import contextlib
import errno
import json
import logging
import os
import shutil
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import filelock

from spai import weights
from spai.weights import (
    HOST,
    LOCAL,
    Report,
    WeightsEntry,
    by_hand,
    byte_meter,
    compare,
    file_digest,
    home,
    sidecar,
    unknown_model,
    verify,
)

logger = logging.getLogger(__name__)

STALL_SECONDS = 60  # without a byte from the host
DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO}

Check = Callable[[Path], None]


def download(
    name: str,
    *,
    destination: Path | None = None,
    progress: bool = True,
    check: Check | None = None,
) -> Path:
    """Download a registered model, verify it and return its file. A file already there is kept.

    An interrupted download continues when it is started again; of two at once, one waits.

    Args:
        name: A name of `weights.REGISTRY`.
        destination: The folder for the file, made when missing; `home()` when None.
        progress: Show bars on stderr, or a line every 30 s when that is no terminal.
        check: Called with a file whose SHA-256 is not known beforehand, before it is accepted; a
            ValueError or RuntimeError refuses the file.

    Raises:
        ValueError: Unknown name, or another file has the final name.
        RuntimeError: No connection, the host refused, what it sent is not the file, or the folder
            cannot be written; the message says what to do.
    """
    if name not in weights.REGISTRY:
        raise unknown_model(name)
    entry = weights.REGISTRY[name]
    if entry.drive_id is None:
        raise ValueError(f"{name}: comes with the package; there is nothing to download")
    folder = (destination or home()).expanduser().absolute()
    target = folder / entry.file_name
    try:
        if not _is_there(entry, target, progress, check):
            folder.mkdir(parents=True, exist_ok=True)
            with _one_at_a_time(target):
                if not _is_there(entry, target, progress, check):
                    _download(entry, target, progress, check)
    except OSError as error:
        reason = "the disk is full" if error.errno == errno.ENOSPC else error.strerror or error
        raise RuntimeError(
            f"{folder}: cannot store {target.name}: {reason}. Make room, or choose another folder "
            "with --destination or $SPAI_HOME, and run the same command again."
        ) from error
    return target


def _is_there(entry: WeightsEntry, target: Path, progress: bool, check: Check | None) -> bool:
    """Tell whether the file is there and intact; ValueError when it is there and is not."""
    if not target.exists():
        return False
    found = verify(target, progress=progress)
    refusal = _refusal(entry, target, target, found.sha256, check)
    if refusal:
        raise ValueError(
            f"{target}: is there already but is not the file of {entry.name!r}: {refusal}. "
            "It was left as it is; move it away and run the same command again."
        )
    if found.ok is None:
        _remember(target, found.sha256)
    logger.info("%s: there already and intact, SHA-256 %s", target, found.sha256)
    return True


def _download(entry: WeightsEntry, target: Path, progress: bool, check: Check | None) -> None:
    """Fetch, verify, and only then give the file its name."""
    part = target.with_name(f"{target.name}.part")
    staged = part / target.name
    logger.info("%s: downloading %s to %s", entry.name, entry.url, target)
    part.mkdir(exist_ok=True)
    try:
        if not staged.is_file():  # else: interrupted after the last byte
            _fetch(entry, staged, target, progress)
    finally:
        if not _received(part):
            shutil.rmtree(part, ignore_errors=True)
    sha256 = file_digest(staged, progress=progress)
    refusal = _refusal(entry, staged, target, sha256, check)
    if refusal:
        shutil.rmtree(part)
        raise RuntimeError(_failure(entry, target, f"{refusal}; what was received is deleted"))
    # It may have been put there by hand meanwhile; then theirs is verified and stays.
    if not _is_there(entry, target, progress, check):
        staged.chmod(0o644)  # gdown's files are private to the user; a cache may be shared.
        os.replace(staged, target)
        if entry.sha256 is None:
            _remember(target, sha256)
        logger.info("%s: complete, SHA-256 %s", target, sha256)
    shutil.rmtree(part)


def _fetch(entry: WeightsEntry, staged: Path, target: Path, progress: bool) -> None:
    """Let gdown write `staged`, continuing what an earlier run left in the same folder."""
    from gdown.exceptions import DownloadError

    before = _received(staged.parent)
    if before:
        logger.info("continuing after %s bytes", f"{before:,}")
    try:
        with byte_meter(entry.name, entry.size, before, progress) as report:
            assert entry.drive_id is not None
            _gdown(entry.drive_id, staged, report)
    except KeyboardInterrupt:
        logger.warning("interrupted; the same command continues the download")
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in DISK_ERRORS:
            raise
        # The host continued nothing and gives no other reason: it will not the next time either.
        hopeless = type(error) is DownloadError and not isinstance(error.__cause__, OSError)
        if not (hopeless and before and _received(staged.parent) == before):
            reason = textwrap.shorten(str(error) or type(error).__name__, 300)
            raise RuntimeError(_failure(entry, target, reason)) from error
        logger.info("cannot be continued; starting afresh")
        for file in staged.parent.iterdir():
            file.unlink()
        _fetch(entry, staged, target, progress)
    if not staged.is_file() or not staged.stat().st_size:
        raise RuntimeError(_failure(entry, target, "the host sent nothing"))


def _gdown(drive_id: str, output: Path, report: Report) -> None:
    """Download with gdown, whose temporary file lies beside `output`; tests replace this."""
    import gdown

    gdown.download(
        id=drive_id,
        output=str(output),
        quiet=True,
        use_cookies=False,
        resume=True,
        progress=report,
        timeout=STALL_SECONDS,
        retries=3,
    )


def _received(part: Path) -> int:
    return sum(file.stat().st_size for file in part.iterdir())


def _refusal(
    entry: WeightsEntry, file: Path, target: Path, sha256: str, check: Check | None
) -> str | None:
    """Return why `file` cannot be the file of `entry`, or None; runs `check` on unknown content."""
    with open(file, "rb") as opened:
        if opened.read(512).lstrip().lower().startswith((b"<!doctype html", b"<html")):
            return "it is a web page: the host refused the download (too many today?)"
    ok, message = compare(entry, file.stat().st_size, sha256, target)
    if ok is None and check is not None:
        try:
            check(file)
        except (ValueError, RuntimeError) as error:
            return f"it does not load: {error}"
    return message if ok is False else None


def _remember(target: Path, sha256: str) -> None:
    """Write a file's SHA-256 beside it; a folder that cannot be written only costs a warning."""
    temporary = target.with_name(f".{target.name}.json.tmp")
    try:
        temporary.write_text(json.dumps({"sha256": sha256}) + "\n", encoding="utf-8")
        os.replace(temporary, sidecar(target))
    except OSError as error:
        logger.warning("%s: SHA-256 not remembered: %s", target, error.strerror)


@contextlib.contextmanager
def _one_at_a_time(target: Path) -> Iterator[None]:
    """Wait until no other process or thread downloads the same file."""
    lock = filelock.FileLock(target.with_name(f".{target.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        logger.info("%s: is being downloaded already; waiting for that", target)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _failure(entry: WeightsEntry, target: Path, reason: str) -> str:
    return (
        f"{entry.name}: the download failed: {reason}.\nIs there a connection to {HOST}? It also "
        "refuses files that were downloaded too often today; then try tomorrow, with the same "
        f"command.\n{by_hand(entry, LOCAL, target.parent)}"
    )
