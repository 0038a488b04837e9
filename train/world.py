"""The processes of a run: one, or one per GPU under torchrun."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
from torch import Tensor, distributed

from loaders import InputError
from loaders.system.format import format_bytes
from loaders.system.machine import SHARED_MEMORY

_PATIENCE = timedelta(hours=2)
"""For the main process's downloads and index; a process that died is noticed by torchrun at once."""

_SHARED_BYTES = 16 << 20
"""Asked for each GPU: a guess, not measured; containers often come with 64 MB, and NCCL fails where it is full."""


@dataclass(frozen=True)
class ProcessGroup:
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

    def broadcast(self, tensors: list[Tensor]) -> None:
        """Gives all processes the main one's values, in place."""
        if self.size > 1:
            for tensor in tensors:
                distributed.broadcast(tensor, 0)

    def any(self, flag: bool) -> bool:
        """Whether it is true for any process; all must ask. Only hosts wait for each other."""
        return flag if self.size == 1 else bool(self.sum(torch.tensor(int(flag))).item())

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """The main process goes through the block before the others: downloads, generated files."""
        if self.size > 1 and not self.is_main:
            distributed.barrier()
        try:
            yield
        finally:  # also when it failed, so that the others come to the same error instead of waiting
            if self.size > 1 and self.is_main:
                distributed.barrier()


@contextmanager
def joined_process_group(use_cuda: bool) -> Iterator[ProcessGroup]:
    """The world that torchrun's environment variables describe; joined on entry, left on exit."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    if not all(name in os.environ for name in names):
        yield ProcessGroup()
        return
    world = ProcessGroup(*(int(os.environ[name]) for name in names))
    if use_cuda:
        if world.local_size > torch.cuda.device_count():
            raise InputError(f"NGPU={world.local_size}: there are {torch.cuda.device_count()} GPUs here")
        require_shared_memory(world.local_size)
        torch.cuda.set_device(world.local_rank)
    # What hosts ask each other, barriers too, goes by gloo: an answer by NCCL waits for all that the GPU has to do.
    distributed.init_process_group("cpu:gloo,cuda:nccl" if use_cuda else "gloo", timeout=_PATIENCE)
    try:
        yield world
    finally:
        distributed.destroy_process_group()


def require_shared_memory(gpus: int, folder: Path = SHARED_MEMORY) -> None:
    """Raises InputError where there is too little for the GPUs of a machine to talk through."""
    if gpus == 1 or os.environ.get("NCCL_SHM_DISABLE") == "1" or not folder.is_dir():
        return
    free, wanted = shutil.disk_usage(folder).free, gpus * _SHARED_BYTES
    if free < wanted:
        raise InputError(
            f"NGPU={gpus}: {folder} has {format_bytes(free)} free, and NCCL wants about {format_bytes(wanted)}: start "
            "the container with --shm-size=1g (or --ipc=host), or set NCCL_SHM_DISABLE=1, which is slower"
        )
