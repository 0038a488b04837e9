"""`resident`: all images as uint8 on the device, decoded once; plans are executed there.

What moves per batch is the plan. The first read gives what `torchvision` gives, to the bit, on every device:
on a GPU by Triton's kernels where these can be had, else by plain torch; on a CPU by threads.
"""

from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from loaders.backends.executor import Backend, BatchExecutor, BatchRequest, ExecutedBatch
from loaders.backends.threads import ThreadedExecutor
from loaders.backends.torchvision import Box, ImageReader, LoadBox
from loaders.cache.build import with_pixel_cache
from loaders.cache.checksums import PixelGuard
from loaders.cache.pixel_cache import Preprocessing
from loaders.config import LoaderConfig
from loaders.errors import InputError, cause
from loaders.ops.decode import load_pixels
from loaders.ops.device_batch import finished_batch, fused_kernels
from loaders.sources.base import CachedPixels, ReportUnreadable, Source
from loaders.sources.index import Progress
from loaders.system.format import format_bytes
from loaders.system.machine import free_memory, usable_cores

_STAGED_BYTES = 64 << 20
"""Decoded images are gathered on the host in portions of this size, and one image at least."""


class ResidentPixels(NamedTuple):
    """All images of a source on one device, one behind the other."""

    values: Tensor
    """uint8 `[P, 3]`, row by row."""
    starts: NDArray[np.int64]
    """`[N + 1]`: the place of each image's first pixel in `values`, and the end of the last one."""
    sizes: NDArray[np.int32]
    """`[N, 2]`: height and width."""

    def load_box(self) -> LoadBox:
        """Reads images out of a CPU's memory."""
        values: NDArray[np.uint8] = self.values.numpy()
        starts, sizes = self.starts, self.sizes

        def load(index: int, box: Box, _: list[int]) -> tuple[NDArray[np.uint8], Box]:
            start, (height, width) = int(starts[index]), sizes[index].tolist()
            return values[start : start + height * width].reshape(height, width, 3), box

        return load


class ResidentExecutor:
    """Decodes everything when it is prepared. Under several ranks each holds a copy of the set.

    Raises:
        InputError: when the set does not fit into the device's free memory.
    """

    def __init__(self, source: Source, config: LoaderConfig, *, from_cache: bool = False) -> None:
        """`from_cache`: the images are those of the pixel cache, smaller, and are decoded only to build it."""
        self.source = source
        self._config = config
        self._preprocessing = Preprocessing(config.cache_size, config.scaled_decoding)
        self._from_cache = from_cache and source.images.encoded is not None
        self._prepared: BatchExecutor | None = None
        self._require_memory()

    def _require_memory(self) -> None:
        source, device = self.source, self._config.device
        copies = self._config.world_size if device.type == "cpu" else 1  # ranks share a CPU's memory, not a GPU's
        needed = self._preprocessing.cached_bytes(source.sizes) if self._from_cache else source.pixel_bytes
        free = free_memory(device)
        if copies * needed > free:
            times = f" × {copies} ranks" if copies > 1 else ""
            raise InputError(
                f'`loader="resident"`: {source.name} is {format_bytes(needed)} decoded{times}, and {device} has '
                f'{format_bytes(free)} free: choose `loader="torchvision"`, or streamed'
            )

    def prepare(self, report: ReportUnreadable, progress: Progress | None) -> frozenset[int]:
        if self._from_cache and self.source.images.encoded is not None:
            self.source = with_pixel_cache(
                self.source, self._preprocessing, report=report, progress=progress, every_block=True
            )
        workers = self._config.workers or usable_cores()
        pixels, unreadable = decode_to_device(self.source, self._config.device, workers, report, progress)
        self._prepared = executor_of_pixels(self.source, self._config, pixels)
        return unreadable

    def run(self, requests: Iterator[BatchRequest]) -> Generator[ExecutedBatch, None, None]:
        assert self._prepared is not None
        yield from self._prepared.run(requests)

    def execute(self, request: BatchRequest) -> ExecutedBatch:
        assert self._prepared is not None
        return self._prepared.execute(request)

    def files(self) -> list[Path]:
        return []


