"""Score files in, result files out: what `spai test` and `spai report` share."""

import csv
import dataclasses
import json
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from spai.engine.metrics import Floats, Metrics, log_odds
from spai.files import replacing_text
from spai.report.results_page import Pictures, write_results_page
from spai.report.robustness import RobustnessRow, robustness_table
from spai.report.tables import CrossTable, cross_table, dataset_metrics, markdown_report

RESULT_FILES = ("metrics.json", "metrics.csv", "scores.csv", "report.md", "report.html")
SCORE_COLUMNS = ["dataset", "image", "class", "score", "error"]
# Columns of text are of dtype object: Arrow strings cannot hold file names that are not UTF-8.
NAME_LABELS = {"real_": 0, "fake_": 1}
NOT_SCORED = "not scored"
NOT_FINITE = "the score is not a finite number"
log = logging.getLogger(__name__)


class Results(NamedTuple):
    """What was computed and written; `cross` is None without one-class data sets."""

    metrics: dict[str, Metrics]
    cross: CrossTable | None


def write_results(
    output: Path,
    scores: pd.DataFrame,
    run: Mapping[str, object],
    *,
    robustness: Sequence[RobustnessRow] = (),
    pictures: Pictures | None = None,
) -> Results:
    """Compute the metrics and write RESULT_FILES, and the figures of the page in `figures/`.

    Args:
        output: a folder, made when missing; the files in it are replaced.
        scores: a row an image with the columns dataset, image, class (0 real, 1 generated), score
            in [0, 1], error (empty or missing: none) and, if known, logit. Without logits they are
            the log-odds of the scores. A row without a finite score and logit is an error.
        run: facts to record; paths, dates and other objects are recorded as text.
        robustness: metrics of the images degraded, by data set and level; with any,
            `robustness.csv` is written too.
        pictures: returns small WebP pictures of the images at some places of `scores`, as far as
            there are any; None shows names only.

    Raises:
        ValueError: no rows, or a class that is not 0 or 1.
    """
    if scores.empty:
        raise ValueError("no images to compute metrics of")
    rows = _complete(scores)
    results = Results(dataset_metrics(rows), cross_table(rows))
    record = {
        "run": run,
        "datasets": {name: dataclasses.asdict(m) for name, m in results.metrics.items()},
        "cross_table": None if results.cross is None else dataclasses.asdict(results.cross),
        "robustness": [
            {**row._asdict(), "metrics": dataclasses.asdict(row.metrics)} for row in robustness
        ],
    }
    output.mkdir(parents=True, exist_ok=True)
    metric_rows = [_flat(name, m) for name, m in results.metrics.items()]
    score_rows = zip(*(rows[name].tolist() for name in SCORE_COLUMNS), strict=True)
    _write(output / "scores.csv", _csv_text(SCORE_COLUMNS, score_rows))
    metric_text = _csv_text(metric_rows[0], (row.values() for row in metric_rows))
    _write(output / "metrics.csv", metric_text)
    if robustness:
        levels = [_flat_level(row) for row in robustness]
        _write(output / "robustness.csv", _csv_text(levels[0], (row.values() for row in levels)))
    markdown = markdown_report(
        results.metrics, results.cross, rows, run, robustness=robustness_table(robustness)
    )
    _write(output / "report.md", markdown)
    _write(output / "metrics.json", json.dumps(_plain(record), indent=2, allow_nan=False) + "\n")
    write_results_page(
        output, rows, *results, _plain(run), robustness=robustness, pictures=pictures
    )
    return results


def check_not_overwritten(output: Path, inputs: Iterable[Path], names: Iterable[str]) -> None:
    """Raise ValueError when a file of these names in `output` would replace an input."""
    written = {(output / name).resolve() for name in names}
    for file in inputs:
        if file.resolve() in written:
            raise ValueError(f"{file}: would be overwritten; give another folder with --output")


def read_scores(
    files: Sequence[Path],
    *,
    column: str = "spai",
    real: Sequence[Path] = (),
    generated: Sequence[Path] = (),
) -> pd.DataFrame:
    """Read score CSVs, as `spai infer` and `spai test` write them, for `write_results`.

    A file is a data set named by its stem; a `scores.csv` of `spai test` (columns dataset and
    score) holds several. The class of a row is that of its list (`real`, `generated`), else its
    `class` column, else that of a file name which begins with `real_` or `fake_`. A row with a
    text in `<column>_error` (or `error`), or with an empty score, is an error row.

    Args:
        files: score CSVs that tell their class themselves.
        column: the column of scores.
        real: score CSVs of real images only.
        generated: score CSVs of generated images only.

    Raises:
        ValueError: a file is missing, empty or malformed, has no such column, no class, a score
            outside [0, 1], or the name of another data set.
    """
    labelled = [(f, None) for f in files] + [(f, 0) for f in real] + [(f, 1) for f in generated]
    if not labelled:
        raise ValueError("no score files given; name at least one with --scores")
    tables: list[pd.DataFrame] = []
    owners: dict[str, Path] = {}
    for file, label in labelled:
        table = _read_file(file, column, label)
        for name in table["dataset"].unique():
            if name in owners:
                raise ValueError(f"{owners[name]} and {file}: both are data set {name!r}; rename")
            owners[name] = file
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def _read_file(file: Path, column: str, label: int | None) -> pd.DataFrame:
    table = _read_cells(file)
    found = ", ".join(table.columns)
    of_test = column not in table and {"dataset", "score"} <= set(table.columns)
    column = "score" if of_test else column
    if column not in table:
        raise ValueError(f"{file}: no column {column!r}; found {found}; see --score-column")
    if "image" not in table:
        raise ValueError(f"{file}: no column 'image'; found {found}")
    errors = next((table[name] for name in (f"{column}_error", "error") if name in table), None)
    texts = pd.Series("", table.index, dtype=object) if errors is None else errors.copy()
    texts[(table[column].str.strip() == "") & (texts == "")] = NOT_SCORED
    names = pd.Series(file.stem, table.index, dtype=object)
    return pd.DataFrame(
        {
            "dataset": table["dataset"] if column == "score" and "dataset" in table else names,
            "image": table["image"],
            "class": _labels(file, table, label),
            "score": _scores(file, table[column].where(texts == "", "nan")),
            "error": texts,
        }
    )


