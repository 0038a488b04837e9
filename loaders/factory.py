"""Which loader to use: by name, or by arithmetic that is told."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from loaders.auto import Choice, LoadEstimate, decide, describe_threads
from loaders.backends import BACKENDS
from loaders.backends.host import HostLoader
from loaders.backends.resident import ResidentLoader
from loaders.cache.pixel_cache import Preprocessing, find_cache
from loaders.errors import InputError
from loaders.loader import Loader, LoaderConfig
from loaders.sources.base import ImageFiles, Source
from loaders.system.format import format_bytes
from loaders.system.machine import cache_folder, free_memory, free_on_disk, usable_cores


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
        epochs: how often each image will be wanted; many times, unless given.
        workers: threads that decode; all usable cores, unless given.
        cache_size, scaled_decoding: of kept pixels: see `LoaderConfig`.

    Raises:
        InputError: when there is no such loader, or it cannot be used here; the message says what would help.
    """
    if loader != "auto":
        if loader not in BACKENDS:
            raise InputError(f"LOADER={loader}: there are auto, {', '.join(BACKENDS)}")
        if (missing := BACKENDS[loader].missing()) is not None:
            raise InputError(f"LOADER={loader} cannot be used here: {missing}")
        copies = f"; each of {world_size} ranks keeps {format_bytes(sum(source.pixel_bytes for source in sources))}"
        return Choice(loader, "as asked" + (copies if loader == ResidentLoader.name and world_size > 1 else ""))
    cores = workers or usable_cores()
    if device.type != "cuda":
        return Choice(HostLoader.name, f"auto: there is no GPU to keep images on; {describe_threads(cores)}")
    return decide(_situation(sources, Preprocessing(cache_size, scaled_decoding), device, cores, epochs, world_size))


def _situation(
    sources: Sequence[Source],
    preprocessing: Preprocessing,
    device: torch.device,
    cores: int,
    epochs: int | None,
    world_size: int,
) -> LoadEstimate:
    files = [source for source in sources if isinstance(source.images, ImageFiles)]
    return LoadEstimate(
        device=str(device),
        images=sum(map(len, sources)),
        decoded=sum(source.pixel_bytes for source in sources),
        kept=sum(preprocessing.cached_bytes(source.sizes) for source in sources),
        in_memory=not files,
        cached=bool(files) and all(find_cache(source, preprocessing) is not None for source in files),
        free_on_device=free_memory(device),
        free_on_disk=free_on_disk(cache_folder()),
        free_in_memory=free_memory(torch.device("cpu")),
        cores=cores,
        epochs=epochs,
        world_size=world_size,
    )


def build_loader(source: Source, config: LoaderConfig, *, loader: str = "auto") -> Loader:
    """A loader of `source`, by name or the best there is for it.

    Raises:
        InputError: when there is no such loader, or it cannot serve this source as configured.
    """
    choice = choose_loader(
        loader,
        [source],
        device=config.device,
        workers=config.workers,
        world_size=config.world_size,
        cache_size=config.cache_size,
        scaled_decoding=config.scaled_decoding,
    )
    return BACKENDS[choice.name](source, replace(config, from_cache=config.from_cache or choice.from_cache))
