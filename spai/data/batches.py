"""Batches for training: which images, in which order.

The order follows from the seed and the epoch: any number of workers and ranks gives the same
batches, and a resumed run goes on in the middle of an epoch without decoding what it has used.

B: images of a batch.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from spai.data.loaders import ignore_interrupts
from spai.data.views import Key, Sample


class TrainingBatch(NamedTuple):
    """Samples of B images: `images` [B, ...] uint8, `targets` [B] int64, all `replaced`."""

    images: Tensor
    targets: Tensor
    replaced: tuple[str, ...]


class EpochBatches(Sampler[list[Key]]):
    """The keys of this rank's batches of an epoch, shuffled; what is left over is not used.

    Ranks share each batch: with twice the ranks and half the batch size, the images of a step are
    the same.
    """

    def __init__(
        self,
        images: int,
        batch_size: int,
        *,
        seed: int,
        shares: NDArray[np.float64] | None = None,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        """Plan the epochs.

        Args:
            images: how many there are.
            batch_size: images of a batch on each rank.
            seed: of the order.
            shares: how often each image is drawn, adding up to 1; None for each once an epoch.
            rank: this process, from 0.
            world: number of processes.

        Raises:
            ValueError: the images do not fill a batch.
        """
        if batch_size * world > images:
            ranks = f" on each of {world} processes" if world > 1 else ""
            raise ValueError(
                f"a batch of {batch_size} images{ranks} is larger than the data set of {images}; "
                "use a smaller --batch-size"
            )
        self.images, self.batch_size, self.seed = images, batch_size, seed
        self.shares = shares
        self.rank, self.world = rank, world
        self.epoch = self.first = 0

    def __len__(self) -> int:
        """Return the number of batches of a whole epoch."""
        return self.images // (self.batch_size * self.world)

    def __iter__(self) -> Iterator[list[Key]]:
        """Yield the batches of `epoch` from number `first` on."""
        rng = np.random.default_rng((self.seed, self.epoch))
        if self.shares is None:
            order = rng.permutation(self.images)
        else:
            order = _numbered(rng.choice(self.images, self.images, p=self.shares), self.images)
        for batch in range(self.first, len(self)):
            start = (batch * self.world + self.rank) * self.batch_size
            yield [(self.epoch, int(i)) for i in order[start : start + self.batch_size]]


def balanced_shares(groups: Sequence[tuple[int, str]]) -> NDArray[np.float64]:
    """Return how often each image is to be drawn so that no class or source outweighs the others.

    Classes are drawn equally often; within a class, a source in proportion to the square root of
    its images, so that a few pictures are not repeated without end.

    Args:
        groups: class and source of each image.

    Returns:
        [images], adding up to 1.
    """
    sizes = Counter(groups)
    classes: defaultdict[int, float] = defaultdict(float)
    for (label, _), size in sizes.items():
        classes[label] += math.sqrt(size)
    shares = [1 / (classes[label] * math.sqrt(sizes[label, source])) for label, source in groups]
    return np.array(shares) / len(classes)


def _numbered(drawn: NDArray[np.int64], images: int) -> NDArray[np.int64]:
    """Add `images` for each time that an image was drawn before: see views.Key."""
    seen: Counter[int] = Counter()
    numbered = []
    for image in drawn.tolist():
        numbered.append(image + images * seen[image])
        seen[image] += 1
    return np.array(numbered)


class ViewLoader:
    """Batches of a data set, decoded and augmented in worker processes that live on."""

    def __init__(
        self,
        dataset: Dataset[Sample],
        batches: EpochBatches,
        *,
        workers: int = 0,
        prefetch: int = 2,
        pin_memory: bool = False,
    ) -> None:
        """Make the loader.

        Args:
            dataset: what to load.
            batches: in which order.
            workers: processes; 0 works in this one.
            prefetch: batches that each worker may be ahead.
            pin_memory: keep batches where a GPU copies them fastest.
        """
        self.batches = batches
        self._loader: DataLoader[Sample] = DataLoader(
            dataset,
            batch_sampler=batches,
            num_workers=workers,
            prefetch_factor=prefetch if workers else None,
            collate_fn=_collate,
            pin_memory=pin_memory,
            persistent_workers=workers > 0,
            worker_init_fn=ignore_interrupts,
            # Its own, or starting workers would draw from the generator of the model's dropout.
            generator=torch.Generator(),
        )

    def __len__(self) -> int:
        """Return the number of batches of a whole epoch."""
        return len(self.batches)

    def epoch(self, epoch: int, first: int = 0) -> Iterator[TrainingBatch]:
        """Yield the batches of an epoch from number `first` on."""
        self.batches.epoch, self.batches.first = epoch, first
        yield from self._loader


def _collate(samples: list[Sample]) -> TrainingBatch:
    return TrainingBatch(
        torch.stack([sample.images for sample in samples]),
        torch.tensor([sample.target for sample in samples]),
        tuple(text for sample in samples for text in sample.replaced),
    )