def executor_of_pixels(source: Source, config: LoaderConfig, pixels: ResidentPixels) -> BatchExecutor:
    """What executes plans on all pixels: a GPU a batch at a time, or a CPU's threads, which do it sooner."""
    if config.device.type == "cpu":
        return ThreadedExecutor(config, ImageReader(source, pixels.load_box()))
    return DeviceExecutor(config, pixels)


class DeviceExecutor:
    """Executes plans on the device that holds all pixels, a batch at a time."""

    def __init__(self, config: LoaderConfig, pixels: ResidentPixels) -> None:
        self._pixels = pixels
        self._finished = partial(
            finished_batch,
            mean=config.mean,
            std=config.std,
            dtype=config.dtype,
            kernels=fused_kernels(config.device),
        )

    def run(self, requests: Iterator[BatchRequest]) -> Generator[ExecutedBatch, None, None]:
        for request in requests:
            yield self.execute(request)

    def execute(self, request: BatchRequest) -> ExecutedBatch:
        values, starts, sizes = self._pixels
        ids, plan = request.ids, request.plan_with_black_padding()
        return ExecutedBatch(self._finished(values, starts[ids], sizes[ids, 1].astype(np.int64), plan))


def decode_to_device(
    source: Source, device: torch.device, workers: int, report: ReportUnreadable, progress: Progress | None
) -> tuple[ResidentPixels, frozenset[int]]:
    """All images, decoded once, and the samples that turned out unreadable."""
    sizes = source.stored_sizes
    starts = np.concatenate([[0], np.cumsum(sizes.astype(np.int64).prod(axis=1))])
    if source.images.array is not None:
        array = np.require(source.images.array, requirements=["C", "W"])
        return ResidentPixels(torch.from_numpy(array).view(-1, 3).to(device), starts, sizes), frozenset()
    values = torch.empty((int(starts[-1]), 3), dtype=torch.uint8, device=device)
    unreadable: set[int] = set()
    guard = PixelGuard(source.images) if isinstance(source.images, CachedPixels) else None
    with ThreadPoolExecutor(workers, thread_name_prefix="saturate") as pool:
        for portion in _portions(starts):
            if guard is not None:
                guard.check()
            begin, end = starts[portion.start], starts[portion.stop]
            staged = np.empty((end - begin, 3), np.uint8)
            tasks = [(index, pool.submit(_decode, source, index, staged[starts[index] - begin :])) for index in portion]
            try:
                for index, task in tasks:
                    if (reason := task.result()) is not None:
                        unreadable.add(index)
                        report(index, reason)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
            values[begin:end] = torch.from_numpy(staged)
            if progress is not None:
                progress(portion.stop, len(source))
    return ResidentPixels(values, starts, sizes), frozenset(unreadable)


def _portions(starts: NDArray[np.int64]) -> Iterator[range]:
    """Samples that are decoded together."""
    first, count = 0, len(starts) - 1
    while first < count:
        fits = np.searchsorted(starts, starts[first] + _STAGED_BYTES // 3, "right") - 1
        last = max(first + 1, int(fits))
        yield range(first, last)
        first = last


def _decode(source: Source, index: int, out: NDArray[np.uint8]) -> str | None:
    """Decodes an image to the beginning of `out` (`[n, 3]`). Returns why it cannot be read; None where it can.

    What the index calls bad is left as it is: no epoch has it.
    """
    if index in source.bad:
        return None
    try:
        pixels = load_pixels(source.images, index, size=tuple(source.stored_sizes[index].tolist()))
    except (OSError, ValueError) as error:
        return cause(error)
    out[: pixels.shape[0] * pixels.shape[1]] = pixels.reshape(-1, 3)
    return None


BACKEND = Backend(
    "resident",
    "all images decoded once and stored on the device, which crops and resizes them",
    ResidentExecutor,
)
