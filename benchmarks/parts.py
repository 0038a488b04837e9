"""A loader's parts by themselves, as limits: decoding alone, resizing alone, copying alone."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.arms import Batches, Task, endless
from benchmarks.measure import Arm
from loaders import LoaderConfig, Source
from loaders.backends.decode import load_pixels
from loaders.backends.host import HostLoader
from loaders.plan import Plan
from loaders.sources import PixelArray

PARTS = "one part alone"

_IN_MEMORY = 256  # images that resizing alone goes through: more than a cache holds, few enough to decode beforehand


def parts(task: Task) -> list[Arm]:
    """What no loader that does this work on the CPU's cores, or by way of them, can exceed."""
    threads = f"{task.workers} thread{'s' * (task.workers > 1)}"
    found = [
        Arm(PARTS, f"resize only, {threads}", lambda: endless(_ResizeOnly(_few(task.source), _config(task)))),
        Arm(PARTS, _copy_name(task), lambda: _copies(task), ahead=1),
    ]
    if not isinstance(task.source.images, PixelArray):
        name = f"decode only, {threads}"
        found.insert(0, Arm(PARTS, name, lambda: endless(_DecodeOnly(task.source, _config(task)))))
    return found


def _config(task: Task) -> LoaderConfig:
    """On the CPU, whatever the device: these parts are the host's."""
    return LoaderConfig(
        spec=task.spec, training=True, batch_size=task.batch_size, dtype=torch.uint8, workers=task.workers
    )


class _DecodeOnly(HostLoader):
    """The host's loader that leaves the pixels where they are; its batches hold anything."""

    def _read(self, squares: Tensor, batch: Any, ids: NDArray[np.int64], places: range) -> None:  # noqa: ARG002
        for place in places:
            self._load_or_substitute(batch.plan, ids, place)


class _ResizeOnly(HostLoader):
    """The host's loader with nothing to decode."""

    def __init__(self, source: Source, config: LoaderConfig) -> None:
        super().__init__(source, config)
        self._kept = [load_pixels(source.images, index) for index in range(min(_IN_MEMORY, len(source)))]

    def _load(self, index: int, plan: Plan, place: int) -> tuple[NDArray[np.uint8], list[int]]:
        return self._kept[index % len(self._kept)], plan.box[place].tolist()


def _few(source: Source) -> Source:
    """The first images of `source`, over and over."""
    return source.select(np.resize(np.arange(min(_IN_MEMORY, len(source))), len(source)))


def _copy_name(task: Task) -> str:
    return "copy only, uint8, " + ("pinned memory to the GPU" if task.device.type == "cuda" else "memory to memory")


def _copies(task: Task) -> Batches:
    """The same uint8 batches, copied to the device; enough of them that a CPU's cache does not hold them."""
    shape, on_gpu = (task.batch_size, task.size, task.size, 3), task.device.type == "cuda"
    waiting = [torch.zeros(shape, dtype=torch.uint8, pin_memory=on_gpu) for _ in range(8)]
    there = torch.empty(shape, dtype=torch.uint8, device=task.device)
    labels = torch.zeros(task.batch_size, dtype=torch.int64)
    while True:
        for batch in waiting:
            there.copy_(batch, non_blocking=True)
            yield there, labels
