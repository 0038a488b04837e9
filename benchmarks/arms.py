"""What is measured: the ordinary loader as it is and tuned, and every loader of ours that can be used here."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from benchmarks.measure import Candidate, times_as_fast
from loaders import InputError, LoaderConfig, PlanSpec, RandomResizedCrop, Source, available_loaders, build_loader
from loaders.backends.baseline import PillowDataset, staged_transforms
from loaders.backends.host import batches_ahead
from loaders.backends.streamed import SLOTS, StreamedLoader
from loaders.loader import Loader
from loaders.ops.reference import IMAGENET_MEAN, IMAGENET_STD
from loaders.sources import ImageFiles, PixelArray
from loaders.system.machine import SHARED_MEMORY, free_on_disk

UINT8 = "uint8 batches, normalising left to the device"
FINISHED = "finished batches"
CACHED = "; pixels decoded beforehand"
"""Added to the name of a group where others decode in every epoch."""
KEEPING_PIXELS = frozenset({"resident", "streamed"})
BASELINE = "baseline: PIL, DataLoader, no workers"
UINT8_BASELINE = "PIL, no workers, uint8"
TUNED, UINT8_TUNED = "tuned baseline: the same, ", "PIL, uint8, "
"""How the names of these begin; how many workers follows."""
_ALIVE = 3
"""DataLoaders with the most workers that shared memory has room for at a time: what `tuning` tries comes to less."""

Batches = Iterator[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Task:
    """What all arms are given: random resized crop and flip."""

    source: Source
    size: int
    batch_size: int
    device: torch.device
    dtype: torch.dtype
    """Of finished batches."""
    workers: int

    @property
    def spec(self) -> PlanSpec:
        """What is done to each image."""
        return PlanSpec(RandomResizedCrop(self.size), horizontal_flip=0.5)

    def config(self, dtype: torch.dtype, *, scaled_decoding: bool = False) -> LoaderConfig:
        """For a loader of ours, with batches of `dtype`."""
        return LoaderConfig(
            spec=self.spec,
            training=True,
            batch_size=self.batch_size,
            device=self.device,
            dtype=dtype,
            workers=self.workers,
            scaled_decoding=scaled_decoding,
        )


def long_epochs(source: Source, images: int) -> Source:
    """The good images of `source`, repeated until there are so many: short epochs would measure their beginnings."""
    good = np.setdiff1d(np.arange(len(source)), list(source.bad))
    return source.select(np.resize(good, max(images, len(good))))


def once(source: Source) -> tuple[Source, NDArray[np.int64]]:
    """The images that `source` repeats, each once, and which of them its samples are."""
    ids = np.arange(len(source)) if source.selected_from is None else source.selected_from[1]
    _, firsts, places = np.unique(ids, return_index=True, return_inverse=True)
    return source.select(firsts), places


def ours(task: Task) -> list[Candidate]:
    """Every loader that can be used here, but for the baseline, with uint8 and with finished batches."""
    decoding = not isinstance(task.source.images, PixelArray)

    def arm(group: str, title: str, name: str, dtype: torch.dtype, *, scaled: bool = False) -> Candidate:
        group += CACHED if decoding and name in KEEPING_PIXELS else ""
        return Candidate(
            group, title, lambda: endless(_loader(task, name, dtype, scaled=scaled)), lying_ready(name, task)
        )

    found = []
    refused = refusals(task)
    for name in available_loaders():
        if name != "baseline" and name not in refused:
            found += [arm(UINT8, f"{name}, uint8", name, torch.uint8), arm(FINISHED, name, name, task.dtype)]
    if decoding:
        found.append(arm(UINT8, "torchvision, uint8, scaled decoding", "torchvision", torch.uint8, scaled=True))
    return found


def refusals(task: Task) -> dict[str, str]:
    """Loaders that can be used here, but not for this task, and why: a set that does not fit, for one."""
    found = {}
    for name in available_loaders():
        try:
            _loader(task, name, torch.uint8 if name != "baseline" else torch.float32)
        except InputError as error:
            found[name] = str(error)
    if "baseline" in found:  # with which all are compared
        raise InputError(found["baseline"])
    return found


def ordinary(task: Task, tuned: int) -> list[Candidate]:
    """The loader people have today, without workers and with as many as serve it best here (`tuned`)."""
    return [
        Candidate(FINISHED, BASELINE, lambda: endless(_loader(task, "baseline", torch.float32))),
        Candidate(UINT8, UINT8_BASELINE, lambda: repeated(task, _pillow(task, finished=False), 0)),
        _pillow_workers(task, tuned),
        _pillow_workers(task, tuned, finished=False),
    ]


def compared(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows, each with how many times as fast it is as the ordinary loader that does the same work, as it is and
    tuned: null where none does, or where that one was not measured."""
    return [
        row
        | {
            "times_baseline": _against(row, rows, {FINISHED: BASELINE, UINT8: UINT8_BASELINE}),
            "times_tuned": _against(row, rows, {FINISHED: TUNED, UINT8: UINT8_TUNED}),
        }
        for row in rows
    ]


