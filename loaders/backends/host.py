"""`torchvision`: plans carried out on the CPU by threads; works everywhere.

The resampling is torchvision's own (ATen's, on uint8, channels-last), written straight into the
batch. Threads suffice, as decoding and resampling release the interpreter's lock; so there are no
processes to start, no shared memory to run out of, and nothing to pickle.
"""

import math
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from loaders.backends.memory import BatchMemory
from loaders.errors import BadImageError, cause
from loaders.loader import NO_LABEL, Batch, Loader, LoaderConfig
from loaders.ops.decode import load_pixels
from loaders.ops.finish import finish
from loaders.sampling.order import PADDING
from loaders.sampling.plan import Plan, scale_boxes
from loaders.sources.base import Source
from loaders.system.instrument import note_queue, stage
from loaders.system.machine import compute_on_one_core, usable_cores

antialiased: Callable[..., Tensor] = torch._C._nn._upsample_bilinear2d_aa
"""`interpolate(antialias=True)` without the checks of what is known here: image, size, False, None, None, out=."""

AHEAD = 3
"""Batches being made while one is consumed; more where batches are so small that threads would have nothing to do."""
MOST_BYTES_WAITING = 1 << 20
"""Images are first all prepared, then all resized, up to this size together. Resizing lets go of the interpreter's
lock, and the less a thread does between two resizings, the less the threads wait for each other."""
_SMALL_BYTES = 1 << 14  # of a box that NumPy flips
MOST_SAMPLES_PER_TASK = 32
"""Small enough to share a batch among threads, large enough to hide what a task costs: 16 were 10 to 20 % slower on two
cores, and 64 no faster."""


