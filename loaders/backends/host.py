"""`torchvision`: plans carried out on the CPU by threads; works everywhere.

The resampling is torchvision's own (ATen's, on uint8, channels-last), written straight into the
batch. Threads suffice, as decoding and resampling release the interpreter's lock; so there are no
processes to start, no shared memory to run out of, and nothing to pickle.
"""

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from loaders import plan as plans
from loaders.backends.decode import load_pixels
from loaders.device import reference
from loaders.errors import BadImageError
from loaders.loader import NO_LABEL, Batch, Loader, LoaderConfig
from loaders.machine import usable_cores
from loaders.order import PADDING
from loaders.plan import Plan
from loaders.sources.base import Source

AHEAD = 3
"""Batches being made while one is consumed; more where batches are so small that threads would have nothing to do."""
SAMPLES_PLANNED_AT_ONCE = 4096  # a plan costs 0.2 µs a sample so, 4.5 µs in batches of 64
MOST_SAMPLES_PER_TASK = 16  # small enough to share a batch among threads, large enough to hide what a task costs


@dataclass(frozen=True)
class _Making:
    """A batch being made: rows are filled by threads, each row by one."""

    squares: Tensor
    """uint8 `[B, 3, S1, S1]`, channels-last; pinned where a GPU will fetch it."""
    labels: Tensor
    plan: Plan
    tasks: list[Future[None]]


