"""Parts of a loader alone, as limits: decoding, resizing, copying, building the pixel cache and gathering from it.

Beside `harness/loader_internals.py` and `steps.py`, this is the only module that knows the inside of `loaders`.
"""

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.harness.batches import endless
from benchmarks.harness.loader_internals import refuse_unreadable, with_cached_pixels
from benchmarks.harness.measure import Batches, Candidate
from benchmarks.suites.candidates import Task, prefetched_batches
from benchmarks.suites.rows import PARTS
from loaders import LoaderConfig, PlanSpec, ResizeCenterCrop, Source, build_loader
from loaders.backends.executor import Backend, BatchRequest
from loaders.backends.staging import gather, stage_reads
from loaders.backends.threads import SquareReader, ThreadedExecutor
from loaders.backends.torchvision import Box, ImageReader, LoadBox, load_box
from loaders.cache.build import build_cache
from loaders.cache.pixel_cache import Layout, Preprocessing
from loaders.factory import assemble
from loaders.ops.decode import load_pixels
from loaders.system.machine import cache_folder

GATHER = "gather whole kept images for a GPU, one thread"  # a row's name, which scripts read

_BUILT = 2048  # images of a cache, built again and again: of 512, opening, locking and fsync took a third of the time
_IN_MEMORY = 256  # images that resizing alone goes through: more than a cache holds, few enough to decode beforehand


def part_candidates(task: Task) -> list[Candidate]:
    """What no loader that does this work on the CPU's cores, or by way of them, can exceed."""
    threads = "1 thread" if task.workers == 1 else f"{task.workers} threads"
    encoded = task.source.images.encoded is not None
    candidates: list[Candidate] = []
    if encoded:
        candidates.append(_by_threads(f"decode only, {threads}", task, partial(_decode_only, task.source)))
    candidates += [
        _by_threads(f"resize only, {threads}", task, partial(_resize_only, task.source)),
        Candidate(PARTS, _copy_name(task), lambda: _copies(task)),
    ]
    if encoded:
        candidates += [
            _by_threads(f"decode whole images, {threads}", task, partial(_decode_whole, task.source)),
            Candidate(PARTS, f"build the pixel cache, {threads}", lambda: _builds(task), before=_empty_bin),
            Candidate(PARTS, GATHER, lambda: _gathers(task, random=True)),
            Candidate(PARTS, "copy as many bytes as lie there, one thread", lambda: _gathers(task, random=False)),
        ]
    return candidates


def _by_threads(name: str, task: Task, make_reader: Callable[[], SquareReader]) -> Candidate:
    """A candidate that is the loader `torchvision` with another reader."""
    config = _config(task)

    def batches() -> Batches:
        reader = make_reader()
        backend = Backend("torchvision", name, lambda _, config: ThreadedExecutor(config, reader))
        return endless(assemble(reader.source, config, backend))

    return Candidate(PARTS, name, batches, prefetched_batches("torchvision", replace(task, device=config.device)))


def _config(task: Task) -> LoaderConfig:
    """The configuration on the CPU, whatever the device: these parts are the host's."""
    return replace(task.config(torch.uint8), device=torch.device("cpu"))


class _PixelsOnly:
    """Decodes samples and reads nothing of them: its squares hold anything."""

    def __init__(self, source: Source, load: LoadBox) -> None:
        self.source = source
        self._load = load

    def read(self, request: BatchRequest, squares: Tensor, *, flips: bool) -> Mapping[int, str]:  # noqa: ARG002
        plan = request.plan
        for index, box, resized in zip(request.ids.tolist(), plan.box.tolist(), plan.resized.tolist(), strict=True):
            self._load(index, box, resized)
        return {}


def _decode_only(source: Source) -> SquareReader:
    """Of a JPEG, no row is decoded that lies below the crop."""
    return _PixelsOnly(source, load_box(source))


def _decode_whole(source: Source) -> SquareReader:
    """All rows of an image are decoded, as building the pixel cache has to."""

    def load(index: int, box: Box, _: list[int]) -> tuple[NDArray[np.uint8], Box]:
        return load_pixels(source.images, index), box

    return _PixelsOnly(source, load)


def _resize_only(source: Source) -> SquareReader:
    """A few images, over and over, which are decoded beforehand."""
    few = _few(source)
    pixels = [load_pixels(few.images, index) for index in range(min(_IN_MEMORY, len(few)))]

    def load(index: int, box: Box, _: list[int]) -> tuple[NDArray[np.uint8], Box]:
        return pixels[index % len(pixels)], box

    return ImageReader(few, load)


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
            build_cache(few, layout.preprocessing, report=refuse_unreadable, workers=task.workers)
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
    decoded = source.images.decoded
    assert decoded is not None
    flat, starts = decoded.flat()
    out = np.empty(int(np.sort(np.diff(starts, append=len(flat)))[-task.batch_size :].sum()) + 3 * 10**7, np.uint8)
    labels, at = torch.zeros(task.batch_size, dtype=torch.int64), 0
    for epoch in count():
        loader.set_epoch(epoch)
        for request in loader.requests():
            ids = request.ids
            reads = stage_reads(request.plan, starts[ids], source.stored_sizes[ids])
            if random:
                gather(flat, reads, slice(0, len(ids)), out)
            else:
                at = at if at + reads.bytes <= len(flat) else 0
                out[: reads.bytes] = flat[at : at + reads.bytes]
                at += reads.bytes
            yield torch.empty(0), labels
