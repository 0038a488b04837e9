"""`resident`: all images as uint8 on the device, decoded once; plans are carried out there.

What moves per batch is the plan. The first read gives what `torchvision` gives, to the bit, on every device:
on a GPU by Triton's kernels where these can be had, else by plain torch.
"""

from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from loaders.backends.decode import load_pixels
from loaders.device import reference, resample
from loaders.errors import InputError
from loaders.loader import NO_LABEL, Batch, Loader, LoaderConfig
from loaders.machine import can_compile, free_memory, told_bytes, usable_cores
from loaders.order import PADDING
from loaders.plan import Plan
from loaders.sources.base import PixelArray, Source
from loaders.sources.index import Progress

_STAGED_BYTES = 64 << 20
"""Decoded images are gathered on the host in portions of this size, and one image at least."""


class ResidentLoader(Loader):
    """Batches are the receiver's own. Under several ranks each holds a copy of the set.

    Raises:
        InputError: when the set does not fit into the device's free memory.
    """

    name: ClassVar[str] = "resident"
    summary: ClassVar[str] = "all images decoded once and kept on the device, which crops and resizes them"

    def __init__(self, source: Source, config: LoaderConfig) -> None:
        super().__init__(source, config)
        copies = config.world_size if config.device.type == "cpu" else 1  # ranks share a CPU's memory, no GPU's
        needed, free = copies * source.pixel_bytes, free_memory(config.device)
        if needed > free:
            times = f" × {copies} ranks" if copies > 1 else ""
            raise InputError(
                f"LOADER=resident: {source.name} is {told_bytes(source.pixel_bytes)} decoded{times}, and "
                f"{config.device} has {told_bytes(free)} free: choose LOADER=torchvision"
            )
        self._starts = np.concatenate([[0], np.cumsum(source.sizes.astype(np.int64).prod(axis=1))])
        self._pixels: Tensor | None = None
        self._fused = fused_kernels(config.device)
        self._gone: set[int] = set()
        """Samples that have gone bad since they were indexed."""

    def prepare(self, progress: Progress | None = None) -> None:
        if self._pixels is None:
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
        """Decodes one image to its place; takes note of one that has gone bad."""
        if index in self.source.bad:
            return
        try:
            pixels = load_pixels(self.source.images, index, size=tuple(self.source.sizes[index].tolist()))
        except (OSError, ValueError) as error:
            self._gone.add(index)
            self._report_bad(index, getattr(error, "strerror", None) or str(error))
            return
        at = self._starts[index] - begin
        staged[at : at + pixels.shape[0] * pixels.shape[1]] = pixels.reshape(-1, 3)

    def _produce(self, start: int) -> Generator[Batch, None, None]:
        self.prepare()
        for ids, plan in self.planned(start):
            for place in self._replace_gone(ids, self._gone):
                if ids[place] != PADDING:
                    plan.overwrite(place, self.draw(ids[place : place + 1]))
            yield self._make(ids, plan)

    def _make(self, ids: NDArray[np.int64], plan: Plan) -> Batch:
        config = self.config
        absent = ids == PADDING
        at = np.where(absent, self.ids[0], ids)
        labels = np.where(absent, NO_LABEL, self.source.labels[at])
        plan.window[absent] = -plan.read_size  # beyond the image: black
        return Batch(self._images(at, plan), reference.sent(labels, config.device))

    def _images(self, ids: NDArray[np.int64], plan: Plan) -> Tensor:
        """The samples' finished images."""
        config = self.config
        if self._fused is None:
            return reference.finish(
                self._squares(ids, plan), plan, mean=config.mean, std=config.std, dtype=config.dtype
            )
        assert self._pixels is not None
        widths = self.source.sizes[ids, 1].astype(np.int64)
        images: Tensor = self._fused.batches(
            self._pixels, self._starts[ids], widths, plan, mean=config.mean, std=config.std, dtype=config.dtype
        )
        return images

    def _squares(self, ids: NDArray[np.int64], plan: Plan) -> Tensor:
        """The first read of the samples: uint8 `[B, 3, S1, S1]`, channels-last."""
        assert self._pixels is not None
        sizes = self.source.sizes[ids].astype(np.int64)
        if self.config.device.type == "cpu":  # one by one: the same pixels, 10 times as fast there
            places = zip(self._starts[ids].tolist(), sizes.tolist(), strict=True)
            images = (self._pixels[first : first + h * w].view(h, w, 3).permute(2, 0, 1) for first, (h, w) in places)
            squares = torch.stack([reference.first_read(image, plan, row) for row, image in enumerate(images)])
            return squares.contiguous(memory_format=torch.channels_last)
        return resample.first_reads(self._pixels, self._starts[ids], sizes[:, 1], plan)


def fused_kernels(device: torch.device) -> ModuleType | None:
    """`loaders.device.fused`, where the device can run it and what compiles it is there."""
    if device.type != "cuda" or not can_compile():
        return None
    try:
        from loaders.device import fused
    except ModuleNotFoundError:  # torch without Triton
        return None
    return fused
