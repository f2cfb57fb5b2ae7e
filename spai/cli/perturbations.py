"""What `--perturb` says: the degradations that a model is tested against, level by level."""

import math
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, NamedTuple

from spai.data.perturb import Perturbation

NAMES = tuple(
    field.name for field in fields(Perturbation)
)  # in the order in which they are applied
PAPER = {
    "jpeg": (85, 70, 50),
    "webp": (85, 70, 50),
    "blur": (3, 5, 7),
    "noise": (1, 3, 5),
    "scale": (0.85, 0.7, 0.5),
}


class Level(NamedTuple):
    """One degradation at one strength: the name of a field of `Perturbation`, and its value."""

    perturbation: str
    value: float

    def __str__(self) -> str:
        return f"{self.perturbation}={self.value:g}"

    def applied(self) -> Perturbation:
        """Return the degradation; ValueError for a strength that there is not."""
        step: dict[str, Any] = {self.perturbation: self.value}
        return Perturbation(**step)


def parse_levels(specs: Sequence[str]) -> tuple[Level, ...]:
    """Read the values of `--perturb`.

    Args:
        specs: each a name and its levels, `jpeg=85,70,50`, or `paper` for the published ones.

    Returns:
        Each level once: perturbations in the order in which they are applied, levels as given.

    Raises:
        ValueError: a spec that cannot be read or a level that there is not.
    """
    found = [level for spec in specs for level in _levels(spec)]
    return tuple(dict.fromkeys(sorted(found, key=lambda level: NAMES.index(level.perturbation))))


def _levels(spec: str) -> list[Level]:
    if spec == "paper":
        return [Level(name, value) for name, values in PAPER.items() for value in values]
    name, equals, values = spec.partition("=")
    if name not in NAMES or not equals:
        raise ValueError(
            f"--perturb {spec!r}: give NAME=LEVEL,... such as jpeg=85,70 with one of "
            f"{', '.join(NAMES)}; or paper for the published levels"
        )
    levels = [Level(name, _number(value)) for value in values.split(",")]
    for level in levels:
        try:
            level.applied()
        except ValueError as error:
            raise ValueError(f"--perturb {spec!r}: {error}") from error
    return levels


def _number(text: str) -> float:
    """Return a whole number as int, another as float; NaN, which is no level, for other text."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return math.nan
