"""Which loader to use: by name, or by arithmetic that is told."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from loaders.backends import BACKENDS
from loaders.backends.host import HostLoader
from loaders.backends.resident import ResidentLoader
from loaders.errors import InputError
from loaders.loader import Loader, LoaderConfig
from loaders.machine import free_memory, told_bytes, usable_cores
from loaders.sources.base import PixelArray, Source

RESIDENT_SHARE = 0.6
"""Of the device's free memory that decoded images may take; the rest is for the model and its activations."""

PIXELS_PER_CORE = 150e6
"""Pixels a core decodes in a second, roughly: photographs of 0.19 megapixels (111 kB) took it 1.2 ms each."""


class Choice(NamedTuple):
    """A loader's name, and why it was chosen."""

    name: str
    reason: str


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
) -> Choice:
    """The loader that a name, or "auto", stands for.

    Args:
        sources: all that will be loaded from at the same time: for training, for validation.
        epochs: how often each image will be wanted; many times, unless given.
        workers: threads that decode; all usable cores, unless given.

    Raises:
        InputError: when there is no such loader, or it cannot be used here; the message says what would help.
    """
    if loader != "auto":
        if loader not in BACKENDS:
            raise InputError(f"LOADER={loader}: there are auto, {', '.join(BACKENDS)}")
        if (missing := BACKENDS[loader].missing()) is not None:
            raise InputError(f"LOADER={loader} cannot be used here: {missing}")
        copies = f"; each of {world_size} ranks keeps {told_bytes(sum(source.pixel_bytes for source in sources))}"
        return Choice(loader, "as asked" + (copies if loader == ResidentLoader.name and world_size > 1 else ""))
    cores = workers or usable_cores()
    threads = f"{cores} threads decode and resize" if cores > 1 else "one thread decodes and resizes"
    if device.type != "cuda":
        return Choice(HostLoader.name, f"auto: there is no GPU to keep images on; {threads}")
    needed, free = sum(source.pixel_bytes for source in sources), free_memory(device)
    images = sum(map(len, sources))
    told = f"{images:,} images are {told_bytes(needed)} decoded, {device} has {told_bytes(free)} free"
    if world_size > 1:
        told += f", each of {world_size} GPUs keeps a copy"
    if needed > RESIDENT_SHARE * free:
        return Choice(HostLoader.name, f"auto: {told}, of which {RESIDENT_SHARE:.0%} may go to images; {threads}")
    if all(isinstance(source.images, PixelArray) for source in sources):
        return Choice(ResidentLoader.name, f"auto: {told}, and there is nothing to decode")
    seconds = needed / 3 / PIXELS_PER_CORE / cores
    if epochs == 1:
        return Choice(HostLoader.name, f"auto: {told}, but each is wanted only once; {threads}")
    saved = f"{epochs} times" if epochs else "in every epoch"
    return Choice(ResidentLoader.name, f"auto: {told}; decoded once, in about {seconds:.0f} s, instead of {saved}")


def build_loader(source: Source, config: LoaderConfig, *, loader: str = "auto") -> Loader:
    """A loader of `source`, by name or the best there is for it.

    Raises:
        InputError: when there is no such loader, or it cannot serve this source as configured.
    """
    choice = choose_loader(loader, [source], device=config.device, workers=config.workers, world_size=config.world_size)
    return BACKENDS[choice.name](source, config)
