"""List the images of known data-set layouts as the rows of a CSV.

Nothing is decoded here: a file counts as an image by its extension. Hidden files are left out and
links to folders are not followed.
"""

import logging
import os
import random
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from spai.data.tables import CLASS_NAMES, Sample, read_list, read_rows

IMAGE_SUFFIXES = frozenset(
    [".avif", ".bmp", ".gif", ".heic", ".heif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg"]
    + [".png", ".ppm", ".tif", ".tiff", ".webp"]
)
LABELS = {"0_real": 0, "real": 0, "1_fake": 1, "fake": 1}

PROMPTS_COLUMN = "image name (matching Raise-1k)"
MISSING_CHOICES = ("error", "skip")

logger = logging.getLogger(__name__)


def find_images(folder: Path, suffixes: Collection[str] = IMAGE_SUFFIXES) -> list[Path]:
    """List the images below a folder, sorted by POSIX path.

    Raises:
        ValueError: the folder does not exist or holds no image.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder")
    found = sorted(_walk(folder, suffixes), key=Path.as_posix)
    if not found:
        raise ValueError(f"{folder}: no image below it with extension {sorted(suffixes)}")
    return found


def ldm_samples(
    split_dirs: Mapping[str, Path],
    *,
    coco_dir: Path,
    lsun_dir: Path,
    real_coco_filename: str = "real_coco.txt",
    real_lsun_filename: str = "real_lsun.txt",
    names: Sequence[str] = (),
    missing: str = "error",
) -> list[Sample]:
    """List the latent diffusion training set: per split generated images, COCO, LSUN.

    Args:
        split_dirs: split name -> unpacked folder. `val` and `valid` stand for each other on disk.
        coco_dir: holds train2017/, for every split.
        lsun_dir: the CNNDetection (ForenSynths) folder: train/{category}/0_real/{file}.
        real_coco_filename: list of COCO file names in each split folder.
        real_lsun_filename: list of `{category}_{file}` in each split folder.
        names: keep generated images with one of these path components; default all.
        missing: what to do about listed real files that do not exist, error or skip.

    Raises:
        ValueError: missing folder, list or file; a malformed line; a filter without effect.
    """
    samples: list[Sample] = []
    for split, given in split_dirs.items():
        folder = _val_or_valid(given)
        pngs = [
            path
            for path in find_images(folder, {".png"})
            if not {"real_coco", "real_lsun"} & set(path.relative_to(folder).parts)
        ]
        samples += _generated(folder, pngs, split, names)
        coco = [coco_dir / "train2017" / name for name in read_list(folder / real_coco_filename)]
        lsun = _lsun_paths(folder / real_lsun_filename, lsun_dir)
        samples += [Sample(path, 0, split, "coco") for path in coco]
        samples += [Sample(path, 0, split, "lsun") for path in lsun]
    _refuse_idle_filters(names, [sample for sample in samples if sample.label == 1])
    return _without_missing(samples, missing)


def directory_samples(
    split_dirs: Mapping[str, Sequence[Path]], *, names: Sequence[str] = (), label: int | None = None
) -> list[Sample]:
    """List labelled folders of any depth.

    Args:
        split_dirs: split name -> folders.
        names: keep images with one of these path components below the folder; default all.
        label: class of every image; None reads it from the one path component (the folder's own
            name counts) called 0_real, real, 1_fake or fake.

    Raises:
        ValueError: missing or empty folder, a file without label or with both, or listed twice.
    """
    samples: list[Sample] = []
    for split, folders in split_dirs.items():
        for folder in folders:
            for path in _matching(folder, find_images(folder), names):
                number = _label_of(path, folder) if label is None else label
                samples.append(Sample(path, number, split, _source(path, folder)))
    _refuse_idle_filters(names, samples)
    counts = Counter(os.path.abspath(sample.path) for sample in samples)
    twice = [path for path, count in counts.items() if count > 1]
    if twice:
        raise ValueError(f"{twice[0]}: listed twice ({len(twice)} such files); folders overlap")
    return samples


def synthbuster_samples(
    synthbuster_dir: Path,
    raise_dir: Path | None,
    *,
    names: Sequence[str] = (),
    missing: str = "error",
) -> list[Sample]:
    """List Synthbuster (generated PNGs) and its RAISE-1k counterparts, all in split `test`.

    Args:
        synthbuster_dir: holds one folder a generator and prompts.csv.
        raise_dir: holds tiff/{name}.tif for each row of prompts.csv; None lists no real images.
        names: keep generated images with one of these path components; default all.
        missing: what to do about real files that do not exist, error or skip.

    Raises:
        ValueError: missing folder, file or column; a filter without effect.
    """
    samples = _generated(synthbuster_dir, find_images(synthbuster_dir, {".png"}), "test", names)
    _refuse_idle_filters(names, samples)
    if raise_dir is not None:
        rows = read_rows(synthbuster_dir / "prompts.csv", [PROMPTS_COLUMN])
        stems = {row[PROMPTS_COLUMN].strip() for row in rows}
        for stem in sorted(filter(None, stems)):
            samples.append(Sample(raise_dir / "tiff" / f"{stem}.tif", 0, "test", "raise"))
    return _without_missing(samples, missing)


def draw_samples(samples: Sequence[Sample], number: int | None, *, seed: int = 0) -> list[Sample]:
    """Draw at most `number` samples of each class and split; None keeps all.

    The order stays, and the same samples and seed give the same draw.
    """
    if number is None:
        return list(samples)
    if number < 1:
        raise ValueError(f"{number} images a class and split asked for; expected at least 1")
    groups: dict[tuple[str, int], list[int]] = {}
    for index, sample in enumerate(samples):
        groups.setdefault((sample.split, sample.label), []).append(index)
    kept: list[int] = []
    for (split, label), indices in groups.items():
        if len(indices) < number:
            logger.warning("%s, %s: only %d", split, CLASS_NAMES[label], len(indices))
        generator = random.Random(f"{seed}/{split}/{label}")
        kept += generator.sample(indices, min(number, len(indices)))
    return [samples[index] for index in sorted(kept)]


def format_counts(samples: Sequence[Sample]) -> str:
    """Return a table of the number of images per split, class and source."""
    counts = Counter((s.split, CLASS_NAMES[s.label], s.source) for s in samples)
    lines = [f"{'split':<6} {'class':<10} {'images':>8}  source"]
    lines += [f"{s:<6} {c:<10} {count:>8}  {source}" for (s, c, source), count in counts.items()]
    return "\n".join([*lines, f"{'all':<17} {len(samples):>8}"])


def _walk(folder: Path, suffixes: Collection[str]) -> Iterator[Path]:
    """Yield the visible regular files below a folder that have one of the suffixes."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            path = folder / entry.name
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(path, suffixes)
            elif path.suffix.lower() in suffixes and entry.is_file():
                yield path


