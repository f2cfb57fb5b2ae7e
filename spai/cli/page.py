"""The page of `spai infer --report`: made when the scores are complete."""

import json
import logging
from collections.abc import Mapping, Sequence

from spai.data.images import FileSource
from spai.data.loaders import LoadingOptions
from spai.data.names import inner_name
from spai.data.records import ImageRecord, InputTable
from spai.data.scores import ScoreRow
from spai.data.thumbnails import thumbnails
from spai.engine.run_files import OutputFiles
from spai.engine.scoring import ScoringRun
from spai.report.images_page import PageImage, picture_sizes, write_images_page

logger = logging.getLogger(__name__)


def check_page(files: OutputFiles, table: InputTable) -> None:
    """Raise ValueError when the page would take the place of something that is not ours."""
    if files.page.resolve() == table.source.resolve():
        raise ValueError(
            f"{table.source}: the page would replace this input; choose another --output"
        )
    if files.page.is_dir() or (files.page.exists() and not files.run.exists()):
        raise ValueError(
            f"{files.page}: is there already and was not written by spai infer; move it away, or "
            "choose another --output"
        )


def write_page(run: ScoringRun, rows: Mapping[int, ScoreRow], loading: LoadingOptions) -> None:
    """Write the page of a finished run.

    Args:
        run: whose files are complete.
        rows: the row of each image.
        loading: how many processes decode, and the limit of pixels.
    """
    records = run.table.records
    sizes = picture_sizes(len(records))
    if sizes.thumbnail:
        logger.info("%s: making pictures of %d images", run.files.page, len(records))
    else:
        logger.warning("%s: %d images are too many for pictures", run.files.page, len(records))
    scored = [record for record in records if rows[record.row].score is not None]
    limits = {"workers": loading.workers, "max_pixels": loading.max_pixels}
    pictures, maps = {}, {}
    if sizes.thumbnail:
        for position, picture in thumbnails(scored, run.source, side=sizes.thumbnail, **limits):
            pictures[scored[position].row] = picture
        masks = _heat_maps(run, scored, rows)
        for position, picture in thumbnails(masks, FileSource(), side=sizes.heat_map, **limits):
            maps[masks[position].row] = picture
    images = [
        PageImage(rows[r.row], r.label, pictures.get(r.row), maps.get(r.row)) for r in records
    ]
    facts = json.loads(run.files.run.read_text(encoding="utf-8"))
    del facts["stamps"]
    write_images_page(run.files.page, images, run.columns, title=run.table.name, run=facts)


def _heat_maps(
    run: ScoringRun, records: Sequence[ImageRecord], rows: Mapping[int, ScoreRow]
) -> list[ImageRecord]:
    """Return the overlays that the rows name; names that lead out of the output are left out."""
    column = f"{run.columns.tag}_mask"
    if column not in run.columns.extras:
        return []
    place = run.columns.extras.index(column)
    found = []
    for record in records:
        name = rows[record.row].extras[place]
        try:
            inner = inner_name(str(name), where=record.name)
        except ValueError:
            continue  # the rows of a resumed run come from a file that people can edit
        found.append(ImageRecord(run.files.folder / inner, inner, None, record.row))
    return found
