"""Check a data set before training or testing on it.

Every listed file is read once: does it exist, does it decode, which bytes repeat, how do the
classes differ in size, format and JPEG quality, and can they be told apart by that alone.
"""

import hashlib
import io
import os
import threading
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from PIL import Image
from tqdm import tqdm

from spai.data.images import MAX_PIXELS, FileSource, FileStamp, ImageError, Source, open_image
from spai.data.shortcuts import ContainerFacts, facts_table, probe_families, read_facts
from spai.data.tables import CLASS_NAMES, Sample

WARNING_LEVEL = 0.6
MIN_PROBE_IMAGES = 10  # of each class; below, the probe would report noise
_HUGE_PIXELS = 50_000_000
_decoding_huge = threading.Lock()
_opening = threading.Lock()  # an LMDB transaction serves one thread at a time


class FileCheck(NamedTuple):
    """What was found about one file; `error` is empty when it decodes."""

    facts: ContainerFacts | None = None
    sha256: str = ""  # empty when it could not be read
    error: str = ""
    missing: bool = False


@dataclass(frozen=True)
class GroupReport:
    """The images of one class in one split. Distributions are over those that decode."""

    split: str
    label: str
    images: int
    missing: int
    broken: int
    file_size: dict[str, float]  # bytes: min, 25%, 50%, 75%, max; empty when none decodes
    width: dict[str, float]
    height: dict[str, float]
    sizes: dict[str, int]  # "width x height" -> images, most frequent first
    formats: dict[str, int]
    jpeg_quality: dict[str, int]
    subsampling: dict[str, int]


@dataclass(frozen=True)
class Duplicate:
    """Files with the same bytes."""

    sha256: str
    images: list[str]
    splits: list[str]  # distinct: two or more means that a split leaks into another
    labels: list[str]  # distinct: two means that one of the labels is wrong


@dataclass(frozen=True)
class ProbeReport:
    """Cross-validated balanced accuracy of the shortcut probe in one split, in [0, 1]."""

    split: str
    real: int
    generated: int
    balanced_accuracy: dict[str, float]  # all features and each family; empty: too few images


@dataclass(frozen=True)
class Report:
    """Everything that `check_samples` found."""

    groups: list[GroupReport]
    missing: list[str]
    broken: dict[str, str]  # path -> why
    duplicates: list[Duplicate]
    probes: list[ProbeReport]


def check_samples(
    samples: Sequence[Sample], *, source: Source | None = None, max_pixels: int = MAX_PIXELS
) -> Report:
    """Read every file of a data set once and report on it.

    Args:
        samples: the rows; the same file listed twice counts as a duplicate.
        source: where the bytes come from; None for files.
        max_pixels: larger images count as broken.
    """
    reader = source or FileSource()

    def check(sample: Sample) -> FileCheck:
        return check_file(sample.path, reader, max_pixels)

    with _shared_pillow_settings(), ThreadPool(min(4, os.cpu_count() or 1)) as pool:
        found = pool.imap(check, samples, chunksize=8)
        # The bar is off when stderr is no terminal.
        checks = list(tqdm(found, total=len(samples), unit="image", disable=None))
    return summarise(list(zip(samples, checks, strict=True)))


def check_file(path: Path, source: Source, max_pixels: int = MAX_PIXELS) -> FileCheck:
    """Read, hash and decode one image, as `spai infer` would; never raises for what the file is.

    Links to files are followed; pipes, devices and folders are not opened.
    """
    try:
        with _opening:
            file, stamp = source.open(path)
        data = file.read_bytes() if isinstance(file, Path) else file.getvalue()
    except (ImageError, OSError) as error:
        absent = not (isinstance(source, FileSource) and path.exists())
        return FileCheck(error=str(error), missing=absent)
    digest = hashlib.sha256(data).hexdigest()
    try:
        with open_image(path, _Memory(data, stamp), max_pixels) as opened:
            facts = read_facts(opened)
            # One huge image at a time, or four of them fill the memory.
            with _decoding_huge if opened.pixels > _HUGE_PIXELS else nullcontext():
                opened.decode()
    except ImageError as error:
        return FileCheck(sha256=digest, error=str(error))
    return FileCheck(facts=facts, sha256=digest)


def summarise(pairs: Sequence[tuple[Sample, FileCheck]]) -> Report:
    """Return the report on files that were checked."""
    groups: dict[tuple[str, int], list[FileCheck]] = {}
    for sample, check in pairs:
        groups.setdefault((sample.split, sample.label), []).append(check)
    splits = dict.fromkeys(sample.split for sample, _ in pairs)
    return Report(
        groups=[_group_report(split, label, found) for (split, label), found in groups.items()],
        missing=[str(sample.path) for sample, check in pairs if check.missing],
        broken={
            str(s.path): check.error for s, check in pairs if check.error and not check.missing
        },
        duplicates=_duplicates(pairs),
        probes=[_probe_report(split, pairs) for split in splits],
    )


def format_report(report: Report, *, most: int = 10) -> str:
    """Return the report as text tables; of long lists the first `most` lines."""
    lines = [pd.DataFrame([_group_row(group) for group in report.groups]).to_string(index=False)]
    broken = [f"{path}: {error}" for path, error in report.broken.items()]
    repeats = [
        f"{len(d.images)} in {' and '.join(d.splits)}, as {' and '.join(d.labels)}: "
        + ", ".join(d.images[:3])
        for d in report.duplicates
    ]
    lines += _listing("missing files", report.missing, most)
    lines += _listing("broken files", broken, most)
    lines += _listing("sets of identical files", repeats, most)
    lines += ["", "shortcut probe (balanced accuracy without looking at pixels; 50 % is chance):"]
    for probe in report.probes:
        lines += _probe_lines(probe)
    return "\n".join(lines)