def _generated(
    folder: Path, paths: Sequence[Path], split: str, names: Sequence[str]
) -> list[Sample]:
    """Return the matching paths as generated samples."""
    matching = _matching(folder, paths, names)
    return [Sample(path, 1, split, _source(path, folder)) for path in matching]


def _lsun_paths(listing: Path, lsun_dir: Path) -> list[Path]:
    """Read `{category}_{file}` lines as paths of the CNNDetection training set, sorted."""
    paths = []
    for name in read_list(listing):
        category, _, file = name.partition("_")
        if not (category and file):
            raise ValueError(f"{listing}: {name!r} is not of the form category_file")
        paths.append(lsun_dir / "train" / category / "0_real" / file)
    return sorted(paths, key=Path.as_posix)


def _matching(folder: Path, paths: Sequence[Path], names: Sequence[str]) -> list[Path]:
    """Keep the paths that have one of the names as a component below the folder."""
    if not names:
        return list(paths)
    wanted = set(names)
    return [path for path in paths if wanted & set(path.relative_to(folder).parts)]


def _refuse_idle_filters(names: Sequence[str], samples: Sequence[Sample]) -> None:
    """Raise ValueError when a filter kept nothing: most likely it is misspelt."""
    idle = set(names).difference(part for sample in samples for part in sample.path.parts)
    if idle:
        raise ValueError(f"filter {sorted(idle)}: no image has such a file or folder in its path")


def _source(path: Path, folder: Path) -> str:
    """Return the first component below the folder, or its name when that says the label."""
    first, *rest = path.relative_to(folder).parts
    return first if rest and first not in LABELS else Path(os.path.abspath(folder)).name


def _label_of(path: Path, folder: Path) -> int:
    """Read the class from the folder's name and the folders below it."""
    parents = path.relative_to(folder).parts[:-1]
    found = {
        LABELS[part] for part in (Path(os.path.abspath(folder)).name, *parents) if part in LABELS
    }
    if len(found) != 1:
        problem = "both real and fake" if found else "no real or fake"
        raise ValueError(
            f"{path}: {problem} folder in its path; expected one of {sorted(LABELS)} "
            "(or give the class with --label)"
        )
    return found.pop()


def _val_or_valid(folder: Path) -> Path:
    """Return the folder, or its twin `valid` / `val` when only that exists."""
    twin = {"val": "valid", "valid": "val"}.get(folder.name)
    if twin and not folder.is_dir() and folder.with_name(twin).is_dir():
        return folder.with_name(twin)
    return folder


def _without_missing(samples: Sequence[Sample], missing: str) -> list[Sample]:
    """Check that the real files exist (the generated ones were found on disk)."""
    if missing not in MISSING_CHOICES:
        raise ValueError(f"missing={missing!r}: expected one of {MISSING_CHOICES}")
    absent = {sample.path for sample in samples if not sample.label and not sample.path.is_file()}
    if not absent:
        return list(samples)
    first = "\n  ".join(str(path) for path in sorted(absent)[:10])
    message = f"{len(absent)} real files are missing; the first of them:\n  {first}"
    if missing == "error":
        raise ValueError(f"{message}\nCheck the folders, or leave such files out: --missing skip")
    logger.warning("left out: %s", message)
    return [sample for sample in samples if sample.path not in absent]
