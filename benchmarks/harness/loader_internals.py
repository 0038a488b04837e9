"""All that the benchmarks know of the inside of `loaders`, apart from `suites/loader_parts.py` and `suites/steps.py`.

Suites ask these questions by a loader's name, and need not know its class.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import transforms

from loaders import InputError, Loader, LoaderConfig, PlanSpec, Source, build_loader
from loaders.backends.baseline import PillowDataset, staged_transforms
from loaders.backends.ffcv import FFCVLoader
from loaders.backends.host import batches_ahead
from loaders.backends.streamed import SLOTS
from loaders.cache.build import with_pixel_cache
from loaders.cache.pixel_cache import Preprocessing
from loaders.ops import reference
from loaders.ops.decode import load_pixels
from loaders.ops.device_batch import finished_batch, fused_kernels
from loaders.ops.reference import IMAGENET_MEAN, IMAGENET_STD
from loaders.sampling.plan import Plan
from loaders.sources import ImageFiles, PixelArray
from loaders.sources.base import CachedPixels

CACHING_LOADERS = frozenset({"resident", "streamed"})
"""Loaders that decode each image once."""

# --- sources ---------------------------------------------------------------------------------------


def is_encoded(source: Source) -> bool:
    """Whether images have to be decoded: those of a folder, not those of CIFAR-10."""
    return not isinstance(source.images, PixelArray)


def image_files(source: Source) -> ImageFiles | None:
    """The files of a source that consists of files."""
    return source.images if isinstance(source.images, ImageFiles) else None


def decoded_pixels(source: Source, index: int) -> NDArray[np.uint8]:
    """One image, `[H, W, 3]`."""
    return load_pixels(source.images, index)


def pixels_in_memory(source: Source) -> NDArray[np.uint8]:
    """The images `[N, H, W, 3]` of a source that has them all in memory."""
    assert isinstance(source.images, PixelArray)
    return source.images.pixels


def cached_pixels_of(source: Source) -> CachedPixels:
    """The pixel cache of a source that `with_cached_pixels` returned."""
    assert isinstance(source.images, CachedPixels)
    return source.images


def with_cached_pixels(source: Source) -> Source:
    """The same samples from a pixel cache: of the set that `source` repeats, decoded once."""
    whole = source if source.selected_from is None else source.selected_from[0]
    with_pixel_cache(whole, Preprocessing(), report_bad=refuse_bad)
    return with_pixel_cache(source, Preprocessing(), report_bad=refuse_bad)


def refuse_bad(index: int, reason: str) -> None:
    """Raises InputError: a suite measures good images only."""
    raise InputError(f"image {index} became unreadable while it was measured: {reason}")


def files_of(source: Source, mapped: Callable[[int], list[Path]]) -> list[Path]:
    """The files that a source's images lie in; none where they are in memory.

    Args:
        mapped: the files that this process has mapped at an address.
    """
    images = source.images
    if isinstance(images, ImageFiles):
        return [Path(path) for path in dict.fromkeys(images.describe(index) for index in range(len(source)))]
    return mapped(images.pixels.ctypes.data) if isinstance(images, CachedPixels) else []


# --- loaders ---------------------------------------------------------------------------------------


def prefetched_batches(name: str, config: LoaderConfig) -> int:
    """Batches of a loader that may lie ready: those it makes while nobody asks for them.

    Args:
        name: the loader's.
        config: its configuration, with `workers` set.
    """
    assert config.workers is not None
    on_gpu = config.device.type == "cuda"
    if name == "baseline" or (name == "resident" and on_gpu):
        return 0
    if name == "streamed" and on_gpu:
        return SLOTS
    return batches_ahead(config.workers, config.batch_size)


def workers_of(loader: Loader) -> int:
    """Threads, or processes, of a loader; 1 where it has none of its own."""
    return getattr(loader, "workers", 1)


def prepare(loader: Loader) -> Loader:
    """Prepares a loader and returns it; where it caches pixels, the set that its source repeats is decoded once."""
    source, config = loader.source, loader.config
    if loader.name == "streamed" and image_files(source) is not None and source.selected_from:
        whole, ids = source.selected_from
        if len(ids) > len(whole):
            build_loader(whole, replace(config, batch_size=1), loader=loader.name).prepare()
    loader.prepare()
    return loader


def file_of_ffcv(loader: Loader) -> Path:
    """The file that a prepared loader `ffcv` reads."""
    assert isinstance(loader, FFCVLoader)
    return loader.path


def ffcv_with_own_resampling(source: Source, config: LoaderConfig) -> Loader:
    """The loader `ffcv` with FFCV's resampling instead of ours."""
    return FFCVLoader(source, config, resampling="area")


def pillow_dataset(source: Source, spec: PlanSpec, *, finished: bool) -> Dataset[Any]:
    """The images of the loader `baseline`, `[3, S, S]`: normalized float32 where they are `finished`, else uint8."""
    ending = [transforms.ToTensor(), transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
    staged = [*staged_transforms(spec), *(ending if finished else [transforms.PILToTensor()])]
    return PillowDataset(source, np.arange(len(source)), transforms.Compose(staged))


# --- augmentation on the device --------------------------------------------------------------------


def augment_images(loader: Loader, ids: NDArray[np.int64], plan: Plan) -> Callable[[], Tensor]:
    """Carries out all of a plan on the device, for black images of the sizes that `ids` have.

    Returns:
        What makes a finished batch `[B, 3, S, S]` each time it is called.
    """
    config, sizes = loader.config, loader.source.stored_sizes[ids].astype(np.int64)
    places = np.concatenate([[0], np.cumsum(sizes.prod(axis=1))])
    pixels = torch.zeros((int(places[-1]), 3), dtype=torch.uint8, device=config.device)
    kernels = fused_kernels(config.device)
    return lambda: finished_batch(
        pixels, places[:-1], sizes[:, 1], plan, mean=config.mean, std=config.std, dtype=config.dtype, kernels=kernels
    )


def augment_squares(loader: Loader, plan: Plan) -> Callable[[], Tensor]:
    """Carries out what a plan has after the first read, for black squares; see `augment_images`."""
    config, side = loader.config, plan.read_size
    squares = torch.zeros((config.batch_size, side, side, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    return lambda: reference.finish(squares, plan, mean=config.mean, std=config.std, dtype=config.dtype)
