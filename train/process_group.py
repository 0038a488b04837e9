"""The processes of a run: one, or one per GPU under torchrun."""

import faulthandler
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import torch
from torch import Tensor, distributed
from torch.distributed.rendezvous import rendezvous

from loaders import InputError
from loaders.system.format import format_bytes
from loaders.system.machine import SHARED_MEMORY

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

_PATIENCE_IN_STEPS = timedelta(minutes=10)
"""For the answers of processes that do the same work. torchrun notices a process that died at once."""

_PATIENCE_IN_PREPARATION = timedelta(hours=2)
"""For what one process does alone while the others wait: downloads, the index, pixels that are cached."""

_SECONDS_BETWEEN_POLLS = 0.02
_STANDARD_ERROR = 2

_SHARED_MEMORY_PER_GPU = 16 << 20
"""Bytes: a guess, not measured. Containers often come with 64 MB, and NCCL fails where shared memory is full."""


class StalledProcessError(RuntimeError):
    """Another process of the run has not answered for too long."""


@dataclass(frozen=True)
class ProcessGroup:
    """The processes that train together, and which of them this one is."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """This process among those of its machine."""
    local_size: int = 1
    """Processes on this machine."""
    patient: distributed.ProcessGroup | None = None
    """The same processes, which wait for each other for as long as preparation may take."""

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

    def wait_for_all(self) -> None:
        """Waits until every process has got here, however long that takes where they prepare."""
        if self.size > 1:
            distributed.barrier(self.patient)

    @contextmanager
    def reporting_stalls(self) -> Iterator[None]:
        """Names what has happened when another process does not answer within the block, and shows where this one is.

        Raises:
            StalledProcessError: when another process has not answered for minutes. The stack of every thread is then on
                standard error.
        """
        try:
            yield
        except RuntimeError as error:
            if not re.search("timed? ?out", str(error), re.IGNORECASE):
                raise
            faulthandler.dump_traceback(_STANDARD_ERROR)
            raise StalledProcessError(
                f"rank {self.rank}: another process has not answered for {_PATIENCE_IN_STEPS.total_seconds() / 60:g} "
                "minutes. It hangs, was stopped, or its machine cannot be reached. Above are the threads of this one"
            ) from error

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Lets the main process run the block before the others: for downloads and generated files."""
        if not self.is_main:
            self.wait_for_all()
        try:
            yield
        finally:  # also when the block failed, so that the others reach the same error instead of waiting
            if self.is_main:
                self.wait_for_all()


@contextmanager
def joined_process_group(use_cuda: bool) -> Iterator[ProcessGroup]:
    """The process group that torchrun's environment variables describe, joined on entry and left on exit.

    Without those variables it is this process alone.

    Raises:
        InputError: when the machine has fewer GPUs than processes, or too little shared memory for NCCL.
        StalledProcessError: when not all processes have started for hours.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    if not all(name in os.environ for name in names):
        yield ProcessGroup()
        return
    rank, size, local_rank, local_size = (int(os.environ[name]) for name in names)
    group = ProcessGroup(rank, size, local_rank, local_size)
    if use_cuda:
        if group.local_size > torch.cuda.device_count():
            raise InputError(f"NGPU={group.local_size}: there are {torch.cuda.device_count()} GPUs here")
        require_shared_memory(group.local_size)
        torch.cuda.set_device(group.local_rank)
    if not faulthandler.is_enabled():
        faulthandler.enable(_STANDARD_ERROR)  # NCCL aborts a process that waits for too long
    distributed.init_process_group(
        # Tensors of the host, and barriers, use gloo: an answer by NCCL waits for all work that the GPU has queued.
        "cpu:gloo,cuda:nccl" if use_cuda else "gloo",
        timeout=_PATIENCE_IN_STEPS,
        store=_unused_store(group.rank, group.size),
        rank=group.rank,
        world_size=group.size,
    )
    try:
        patient: Any = distributed.new_group(backend="gloo", timeout=_PATIENCE_IN_PREPARATION)
        yield replace(group, patient=patient)
    finally:
        distributed.destroy_process_group()


def _unused_store(rank: int, size: int) -> "Store":
    """The part of torchrun's store that no earlier processes have used.

    Processes that torchrun has restarted get the store of those before, as its agents share one with them. It still
    holds the addresses of ended processes, and whoever reads those waits for them in vain. The main process therefore
    chooses a new name. Nobody can read an old one by mistake, as it is given in answer to a question that is new, too.
    """
    store, _, _ = next(rendezvous("env://", timeout=_PATIENCE_IN_PREPARATION))
    name = uuid4().hex
    if rank == 0:
        _answer(store, name, set(range(1, size)))
    else:
        question = uuid4().hex
        store.set(f"question of {rank}", question)
        name = store.get(f"answer to {question}").decode()
        store.set(f"{rank} knows {name}", "")
    prefixed: Store = distributed.PrefixStore(name, store)  # type: ignore[attr-defined]
    return prefixed


def _answer(store: "Store", name: str, asking: set[int]) -> None:
    """Tells `name` to the ranks that ask for it, until all know it."""
    deadline = time.monotonic() + _PATIENCE_IN_PREPARATION.total_seconds()
    while asking:
        for rank in asking:
            if store.check([f"question of {rank}"]):
                question = store.get(f"question of {rank}").decode()  # of an ended process until the rank has asked
                store.set(f"answer to {question}", name)
        asking = {rank for rank in asking if not store.check([f"{rank} knows {name}"])}
        if time.monotonic() > deadline:
            raise StalledProcessError(f"these ranks have not started: {', '.join(map(str, sorted(asking)))}")
        time.sleep(_SECONDS_BETWEEN_POLLS)


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
