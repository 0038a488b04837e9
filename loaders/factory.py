"""Chooses a backend and assembles a loader from its parts."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from loaders.auto import Choice, LoadEstimate, decide, describe_threads
from loaders.backends import BACKENDS
from loaders.backends.executor import Backend
from loaders.backends.resident import ResidentExecutor
from loaders.bad_images import BadImages
from loaders.cache.pixel_cache import Preprocessing
from loaders.config import LoaderConfig
from loaders.errors import InputError
from loaders.loader import Loader
from loaders.sampling.cursor import Cursor
from loaders.sampling.planner import Planner
from loaders.sources.base import Source
from loaders.system.format import format_bytes
from loaders.system.machine import usable_cores


def available_loaders() -> list[str]:
    """Names of the loaders that can be used on this machine."""
    return [name for name, backend in BACKENDS.items() if backend.missing() is None]


def choose_loader(
    loader: str,
    sources: Sequence[Source],
    *,
    device: torch.device,
    epochs: int | None = None,
    workers: int | None = None,
    world_size: int = 1,
    cache_size: int = 256,
    scaled_decoding: bool = False,
) -> Choice:
    """The loader that a name, or "auto", stands for.

    Args:
        sources: all that will be loaded from at the same time: for training, for validation.
        epochs: how often each image will be needed; many times if it is None.
        workers: threads that decode; all usable cores if it is None.
        cache_size, scaled_decoding: properties of a pixel cache; see `LoaderConfig`.

    Raises:
        InputError: when there is no such loader, or it cannot be used here; the message names the remedy.
    """
    if loader != "auto":
        if loader not in BACKENDS:
            raise InputError(f"`loader={loader}`: there are auto, {', '.join(BACKENDS)}")
        if (missing := BACKENDS[loader].missing()) is not None:
            raise InputError(f"`loader={loader}` cannot be used here: {missing}")
        reason = "chosen by name"
        if loader == "resident" and world_size > 1:
            size = format_bytes(sum(source.pixel_bytes for source in sources))
            reason += f"; each of {world_size} ranks holds {size}"
        return Choice(loader, reason)
    cores = workers or usable_cores()
    if device.type != "cuda":
        return Choice("torchvision", f"auto: there is no GPU to store images on; {describe_threads(cores)}")
    preprocessing = Preprocessing(cache_size, scaled_decoding)
    return decide(
        LoadEstimate.of(sources, preprocessing, device=device, cores=cores, epochs=epochs, world_size=world_size)
    )


def build_loader(source: Source, config: LoaderConfig, *, loader: str | Choice = "auto") -> Loader:
    """A loader of `source`: by name, the best there is for it, or one that `choose_loader` has chosen.

    Raises:
        BadImageError: when images cannot be decoded and the configuration does not skip them.
        InputError: when there is no such loader, or it cannot serve this source as configured.
    """
    choice = loader if isinstance(loader, Choice) else _chosen(loader, source, config)
    backend = BACKENDS[choice.name]
    if choice.from_cache:
        backend = replace(backend, build=partial(ResidentExecutor, from_cache=True))
    return assemble(source, config, backend)


def assemble(source: Source, config: LoaderConfig, backend: Backend) -> Loader:
    """A loader of `source` by a backend, which need not be one of `BACKENDS`. Raises as `build_loader` does."""
    bad_images = BadImages(source, config.on_bad_image)
    cursor = Cursor(
        np.setdiff1d(np.arange(len(source)), np.array(list(source.bad), np.int64)),
        batch_size=config.batch_size,
        shuffle=config.training and backend.follows_plans,
        # The baseline's last batch is smaller instead of padded, in training too.
        last="drop" if config.training and backend.follows_plans else "pad",
        seed=config.seed,
        rank=config.rank,
        world_size=config.world_size,
    )
    _require_batches(source, config, cursor)
    return Loader(
        source,
        config,
        backend=backend,
        cursor=cursor,
        planner=Planner(config.spec, source.sizes, seed=config.seed, views=config.views),
        bad_images=bad_images,
        executor=backend.build(source, config),
    )


def _chosen(loader: str, source: Source, config: LoaderConfig) -> Choice:
    return choose_loader(
        loader,
        [source],
        device=config.device,
        workers=config.workers,
        world_size=config.world_size,
        cache_size=config.cache_size,
        scaled_decoding=config.scaled_decoding,
    )


def _require_batches(source: Source, config: LoaderConfig, cursor: Cursor) -> None:
    """Raises InputError where there are fewer samples than one batch takes."""
    if not len(cursor.ids):
        purpose = "train" if config.training else "evaluate"
        raise InputError(f"{source.name}: no images are left to {purpose} on")
    if not len(cursor):
        raise InputError(
            f"{source.name}: {len(cursor.ids)} images are fewer than one batch of "
            f"{config.batch_size} × {config.world_size}: choose a smaller `batch_size`"
        )
