"""Named model files: where they are, where they come from, and whether they are intact.

    REGISTRY           what can be named
    find_weights()     a name or path -> a local file; never touches the network
    download()         a name -> a verified file, through gdown
    verify()           a name or path -> what the file is, by its SHA-256

A named file is looked for in `./weights`, then in `home()`. While a download runs, everything
received lies in the folder `<file name>.part` beside the final name; the final name appears only
once size and SHA-256 are right. Nothing under the final name is ever replaced or deleted.

A file without a published SHA-256 is trusted when it is first downloaded: its SHA-256 is written to
`<file name>.json` beside it and compared from then on.
"""

import contextlib
import errno
import hashlib
import json
import logging
import os
import shutil
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import filelock
import platformdirs
from tqdm import tqdm

logger = logging.getLogger(__name__)

LOCAL = Path("weights")
DEFAULT = "spai"
HOST = "drive.google.com"
STALL_SECONDS = 60  # without a byte from the host
LOG_SECONDS = 30  # between progress lines when stderr is not a terminal
DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO}

Check = Callable[[Path], None]
Report = Callable[[int, int | None], None]  # bytes so far, of how many


@dataclass(frozen=True)
class WeightsEntry:
    """A model file that can be named; sizes in bytes, `sha256` in lower-case hexadecimal."""

    name: str
    file_name: str
    drive_id: str
    size: int | None
    minimum_size: int
    sha256: str | None
    description: str

    @property
    def url(self) -> str:
        """The page from which a browser downloads the file."""
        return f"https://{HOST}/file/d/{self.drive_id}/view"


REGISTRY: dict[str, WeightsEntry] = {
    entry.name: entry
    for entry in (
        WeightsEntry(
            name="spai",
            file_name="spai.pth",
            drive_id="1vvXmZqs6TVJdj8iF1oJ4L_fcgdQrp_YI",
            size=934_865_338,
            minimum_size=934_865_338,
            sha256="24159f27d7c8c2cd0cb6c4019189eb89ad0874a0d9d15f8dc9afd39ca9648a55",
            description="the published SPAI detector",
        ),
        WeightsEntry(
            name="mfm",
            file_name="mfm_pretrain_vit_base.pth",
            drive_id="1qgMuODAxAapwXZXbH2Bgo5s5O_zc1bdl",
            size=None,
            minimum_size=100_000_001,
            sha256=None,
            description="MFM ViT-B/16 backbone, where training starts",
        ),
    )
}


@dataclass(frozen=True)
class Verification:
    """What a file is.

    `name` is the registered model that its file name, else its content stands for; None for any
    other file. `ok` is True when size and SHA-256 are the published or remembered ones, False when
    they are not, None when there is nothing to compare with. `size` is in bytes.
    """

    name: str | None
    path: Path
    size: int
    sha256: str
    ok: bool | None
    message: str


def home() -> Path:
    """Return the folder of downloaded weights: $SPAI_HOME, else the user's cache folder."""
    chosen = os.environ.get("SPAI_HOME")
    if chosen:
        return Path(chosen).expanduser().absolute()
    return platformdirs.user_cache_path("spai", appauthor=False)


def local_copy(entry: WeightsEntry, *, local: Path = LOCAL) -> Path | None:
    """Return the file of a registered model, in `local` or else in `home()`; None without one."""
    candidates = (local / entry.file_name, home() / entry.file_name)
    return next((path for path in candidates if path.is_file()), None)


def find_weights(name_or_path: str | Path, *, local: Path = LOCAL) -> Path:
    """Return the local file that a model name or a path stands for. Never touches the network.

    A registered name has neither separator nor suffix and always means the registered model, even
    beside a file called the same: write `./spai` for that file. Anything else is a path.

    Args:
        name_or_path: A name of `REGISTRY`, or a file.
        local: The folder looked into before `home()`.

    Raises:
        ValueError: No such file or name, or the model is not on this computer; the message says
            how to get it.

    >>> find_weights("./photo-model.pth")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    ValueError: ./photo-model.pth: no such file or model; known models: spai, ...
    """
    text = str(name_or_path)
    if name_or_path in REGISTRY:
        entry = REGISTRY[text]
        found = local_copy(entry, local=local)
        if found is None:
            raise ValueError(
                f"the model {entry.name!r} is not on this computer. To download it:\n"
                f"  spai weights download {entry.name}\n{_by_hand(entry, local, home())}"
            )
        return found
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        raise ValueError(f"{path}: is a folder; name the model file in it")
    if not path.is_file():
        raise _unknown(text)
    return path


def default_weights(*, local: Path = LOCAL) -> Path:
    """Return the file used when none is named; order and error as in `find_weights`."""
    return find_weights(DEFAULT, local=local)