class HostLoader(Loader):
    """Batches are the receiver's own: nothing here touches one after it was yielded."""

    name: ClassVar[str] = "torchvision"

    def __init__(self, source: Source, config: LoaderConfig) -> None:
        super().__init__(source, config)
        self.workers = config.workers or usable_cores()
        self._upload = _Upload(config.device) if config.device.type == "cuda" else None

    def _produce(self, start: int) -> Generator[Batch, None, None]:
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="saturate")
        rows = self._planned(self.rows(start))
        making: deque[_Making] = deque()
        try:
            for _ in range(max(AHEAD, -(-2 * self.workers // self.config.batch_size))):
                self._begin(pool, rows, making)
            while making:
                current = making.popleft()
                for task in current.tasks:
                    task.result()
                self._begin(pool, rows, making)
                yield self._finish(current)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _planned(self, ids: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], Plan]]:
        """Each row of ids with its plan, drawn for thousands of samples at a time."""
        rows_at_once = max(1, SAMPLES_PLANNED_AT_ONCE // self.config.batch_size)
        for first in range(0, len(ids), rows_at_once):
            chunk = ids[first : first + rows_at_once].copy()  # a bad image's place is taken in here
            drawn = self._draw(chunk.ravel())
            for place, row in enumerate(chunk):
                at = place * self.config.batch_size
                yield row, drawn[at : at + self.config.batch_size]

    def _draw(self, ids: NDArray[np.int64]) -> Plan:
        ids = np.maximum(ids, self.ids[0])  # padding is planned like any sample, and left black
        return plans.draw(
            self.config.spec, seed=self.config.seed, epoch=self._epoch, ids=ids, sizes=self.source.sizes[ids]
        )

    def _begin(
        self, pool: ThreadPoolExecutor, rows: Iterator[tuple[NDArray[np.int64], Plan]], making: deque[_Making]
    ) -> None:
        """Hands the next batch, if there is one, to the threads."""
        if (row := next(rows, None)) is None:
            return
        ids, plan = row
        pinned = self._upload is not None
        side = plan.read_size
        # Ordinary tensors even where the receiver iterates in inference mode, in which the threads are not.
        with torch.inference_mode(False):
            squares = torch.zeros((len(ids), side, side, 3), dtype=torch.uint8, pin_memory=pinned).permute(0, 3, 1, 2)
            labels = torch.full((len(ids),), NO_LABEL, dtype=torch.int64, pin_memory=pinned)
        batch = _Making(squares, labels, plan, [])
        per_task = min(MOST_SAMPLES_PER_TASK, -(-len(ids) // self.workers))
        for first in range(0, len(ids), per_task):
            places = range(first, min(first + per_task, len(ids)))
            batch.tasks.append(pool.submit(self._fill, batch, ids, places))
        making.append(batch)

    def _fill(self, batch: _Making, ids: NDArray[np.int64], places: range) -> None:
        """Decodes and reads some of a batch's samples."""
        labels = np.full(len(places), NO_LABEL, np.int64)
        for row, place in enumerate(places):
            if ids[place] == PADDING:
                continue
            pixels = self._load_or_substitute(batch.plan, ids, place)
            if pixels is None:
                self.lost.add(int(ids[place]))
                continue
            image = torch.from_numpy(pixels).permute(2, 0, 1)
            read_into(batch.squares[place : place + 1], image, batch.plan, place)
            labels[row] = self.source.labels[ids[place]]
        # At once: under the interpreter's lock, 0.2 µs a sample instead of 1.0 for one tensor element after the other.
        batch.labels[places.start : places.stop] = torch.from_numpy(labels)

    def _load_or_substitute(self, plan: Plan, ids: NDArray[np.int64], place: int) -> NDArray[np.uint8] | None:
        """The sample's pixels. Of one that has gone bad since it was indexed: another's, which takes its place.

        In an evaluation nothing takes its place (None), so that no sample counts twice.
        """
        wanted = int(ids[place])
        pixels = self._load(wanted)
        if pixels is not None or not self.config.training:
            return pixels
        sequence = self.sequence()
        here = int(np.flatnonzero(sequence == wanted)[0])
        for substitute in np.roll(sequence, -here)[1:].tolist():
            pixels = self._load(substitute)
            if pixels is not None:
                ids[place] = substitute
                _overwrite(plan, place, self._draw(ids[place : place + 1]))
                return pixels
        raise BadImageError(self.bad_images, len(self.source), "None is left to take their place.")

    def _load(self, index: int) -> NDArray[np.uint8] | None:
        """The image's pixels; None, and a report, where they cannot be had."""
        try:
            pixels = load_pixels(self.source.images, index)
            if list(pixels.shape[:2]) != (indexed := self.source.sizes[index].tolist()):
                raise ValueError(
                    f"its {pixels.shape[0]} × {pixels.shape[1]} pixels are not {indexed[0]} × {indexed[1]}"
                )
            return np.require(pixels, requirements=["C", "W"])  # torch warns of what cannot be written to
        except (OSError, ValueError) as error:
            self._report_bad(index, getattr(error, "strerror", None) or str(error))
            return None

    def _finish(self, made: _Making) -> Batch:
        squares, labels = made.squares, made.labels
        if self._upload is not None:
            squares, labels = self._upload(squares, labels)
        config = self.config
        return Batch(
            reference.finish(squares, made.plan, mean=config.mean, std=config.std, dtype=config.dtype),
            labels.to(config.device),
        )


class _Upload:
    """Copies pinned tensors to a GPU on a stream of its own, beside what the GPU is computing.

    The host's allocator reuses a pinned block only when the copy out of it is done, the device's only
    when the consuming stream is done with it (`record_stream`): no buffer is overwritten too early.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def __call__(self, *tensors: Tensor) -> list[Tensor]:
        with torch.cuda.stream(self._stream):
            copies = [tensor.to(self._device, non_blocking=True) for tensor in tensors]
        consumer = torch.cuda.current_stream(self._device)
        consumer.wait_stream(self._stream)
        for copy in copies:
            copy.record_stream(consumer)
        return copies


def read_into(out: Tensor, image: Tensor, plan: Plan, row: int) -> None:
    """The plan's first read of `image` (uint8 `[3, H, W]`) into `out` (uint8 `[1, 3, S1, S1]`, channels-last, black).

    Equal to `reference.first_read` on the CPU, without its temporaries.
    """
    top, left, height, width = plan.box[row].tolist()
    part = image[None, :, top : top + height, left : left + width]
    resized = plan.resized[row].tolist()
    y, x = plan.window[row].tolist()
    side = plan.read_size
    if resized == [side, side] and (y, x) == (0, 0):
        torch.ops.aten._upsample_bilinear2d_aa.out(part, resized, False, None, None, out=out)
        return
    whole = torch.ops.aten._upsample_bilinear2d_aa(part, resized, False, None, None)
    seen = whole[..., max(y, 0) : max(y + side, 0), max(x, 0) : max(x + side, 0)]
    down, right = max(-y, 0), max(-x, 0)
    out[..., down : down + seen.shape[-2], right : right + seen.shape[-1]] = seen


def _overwrite(plan: Plan, place: int, other: Plan) -> None:
    """Puts the only row of `other` into a row of `plan`."""
    for field in fields(Plan):
        if isinstance(column := getattr(plan, field.name), np.ndarray):
            column[place] = getattr(other, field.name)[0]
