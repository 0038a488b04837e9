"""`streamed`: images decoded once to a file of pixels, which threads stream to the device.

On a GPU, threads copy what a batch needs of the file (a memory map, mostly in the page cache) into pinned
staging memory, a stream of its own moves it, and the device carries the plan out. On a CPU the threads of
`torchvision` work on the kept pixels. Images that are in memory anyway (CIFAR-10) are streamed as they are.
"""

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from loaders.backends.host import HostLoader
from loaders.cache.build import with_pixel_cache
from loaders.cache.pixel_cache import Preprocessing, expect_random_reads, will_need
from loaders.loader import Batch, LoaderConfig
from loaders.ops.device_batch import finished_batch, fused_kernels
from loaders.sampling.plan import Plan
from loaders.sources.base import CachedPixels, ImageFiles, PixelArray, Source
from loaders.sources.index import Progress
from loaders.system import instrument
from loaders.system.machine import free_memory

SLOTS = 4
"""Batches on their way to a GPU: being gathered, being copied, waiting."""
_IMAGES_PER_TASK = 16  # small enough to share a batch among threads, large enough to hide what a task costs


class StreamedLoader(HostLoader):
    """Batches are the receiver's own. Memory is bounded however large the set is."""

    name: ClassVar[str] = "streamed"
    summary: ClassVar[str] = "images decoded once to a file of pixels, which threads stream to the device"

    def __init__(self, source: Source, config: LoaderConfig) -> None:
        super().__init__(source, config)
        self._gone: set[int] = set()
        """Samples that had gone bad when the cache was built."""
        self._slots: list[StagingBuffer] = []
        self._kernels = fused_kernels(config.device)
        self._exceeds_memory = False
        self._passes = 0  # over the set, begun so far

    def prepare(self, progress: Progress | None = None) -> None:
        config = self.config
        if isinstance(self.source.images, ImageFiles):
            self.source = with_pixel_cache(
                self.source,
                Preprocessing(config.cache_size, config.scaled_decoding),
                report_bad=self._report_bad,
                # Other ranks wait for the one that builds: all cores are its own.
                workers=config.workers if config.world_size == 1 else None,
                progress=progress,
            )
        if isinstance(cached := self.source.images, CachedPixels):
            self._gone = set(cached.gone)
            for index, reason in cached.gone.items():
                self._report_bad(index, reason)
            self._exceeds_memory = self.source.pixel_bytes > free_memory(torch.device("cpu"))
            if self._exceeds_memory:
                expect_random_reads(cached)

    def planned(self, start: int) -> Iterator[tuple[NDArray[np.int64], Plan]]:
        """As of every loader; batches that may have to come from the disk are asked for as soon as they are planned."""
        cached, first_pass = self.source.images, self._passes == 0
        self._passes += 1
        for ids, plan in super().planned(start):
            if isinstance(cached, CachedPixels) and (first_pass or self._exceeds_memory):
                will_need(cached, self._present(ids))
            yield ids, plan

    def _produce(self, start: int) -> Generator[Batch, None, None]:
        self.prepare()
        yield from self._stream(start) if self.config.device.type == "cuda" else super()._produce(start)

    def _stream(self, start: int) -> Generator[Batch, None, None]:
        """Batches whose plans the device carries out; works on a CPU too, where it is slower than the threads."""
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="saturate")
        rows = self.planned(start)
        moving: deque[InFlightBatch] = deque()
        try:
            for slot in self._allocated():
                self._gather_next(pool, rows, slot, moving)
            while moving:
                instrument.note_queue(all(task.done() for task in batch.tasks) for batch in moving)
                head = moving.popleft()
                head.send(wait=True)
                for other in moving:  # so that copies run beside what the device computes now
                    if not other.send(wait=False):
                        break
                batch = self._execute(head)
                self._gather_next(pool, rows, head.slot, moving)
                yield batch
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _allocated(self) -> "list[StagingBuffer]":
        """The memory of all batches on their way, allocated once."""
        if not self._slots:
            # A batch has no more pixels than the largest images together.
            pixels = np.sort(self.source.stored_sizes[self.ids].astype(np.int64).prod(axis=1))
            most = 3 * int(pixels[-self.config.batch_size :].sum())
            device = self.config.device
            stream = torch.cuda.Stream(device) if device.type == "cuda" else None
            self._slots = [StagingBuffer(most, device, stream) for _ in range(SLOTS)]
        return self._slots

    def _gather_next(
        self,
        pool: ThreadPoolExecutor,
        rows: Iterator[tuple[NDArray[np.int64], Plan]],
        slot: "StagingBuffer",
        moving: "deque[InFlightBatch]",
    ) -> None:
        """Hands the next batch, if there is one, to the threads."""
        if (row := next(rows, None)) is None:
            return
        ids, plan = row
        self._replace_gone(self._gone, ids, plan)
        self._blacken(ids, plan)
        present, images = self._present(ids), self.source.images
        assert isinstance(images, PixelArray | CachedPixels)
        flat, starts = flat_pixels(images)
        staged = stage(plan, starts[present], self.source.stored_sizes[present])
        slot.require(staged.bytes)
        per_task = min(_IMAGES_PER_TASK, -(-len(ids) // self.workers))
        tasks = [
            pool.submit(slot.gather, flat, staged, slice(first, first + per_task))
            for first in range(0, len(ids), per_task)
        ]
        moving.append(InFlightBatch(ids, staged, slot, tasks))

    def _execute(self, moved: "InFlightBatch") -> Batch:
        config, staged, slot = self.config, moved.staged, moved.slot
        pixels = slot.landed(staged.bytes).view(-1, 3)
        images = finished_batch(
            pixels,
            staged.places[:-1] // 3,
            staged.widths,
            staged.plan,
            mean=config.mean,
            std=config.std,
            dtype=config.dtype,
            kernels=self._kernels,
        )
        slot.done_with()
        return Batch(images, self._labels(moved.ids))


# --- which bytes a batch needs -------------------------------------------------------------------


@dataclass(frozen=True)
class Staged:
    """What B first reads need of the kept pixels, and where it is to lie, one behind the other."""

    begins: NDArray[np.int64]
    """`[B]`: the places in the flat pixels where the rows of each box begin."""
    places: NDArray[np.int64]
    """`[B + 1]`: where these are to begin in the staging memory; the last is where they end."""
    widths: NDArray[np.int64]
    """`[B]`, pixels of a row."""
    plan: Plan
    """For images that begin with the first row of their boxes."""

    @property
    def bytes(self) -> int:
        return int(self.places[-1])


def stage(plan: Plan, starts: NDArray[np.int64], sizes: NDArray[np.int32]) -> Staged:
    """Only the rows of each box: of random resized crops (0.25 to 1), three quarters of the image.

    Args:
        starts: `[B]`: where each image begins in the flat pixels.
        sizes: `[B, 2]`: height and width.
    """
    widths = sizes[:, 1].astype(np.int64)
    begins = starts + 3 * plan.box[:, 0] * widths
    places = np.concatenate([[0], np.cumsum(3 * plan.box[:, 2] * widths)])
    box = plan.box.copy()
    box[:, 0] = 0
    return Staged(begins, places, widths, replace(plan, box=box))


@instrument.stage("read")
def gather(flat: NDArray[np.uint8], staged: Staged, rows: slice, out: NDArray[np.uint8]) -> None:
    """Copies what some samples of a batch need into its staging memory.

    One NumPy copy per image, which lets go of the interpreter's lock; images that lie one behind the other, as
    in an evaluation, are copied together. It comes to 0.83 of a plain copy's bandwidth (photographs at 256 px).
    """
    begins, places = staged.begins[rows], staged.places[rows.start : rows.start + len(staged.begins[rows]) + 1]
    ends = begins + np.diff(places)
    breaks = np.flatnonzero(begins[1:] != ends[:-1]) + 1
    firsts, lasts = np.concatenate([[0], breaks]), np.concatenate([breaks, [len(begins)]])
    for begin, end, at, to in zip(
        begins[firsts].tolist(), ends[lasts - 1].tolist(), places[firsts].tolist(), places[lasts].tolist(), strict=True
    ):
        out[at:to] = flat[begin:end]


def flat_pixels(images: PixelArray | CachedPixels) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """All values one behind the other, and where each image begins."""
    if isinstance(images, CachedPixels):
        return images.pixels, images.starts
    return images.pixels.reshape(-1), np.arange(len(images.pixels)) * int(np.prod(images.pixels.shape[1:]))


# --- the way to the device -----------------------------------------------------------------------


class StagingBuffer:
    """Memory for one batch on its way: pinned on the host, and as much on the device. On a CPU both are the same.

    It is used again and again, and three parties take turns: threads fill the host's side, the copying stream
    moves it, the receiver's stream reads the device's side. Two events keep them apart: threads wait until the
    last copy has left the host's side, and a copy waits until the last reads of the device's side are done.
    """

    def __init__(self, capacity: int, device: torch.device, stream: torch.cuda.Stream | None) -> None:
        """`stream`: the one that copies; None on a CPU."""
        self._stream, self._device = stream, device
        if stream is not None:
            # Threads that wait for a copy sleep; spinning, they would burn the cores that gather for the next.
            self._copied, self._read = torch.cuda.Event(blocking=True), torch.cuda.Event()
        self._allocate(capacity)

    def _allocate(self, capacity: int) -> None:
        # Even where the receiver iterates in inference mode. As the allocator sees it, the device's side belongs
        # to the stream that is current now: the one that copies.
        with torch.inference_mode(False), torch.cuda.stream(self._stream):
            self._host = torch.empty(capacity, dtype=torch.uint8, pin_memory=self._stream is not None)
            self._landing = self._host if self._stream is None else torch.empty_like(self._host, device=self._device)
        self._view: NDArray[np.uint8] = self._host.numpy()

    def require(self, count: int) -> None:
        """Makes sure that `count` bytes fit: more than foreseen where an image comes twice in a batch, as padding does.

        What is being copied or read is not overwritten: torch's allocators wait for that.
        """
        if count > len(self._host):
            self._allocate(count)

    def gather(self, flat: NDArray[np.uint8], staged: Staged, rows: slice) -> None:
        """Fills a part of the host's side; in a thread."""
        if self._stream is not None:
            with torch.cuda.device(self._stream.device):  # a new thread's is the first GPU, which may be another rank's
                self._copied.synchronize()
        gather(flat, staged, rows, self._view)

    def send(self, count: int) -> None:
        """Lets the first `count` bytes be copied to the device."""
        if self._stream is None:
            return
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(self._read)
            with instrument.stage("copy"):
                self._landing[:count].copy_(self._host[:count], non_blocking=True)
            self._copied.record(self._stream)

    def landed(self, count: int) -> Tensor:
        """These bytes on the device, for the current stream, which waits for the copy; the host does not."""
        if self._stream is not None:
            consumer = torch.cuda.current_stream(self._device)
            consumer.wait_event(self._copied)
            self._landing.record_stream(consumer)  # for when the loader is gone: the memory may be others' only then
        return self._landing[:count]

    def done_with(self) -> None:
        """What the current stream has been told until now is all that it will read."""
        if self._stream is not None:
            self._read.record(torch.cuda.current_stream(self._device))


@dataclass
class InFlightBatch:
    """A batch on its way to the device."""

    ids: NDArray[np.int64]
    staged: Staged
    slot: StagingBuffer
    tasks: list[Future[None]]
    sent: bool = False

    def send(self, *, wait: bool) -> bool:
        """Lets it be copied once it is gathered; False where it is not and shall not be waited for."""
        if not self.sent and (wait or all(task.done() for task in self.tasks)):
            for task in self.tasks:
                task.result()
            self.slot.send(self.staged.bytes)
            self.sent = True
        return self.sent