def verify(name_or_path: str | Path, *, local: Path = LOCAL, progress: bool = True) -> Verification:
    """Compute the SHA-256 of a model file and compare it with what it should be.

    Args:
        name_or_path: As for `find_weights`, with the same errors.
        local: The folder looked into before `home()`.
        progress: Show a bar on stderr.
    """
    path = find_weights(name_or_path, local=local)
    size, sha256 = path.stat().st_size, _sha256(path, progress=progress)
    for entry in REGISTRY.values():
        if path.name == entry.file_name:
            ok, message = _compare(entry, size, sha256, path)
            return Verification(entry.name, path, size, sha256, ok, message)
    for entry in REGISTRY.values():
        if sha256 == entry.sha256:
            return Verification(entry.name, path, size, sha256, True, entry.description)
    return Verification(None, path, size, sha256, None, "not the file of a known model")


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
        name: A name of `REGISTRY`.
        destination: The folder for the file, made when missing; `home()` when None.
        progress: Show bars on stderr, or a line every 30 s when that is no terminal.
        check: Called with a file whose SHA-256 is not known beforehand, before it is accepted; a
            ValueError or RuntimeError refuses the file.

    Raises:
        ValueError: Unknown name, or another file has the final name.
        RuntimeError: No connection, the host refused, what it sent is not the file, or the folder
            cannot be written; the message says what to do.
    """
    if name not in REGISTRY:
        raise _unknown(name)
    entry = REGISTRY[name]
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
    sha256 = _sha256(staged, progress=progress)
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
        with _meter(entry.name, entry.size, before, progress) as report:
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
    ok, message = _compare(entry, file.stat().st_size, sha256, target)
    if ok is None and check is not None:
        try:
            check(file)
        except (ValueError, RuntimeError) as error:
            return f"it does not load: {error}"
    return message if ok is False else None


def _compare(entry: WeightsEntry, size: int, sha256: str, target: Path) -> tuple[bool | None, str]:
    """Return whether size and SHA-256 are those expected of `target`, and what to tell."""
    if entry.size not in (None, size):
        return False, f"{size:,} bytes, expected {entry.size:,}"
    if size < entry.minimum_size:
        return False, f"{size:,} bytes, expected at least {entry.minimum_size:,}"
    known = entry.sha256 or _remembered(target)
    if known is None:
        return None, f"no SHA-256 was published; spai weights download {entry.name} remembers it"
    if known != sha256:
        return False, f"SHA-256 is {sha256}, expected {known}"
    return True, entry.description


def _sidecar(target: Path) -> Path:
    return target.with_name(f"{target.name}.json")


def _remembered(target: Path) -> str | None:
    """Return the SHA-256 that `_remember` wrote for a file, or None."""
    try:
        return str(json.loads(_sidecar(target).read_text(encoding="utf-8"))["sha256"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{_sidecar(target)}: is damaged; delete it to start afresh") from error


def _remember(target: Path, sha256: str) -> None:
    """Write a file's SHA-256 beside it; a folder that cannot be written only costs a warning."""
    temporary = target.with_name(f".{target.name}.json.tmp")
    try:
        temporary.write_text(json.dumps({"sha256": sha256}) + "\n", encoding="utf-8")
        os.replace(temporary, _sidecar(target))
    except OSError as error:
        logger.warning("%s: SHA-256 not remembered: %s", target, error.strerror)


def _sha256(path: Path, *, progress: bool) -> str:
    digest = hashlib.sha256()
    total = path.stat().st_size
    with open(path, "rb") as file, _meter(f"verify {path.name}", total, 0, progress) as report:
        while block := file.read(1 << 20):
            digest.update(block)
            report(file.tell(), total)
    return digest.hexdigest()


@contextlib.contextmanager
def _meter(label: str, total: int | None, done: int, shown: bool) -> Iterator[Report]:
    """Yield what takes the progress: a bar on a terminal, else a log line every `LOG_SECONDS`."""
    logged = time.monotonic()
    disable = None if shown else True  # None: off when stderr is not a terminal
    with tqdm(
        desc=label, total=total, initial=done, unit="B", unit_scale=True, disable=disable
    ) as bar:

        def report(now: int, of: int | None) -> None:
            nonlocal logged
            bar.total = of or total
            bar.update(now - bar.n)
            if shown and bar.disable and time.monotonic() - logged >= LOG_SECONDS:
                logged = time.monotonic()
                logger.info("%s: %.0f of %s MB", label, now / 1e6, round((of or total or 0) / 1e6))

        yield report


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
        f"command.\n{_by_hand(entry, LOCAL, target.parent)}"
    )


def _by_hand(entry: WeightsEntry, *folders: Path) -> str:
    places = "\n  or ".join(str(folder.absolute() / entry.file_name) for folder in folders)
    return f"By hand: open {entry.url} in a browser and save the file as\n  {places}"


def _unknown(name: str) -> ValueError:
    return ValueError(
        f"{name}: no such file or model; known models: {', '.join(REGISTRY)} "
        "(spai weights download NAME)"
    )