class _Memory(NamedTuple):
    """A source of one image whose bytes were already read."""

    data: bytes
    stamp: FileStamp

    def open(self, path: Path) -> tuple[io.BytesIO, FileStamp]:
        return io.BytesIO(self.data), self.stamp


@contextmanager
def _shared_pillow_settings() -> Iterator[None]:
    """Hold the process-wide settings that `open_image` changes, so that threads do not race."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _group_report(split: str, label: int, checks: Sequence[FileCheck]) -> GroupReport:
    """Summarise the files of one class in one split."""
    table = facts_table([check.facts for check in checks if check.facts])
    sizes = [f"{check.facts.width} x {check.facts.height}" for check in checks if check.facts]
    missing = sum(check.missing for check in checks)
    qualities = table["jpeg_quality"].dropna().astype(int).sort_values()
    return GroupReport(
        split=split,
        label=CLASS_NAMES[label],
        images=len(checks),
        missing=missing,
        broken=sum(bool(check.error) for check in checks) - missing,
        file_size=_quartiles(table["file_size"]),
        width=_quartiles(table["width"]),
        height=_quartiles(table["height"]),
        sizes=dict(Counter(sizes).most_common()),
        formats=dict(Counter(table["format"]).most_common()),
        jpeg_quality=dict(Counter(qualities.astype(str))),
        subsampling=dict(Counter(filter(None, table["subsampling"])).most_common()),
    )


def _quartiles(values: "pd.Series[float]") -> dict[str, float]:
    """Return min, 25%, 50%, 75% and max; empty without values."""
    if values.empty:
        return {}
    cuts = values.quantile([0.0, 0.25, 0.5, 0.75, 1.0])
    return dict(zip(("min", "25%", "50%", "75%", "max"), map(float, cuts), strict=True))


def _duplicates(pairs: Sequence[tuple[Sample, FileCheck]]) -> list[Duplicate]:
    """Group files with equal bytes, those across splits first."""
    groups: dict[str, list[Sample]] = {}
    for sample, check in pairs:
        if check.sha256:
            groups.setdefault(check.sha256, []).append(sample)
    found = [
        Duplicate(
            sha256=digest,
            images=[str(sample.path) for sample in same],
            splits=sorted({sample.split for sample in same}),
            labels=sorted({CLASS_NAMES[sample.label] for sample in same}),
        )
        for digest, same in groups.items()
        if len(same) > 1
    ]
    return sorted(found, key=lambda d: (-len(d.splits), -len(d.labels), d.images))


def _probe_report(split: str, pairs: Sequence[tuple[Sample, FileCheck]]) -> ProbeReport:
    """Probe one split with all features and with each family of them."""
    usable = [(s.label, check.facts) for s, check in pairs if s.split == split and check.facts]
    labels = [label for label, _ in usable]
    counts = labels.count(0), labels.count(1)
    if min(counts) < MIN_PROBE_IMAGES:
        return ProbeReport(split, *counts, {})
    table = facts_table([facts for _, facts in usable])
    return ProbeReport(split, *counts, probe_families(table, labels))


def _group_row(group: GroupReport) -> dict[str, object]:
    """Return one line of the table of groups."""

    def span(cuts: dict[str, float]) -> str:
        return f"{cuts['min']:.0f}..{cuts['50%']:.0f}..{cuts['max']:.0f}" if cuts else "-"

    def share(counts: dict[str, int], most: int = 3) -> str:
        top = sorted(counts.items(), key=lambda item: -item[1])[:most]
        return " ".join(f"{name}:{count}" for name, count in top) or "-"

    return {
        "split": group.split,
        "class": group.label,
        "images": group.images,
        "missing": group.missing,
        "broken": group.broken,
        "width": span(group.width),
        "height": span(group.height),
        "bytes": span(group.file_size),
        "formats": share(group.formats),
        "JPEG quality": share(group.jpeg_quality),
    }


def _listing(title: str, items: Sequence[str], most: int) -> list[str]:
    """Return a title with the number of items and the first `most` of them."""
    shown = [f"  {item}" for item in items[:most]]
    more = [f"  ... and {len(items) - most} more"] if len(items) > most else []
    return ["", f"{title}: {len(items)}", *shown, *more]


def _probe_lines(probe: ProbeReport) -> list[str]:
    """Return the lines about one split, with a warning above `WARNING_LEVEL`."""
    counts = f"{probe.split}: {probe.real} real, {probe.generated} generated"
    if not probe.balanced_accuracy:
        return [f"  {counts}: not run, it needs {MIN_PROBE_IMAGES} readable images of each class"]
    lines = [f"  {counts}"]
    lines += [f"    {name:<12} {100 * v:5.1f} %" for name, v in probe.balanced_accuracy.items()]
    if probe.balanced_accuracy["all"] > WARNING_LEVEL:
        lines.append(
            f"  WARNING: above {100 * WARNING_LEVEL:.0f} %: the files alone give the class away; "
            "a detector can learn or exploit that instead of the content"
        )
    return lines
