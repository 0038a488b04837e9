"""Candidates of `loaders`: the ordinary loader as it is and tuned, and every loader of ours that is usable here."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from benchmarks.harness import loader_internals
from benchmarks.harness.batches import endless
from benchmarks.harness.loader_internals import CACHING_LOADERS, pillow_dataset
from benchmarks.harness.measure import Batches, Candidate
from benchmarks.suites.rows import (
    BASELINE,
    CACHED,
    FINISHED,
    TUNED,
    UINT8,
    UINT8_BASELINE,
    UINT8_TUNED,
)
from loaders import InputError, LoaderConfig, PlanSpec, RandomResizedCrop, Source, available_loaders, build_loader
from loaders.errors import name_options
from loaders.loader import Loader
from loaders.system.machine import SHARED_MEMORY, free_on_disk
from train.options import OPTION_NAMES

_DATALOADERS_ALIVE = 3
"""DataLoaders with the most workers that shared memory has room for at a time: those of `tuning_candidates` together
have fewer workers."""


@dataclass(frozen=True)
class Task:
    """What all candidates are given: random resized crop and flip."""

    source: Source
    size: int
    """Side of the images in pixels."""
    batch_size: int
    device: torch.device
    dtype: torch.dtype
    """Of finished batches."""
    workers: int
    """Threads or processes."""

    @property
    def spec(self) -> PlanSpec:
        """What is done to each image."""
        return PlanSpec(RandomResizedCrop(self.size), horizontal_flip=0.5)

    def config(self, dtype: torch.dtype, *, scaled_decoding: bool = False) -> LoaderConfig:
        """The configuration of a loader of ours, with batches of `dtype`."""
        return LoaderConfig(
            spec=self.spec,
            training=True,
            batch_size=self.batch_size,
            device=self.device,
            dtype=dtype,
            workers=self.workers,
            scaled_decoding=scaled_decoding,
        )


def project_candidates(task: Task) -> list[Candidate]:
    """Every loader of this project that is usable here, but for the baseline, with uint8 and with finished batches."""
    encoded = task.source.images.encoded is not None

    def candidate(group: str, title: str, name: str, dtype: torch.dtype, *, scaled: bool = False) -> Candidate:
        if encoded and name in CACHING_LOADERS:
            group += CACHED
        return Candidate(
            group, title, lambda: endless(_loader(task, name, dtype, scaled=scaled)), prefetched_batches(name, task)
        )

    candidates = []
    refused = refusals(task)
    for name in available_loaders():
        if name != "baseline" and name not in refused:
            candidates.append(candidate(UINT8, f"{name}, uint8", name, torch.uint8))
            candidates.append(candidate(FINISHED, name, name, task.dtype))
    if encoded:
        title = "torchvision, uint8, scaled decoding"
        candidates.append(candidate(UINT8, title, "torchvision", torch.uint8, scaled=True))
    return candidates


def refusals(task: Task) -> dict[str, str]:
    """Loaders that are usable here, but not for this task, with the reason: a set that does not fit, for one."""
    refused = {}
    for name in available_loaders():
        try:
            _loader(task, name, torch.uint8 if name != "baseline" else torch.float32)
        except InputError as error:
            refused[name] = name_options(" ".join(error.lines), OPTION_NAMES)
    if "baseline" in refused:  # with which all are compared
        raise InputError(refused["baseline"])
    return refused


def ordinary_candidates(task: Task, tuned_workers: int) -> list[Candidate]:
    """The loader people have today, without workers and with as many as serve it best here."""
    return [
        Candidate(FINISHED, BASELINE, lambda: endless(_loader(task, "baseline", torch.float32))),
        Candidate(UINT8, UINT8_BASELINE, lambda: dataloader_batches(task, _pillow(task, finished=False), 0)),
        _with_workers(task, tuned_workers),
        _with_workers(task, tuned_workers, finished=False),
    ]


def tuning_candidates(task: Task) -> dict[int, Candidate]:
    """The ordinary loader with several numbers of workers, of which the best is the tuned baseline."""
    cores, most = task.workers, most_workers(task, torch.float32)
    counts = {min(count, most) for count in (1, max(1, cores // 2), cores, 2 * cores)}
    return {count: _with_workers(task, count) for count in sorted(counts)}


def most_workers(task: Task, dtype: torch.dtype) -> int:
    """For how many workers of a DataLoader shared memory has room: it is where their batches of `dtype` lie ready.

    Where it is full a worker dies; containers often have 64 MB of it, which may not do for one.
    """
    batch = task.batch_size * 3 * task.size**2 * dtype.itemsize
    return free_on_disk(SHARED_MEMORY) // (_DATALOADERS_ALIVE * dataloader_prefetch(1) * batch)


def _with_workers(task: Task, workers: int, *, finished: bool = True) -> Candidate:
    group, beginning = (FINISHED, TUNED) if finished else (UINT8, UINT8_TUNED)
    name = f"{beginning}{workers} worker" if workers == 1 else f"{beginning}{workers} workers"
    return Candidate(
        group,
        name,
        lambda: dataloader_batches(task, _pillow(task, finished=finished), workers),
        dataloader_prefetch(workers),
    )


def dataloader_prefetch(workers: int) -> int:
    """Batches of a DataLoader that may lie ready: two a worker."""
    return 2 * workers


def prefetched_batches(name: str, task: Task) -> int:
    """Batches of a loader of ours that may lie ready: those it makes while nobody asks for them."""
    return loader_internals.prefetched_batches(name, task.config(torch.uint8))


def _loader(task: Task, name: str, dtype: torch.dtype, *, scaled: bool = False) -> Loader:
    return build_loader(task.source, task.config(dtype, scaled_decoding=scaled), loader=name)


def _pillow(task: Task, *, finished: bool) -> Dataset[Any]:
    return pillow_dataset(task.source, task.spec, finished=finished)


@contextmanager
def _more_workers_than_cores() -> Iterator[None]:
    """Hides torch's warning that these may be slow: whether they are is what is measured."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        yield


def dataloader_batches(task: Task, dataset: Dataset[Any], workers: int) -> Batches:
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
