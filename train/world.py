"""The processes of a run: one, or one per GPU under torchrun."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, distributed


@dataclass(frozen=True)
class World:
    """This process's place among the run's."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if self.size > 1:
            distributed.all_reduce(values)
        return values

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether it is true for any process; all must ask."""
        return flag if self.size == 1 else bool(self.sum(torch.tensor(int(flag), device=device)).item())

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """The main process goes through the block before the others: downloads, generated files."""
        if self.size > 1 and not self.is_main:
            distributed.barrier()
        yield
        if self.size > 1 and self.is_main:
            distributed.barrier()


@contextmanager
def joined_world(use_cuda: bool) -> Iterator[World]:
    """The world that torchrun's environment variables describe; joined on entry, left on exit."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    if not all(name in os.environ for name in names):
        yield World()
        return
    world = World(*(int(os.environ[name]) for name in names))
    if use_cuda:
        torch.cuda.set_device(world.local_rank)
    distributed.init_process_group("nccl" if use_cuda else "gloo")
    try:
        yield world
    finally:
        distributed.destroy_process_group()
