"""The files of a scoring run, and the facts of it that are kept beside the scores."""

import contextlib
import importlib.metadata
import json
import platform
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spai._version import __version__
from spai.files import replacing_text

PACKAGES = ("torch", "torchvision", "timm", "numpy", "pillow")


@dataclass(frozen=True)
class OutputFiles:
    """The files of one run.

    Attributes:
        folder: where they lie.
        name: without extension.
        kind: "csv", "json" or "parquet".
    """

    folder: Path
    name: str
    kind: str

    @property
    def final(self) -> Path:
        """The finished scores."""
        return self.folder / f"{self.name}.{self.kind}"

    @property
    def run(self) -> Path:
        """The facts of the run that wrote the finished scores."""
        return self.folder / f"{self.name}.run.json"

    @property
    def page(self) -> Path:
        """The scores for people to look at."""
        return self.folder / f"{self.name}.html"

    @property
    def running(self) -> Path:
        """The settings of a run that is not finished."""
        return self.folder / f"{self.name}.run.json.partial"

    @property
    def lock(self) -> Path:
        """Held while a run writes."""
        return self.folder / f".{self.name}.lock"

    def partial(self, rank: int = 0) -> Path:
        """The rows that a rank has scored."""
        return self.folder / f"{self.name}.{self.kind}.partial{f'.{rank}' if rank else ''}"

    def partials(self) -> list[Path]:
        """The partial files that exist, whatever number of ranks wrote them."""
        first = self.partial()
        others = (
            path
            for path in self.folder.iterdir()
            if path.name.startswith(f"{first.name}.")
            and path.name.removeprefix(f"{first.name}.").isdecimal()
        )
        return [path for path in (first, *sorted(others)) if path.exists()]


def write_run(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON for people, with the long list of stamps on one line."""
    stamps = content.get("stamps")
    text = json.dumps(
        {key: value for key, value in content.items() if key != "stamps"},
        indent=2,
        ensure_ascii=False,
    )
    if stamps is not None:
        text = f'{text[:-2]},\n  "stamps": {json.dumps(stamps)}\n}}'
    with replacing_text(path) as file:
        file.write(f"{text}\n")


def read_run(path: Path) -> dict[str, Any]:
    """Read the settings and stamps that `write_run` wrote.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        return {"settings": facts["settings"], "stamps": facts.get("stamps", [])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: cannot tell what the earlier run was ({error}); start anew without --resume"
        ) from error


def earlier_backend(files: OutputFiles) -> str | None:
    """Return what ran the patch encoder in the run that `--resume` would continue, None if unknown.

    A damaged record is reported where the run is resumed.
    """
    path = files.running if files.running.exists() else files.run
    if not path.exists():
        return None
    with contextlib.suppress(ValueError):
        settings = read_run(path)["settings"]
        if isinstance(settings, Mapping):
            return settings.get("backend")
    return None


def versions() -> dict[str, str]:
    """Return the versions of what computes scores."""
    found = {"python": platform.python_version(), "spai": __version__}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def check_output_folder(folder: Path) -> None:
    """Make a folder for output and check that files can be made in it.

    Raises:
        ValueError: they cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(
            f"{folder}: output cannot be written: {error.strerror or error}"
        ) from error


def check_places(files: OutputFiles, resume: bool) -> None:
    """Raise ValueError where a folder, or a file that is not ours, lies in the way of a run."""
    for path in (files.final, files.run, files.running, files.partial()):
        if path.is_dir():
            raise ValueError(f"{path}: is a folder where a file is to be written; move it away")
    if files.final.exists() and not files.run.exists() and not resume:
        raise ValueError(
            f"{files.final}: is there already and was not written by spai infer (no "
            f"{files.run.name} beside it); move it away, or choose another --output"
        )
