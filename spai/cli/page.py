"""Pictures for pages: all images for `spai infer --report`, some for `spai test`.

They are made when the scores are complete.
"""

import json
import logging
from collections.abc import Sequence
from pathlib import Path

from spai.data.images import FileSource, Source
from spai.data.loaders import LoadingOptions
from spai.data.names import inner_name
from spai.data.records import ImageRecord, InputTable
from spai.data.thumbnails import thumbnails
from spai.engine.run_files import OutputFiles
from spai.engine.scoring import Finished, ScoringRun
from spai.report.images_page import PageImage, picture_sizes, write_images_page

logger = logging.getLogger(__name__)

MISTAKE_SIDE = 224  # longer side of a picture on the page of `spai test`, pixels


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


def write_page(run: ScoringRun, finished: Finished, loading: LoadingOptions) -> None:
    """Write the page of a finished run.

    Args:
        run: whose files are complete.
        finished: what its final file says of each image.
        loading: how many processes decode, and the limit of pixels.
    """
    records, (rows, columns) = run.table.records, finished
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
        masks = _heat_maps(run.files.folder, scored, finished)
        for position, picture in thumbnails(masks, FileSource(), side=sizes.heat_map, **limits):
            maps[masks[position].row] = picture
    images = [
        PageImage(rows[r.row], r.label, pictures.get(r.row), maps.get(r.row)) for r in records
    ]
    facts = json.loads(run.files.run.read_text(encoding="utf-8"))
    del facts["stamps"]
    write_images_page(run.files.page, images, columns, title=run.table.name, run=facts)


def pictures_at(
    tables: Sequence[InputTable], sources: Sequence[Source], max_pixels: int, places: Sequence[int]
) -> dict[int, bytes]:
    """Return small pictures of some images, as far as they can be read.

    Args:
        tables: data sets, whose images are numbered through.
        sources: where the images of each come from.
        max_pixels: larger images have none.
        places: numbers of the images.
    """
    found: dict[int, bytes] = {}
    first = 0
    for table, source in zip(tables, sources, strict=True):
        here = [place for place in places if first <= place < first + len(table.records)]
        records = [table.records[place - first] for place in here]
        made = thumbnails(records, source, side=MISTAKE_SIDE, max_pixels=max_pixels)
        found |= {here[position]: picture for position, picture in made}
        first += len(table.records)
    return found


def _heat_maps(
    output: Path, records: Sequence[ImageRecord], finished: Finished
) -> list[ImageRecord]:
    """Return the overlays that the rows name; names that lead out of the output are left out."""
    rows, columns = finished
    if columns.mask not in columns.extras:
        return []
    place = columns.extras.index(columns.mask)
    found = []
    for record in records:
        name = rows[record.row].extras[place]
        try:
            inner = inner_name(str(name), where=record.name)
        except ValueError:
            continue  # the rows of a resumed run come from a file that people can edit
        found.append(ImageRecord(output / inner, inner, None, record.row))
    return found
