"""`resident`: all images as uint8 on the device, decoded once; plans are carried out there.

What moves per batch is the plan. The first read gives what `torchvision` gives, to the bit, on every device:
on a GPU by Triton's kernels where these can be had, else by plain torch; on a CPU by the threads of `torchvision`.
"""

from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from loaders.backends.host import HostLoader
from loaders.backends.kept import KeptLoader
from loaders.cache.build import with_pixel_cache
from loaders.cache.pixel_cache import Preprocessing
from loaders.errors import InputError
from loaders.loader import Batch, LoaderConfig
from loaders.ops.device_batch import finished_batch, fused_kernels
from loaders.sampling.plan import Plan
from loaders.sources.base import ImageFiles, PixelArray, Source
from loaders.sources.index import Progress
from loaders.system.format import format_bytes
from loaders.system.machine import free_memory, usable_cores

_STAGED_BYTES = 64 << 20
"""Decoded images are gathered on the host in portions of this size, and one image at least."""


class ResidentLoader(HostLoader, KeptLoader):
    """Batches are the receiver's own. Under several ranks each holds a copy of the set.

    With `LoaderConfig.from_cache` the images are those of the pixel cache, smaller, and are decoded only for that.

    Raises:
        InputError: when the set does not fit into the device's free memory.
    """

    name: ClassVar[str] = "resident"
    summary: ClassVar[str] = "all images decoded once and kept on the device, which crops and resizes them"

    def __init__(self, source: Source, config: LoaderConfig) -> None:
        super().__init__(source, config)
        self._preprocessing = Preprocessing(config.cache_size, config.scaled_decoding)
        self._shrinks = config.from_cache and isinstance(source.images, ImageFiles)
        copies = config.world_size if config.device.type == "cpu" else 1  # ranks share a CPU's memory, no GPU's
        needed = self._preprocessing.cached_bytes(source.sizes) if self._shrinks else source.pixel_bytes
        free = free_memory(config.device)
        if copies * needed > free:
            times = f" × {copies} ranks" if copies > 1 else ""
            raise InputError(
                f"LOADER=resident: {source.name} is {format_bytes(needed)} decoded{times}, and {config.device} has "
                f"{format_bytes(free)} free: choose LOADER=torchvision, or streamed"
            )
        self._pixels: Tensor | None = None
        self._kernels = fused_kernels(config.device)

    def prepare(self, progress: Progress | None = None) -> None:
        if self._pixels is None:
            if self._shrinks:
                self.source = with_pixel_cache(
                    self.source, self._preprocessing, report_bad=self._report_bad, progress=progress
                )
            self._starts = np.concatenate([[0], np.cumsum(self.source.stored_sizes.astype(np.int64).prod(axis=1))])
            with torch.inference_mode(False):
                self._pixels = self._decoded(progress)

    def _decoded(self, progress: Progress | None) -> Tensor:
        """All images, one behind the other: uint8 `[P, 3]` on the device."""
        images, device = self.source.images, self.config.device
        if isinstance(images, PixelArray):
            return torch.from_numpy(np.require(images.pixels, requirements=["C", "W"])).view(-1, 3).to(device)
        pixels = torch.empty((int(self._starts[-1]), 3), dtype=torch.uint8, device=device)
        with ThreadPoolExecutor(self.config.workers or usable_cores(), thread_name_prefix="saturate") as pool:
            for part in self._portions():
                begin, end = self._starts[part.start], self._starts[part.stop]
                staged = np.empty((end - begin, 3), np.uint8)
                tasks = [pool.submit(self._stage, index, staged, begin) for index in part]
                try:
                    for task in tasks:
                        task.result()
                except BaseException:
                    pool.shutdown(cancel_futures=True)
                    raise
                pixels[begin:end] = torch.from_numpy(staged)
                if progress is not None:
                    progress(part.stop, len(self.source))
        return pixels

    def _portions(self) -> Iterator[range]:
        """Samples that are decoded together."""
        first = 0
        while first < len(self.source):
            fits = np.searchsorted(self._starts, self._starts[first] + _STAGED_BYTES // 3, "right") - 1
            last = max(first + 1, int(fits))
            yield range(first, last)
            first = last

    def _stage(self, index: int, staged: NDArray[np.uint8], begin: int) -> None:
        """Decodes one image to its place."""
        if (pixels := self._decode_once(index)) is None:
            return
        at = self._starts[index] - begin
        staged[at : at + pixels.shape[0] * pixels.shape[1]] = pixels.reshape(-1, 3)

    def _produce(self, start: int) -> Generator[Batch, None, None]:
        self.prepare()
        yield from self._carried_out(start) if self._on_device else super()._produce(start)

    @property
    def _on_device(self) -> bool:
        """Whether plans are carried out for a batch at a time: on a CPU threads do it sooner, image by image."""
        return self.config.device.type != "cpu" or self._kernels is not None

    def _carried_out(self, start: int) -> Generator[Batch, None, None]:
        for ids, plan in self.planned(start):
            self._blacken(ids, plan)
            yield Batch(self._images(self._present(ids), plan), self._labels(ids))

    def _images(self, ids: NDArray[np.int64], plan: Plan) -> Tensor:
        """The samples' finished images."""
        assert self._pixels is not None
        return finished_batch(
            self._pixels,
            self._starts[ids],
            self.source.stored_sizes[ids, 1].astype(np.int64),
            plan,
            mean=self.config.mean,
            std=self.config.std,
            dtype=self.config.dtype,
            kernels=self._kernels,
        )

    def _load(self, index: int, plan: Plan, place: int) -> tuple[NDArray[np.uint8], list[int]]:
        """An image that lies in a CPU's memory, for the threads of the `torchvision` loader, and its box."""
        assert self._pixels is not None
        first, (height, width) = int(self._starts[index]), self.source.stored_sizes[index].tolist()
        pixels: NDArray[np.uint8] = self._pixels[first : first + height * width].view(height, width, 3).numpy()
        return pixels, plan.box[place].tolist()
