"""One run of `spai infer` over one input: what is left to score, where rows go, how it ends.

Rows go to a partial file as they are scored. When all are there, the final file takes the place of
an earlier one. Beside it lies `<name>.run.json`: the settings that a resumed run must share, the
facts of the run, and the stamp of each scored file.
"""

import json
import logging
import math
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import filelock
import numpy as np

from spai.config import flatten
from spai.data.images import FileStamp, ImageError, Source
from spai.data.loaders import LoadingOptions
from spai.data.records import ImageRecord, InputTable
from spai.data.scores import (
    PartialScores,
    ScoreColumns,
    ScoreRow,
    read_partial,
    read_scores,
    write_scores,
)
from spai.detectors import Detector
from spai.engine.calibration_file import CalibrationFile
from spai.engine.distributed import Ranks
from spai.engine.metrics import sigmoid
from spai.engine.predict import Prediction, predict
from spai.engine.run_files import OutputFiles, check_places, read_run, versions, write_run
from spai.engine.verdicts import add_verdicts
from spai.files import remove_leftovers

logger = logging.getLogger(__name__)


class Finished(NamedTuple):
    """What the final file says of each scored record, by row; empty but on rank 0."""

    rows: Mapping[int, ScoreRow]
    columns: ScoreColumns


class ScoringRun:
    """Scores one input into one output file; may be killed and resumed at any moment."""

    def __init__(
        self,
        table: InputTable,
        source: Source,
        files: OutputFiles,
        columns: ScoreColumns,
        settings: Mapping[str, Any],
        *,
        resume: bool,
        ranks: Ranks,
        draw: Callable[[Prediction], str] | None = None,
    ) -> None:
        """Lay claim to the output and find what is left to score.

        Args:
            table: what to score.
            source: where the images come from.
            files: what is written.
            columns: what is written about each image.
            settings: what determines the scores: model, configuration, precision, input.
            resume: keep what an interrupted or finished run with the same settings has scored.
            ranks: the processes that share the work.
            draw: draws a scored image; returns where, relative to the folder of the output.

        Raises:
            ValueError: another run writes the output, a run to be resumed had other settings, or
                the output would replace the input.
            OSError: the output cannot be written.
        """
        if files.final.resolve() == table.source.resolve():
            raise ValueError(
                f"{table.source}: the output would replace this input; choose another --output"
            )
        check_places(files, resume)
        self.table, self.source, self.files, self.columns = table, source, files, columns
        self._settings, self._ranks, self._draw = dict(settings), ranks, draw
        self._lock = filelock.FileLock(files.lock, timeout=0)
        self._started = time.time()
        self._patches = 0
        kept: list[ScoreRow] = []
        if ranks.is_main:
            kept = self._claim(resume)
        done = {row.row for row in ranks.gather(kept)[0]}
        left = [record for record in table.records if record.row not in done]
        self.kept = len(done)
        self.todo: Sequence[ImageRecord] = left[ranks.rank :: ranks.world]
        if not ranks.is_main:
            self._partial = PartialScores(files.partial(ranks.rank), columns)

    @property
    def scored(self) -> int:
        """How many rows this process has, those kept of an earlier run included."""
        return self._partial.rows

    def score(self, detector: Detector, options: LoadingOptions) -> Iterator[Prediction]:
        """Score what is left, writing each row before its prediction is yielded."""
        for prediction in predict(detector, self.todo, self.source, options):
            # The picture first: a row never names one that is not there.
            if self._draw is not None and prediction.error is None:
                prediction = replace(prediction, drawing=self._draw(prediction), preview=None)
            self._partial.append(to_row(prediction, self.columns))
            self._patches += prediction.patches
            yield prediction

    def finish(
        self, facts: Mapping[str, Any], calibration: CalibrationFile | None = None
    ) -> Finished:
        """Merge the rows of all ranks into the final file.

        Args:
            facts: what `.run.json` says besides settings, counts and versions.
            calibration: adds verdicts to the final file.

        Returns:
            The rows with their verdicts; on rank 0 only.
        """
        patches = sum(self._ranks.gather(self._patches))
        finished = Finished({}, self.columns)
        if self._ranks.is_main:
            rows = self._merge()
            skipped = {
                row: ScoreRow(row, "", None, (None,) * len(self.columns.extras), reason)
                for row, reason in self.table.skipped.items()
            }
            everything, columns = {**rows, **skipped}, self.columns
            if calibration is not None:
                everything, columns, verdicts = add_verdicts(everything, columns, calibration)
                facts = {**facts, **verdicts}
                counts = verdicts["verdicts"].items()
                shown = ", ".join(f"{count} {verdict}" for verdict, count in counts)
                logger.info("%s: verdicts: %s", self.files.final, shown)
            write_scores(self.files.final, self.table.frame, everything, columns, self.files.kind)
            write_run(self.files.run, self._summary(rows, patches, facts))
            # First what makes a later run look at the partial files.
            for path in (self.files.running, *self.files.partials()):
                path.unlink(missing_ok=True)
            for path in (self.files.final, self.files.run, self.files.running):
                remove_leftovers(path)
            finished = Finished({row: everything[row] for row in rows}, columns)
        self._ranks.wait()
        return finished

    def close(self) -> None:
        """Let go of the output; what was scored stays for --resume."""
        self._partial.close()
        if self._ranks.is_main:
            if not self.files.partials():
                self.files.running.unlink(missing_ok=True)
            self._unlock()

    def _unlock(self) -> None:
        self.files.lock.unlink(missing_ok=True)
        self._lock.release()

    def _claim(self, resume: bool) -> list[ScoreRow]:
        """Take the lock, read what can be kept, and start the partial file with it."""
        try:
            self._lock.acquire()
        except filelock.Timeout as error:
            raise ValueError(
                f"{self.files.final}: another run is writing it; wait for its end, "
                "or choose another --output"
            ) from error
        try:
            kept = self._rows_to_keep() if resume else []
            if not resume:
                self._set_aside()
            write_run(self.files.running, {"settings": self._settings})
            self._partial = PartialScores(self.files.partial(), self.columns, kept)
            for path in self.files.partials()[1:]:
                path.unlink()
        except BaseException:
            self._unlock()
            raise
        return kept

    def _set_aside(self) -> None:
        """Keep the rows of an interrupted run that is not resumed out of the way."""
        for path in self.files.partials() if self.files.running.exists() else ():
            aside = path.with_name(f"{path.name}.old")
            os.replace(path, aside)
            logger.warning(
                "%s: an interrupted run's scores, kept as %s; --resume would have continued it",
                path,
                aside.name,
            )

    def _rows_to_keep(self) -> list[ScoreRow]:
        """Return the rows of the earlier run that still hold, numbered as in this input."""
        partials = self.files.partials() if self.files.running.exists() else []
        facts_file = self.files.running if partials else self.files.run
        if not partials and not (facts_file.exists() and self.files.final.exists()):
            logger.info("%s: nothing to resume; starting anew", self.files.final)
            return []
        facts = read_run(facts_file)
        self._check_settings(facts["settings"], facts_file)
        if partials:
            earlier = [row for path in partials for row in read_partial(path, self.columns)]
        else:
            stamps = [FileStamp(*stamp) for stamp in facts["stamps"]]
            earlier = read_scores(self.files.final, self.columns, self.files.kind, stamps)
        return self._still_valid(earlier)

    def _check_settings(self, earlier: Any, facts_file: Path) -> None:
        before = dict(flatten(earlier if isinstance(earlier, Mapping) else {}))
        now = dict(flatten(json.loads(json.dumps(self._settings))))
        differing = [
            f"{key} was {before.get(key)!r}, now {now.get(key)!r}"
            for key in sorted(before.keys() | now.keys())
            if before.get(key) != now.get(key)
        ]
        if differing:
            raise ValueError(
                f"{facts_file}: --resume needs the settings of the earlier run: "
                f"{'; '.join(differing[:5])}. Start anew without --resume"
            )

    def _still_valid(self, earlier: Sequence[ScoreRow]) -> list[ScoreRow]:
        """Leave out errors, changed images, lost pictures, and rows that the input lacks."""
        by_name: dict[str, dict[int, ImageRecord]] = defaultdict(dict)
        for record in self.table.records:
            by_name[record.name][record.row] = record
        kept: dict[int, ScoreRow] = {}
        for row in earlier:
            records = by_name.get(row.name, {})
            found = records.get(row.row)
            if found is None and len(records) == 1:
                found = next(iter(records.values()))  # a folder grew: rows moved
            if found is None or row.score is None or self._stamp(found) != row.stamp:
                continue
            if self._draw is not None and not self._is_drawn(row):
                continue
            kept[found.row] = ScoreRow(found.row, row.name, row.score, row.extras, "", row.stamp)
        return list(kept.values())

    def _is_drawn(self, row: ScoreRow) -> bool:
        place = row.extras[self.columns.extras.index(self.columns.mask)]
        return isinstance(place, str) and (self.files.folder / place).is_file()

    def _stamp(self, record: ImageRecord) -> FileStamp | None:
        try:
            return self.source.open(record.path)[1]
        except ImageError:
            return None

    def _merge(self) -> dict[int, ScoreRow]:
        return {
            row.row: row
            for path in self.files.partials()
            for row in read_partial(path, self.columns)
        }

    def _summary(
        self, rows: Mapping[int, ScoreRow], patches: int, facts: Mapping[str, Any]
    ) -> dict[str, Any]:
        failed = sum(row.score is None for row in rows.values())
        stamps = [
            rows[row].stamp if row in rows else FileStamp() for row in range(len(self.table.frame))
        ]
        return {
            **facts,
            "settings": self._settings,
            "counts": {
                "rows": len(self.table.frame),
                "scored": len(rows) - failed,
                "errors": failed,
                "kept_from_earlier_run": self.kept,
                "patches_in_this_run": patches,
            },
            "seconds": round(time.time() - self._started, 3),
            "ranks": self._ranks.world,
            "versions": versions(),
            "stamps": [[stamp.size, stamp.mtime_ns] for stamp in stamps],
        }


def to_row(prediction: Prediction, columns: ScoreColumns) -> ScoreRow:
    """Return what the output says of a prediction."""
    record = prediction.record
    if prediction.error is not None or prediction.layout is None:
        empty = (None,) * len(columns.extras)
        return ScoreRow(
            record.row, record.name, None, empty, prediction.error or "", prediction.stamp
        )
    score, *others = (
        None if math.isnan(score) else score
        for score in sigmoid(np.array(prediction.logits, dtype=np.float64)).tolist()
    )
    layout = prediction.layout
    cells = {
        columns.patches: f"{len(layout.corners)}/{layout.total}",
        columns.mask: prediction.drawing,
    }
    extras = (*others, *(cells[name] for name in columns.extras[len(others) :]))
    return ScoreRow(record.row, record.name, score, extras, "", prediction.stamp)
