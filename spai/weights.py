"""Named model files: where they are, where they come from, and whether they are intact.

    REGISTRY           what can be named
    find_weights()     a name or path -> a local file; never touches the network
    verify()           a name or path -> what the file is, by its SHA-256

A named file is looked for in `./weights`, then in `home()`; `spai.downloads` puts it there. The
small model `mini` comes with the package.

A file without a published SHA-256 is trusted when it is first downloaded: its SHA-256 is written to
`<file name>.json` beside it and compared from then on.
"""

import contextlib
import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import platformdirs
from tqdm import tqdm

logger = logging.getLogger(__name__)

LOCAL = Path("weights")
DEFAULT = "spai"
FALLBACK = "mini"
# Where files that come with the package lie: installed, or in the source tree.
BUNDLED = (Path(__file__).parent / "bundled", Path(__file__).parents[1] / "weights")
HOST = "drive.google.com"
LOG_SECONDS = 30  # between progress lines when stderr is not a terminal

Report = Callable[[int, int | None], None]  # bytes so far, of how many


@dataclass(frozen=True)
class WeightsEntry:
    """A model file that can be named; sizes in bytes, `sha256` in lower-case hexadecimal.

    `drive_id` is None for a file that comes with the package.
    """

    name: str
    file_name: str
    drive_id: str | None
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
        WeightsEntry(
            name="mini",
            file_name="spai-mini.safetensors",
            drive_id=None,
            size=9_722_868,
            minimum_size=9_722_868,
            sha256="c9a3ab7d3ba295243f1576e679f61a54f4969ac06aee2c4e6f108d6e967a64f7",
            description="a small demonstration model, not the published detector",
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
        try:
            return Path(chosen).expanduser().absolute()
        except RuntimeError as error:
            raise ValueError(f"$SPAI_HOME is {chosen!r}: {error}") from error
    return platformdirs.user_cache_path("spai", appauthor=False)


def local_copy(entry: WeightsEntry, *, local: Path = LOCAL) -> Path | None:
    """Return the file of a registered model, in `local`, `home()` or the package; None without."""
    folders = (local, home(), *(BUNDLED if entry.drive_id is None else ()))
    candidates = (folder / entry.file_name for folder in folders)
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
            if entry.drive_id is None:
                raise ValueError(
                    f"the model {entry.name!r} comes with the package and is missing from it; "
                    "install spai again"
                )
            raise ValueError(
                f"the model {entry.name!r} is not on this computer. To download it:\n"
                f"  spai weights download {entry.name}\n{by_hand(entry, local, home())}"
            )
        return found
    path = Path(name_or_path)
    with contextlib.suppress(RuntimeError):  # no such user: then it is a name
        path = path.expanduser()
    if path.is_dir():
        raise ValueError(f"{path}: is a folder; name the model file in it")
    if not path.is_file():
        raise unknown_model(text)
    return path


def default_weights(*, local: Path = LOCAL) -> Path:
    """Return the file used when none is named: the published model, or `mini` with a notice."""
    found = local_copy(REGISTRY[DEFAULT], local=local)
    if found is not None:
        return found
    entry = REGISTRY[FALLBACK]
    logger.warning(
        "No model was named and %r is not on this computer: using %r, %s. "
        "To get the published one: spai weights download %s",
        DEFAULT,
        entry.name,
        entry.description,
        DEFAULT,
    )
    return find_weights(entry.name, local=local)


def chosen_weights(name_or_path: str | None) -> Path:
    """Return the file of `find_weights`, or of `default_weights` when none is named."""
    return default_weights() if name_or_path is None else find_weights(name_or_path)


def describe(sha256: str) -> str | None:
    """Say which registered model a file of this SHA-256 is; None for any other."""
    known = (entry for entry in REGISTRY.values() if entry.sha256 == sha256)
    return next((f"{entry.name}: {entry.description}" for entry in known), None)


def verify(name_or_path: str | Path, *, local: Path = LOCAL, progress: bool = True) -> Verification:
    """Compute the SHA-256 of a model file and compare it with what it should be.

    Args:
        name_or_path: As for `find_weights`, with the same errors.
        local: The folder looked into before `home()`.
        progress: Show a bar on stderr.
    """
    path = find_weights(name_or_path, local=local)
    size, sha256 = path.stat().st_size, file_digest(path, progress=progress)
    for entry in REGISTRY.values():
        if path.name == entry.file_name:
            ok, message = compare(entry, size, sha256, path)
            return Verification(entry.name, path, size, sha256, ok, message)
    for entry in REGISTRY.values():
        if sha256 == entry.sha256:
            return Verification(entry.name, path, size, sha256, True, entry.description)
    return Verification(None, path, size, sha256, None, "not the file of a known model")


def compare(entry: WeightsEntry, size: int, sha256: str, target: Path) -> tuple[bool | None, str]:
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


def sidecar(target: Path) -> Path:
    """Return where the remembered SHA-256 of a file lies."""
    return target.with_name(f"{target.name}.json")


def _remembered(target: Path) -> str | None:
    """Return the SHA-256 that `_remember` wrote for a file, or None."""
    try:
        return str(json.loads(sidecar(target).read_text(encoding="utf-8"))["sha256"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{sidecar(target)}: is damaged; delete it to start afresh") from error


def file_digest(path: Path, *, progress: bool) -> str:
    """Return the SHA-256 of a file, hexadecimal, with a bar on stderr."""
    digest = hashlib.sha256()
    total = path.stat().st_size
    with open(path, "rb") as file, byte_meter(f"verify {path.name}", total, 0, progress) as report:
        while block := file.read(1 << 20):
            digest.update(block)
            report(file.tell(), total)
    return digest.hexdigest()


@contextlib.contextmanager
def byte_meter(label: str, total: int | None, done: int, shown: bool) -> Iterator[Report]:
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


def by_hand(entry: WeightsEntry, *folders: Path) -> str:
    """Say how to get a file with a browser, and in which folders it is found."""
    places = "\n  or ".join(str(folder.absolute() / entry.file_name) for folder in folders)
    return f"By hand: open {entry.url} in a browser and save the file as\n  {places}"


def unknown_model(name: str) -> ValueError:
    """Return the error for a name that is no registered model."""
    return ValueError(
        f"{name}: no such file or model; known models: {', '.join(REGISTRY)} "
        "(spai weights download NAME)"
    )
