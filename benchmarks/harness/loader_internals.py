"""All that the benchmarks know of the inside of `loaders`, apart from `suites/loader_parts.py` and `suites/steps.py`.

Suites ask these questions by a loader's name, and need not know how it is built.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import transforms

from loaders import InputError, Loader, LoaderConfig, PlanSpec, Source, build_loader
from loaders.backends import BACKENDS
from loaders.backends.baseline import PillowDataset, staged_transforms
from loaders.backends.executor import BatchRequest
from loaders.backends.ffcv import FFCVExecutor
from loaders.backends.streamed import BUFFERS
from loaders.backends.threads import batches_ahead
from loaders.cache.build import with_pixel_cache
from loaders.cache.pixel_cache import Preprocessing
from loaders.factory import assemble
from loaders.ops.device_batch import finished_batch, fused_kernels
from loaders.ops.finish import finish
from loaders.sampling.plan import IMAGENET_MEAN, IMAGENET_STD
from loaders.system.machine import usable_cores

CACHING_LOADERS = frozenset({"resident", "streamed"})
"""Loaders that decode each image once."""


# --- sources ---------------------------------------------------------------------------------------


def with_cached_pixels(source: Source) -> Source:
    """The same samples from a pixel cache: of the set that `source` repeats, decoded once."""
    whole = source if source.selected_from is None else source.selected_from[0]
    with_pixel_cache(whole, Preprocessing(), report=refuse_unreadable)
    return with_pixel_cache(source, Preprocessing(), report=refuse_unreadable)


def refuse_unreadable(index: int, reason: str) -> None:
    """Raises InputError: a suite measures good images only."""
    raise InputError(f"image {index} became unreadable while it was measured: {reason}")


# --- loaders ---------------------------------------------------------------------------------------


def prefetched_batches(name: str, config: LoaderConfig) -> int:
    """Batches of a loader that may lie ready: those it makes while nobody asks for them.

    Args:
        name: the loader's.
        config: its configuration.
    """
    on_gpu = config.device.type == "cuda"
    if name == "baseline" or (name == "resident" and on_gpu):
        return 0
    if name == "streamed" and on_gpu:
        return BUFFERS
    return batches_ahead(config.workers or usable_cores(), config.batch_size)


def workers_of(loader: Loader) -> int:
    """Threads, or processes, of a loader; the baseline has none of its own."""
    return 1 if loader.name == "baseline" else loader.config.workers or usable_cores()


def prepare(loader: Loader) -> Loader:
    """Prepares a loader and returns it; where it caches pixels, the set that its source repeats is decoded once."""
    source, config = loader.source, loader.config
    if loader.name == "streamed" and source.images.encoded is not None and source.selected_from:
        whole, ids = source.selected_from
        if len(ids) > len(whole):
            build_loader(whole, replace(config, batch_size=1), loader=loader.name).prepare()
    loader.prepare()
    return loader


def ffcv_with_own_resampling(source: Source, config: LoaderConfig) -> Loader:
    """The loader `ffcv` with FFCV's resampling instead of ours."""
    return assemble(source, config, replace(BACKENDS["ffcv"], build=partial(FFCVExecutor, resampling="area")))


def pillow_dataset(source: Source, spec: PlanSpec, *, finished: bool) -> Dataset[Any]:
    """The images of the loader `baseline`, `[3, S, S]`: normalized float32 where they are `finished`, else uint8."""
    ending = [transforms.ToTensor(), transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
    staged = [*staged_transforms(spec), *(ending if finished else [transforms.PILToTensor()])]
    return PillowDataset(source, np.arange(len(source)), transforms.Compose(staged))


# --- augmentation on the device --------------------------------------------------------------------


def augment_images(loader: Loader, request: BatchRequest) -> Callable[[], Tensor]:
    """Executes all of a request's plan on the device, for black images of the sizes that its samples have.

    Returns:
        What makes a finished batch `[B, 3, S, S]` each time it is called.
    """
    config, sizes = loader.config, loader.source.stored_sizes[request.ids].astype(np.int64)
    starts = np.concatenate([[0], np.cumsum(sizes.prod(axis=1))])
    pixels = torch.zeros((int(starts[-1]), 3), dtype=torch.uint8, device=config.device)
    return partial(
        finished_batch,
        pixels,
        starts[:-1],
        sizes[:, 1],
        request.plan,
        mean=config.mean,
        std=config.std,
        dtype=config.dtype,
        kernels=fused_kernels(config.device),
    )


def augment_squares(loader: Loader, request: BatchRequest) -> Callable[[], Tensor]:
    """Executes what a request's plan has after the first read, for black squares; see `augment_images`."""
    config, side = loader.config, request.plan.read_size
    squares = torch.zeros((config.batch_size, side, side, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    return partial(finish, squares, request.plan, mean=config.mean, std=config.std, dtype=config.dtype)
