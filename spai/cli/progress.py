"""How far a long run is: a bar on a terminal, a line every 30 seconds elsewhere. On stderr."""

import logging
import sys
import time
from collections.abc import Iterable, Iterator

from tqdm import tqdm

from spai.engine.predict import Prediction

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 30


def show_progress(
    predictions: Iterable[Prediction], *, name: str, done: int, total: int, shown: bool = True
) -> Iterator[Prediction]:
    """Pass predictions on while showing images done and patches per second.

    Args:
        predictions: what comes.
        name: of what is scored.
        done: images that an earlier run scored.
        total: all images.
        shown: whether to show anything; one of several processes is enough.
    """
    started = last_line = time.monotonic()
    patches, images = 0, done
    on_terminal = sys.stderr is not None and sys.stderr.isatty()
    with tqdm(
        desc=name,
        total=total,
        initial=done,
        unit="image",
        disable=not (shown and on_terminal),
        smoothing=0.05,
    ) as bar:
        for prediction in predictions:
            yield prediction
            patches += prediction.patches
            images += 1
            now = time.monotonic()
            rate = patches / max(now - started, 1e-9)
            bar.set_postfix_str(f"{rate:.1f} patches/s", refresh=False)
            bar.update()
            if shown and not on_terminal and now - last_line >= SECONDS_BETWEEN_LINES:
                last_line = now
                logger.info("%s: %d of %d images, %.1f patches/s", name, images, total, rate)