def batches_ahead(workers: int, batch_size: int) -> int:
    """How many batches are being made while one is consumed."""
    return max(AHEAD, -(-2 * workers // batch_size))


@dataclass(frozen=True)
class PendingBatch:
    """A batch being made: rows are filled by threads, each row by one."""

    images: Tensor
    """`[B, 3, S, S]`, channels-last: finished, or, pinned, the squares of the first read, which a GPU will finish."""
    labels: Tensor
    """int64 `[B]`, on the host."""
    plan: Plan
    tasks: list[Future[None]]
    """When all are done, so is the batch."""


class HostLoader(Loader):
    """Batches are the receiver's own: their memory is used again only when nobody holds them any more."""

    name: ClassVar[str] = "torchvision"
    summary: ClassVar[str] = "threads decode and resize on the CPU, with torchvision's resampling"

    def __init__(self, source: Source, config: LoaderConfig) -> None:
        super().__init__(source, config)
        self.workers = config.workers or usable_cores()
        self._ahead = batches_ahead(self.workers, config.batch_size)
        self._upload = _Upload(config.device) if config.device.type == "cuda" else None
        self._batches = BatchMemory(most=self._ahead + 2)
        self._squares = BatchMemory(most=self.workers)

    def _produce(self, start: int) -> Generator[Batch, None, None]:
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="saturate", initializer=compute_on_one_core)
        rows = self.planned(start)
        making: deque[PendingBatch] = deque()
        try:
            for _ in range(self._ahead):
                self._begin(pool, rows, making)
            while making:
                note_queue(all(task.done() for task in batch.tasks) for batch in making)
                for task in making[0].tasks:
                    task.result()
                self._begin(pool, rows, making)
                yield self._deliver(making.popleft())
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _begin(
        self, pool: ThreadPoolExecutor, rows: Iterator[tuple[NDArray[np.int64], Plan]], making: deque[PendingBatch]
    ) -> None:
        """Hands the next batch, if there is one, to the threads."""
        if (row := next(rows, None)) is None:
            return
        ids, plan = row
        with torch.inference_mode(False):  # even where the receiver iterates in it: the threads are not in it
            batch = PendingBatch(*self._empty_batch(len(ids), plan), plan, [])
        per_task = min(MOST_SAMPLES_PER_TASK, -(-len(ids) // self.workers))
        for first in range(0, len(ids), per_task):
            places = range(first, min(first + per_task, len(ids)))
            batch.tasks.append(pool.submit(self._fill, batch, ids, places))
        making.append(batch)

    def _empty_batch(self, count: int, plan: Plan) -> tuple[Tensor, Tensor]:
        """Memory for images, with anything in it, and labels, all `NO_LABEL`."""
        on_gpu = self._upload is not None
        side, dtype = (plan.read_size, torch.uint8) if on_gpu else (plan.size, self.config.dtype)
        shape = (count, side, side, 3)
        # Pinned memory is used again by torch itself.
        images = torch.empty(shape, dtype=dtype, pin_memory=True) if on_gpu else self._batches.empty(shape, dtype)
        return images.permute(0, 3, 1, 2), torch.full((count,), NO_LABEL, dtype=torch.int64, pin_memory=on_gpu)

    def _fill(self, batch: PendingBatch, ids: NDArray[np.int64], places: range) -> None:
        """Makes some of a batch's samples."""
        config, these = self.config, slice(places.start, places.stop)
        images, plan = batch.images[these], batch.plan[these]
        if self._upload is not None:
            self._read(images, batch, ids, places)
            return
        done = config.dtype == torch.uint8 and plan.inner is None and plan.color is None
        squares = (
            images
            if done
            else self._squares.empty((len(places), plan.read_size, plan.read_size, 3), torch.uint8).permute(0, 3, 1, 2)
        )
        self._read(squares, batch, ids, places)
        finish(squares, plan, mean=config.mean, std=config.std, dtype=config.dtype, out=images)

    def _read(self, squares: Tensor, batch: PendingBatch, ids: NDArray[np.int64], places: range) -> None:
        """Decodes some of a batch's samples and reads them into `squares`; sets their labels."""
        plan, labels = batch.plan, np.full(len(places), NO_LABEL, np.int64)
        flips = self._upload is None and plan.inner is None  # a GPU does it in passing
        prepared: list[tuple[FirstRead, Tensor]] = []
        waiting = 0
        wanted, geometry = ids[places.start : places.stop].tolist(), _geometry(plan, places, flips)
        for row, (place, out) in enumerate(zip(places, squares.split(1), strict=True)):
            found = None if wanted[row] == PADDING else self._load_or_substitute(plan, ids, place)
            if found is None:
                out.zero_()
                continue
            if ids[place] != wanted[row]:  # a substitute has another plan
                [geometry[row]] = _geometry(plan, range(place, place + 1), flips)
            prepared.append((prepare_read(*found, geometry[row], plan.read_size), out))
            labels[row] = self.source.labels[ids[place]]
            waiting += found[0].nbytes
            if waiting > MOST_BYTES_WAITING:
                read_all(prepared, plan.read_size)
                waiting = 0
        read_all(prepared, plan.read_size)
        if flips:
            plan.flip[places.start : places.stop] = False  # done
        # At once: under the interpreter's lock, 0.2 µs a sample instead of 1.0 for one tensor element after the other.
        batch.labels[places.start : places.stop] = torch.from_numpy(labels)

    def _load_or_substitute(
        self, plan: Plan, ids: NDArray[np.int64], place: int
    ) -> tuple[NDArray[np.uint8], list[int]] | None:
        """The sample's pixels, and its box in them. Of one that has gone bad since it was indexed: another's.

        In an evaluation nothing takes its place (None), so that no sample counts twice.
        """
        wanted = int(ids[place])
        found = self._load(wanted, plan, place)
        if found is None and not self.config.training:
            self.lost.add(wanted)
        if found is not None or not self.config.training:
            return found
        for substitute in self._substitutes(wanted):
            ids[place] = substitute
            plan.overwrite(place, self.draw(ids[place : place + 1]))
            if (found := self._load(substitute, plan, place)) is not None:
                return found
        raise BadImageError(self.bad_images, len(self.source), "None is left to take their place.")

    def _load(self, index: int, plan: Plan, place: int) -> tuple[NDArray[np.uint8], list[int]] | None:
        """The image's pixels and the plan's box in them; None, and a report, where they cannot be had."""
        size = tuple(self.source.stored_sizes[index].tolist())
        box = plan.box[place].tolist()
        least = _least_size(size, box, plan.resized[place].tolist()) if self.config.scaled_decoding else None
        try:
            pixels = load_pixels(self.source.images, index, size=size, at_least=least, rows=box[0] + box[2])
        except (OSError, ValueError) as error:
            self._report_bad(index, cause(error))
            return None
        if pixels.shape[1] != size[1]:
            box = scale_boxes(plan.box[[place]], np.array([size]), np.array([pixels.shape[:2]]))[0].tolist()
        return pixels, box

    def _deliver(self, made: PendingBatch) -> Batch:
        if self._upload is None:
            return Batch(made.images, made.labels)
        config = self.config
        squares, labels = self._upload(made.images, made.labels)
        return Batch(finish(squares, made.plan, mean=config.mean, std=config.std, dtype=config.dtype), labels)


class _Upload:
    """Copies pinned tensors to a GPU on a stream of its own, beside what the GPU is computing.

    The host's allocator reuses a pinned block only when the copy out of it is done, the device's only
    when the consuming stream is done with it (`record_stream`): no buffer is overwritten too early.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def __call__(self, *tensors: Tensor) -> list[Tensor]:
        with torch.cuda.stream(self._stream), stage("copy"):
            copies = [tensor.to(self._device, non_blocking=True) for tensor in tensors]
        consumer = torch.cuda.current_stream(self._device)
        consumer.wait_stream(self._stream)
        for copy in copies:
            copy.record_stream(consumer)
        return copies


class FirstRead(NamedTuple):
    """One image's first read, ready to be carried out."""

    image: Tensor
    """uint8 `[1, 3, h, w]`: the box, flipped."""
    resized: list[int]
    corner: tuple[int, int]
    """Top and left of the window in the resized box."""


def _geometry(plan: Plan, places: range, flips: bool) -> list[list[int]]:
    """Of each place: height and width to resize to, top and left of the window, whether to flip across and upside down.

    As Python's numbers for all at once: with one by one, and torch's flips, preparing a read of an image of 32 px took
    24 to 30 µs instead of 20.
    """
    these = slice(places.start, places.stop)
    flip = plan.flip[these] if flips else np.zeros((len(places), 2), np.bool_)
    numbers: list[list[int]] = np.column_stack([plan.resized[these], plan.window[these], flip]).tolist()
    return numbers


def prepare_read(pixels: NDArray[np.uint8], box: list[int], geometry: list[int], side: int) -> FirstRead:
    """The first read of `box` in an image `[H, W, 3]`, as a row of `_geometry` has it, to `side` pixels.

    It will equal `reference.first_read` on the CPU, and the plan's flips of that. The box is flipped, not what is
    read from it.
    """
    height, width, y, x, across, upside_down = geometry
    if across:
        x = width - side - x
    if upside_down:
        y = height - side - y
    return FirstRead(_tensor(pixels, box, bool(across), bool(upside_down)), [height, width], (y, x))


@stage("resize")
def read_all(prepared: list[tuple[FirstRead, Tensor]], side: int) -> None:
    """Carries reads out, each into its `out` (uint8 `[1, 3, side, side]`, channels-last), and empties the list."""
    for (image, resized, corner), out in prepared:
        if resized == [side, side] and corner == (0, 0):
            antialiased(image, resized, False, None, None, out=out)
        else:
            _cut(antialiased(image, resized, False, None, None), corner, out)
    prepared.clear()


def _cut(whole: Tensor, corner: tuple[int, int], out: Tensor) -> None:
    """Copies the window at `corner` (top, left) to `out`; black where it leaves the image."""
    (y, x), side = corner, out.shape[-1]
    seen = whole[..., max(y, 0) : max(y + side, 0), max(x, 0) : max(x + side, 0)]
    down, right = max(-y, 0), max(-x, 0)
    if seen.shape != out.shape:
        out.zero_()
    out[..., down : down + seen.shape[-2], right : right + seen.shape[-1]] = seen


def _tensor(pixels: NDArray[np.uint8], box: list[int], across: bool, upside_down: bool) -> Tensor:
    """A part of an image `[H, W, 3]` as `[1, 3, h, w]`, channels-last, flipped; a view where that is possible.

    Small parts are flipped by NumPy: a call of torch is as fast, but lets go of the interpreter's lock and has to
    wait for it again. Torch's flip is vectorised, which counts for large ones.
    """
    top, left, height, width = box
    part = pixels[top : top + height, left : left + width]
    small = part.size <= _SMALL_BYTES
    if small and (across or upside_down):
        part = part[:: -1 if upside_down else 1, :: -1 if across else 1]
    if min(part.strides) < 0 or not part.flags.writeable:  # torch has no such tensors
        part = part.copy()
    image = torch.from_numpy(part.transpose(2, 0, 1)[None])
    if small or not (across or upside_down):
        return image
    return image.flip([axis for axis, turned in ((-1, across), (-2, upside_down)) if turned])


def _least_size(size: tuple[int, int], box: list[int], resized: list[int]) -> tuple[int, int]:
    """Height and width at which the box still has as many pixels as it is resized to; no more than `size`."""
    share = min(1.0, max(resized[0] / box[2], resized[1] / box[3]))
    return math.ceil(size[0] * share), math.ceil(size[1] * share)
