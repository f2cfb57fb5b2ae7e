"""The file of a calibration, and the facts that tell which scores it is for.

JSON: `format` and `version`, the model's name and SHA-256, the settings that change a score, and
the fields of `Calibration`. Numbers come back bit for bit: as the shortest decimal of a float64.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spai._version import __version__
from spai.config import flatten
from spai.engine.calibration import Calibration, Logistic, Threshold
from spai.engine.run_files import OutputFiles
from spai.files import replacing_text

FORMAT, VERSION = "spai-calibration", 1
# Of a run's settings, those that change what an image scores.
SCORE_SETTINGS = ("configuration", "precision", "resize_to", "max_patches")
MOST_DIFFERENCES = 5


@dataclass(frozen=True)
class ScoreOrigin:
    """What made scores.

    Attributes:
        model: name of the model file.
        sha256: of the model file, hexadecimal.
        settings: those of SCORE_SETTINGS, as JSON holds them.
    """

    model: str
    sha256: str
    settings: dict[str, Any]

    @classmethod
    def of_run(cls, model: str, settings: Mapping[str, Any]) -> "ScoreOrigin":
        """Take what counts from the settings of a scoring run."""
        plain = json.loads(json.dumps({key: settings.get(key) for key in SCORE_SETTINGS}))
        return cls(model, str(settings["model_sha256"]), plain)

    def differences(self, other: "ScoreOrigin") -> list[str]:
        """Say in which settings another origin differs; the model is left aside."""
        mine, others = dict(flatten(self.settings)), dict(flatten(other.settings))
        return [
            f"{key} {mine.get(key)!r} and {others.get(key)!r}"
            for key in sorted(mine.keys() | others.keys())
            if mine.get(key) != others.get(key)
        ]


@dataclass(frozen=True)
class CalibrationFile:
    """A calibration that was read.

    Attributes:
        path: of the file.
        sha256: of the file, hexadecimal.
        origin: the model and settings whose scores it was made from.
        calibration: the numbers.
    """

    path: Path
    sha256: str
    origin: ScoreOrigin
    calibration: Calibration

    def check_use(self, origin: ScoreOrigin) -> None:
        """Raise ValueError unless it was made from scores of this origin."""
        if origin.sha256 != self.origin.sha256:
            raise ValueError(
                f"{self.path}: made for the model {self.origin.model} (SHA-256 "
                f"{self.origin.sha256}), not for {origin.model} (SHA-256 {origin.sha256}); make "
                "one for this model with spai calibrate"
            )
        found = self.origin.differences(origin)
        if found:
            raise ValueError(
                f"{self.path}: made from scores with other settings than this run's: "
                f"{'; '.join(found[:MOST_DIFFERENCES])}. Score with the settings of the "
                "calibration, or make one from scores with these"
            )


def read_origin(scores: Path, column: str) -> ScoreOrigin:
    """Tell what made a score CSV, by the facts that `infer` and `test` write beside it.

    Args:
        scores: `<name>.csv` with `<name>.run.json` beside it, or `scores.csv` with `metrics.json`.
        column: of the scores; `infer` must have written that one.

    Raises:
        ValueError: there are no such facts, or they are of another column.
    """
    of_infer = OutputFiles(scores.parent, scores.stem, "csv").run
    of_test = scores.parent / "metrics.json"
    facts_file = of_test if scores.name == "scores.csv" and not of_infer.exists() else of_infer
    try:
        facts = json.loads(facts_file.read_text(encoding="utf-8"))
        run = facts["run"] if facts_file == of_test else facts
        origin = ScoreOrigin.of_run(str(run["model"]["name"]), run["settings"])
        written = run["settings"].get("tag", column)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else repr(error)
        raise ValueError(
            f"{scores}: which model made these scores? {facts_file} does not tell ({reason}). Keep "
            "the CSV of spai infer or spai test beside the JSON file that was written with it, or "
            "score the images anew"
        ) from error
    if written != column:
        raise ValueError(
            f"{scores}: {facts_file.name} tells the model of the column {written!r}, not of "
            f"{column!r}; use --score-column {written}"
        )
    return origin


def write_calibration(
    path: Path,
    calibration: Calibration,
    origin: ScoreOrigin,
    inputs: Sequence[Mapping[str, str]],
) -> None:
    """Write a calibration, replacing an earlier one at once.

    Args:
        path: of the file.
        calibration: the numbers.
        origin: what made the scores.
        inputs: name and SHA-256 of each score CSV.
    """
    content = {
        "format": FORMAT,
        "version": VERSION,
        "spai": __version__,
        "model": {"name": origin.model, "sha256": origin.sha256},
        "settings": origin.settings,
        "inputs": [dict(entry) for entry in inputs],
        **dataclasses.asdict(calibration),
    }
    with replacing_text(path) as file:
        file.write(json.dumps(content, indent=2, allow_nan=False) + "\n")


def read_calibration(path: Path) -> CalibrationFile:
    """Read what `write_calibration` wrote.

    Raises:
        ValueError: it is not such a file, or of another version.
    """
    try:
        data = path.read_bytes()
        content = json.loads(data.decode("utf-8"), parse_constant=_not_a_number)
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise ValueError("not a file of spai calibrate")
        if content.get("version") != VERSION:
            raise ValueError(
                f"is of format version {content.get('version')!r}, this spai reads {VERSION}"
            )
        model, given = _object(content, "model"), _object(content, "settings")
        settings = {key: given.get(key) for key in SCORE_SETTINGS}
        origin = ScoreOrigin(str(model["name"]), str(model["sha256"]), settings)
        return CalibrationFile(path, hashlib.sha256(data).hexdigest(), origin, _parse(content))
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such file; spai calibrate makes one") from error
    except (OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise ValueError(
            f"{path}: cannot be read as a calibration ({reason}); make it anew with spai calibrate"
        ) from error


def _object(content: Mapping[str, Any], key: str) -> dict[str, Any]:
    if not isinstance(content[key], dict):
        raise ValueError(f"{key!r} is no JSON object")
    return dict(content[key])


def _not_a_number(text: str) -> float:
    raise ValueError(f"{text} is no finite number")


def _parse(content: Mapping[str, Any]) -> Calibration:
    thresholds = [_threshold(entry) for entry in content["thresholds"]]
    highest_first = sorted(thresholds, key=lambda found: (found.target_fpr, -found.threshold))
    falling = [found.threshold for found in highest_first]
    if not thresholds or falling != sorted(falling, reverse=True):
        raise ValueError("its thresholds do not fall while the target FPR rises")
    logistic = content["logistic"]
    return Calibration(
        thresholds=tuple(highest_first),
        real_median=_share(content["real_median"]),
        real=int(content["real"]),
        generated=int(content["generated"]),
        logistic=None
        if logistic is None
        else Logistic(_finite(logistic["temperature"]), _finite(logistic["bias"])),
        notes=tuple(map(str, content["notes"])),
    )


def _threshold(entry: Mapping[str, Any]) -> Threshold:
    values = {field.name: entry[field.name] for field in dataclasses.fields(Threshold)}
    for name in ("target_fpr", "threshold", "fpr"):
        values[name] = _share(values[name])
    for name in ("fpr_interval", "true_fpr_interval", "tpr_interval"):
        if values[name] is not None:
            low, high = values[name]
            values[name] = (_share(low), _share(high))
    return Threshold(**values)


def _share(value: Any) -> float:
    """Return a number in [0, 1]."""
    if not 0 <= _finite(value) <= 1:
        raise ValueError(f"{value!r} is not between 0 and 1")
    return float(value)


def _finite(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{value!r} is not a finite number")
    return float(value)
