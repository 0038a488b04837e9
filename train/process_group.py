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

_TIMEOUT = timedelta(hours=2)
"""Long enough for the main process's downloads and index; torchrun notices a process that died at once."""

_SHARED_MEMORY_PER_GPU = 16 << 20
"""Bytes: a guess, not measured. Containers often come with 64 MB, and NCCL fails where shared memory is full."""


@dataclass(frozen=True)
class ProcessGroup:
    """The processes that train together, and which of them this one is."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """This process among those of its machine."""
    local_size: int = 1
    """Processes on this machine."""

    @property
    def is_main(self) -> bool:
        """Whether this is the process that prints and writes."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Sums `values` over all processes, in place."""
        if self.size > 1:
            distributed.all_reduce(values)
        return values

    def broadcast(self, tensors: list[Tensor]) -> None:
        """Overwrites every process's tensors with the main process's values, in place."""
        if self.size > 1:
            for tensor in tensors:
                distributed.broadcast(tensor, 0)

    def any(self, flag: bool) -> bool:
        """Whether `flag` is true in any process. All processes must call this; the GPU's work is not waited for."""
        return flag if self.size == 1 else bool(self.sum(torch.tensor(int(flag))).item())

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Lets the main process run the block before the others: for downloads and generated files."""
        if self.size > 1 and not self.is_main:
            distributed.barrier()
        try:
            yield
        finally:  # also when the block failed, so that the others reach the same error instead of waiting
            if self.size > 1 and self.is_main:
                distributed.barrier()


@contextmanager
def joined_process_group(use_cuda: bool) -> Iterator[ProcessGroup]:
    """The process group that torchrun's environment variables describe, joined on entry and left on exit.

    Without those variables it is this process alone.

    Raises:
        InputError: when the machine has fewer GPUs than processes, or too little shared memory for NCCL.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    if not all(name in os.environ for name in names):
        yield ProcessGroup()
        return
    group = ProcessGroup(*(int(os.environ[name]) for name in names))
    if use_cuda:
        if group.local_size > torch.cuda.device_count():
            raise InputError(f"NGPU={group.local_size}: there are {torch.cuda.device_count()} GPUs here")
        require_shared_memory(group.local_size)
        torch.cuda.set_device(group.local_rank)
    # Tensors of the host, and barriers, use gloo: an answer by NCCL waits for all work that the GPU has queued.
    distributed.init_process_group("cpu:gloo,cuda:nccl" if use_cuda else "gloo", timeout=_TIMEOUT)
    try:
        yield group
    finally:
        distributed.destroy_process_group()


def require_shared_memory(gpus: int, folder: Path = SHARED_MEMORY) -> None:
    """Raises InputError where a machine's GPUs have too little shared memory to communicate through."""
    if gpus == 1 or os.environ.get("NCCL_SHM_DISABLE") == "1" or not folder.is_dir():
        return
    free = shutil.disk_usage(folder).free
    required = gpus * _SHARED_MEMORY_PER_GPU
    if free < required:
        raise InputError(
            f"NGPU={gpus}: {folder} has {format_bytes(free)} free, and NCCL wants about {format_bytes(required)}: "
            "start the container with --shm-size=1g (or --ipc=host), or set NCCL_SHM_DISABLE=1, which is slower"
        )