def _read_cells(file: Path) -> pd.DataFrame:
    """Read a CSV as text, strictly; the index is the line on which a row ends."""
    if not file.is_file():
        raise ValueError(f"{file}: no such file; give a CSV of scores")
    with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
        reader = csv.reader(stream, strict=True)
        try:
            rows = [(reader.line_num, row) for row in reader if row]
        except csv.Error as error:
            raise ValueError(f"{file}, line {reader.line_num}: not a CSV: {error}") from error
    if len(rows) < 2:
        raise ValueError(f"{file}: is empty; expected a header and a row for each image")
    (_, header), *body = rows
    if len(set(header)) < len(header):
        raise ValueError(f"{file}: a column name occurs twice in {', '.join(header)}")
    for line, row in body:
        if len(row) != len(header):
            raise ValueError(f"{file}, line {line}: {len(row)} cells under {len(header)} columns")
    lines, cells = [line for line, _ in body], [row for _, row in body]
    columns = pd.Index(header, dtype=object)
    return pd.DataFrame(cells, columns=columns, index=lines, dtype=object)


def _scores(file: Path, texts: "pd.Series[str]") -> list[float]:
    scores = []
    for line, text in texts.items():
        try:
            score = float(text)
        except ValueError:
            raise ValueError(f"{file}, line {line}: the score {text!r} is not a number") from None
        if score < 0 or score > 1:
            raise ValueError(f"{file}, line {line}: the score {text} is not between 0 and 1")
        scores.append(score)
    return scores


def _labels(file: Path, table: pd.DataFrame, label: int | None) -> list[int]:
    by_name = next((n for start, n in NAME_LABELS.items() if file.name.startswith(start)), None)
    if label is None and "class" in table:
        labels = [_label(file, line, text) for line, text in table["class"].items()]
        if by_name is not None and set(labels) != {by_name}:
            log.warning("%s: its class column does not fit its name; using the column", file)
        return labels
    label = by_name if label is None else label
    if label is None:
        raise ValueError(
            f"{file}: real or generated? Add a column class (0 or 1), give the file with --real "
            "or --generated, or begin its name with real_ or fake_"
        )
    return [label] * len(table)


def _label(file: Path, line: object, text: str) -> int:
    try:
        return {0.0: 0, 1.0: 1}[float(text)]
    except (KeyError, ValueError):
        raise ValueError(
            f"{file}, line {line}: class {text!r} is neither 0 (real) nor 1 (generated)"
        ) from None


def _complete(scores: pd.DataFrame) -> pd.DataFrame:
    """Add logits where there are none, and an error to every row without a finite result."""
    rows = scores.reset_index(drop=True)
    values: Floats = rows["score"].to_numpy(dtype=np.float64)
    if "logit" not in rows:
        rows["logit"] = log_odds(values)
    logits: Floats = rows["logit"].to_numpy(dtype=np.float64)
    errors = rows["error"].astype(object).where(rows["error"].notna(), "")
    errors[(errors == "") & ~(np.isfinite(values) & np.isfinite(logits))] = NOT_FINITE
    # No score beside an error: readers of scores.csv must not take it for a result.
    score = np.where(errors == "", values, np.nan)
    return rows.assign(error=errors, score=score)


def _flat(name: str, metrics: Metrics) -> dict[str, object]:
    row: dict[str, object] = {"dataset": name}
    for key, value in dataclasses.asdict(metrics).items():
        if key.endswith("_interval"):
            row[f"{key}_low"], row[f"{key}_high"] = value or (None, None)
        else:
            row[key] = value
    return row


def _flat_level(row: RobustnessRow) -> dict[str, object]:
    flat = _flat(row.dataset, row.metrics)
    first = {"dataset": row.dataset, "perturbation": row.perturbation, "level": row.level}
    return first | flat


def _plain(value: object) -> Any:
    """Turn a value into what JSON can hold; a number that is not finite becomes null."""
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def _csv_text(heading: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    lines = [",".join(_cell(value) for value in row) for row in (heading, *rows)]
    return "\n".join(lines) + "\n"


def _cell(value: object) -> str:
    """Write a number with every digit, None and NaN as nothing.

    Not the csv module: with LF lines it leaves a carriage return in a file name unquoted.
    """
    if value is None or value != value:
        return ""
    text = str(value)
    return '"' + text.replace('"', '""') + '"' if set(text) & set(',"\r\n') else text


def _write(path: Path, text: str) -> None:
    with replacing_text(path, errors="surrogateescape") as file:
        file.write(text)
