"""Data sets for training: random views of images.

A view follows from the seed, the epoch and the image's position, never from the worker or the
process that draws it.

V: views of an image, S: side of a view.
"""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from spai.data.augment import ViewSettings, make_pretraining_view, seeded_rng, seeded_views
from spai.data.images import MAX_PIXELS, ImageError, Source, open_image
from spai.data.records import ImageRecord

# An epoch, and the position of an image in the records; positions past the end start again at the
# first image, whose views are then others.
Key = tuple[int, int]
# Damaged images in a row that are replaced by the next before training gives up.
MAX_REPLACEMENTS = 20


class Sample(NamedTuple):
    """What a data set makes of one image.

    images: uint8; see the data sets for shapes.
    target: the image's class, or in stage 1 whether its low band is kept.
    replaced: why other images stand in for images that cannot be decoded, one text each.
    """

    images: Tensor
    target: int
    replaced: tuple[str, ...]


class LabelledViews(Dataset[Sample]):
    """Stage 2: augmented views [V, 3, S, S] of a labelled image."""

    def __init__(
        self,
        records: Sequence[ImageRecord],
        source: Source,
        settings: ViewSettings,
        *,
        views: int,
        seed: int,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        """Describe the data set.

        Args:
            records: labelled images.
            source: where encoded images come from.
            settings: of the augmentations.
            views: V.
            seed: of everything random.
            max_pixels: larger images count as damaged.
        """
        self.settings, self.views, self.seed = settings, views, seed
        self._images = _Decoder(records, source, max_pixels)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._images.records)

    def __getitem__(self, key: Key) -> Sample:
        """Draw the views of an image in an epoch."""
        views, replaced = self.draw(key)
        return Sample(views, self._images.label(key[1]), replaced)

    def draw(self, key: Key) -> tuple[Tensor, tuple[str, ...]]:
        """Return the views [V, 3, S, S] of an image in an epoch, and why others stand in."""
        epoch, index = key
        image, replaced = self._images.decode(index)
        views = seeded_views(
            image, self.settings, self.views, seed=self.seed, epoch=epoch, index=index
        )
        return views, replaced


class Triplets(Dataset[Sample]):
    """An image, another of its class and one of another class: views [3, V, 3, S, S]."""

    def __init__(self, views: LabelledViews) -> None:
        """Draw triplets from a data set, anew in each epoch.

        Raises:
            ValueError: a class has a single image, or there is one class only.
        """
        self._views = views
        labels = np.array([views._images.label(index) for index in range(len(views))])
        self._members = {label: np.flatnonzero(labels == label) for label in np.unique(labels)}
        self._others = {label: np.flatnonzero(labels != label) for label in self._members}
        single = [int(label) for label, members in self._members.items() if len(members) < 2]
        if single or len(self._members) < 2:
            counts = dict(Counter(labels.tolist()))
            raise ValueError(
                f"TRAIN.LOSS triplet needs two images of each class, found {counts} (class: "
                "images); add images or choose another loss"
            )

    def __len__(self) -> int:
        """Return the number of anchors."""
        return len(self._views)

    def __getitem__(self, key: Key) -> Sample:
        """Draw the views of an image and of its partners in an epoch."""
        epoch, index = key
        label = self._views._images.label(index)
        rng = np.random.default_rng((self._views.seed, epoch, index))
        members, others = self._members[label], self._others[label]
        place = int(np.searchsorted(members, index % len(self)))
        positive = members[(place + rng.integers(1, len(members))) % len(members)]
        negative = others[rng.integers(len(others))]
        drawn = [self._views.draw((epoch, int(i))) for i in (index, positive, negative)]
        images = torch.stack([views for views, _ in drawn])
        return Sample(images, label, tuple(text for _, texts in drawn for text in texts))


class PretrainingViews(Dataset[Sample]):
    """Stage 1: a random crop [3, S, S] of an image, and which of its bands is kept."""

    def __init__(
        self,
        records: Sequence[ImageRecord],
        source: Source,
        *,
        size: int,
        min_area: float,
        interpolation: str,
        low_ratio: float,
        seed: int,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        """Describe the data set.

        Args:
            records: images; their classes are not used.
            source: where encoded images come from.
            size: S.
            min_area: smallest share of an image that a crop covers.
            interpolation: "bicubic" or "bilinear".
            low_ratio: how often the low band is kept, from 0 to 1.
            seed: of everything random.
            max_pixels: larger images count as damaged.
        """
        self.size, self.min_area, self.interpolation = size, min_area, interpolation
        self.low_ratio, self.seed = low_ratio, seed
        self._images = _Decoder(records, source, max_pixels)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._images.records)

    def __getitem__(self, key: Key) -> Sample:
        """Draw the crop of an image in an epoch."""
        epoch, index = key
        image, replaced = self._images.decode(index)
        with seeded_rng(self.seed, epoch, index, 0):
            view = make_pretraining_view(
                image, size=self.size, min_area=self.min_area, interpolation=self.interpolation
            )
            keep_low = torch.rand(()).item() < self.low_ratio
        return Sample(view, int(keep_low), replaced)


class _Decoder:
    """Decodes images; one that is damaged is replaced by the next of its class."""

    def __init__(self, records: Sequence[ImageRecord], source: Source, max_pixels: int) -> None:
        self.records, self._source, self._max_pixels = records, source, max_pixels
        labels = np.array([-1 if record.label is None else record.label for record in records])
        self._peers = {int(label): np.flatnonzero(labels == label) for label in np.unique(labels)}

    def label(self, index: int) -> int:
        label = self.records[index % len(self.records)].label
        return -1 if label is None else label

    def decode(self, index: int) -> tuple[Tensor, tuple[str, ...]]:
        """Return uint8 [3, H, W], and why it is not the image of that position, if so."""
        peers = self._peers[self.label(index)]
        place = int(np.searchsorted(peers, index % len(self.records)))
        reasons: list[str] = []
        for step in range(min(len(peers), MAX_REPLACEMENTS)):
            record = self.records[peers[(place + step) % len(peers)]]
            try:
                with open_image(record.path, self._source, self._max_pixels) as opened:
                    return opened.decode().tensor(), tuple(reasons)
            except ImageError as error:
                reasons.append(f"{record.path}: {error}")
        raise RuntimeError(
            f"{len(reasons)} images in a row cannot be decoded, the first: {reasons[0]}"
        )