def _against(row: dict[str, Any], rows: list[dict[str, Any]], beginnings: dict[str, str]) -> float | None:
    beginning = beginnings.get(row["group"].removesuffix(CACHED))
    theirs = [other for other in rows if beginning is not None and other["name"].startswith(beginning)]
    return times_as_fast(row["windows"], theirs[0]["windows"]) if theirs else None


def tuning(task: Task) -> dict[int, Candidate]:
    """The ordinary loader with several numbers of workers, of which the best is the tuned baseline."""
    cores, most = task.workers, most_workers(task, torch.float32)
    counts = {min(count, most) for count in (1, max(1, cores // 2), cores, 2 * cores)}
    return {count: _pillow_workers(task, count) for count in sorted(counts)}


def most_workers(task: Task, dtype: torch.dtype) -> int:
    """For how many workers of a DataLoader shared memory has room: it is where their batches of `dtype` lie ready.

    Where it is full a worker dies; containers often have 64 MB of it, which may not do for one.
    """
    batch = task.batch_size * 3 * task.size**2 * dtype.itemsize
    return free_on_disk(SHARED_MEMORY) // (_ALIVE * ready(1) * batch)


def _pillow_workers(task: Task, workers: int, *, finished: bool = True) -> Candidate:
    group, beginning = (FINISHED, TUNED) if finished else (UINT8, UINT8_TUNED)
    name = f"{beginning}{workers} worker{'s' * (workers != 1)}"
    return Candidate(group, name, lambda: repeated(task, _pillow(task, finished=finished), workers), ready(workers))


def ready(workers: int) -> int:
    """Batches of a DataLoader that may lie ready: two a worker."""
    return 2 * workers


def lying_ready(name: str, task: Task) -> int:
    """Batches of a loader of ours that may lie ready: those it makes while nobody asks for them."""
    on_gpu = task.device.type == "cuda"
    if name == "baseline" or (name == "resident" and on_gpu):
        return 0
    if name == "streamed" and on_gpu:
        return SLOTS
    return batches_ahead(task.workers, task.batch_size)


def _loader(task: Task, name: str, dtype: torch.dtype, *, scaled: bool = False) -> Loader:
    return build_loader(task.source, task.config(dtype, scaled_decoding=scaled), loader=name)


def endless(loader: Loader) -> Batches:
    """Epoch after epoch of a loader, prepared beforehand."""
    made_ready(loader)
    for epoch in count():
        loader.set_epoch(epoch)
        yield from loader


def made_ready(loader: Loader) -> Loader:
    """The loader, prepared; where it keeps pixels, the set that its source repeats is decoded only once."""
    source, config = loader.source, loader.config
    if isinstance(loader, StreamedLoader) and isinstance(source.images, ImageFiles) and source.selected_from:
        whole, ids = source.selected_from
        if len(ids) > len(whole):
            build_loader(whole, replace(config, batch_size=1), loader=loader.name).prepare()
    loader.prepare()
    return loader


def _pillow(task: Task, *, finished: bool) -> Dataset[Any]:
    ending = [transforms.ToTensor(), transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
    staged = [*staged_transforms(task.spec), *(ending if finished else [transforms.PILToTensor()])]
    return PillowDataset(task.source, np.arange(len(task.source)), transforms.Compose(staged))


@contextmanager
def _more_workers_than_cores() -> Iterator[None]:
    """That these may be slow is known, and no warning is needed: it is what is tried."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        yield


def repeated(task: Task, dataset: Dataset[Any], workers: int) -> Batches:
    """Batches of a DataLoader, epoch after epoch, on the task's device; its processes stay."""
    with _more_workers_than_cores():
        loader = DataLoader(
            dataset,
            batch_size=task.batch_size,
            shuffle=True,
            num_workers=workers,
            persistent_workers=workers > 0,
            # Python 3.14 would pickle the dataset, pixels and all, for each worker; forked ones share its memory.
            multiprocessing_context="fork" if workers > 0 else None,
            drop_last=True,
            pin_memory=task.device.type == "cuda",
        )
    while True:
        with _more_workers_than_cores():
            epoch = iter(loader)
        for images, labels in epoch:
            yield images.to(task.device, non_blocking=True), labels.to(task.device, non_blocking=True)
