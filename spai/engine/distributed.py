"""Several processes started by torchrun: who does what, and how results come together."""

import contextlib
import datetime
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist

Item = TypeVar("Item")

# A rank may finish hours before another: waiting is no failure.
TIMEOUT = datetime.timedelta(days=7)


@dataclass(frozen=True)
class Ranks:
    """This process among those of a run.

    Attributes:
        rank: its number, from 0; rank 0 writes.
        world: how many there are.
    """

    rank: int = 0
    world: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    def wait(self) -> None:
        """Return when all ranks have come here."""
        if self.world > 1:
            dist.barrier()

    def gather(self, item: Item) -> list[Item]:
        """Return the items of all ranks, in their order, on each rank."""
        if self.world == 1:
            return [item]
        items: list[Any] = [None] * self.world
        dist.all_gather_object(items, item)
        return items


@contextlib.contextmanager
def ranks_of_run(device: torch.device | None = None) -> Iterator[Ranks]:
    """Join the processes that torchrun started, or be the only one.

    Args:
        device: what tensors of collective operations live on; None or CPU uses gloo.
    """
    if "RANK" not in os.environ or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Ranks()
        return
    on_gpu = device is not None and device.type == "cuda"
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=TIMEOUT)
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


def local_rank() -> int:
    """Return the number of this process on its machine, from 0: which GPU is its own."""
    return int(os.environ.get("LOCAL_RANK", "0"))
