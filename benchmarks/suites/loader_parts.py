"""Parts of a loader alone, as limits: decoding, resizing, copying, building the pixel cache and gathering from it.

Beside `harness/loader_internals.py` and `steps.py`, this is the only module that knows the inside of `loaders`.
"""

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.harness.batches import endless
from benchmarks.harness.loader_internals import cached_pixels_of, is_encoded, refuse_bad, with_cached_pixels
from benchmarks.harness.measure import Batches, Candidate
from benchmarks.suites.candidates import Task, prefetched_batches
from benchmarks.suites.rows import PARTS
from loaders import LoaderConfig, PlanSpec, ResizeCenterCrop, Source, build_loader
from loaders.backends.host import HostLoader, PendingBatch
from loaders.backends.streamed import flat_pixels, gather, stage
from loaders.cache.build import build_cache
from loaders.cache.pixel_cache import Layout, Preprocessing
from loaders.ops.decode import load_pixels
from loaders.sampling.plan import Plan
from loaders.system.machine import cache_folder

GATHER = "gather whole kept images for a GPU, one thread"  # a row's name, which scripts read

_BUILT = 2048  # images of a cache, built again and again: of 512, opening, locking and fsync took a third of the time
_IN_MEMORY = 256  # images that resizing alone goes through: more than a cache holds, few enough to decode beforehand


def part_candidates(task: Task) -> list[Candidate]:
    """What no loader that does this work on the CPU's cores, or by way of them, can exceed."""
    threads = "1 thread" if task.workers == 1 else f"{task.workers} threads"
    encoded = is_encoded(task.source)
    candidates: list[Candidate] = []
    if encoded:
        name = f"decode only, {threads}"
        candidates.append(_by_threads(name, task, lambda: _DecodeOnly(task.source, _config(task))))
    candidates += [
        _by_threads(f"resize only, {threads}", task, lambda: _ResizeOnly(_few(task.source), _config(task))),
        Candidate(PARTS, _copy_name(task), lambda: _copies(task)),
    ]
    if encoded:
        candidates += [
            _by_threads(f"decode whole images, {threads}", task, lambda: _DecodeWhole(task.source, _config(task))),
            Candidate(PARTS, f"build the pixel cache, {threads}", lambda: _builds(task), before=_empty_bin),
            Candidate(PARTS, GATHER, lambda: _gathers(task, random=True)),
            Candidate(PARTS, "copy as many bytes as lie there, one thread", lambda: _gathers(task, random=False)),
        ]
    return candidates


def _by_threads(name: str, task: Task, loader: Callable[[], HostLoader]) -> Candidate:
    return Candidate(PARTS, name, lambda: endless(loader()), prefetched_batches(HostLoader.name, task))


def _config(task: Task) -> LoaderConfig:
    """The configuration on the CPU, whatever the device: these parts are the host's."""
    return replace(task.config(torch.uint8), device=torch.device("cpu"))


class _DecodeOnly(HostLoader):
    """The loader `torchvision` without its first read: its batches hold anything. Of a JPEG, no row is decoded that
    lies below the crop."""

    def _read(self, squares: Tensor, batch: PendingBatch, ids: NDArray[np.int64], places: range) -> None:  # noqa: ARG002
        for place in places:
            self._load_or_substitute(batch.plan, ids, place)


class _DecodeWhole(_DecodeOnly):
    """The same with all rows of an image: what building the pixel cache has to decode."""

    def _load(self, index: int, plan: Plan, place: int) -> tuple[NDArray[np.uint8], list[int]]:
        return load_pixels(self.source.images, index), plan.box[place].tolist()


class _ResizeOnly(HostLoader):
    """The loader `torchvision` with nothing to decode."""

    def __init__(self, source: Source, config: LoaderConfig) -> None:
        super().__init__(source, config)
        self._pixels = [load_pixels(source.images, index) for index in range(min(_IN_MEMORY, len(source)))]

    def _load(self, index: int, plan: Plan, place: int) -> tuple[NDArray[np.uint8], list[int]]:
        return self._pixels[index % len(self._pixels)], plan.box[place].tolist()


def _few(source: Source) -> Source:
    """The first images of `source`, over and over."""
    return source.select(np.resize(np.arange(min(_IN_MEMORY, len(source))), len(source)))


def _copy_name(task: Task) -> str:
    return "copy only, uint8, " + ("pinned memory to the GPU" if task.device.type == "cuda" else "memory to memory")


def _copies(task: Task) -> Batches:
    """The same uint8 batches, copied to the device; enough of them that a CPU's cache does not hold them."""
    shape = (task.batch_size, task.size, task.size, 3)
    on_gpu = task.device.type == "cuda"
    batches = [torch.zeros(shape, dtype=torch.uint8, pin_memory=on_gpu) for _ in range(8)]
    target = torch.empty(shape, dtype=torch.uint8, device=task.device)
    labels = torch.zeros(task.batch_size, dtype=torch.int64)
    while True:
        for batch in batches:
            target.copy_(batch, non_blocking=True)
            yield target, labels


# --- the pixel cache -------------------------------------------------------------------------------


def _builds(task: Task) -> Batches:
    """Builds a cache from nothing, again and again."""
    few = task.source.select(np.arange(min(_BUILT, len(task.source))))
    layout = Layout.of(few, Preprocessing())
    try:
        for place in count():
            shutil.rmtree(layout.folder, ignore_errors=True)
            build_cache(few, layout.preprocessing, report_bad=refuse_bad, workers=task.workers)
            _bin().mkdir(parents=True, exist_ok=True)
            layout.folder.rename(_bin() / str(place))
            yield torch.empty(0), torch.from_numpy(few.labels)
    finally:
        _empty_bin()


def _bin() -> Path:
    """The folder for caches that were built: to delete half a gigabyte is no part of building it."""
    return cache_folder() / "bench" / f"bin-{os.getpid()}"


def _empty_bin() -> None:
    shutil.rmtree(_bin(), ignore_errors=True)


def _gathers(task: Task, *, random: bool) -> Batches:
    """Whole images on their way to a GPU, up to the staging buffer: in an epoch's order, or one after the other."""
    source = with_cached_pixels(task.source)
    spec = PlanSpec(ResizeCenterCrop(task.size, task.size))
    loader = build_loader(source, replace(_config(task), spec=spec), loader="torchvision")
    flat, starts = flat_pixels(cached_pixels_of(source))
    out = np.empty(int(np.sort(np.diff(starts, append=len(flat)))[-task.batch_size :].sum()) + 3 * 10**7, np.uint8)
    labels, at = torch.zeros(task.batch_size, dtype=torch.int64), 0
    for epoch in count():
        loader.set_epoch(epoch)
        for ids, plan in loader.planned(0):
            staged = stage(plan, starts[ids], source.stored_sizes[ids])
            if random:
                gather(flat, staged, slice(0, len(ids)), out)
            else:
                at = at if at + staged.bytes <= len(flat) else 0
                out[: staged.bytes] = flat[at : at + staged.bytes]
                at += staged.bytes
            yield torch.empty(0), labels
