"""A pool of threads that fills batches: what every backend that works on CPU cores is made with."""

from collections import deque
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from loaders.backends.batch_memory import BatchMemory
from loaders.backends.executor import BatchRequest, ExecutedBatch
from loaders.backends.upload import Upload
from loaders.config import LoaderConfig
from loaders.ops.finish import finish
from loaders.sampling.plan import Plan
from loaders.sources.base import ReportUnreadable, Source
from loaders.sources.index import Progress
from loaders.system.instrument import note_queue
from loaders.system.machine import compute_on_one_core, usable_cores

AHEAD = 3
"""Batches in flight while one is consumed; more where batches are so small that threads would have nothing to do."""
MAX_SAMPLES_PER_TASK = 32
"""Small enough to share a batch among threads, large enough to hide what a task costs: 16 were 10 to 20 % slower on two
cores, and 64 no faster."""


def batches_ahead(workers: int, batch_size: int) -> int:
    """How many batches are in flight while one is consumed."""
    return max(AHEAD, -(-2 * workers // batch_size))


def tasks_of(count: int, workers: int, at_most: int = MAX_SAMPLES_PER_TASK) -> Iterator[slice]:
    """`count` samples, divided among threads."""
    per_task = min(at_most, -(-count // workers))
    for first in range(0, count, per_task):
        yield slice(first, min(first + per_task, count))


class SquareReader(Protocol):
    """Carries out the first read of samples of one source, in the thread that calls it."""

    @property
    def source(self) -> Source:
        """What is read."""

    def read(self, request: BatchRequest, squares: Tensor, *, flips: bool) -> Mapping[int, str]:
        """Reads B samples.

        Args:
            squares: uint8 `[B, 3, S1, S1]`, channels-last, to be written.
            flips: whether the squares are to have the plan's flips.

        Returns:
            The rows of samples that cannot be read, and why; their squares and those of padding are black.
        """


@dataclass(frozen=True)
class PendingBatch:
    """A batch that threads are filling, each row by one of them."""

    images: Tensor
    """`[B, 3, S, S]`, channels-last: finished, or, pinned, the squares of the first read, which a GPU will finish."""
    plan: Plan
    tasks: list[tuple[int, Future[Mapping[int, str]]]] = field(default_factory=list)
    """The first row of each task, and the task, which returns unreadable rows counted from there."""

    @property
    def is_done(self) -> bool:
        return all(task.done() for _, task in self.tasks)

    def wait(self) -> dict[int, str]:
        """Waits until it is filled. Returns the unreadable rows, and why."""
        return {first + row: reason for first, task in self.tasks for row, reason in task.result().items()}


class ThreadedExecutor:
    """Threads read samples and finish them; on a GPU they only read, and the device finishes what is uploaded."""

    def __init__(self, config: LoaderConfig, reader: SquareReader) -> None:
        self.config = config
        self.reader = reader
        self.workers = config.workers or usable_cores()
        self._ahead = batches_ahead(self.workers, config.batch_size)
        self._upload = Upload(config.device) if config.device.type == "cuda" else None
        self._batches = BatchMemory(capacity=self._ahead + 2)
        self._squares = BatchMemory(capacity=self.workers)

    @property
    def source(self) -> Source:
        return self.reader.source

    def prepare(self, report: ReportUnreadable, progress: Progress | None) -> frozenset[int]:  # noqa: ARG002
        return frozenset()

    def files(self) -> list[Path]:
        return self.source.images.files()

    def run(self, requests: Iterator[BatchRequest]) -> Generator[ExecutedBatch, None, None]:
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="saturate", initializer=compute_on_one_core)
        pending: deque[PendingBatch] = deque()
        try:
            for request in islice(requests, self._ahead):
                pending.append(self._begin(pool, request))
            while pending:
                note_queue(batch.is_done for batch in pending)
                unreadable = pending[0].wait()
                for request in islice(requests, 1):
                    pending.append(self._begin(pool, request))
                yield self._deliver(pending.popleft(), unreadable)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def execute(self, request: BatchRequest) -> ExecutedBatch:
        batch = self._empty_batch(request.plan)
        return self._deliver(batch, self._fill(batch.images, request))

    def _finish(self, squares: Tensor, plan: Plan, out: Tensor | None = None) -> Tensor:
        """The finished images of uint8 squares `[B, 3, S1, S1]`, as `_fill` has read them."""
        config, flipped = self.config, self._reads_flipped(plan)
        return finish(squares, plan, mean=config.mean, std=config.std, dtype=config.dtype, out=out, flipped=flipped)

    def empty_images(self, count: int, side: int, dtype: torch.dtype) -> Tensor:
        """Memory for images `[count, 3, side, side]`, channels-last, with undefined content."""
        return self._batches.empty((count, side, side, 3), dtype).permute(0, 3, 1, 2)

    def _begin(self, pool: ThreadPoolExecutor, request: BatchRequest) -> PendingBatch:
        """Hands a batch to the threads."""
        batch = self._empty_batch(request.plan)
        for rows in tasks_of(len(request), self.workers):
            batch.tasks.append((rows.start, pool.submit(self._fill, batch.images[rows], request.part(rows))))
        return batch

    def _empty_batch(self, plan: Plan) -> PendingBatch:
        if self._upload is None:
            return PendingBatch(self.empty_images(len(plan), plan.size, self.config.dtype), plan)
        # torch itself reuses pinned memory.
        shape = (len(plan), plan.read_size, plan.read_size, 3)
        return PendingBatch(torch.empty(shape, dtype=torch.uint8, pin_memory=True).permute(0, 3, 1, 2), plan)

    def _fill(self, images: Tensor, part: BatchRequest) -> Mapping[int, str]:
        """Fills some rows of a batch; returns the unreadable ones."""
        plan = part.plan
        flips = self._reads_flipped(plan)
        only_reads = self._upload is not None
        if only_reads or (self.config.dtype == torch.uint8 and plan.ends_with_first_read):
            return self.reader.read(part, images, flips=flips)
        shape = (len(part), plan.read_size, plan.read_size, 3)
        squares = self._squares.empty(shape, torch.uint8).permute(0, 3, 1, 2)
        unreadable = self.reader.read(part, squares, flips=flips)
        self._finish(squares, plan, images)
        return unreadable

    def _reads_flipped(self, plan: Plan) -> bool:
        """Whether the first read flips: not before a second read, and not for a GPU, which does it in passing."""
        return self._upload is None and plan.inner is None

    def _deliver(self, batch: PendingBatch, unreadable: Mapping[int, str]) -> ExecutedBatch:
        if self._upload is None:
            return ExecutedBatch(batch.images, unreadable)
        return ExecutedBatch(self._finish(self._upload(batch.images), batch.plan), unreadable)
