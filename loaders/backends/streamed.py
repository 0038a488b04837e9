"""`streamed`: images decoded once to a pixel cache, which threads stream to the device.

On a GPU, threads copy what a batch needs of the cache (a memory map, mostly in the page cache) into pinned
staging buffers, a stream of its own moves it, and the device executes the plan. On a CPU, threads read the
cached pixels as `torchvision` does. Images that are in memory anyway (CIFAR-10) are streamed as they are.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from loaders.backends.executor import Backend, BatchExecutor, BatchRequest, ExecutedBatch
from loaders.backends.staging import StagedReads, StagingBuffer, stage_reads
from loaders.backends.threads import SquareReader, ThreadedExecutor, tasks_of
from loaders.backends.torchvision import ImageReader, load_box
from loaders.cache.build import with_pixel_cache
from loaders.cache.checksums import PixelGuard
from loaders.cache.pixel_cache import Preprocessing, expect_random_reads, read_ahead
from loaders.config import LoaderConfig
from loaders.ops.device_batch import finished_batch, fused_kernels
from loaders.sources.base import CachedPixels, ReportUnreadable, Source
from loaders.sources.index import Progress
from loaders.system.instrument import note_queue
from loaders.system.machine import free_memory, usable_cores

BUFFERS = 4
"""Batches in flight to a GPU: being gathered, being copied, waiting."""
_MAX_IMAGES_PER_TASK = 16  # small enough to share a batch among threads, large enough to hide what a task costs


class StreamedExecutor:
    """Builds or opens the pixel cache when it is prepared. Memory is bounded however large the set is."""

    def __init__(self, source: Source, config: LoaderConfig) -> None:
        self.source = source
        self._config = config
        self._exceeds_memory = False
        self._passes = 0  # over the set, begun so far
        self._guard: PixelGuard | None = None
        self._prepared: BatchExecutor | None = None

    def prepare(self, report: ReportUnreadable, progress: Progress | None) -> frozenset[int]:
        config = self._config
        if self.source.images.encoded is not None:
            self.source = with_pixel_cache(
                self.source,
                Preprocessing(config.cache_size, config.scaled_decoding),
                report=report,
                # The other ranks wait for the one that builds it: all cores are its own.
                workers=config.workers if config.world_size == 1 else None,
                progress=progress,
            )
        if (cached := self._cached) is None:
            self._prepared = executor_of_pixels(self.source, config)
            return frozenset()
        self._guard = PixelGuard(cached, rank=config.rank, world_size=config.world_size)
        self._prepared = executor_of_pixels(self.source, config, before_read=self._guard.check)
        for index, reason in cached.unreadable.items():
            report(index, reason)
        self._exceeds_memory = self.source.pixel_bytes > free_memory(torch.device("cpu"))
        if self._exceeds_memory:
            expect_random_reads(cached)
        return frozenset(cached.unreadable)

    @property
    def _cached(self) -> CachedPixels | None:
        """The pixel cache; None where the images are in memory."""
        images = self.source.images
        return images if isinstance(images, CachedPixels) else None

    def run(self, requests: Iterator[BatchRequest]) -> Generator[ExecutedBatch, None, None]:
        assert self._prepared is not None
        with nullcontext() if self._guard is None else self._guard.verifying():
            yield from self._prepared.run(self._read_ahead(requests))

    def execute(self, request: BatchRequest) -> ExecutedBatch:
        assert self._prepared is not None
        return self._prepared.execute(request)

    def files(self) -> list[Path]:
        return self.source.images.files()

    def _read_ahead(self, requests: Iterator[BatchRequest]) -> Iterator[BatchRequest]:
        """The same requests; the system is asked at once for what may have to come from the disk."""
        cached, first_pass = self._cached, self._passes == 0
        self._passes += 1
        for request in requests:
            if cached is not None and (first_pass or self._exceeds_memory):
                read_ahead(cached, request.ids)
            yield request


def nothing() -> None:
    """Pixels in memory need no check before they are read."""


def executor_of_pixels(
    source: Source, config: LoaderConfig, before_read: Callable[[], None] = nothing
) -> BatchExecutor:
    """What executes plans on decoded pixels: a GPU with staging buffers, or threads on a CPU.

    Args:
        before_read: called in each task before it reads; raises where the pixels must not be read.
    """
    if config.device.type == "cuda":
        return StagedExecutor(source, config, before_read)
    return ThreadedExecutor(config, CheckedReader(ImageReader(source, load_box(source)), before_read))


@dataclass(frozen=True)
class CheckedReader:
    """A reader, and what is called before each of its reads."""

    reader: SquareReader
    before_read: Callable[[], None]

    @property
    def source(self) -> Source:
        return self.reader.source

    def read(self, request: BatchRequest, squares: Tensor, *, flips: bool) -> Mapping[int, str]:
        self.before_read()
        return self.reader.read(request, squares, flips=flips)


@dataclass
class InFlightBatch:
    """A batch on its way to the device."""

    reads: StagedReads
    buffer: StagingBuffer
    tasks: list[Future[None]]
    sent: bool = False

    @property
    def is_gathered(self) -> bool:
        return all(task.done() for task in self.tasks)

    def send(self) -> None:
        """Has it copied, once it is gathered."""
        if not self.sent:
            for task in self.tasks:
                task.result()
            self.buffer.send(self.reads.bytes)
            self.sent = True


class StagedExecutor:
    """Threads gather what the device needs into staging buffers; the device executes the plans.

    It works on a CPU too, where threads that execute the plans themselves are faster.
    """

    def __init__(self, source: Source, config: LoaderConfig, before_read: Callable[[], None] = nothing) -> None:
        """`source`: of decoded images; `before_read`: see `executor_of_pixels`."""
        self._before_read = before_read
        assert source.images.decoded is not None
        self._source = source
        self._config = config
        self._workers = config.workers or usable_cores()
        self._flat, self._starts = source.images.decoded.flat()
        self._buffers: list[StagingBuffer] = []
        self._finished = partial(
            finished_batch,
            mean=config.mean,
            std=config.std,
            dtype=config.dtype,
            kernels=fused_kernels(config.device),
        )

    def run(self, requests: Iterator[BatchRequest]) -> Generator[ExecutedBatch, None, None]:
        if not self._buffers:
            self._buffers = self._allocated(BUFFERS)
        yield from self._run(requests, self._buffers)

    def execute(self, request: BatchRequest) -> ExecutedBatch:
        [batch] = self._run(iter([request]), self._allocated(1))
        return batch

    def _run(
        self, requests: Iterator[BatchRequest], buffers: Sequence[StagingBuffer]
    ) -> Generator[ExecutedBatch, None, None]:
        pool = ThreadPoolExecutor(self._workers, thread_name_prefix="saturate")
        in_flight: deque[InFlightBatch] = deque()
        try:
            for buffer, request in zip(buffers, requests, strict=False):
                in_flight.append(self._begin(pool, request, buffer))
            while in_flight:
                note_queue(batch.is_gathered for batch in in_flight)
                head = in_flight.popleft()
                head.send()
                for other in in_flight:  # so that copies run beside what the device computes now
                    if not (other.sent or other.is_gathered):
                        break
                    other.send()
                batch = self._deliver(head)
                for request in islice(requests, 1):
                    in_flight.append(self._begin(pool, request, head.buffer))
                yield batch
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _allocated(self, count: int) -> list[StagingBuffer]:
        """Buffers for batches of the configured size."""
        # A batch has no more pixels than the largest images together.
        pixels = np.sort(self._source.stored_sizes.astype(np.int64).prod(axis=1))
        capacity = 3 * int(pixels[-self._config.batch_size :].sum())
        device = self._config.device
        stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        return [StagingBuffer(capacity, device, stream) for _ in range(count)]

    def _begin(self, pool: ThreadPoolExecutor, request: BatchRequest, buffer: StagingBuffer) -> InFlightBatch:
        """Hands a batch to the threads."""
        plan = request.plan_with_black_padding()
        reads = stage_reads(plan, self._starts[request.ids], self._source.stored_sizes[request.ids])
        buffer.require(reads.bytes)
        parts = tasks_of(len(request), self._workers, _MAX_IMAGES_PER_TASK)
        return InFlightBatch(reads, buffer, [pool.submit(self._gather, buffer, reads, rows) for rows in parts])

    def _gather(self, buffer: StagingBuffer, reads: StagedReads, rows: slice) -> None:
        """Copies the pixels of some rows, in a thread."""
        self._before_read()
        buffer.gather(self._flat, reads, rows)

    def _deliver(self, batch: InFlightBatch) -> ExecutedBatch:
        reads = batch.reads
        pixels = batch.buffer.on_device(reads.bytes).view(-1, 3)
        images = self._finished(pixels, reads.places[:-1] // 3, reads.widths, reads.plan)
        batch.buffer.release()
        return ExecutedBatch(images)


BACKEND = Backend(
    "streamed",
    "images decoded once to a file of pixels, which threads stream to the device",
    StreamedExecutor,
)
