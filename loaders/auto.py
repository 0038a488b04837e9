"""The cost model behind `loader="auto"`: which loader serves a GPU best, and why."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from loaders.cache.pixel_cache import Preprocessing, find_cache
from loaders.sources.base import Source
from loaders.system.format import format_bytes, format_duration
from loaders.system.machine import cache_folder, free_memory, free_on_disk

RESIDENT_SHARE = 0.6
"""Share of the device's free memory that decoded images may take; the rest is for the model and its activations."""

PIXELS_PER_CORE = 150e6
"""Pixels a core decodes in a second, roughly: photographs of 0.19 megapixels (111 kB) took it 1.2 ms each."""


class Choice(NamedTuple):
    """A loader's name, and why it was chosen."""

    name: str
    reason: str
    from_cache: bool = False
    """Whether `resident` takes its images from a pixel cache, where they are smaller, instead of decoding files."""


@dataclass(frozen=True, kw_only=True)
class LoadEstimate:
    """What is to be loaded on a GPU, and the resources for it. All sources together; memory in bytes."""

    device: str
    images: int
    decoded: int
    """Bytes of all images, decoded."""
    cached: int
    """Bytes of all images in a pixel cache, where they are smaller."""
    in_memory: bool
    """Whether the pixels are in memory already, and nothing has to be decoded."""
    cache_exists: bool
    free_on_device: int
    free_on_disk: int
    free_in_memory: int
    cores: int
    epochs: int | None
    """How often each image will be needed; None where that is unknown: many times."""
    world_size: int = 1

    @classmethod
    def of(
        cls,
        sources: Sequence[Source],
        preprocessing: Preprocessing,
        *,
        device: torch.device,
        cores: int,
        epochs: int | None,
        world_size: int,
    ) -> "LoadEstimate":
        """The estimate for these sources on this machine."""
        files = [source for source in sources if source.images.encoded is not None]
        return cls(
            device=str(device),
            images=sum(map(len, sources)),
            decoded=sum(source.pixel_bytes for source in sources),
            cached=sum(preprocessing.cached_bytes(source.sizes) for source in sources),
            in_memory=not files,
            cache_exists=bool(files) and all(find_cache(source, preprocessing) is not None for source in files),
            free_on_device=free_memory(device),
            free_on_disk=free_on_disk(cache_folder()),
            free_in_memory=free_memory(torch.device("cpu")),
            cores=cores,
            epochs=epochs,
            world_size=world_size,
        )


def decide(estimate: LoadEstimate) -> Choice:
    """The loader that serves this best on a GPU.

    Decoding once pays where images are needed more than once: they are stored on the device where they fit, made
    smaller where only that fits, and in a file otherwise. What a pixel cache has already is not decoded again.
    """
    e = estimate
    room = RESIDENT_SHARE * e.free_on_device
    copies = f", each of {e.world_size} GPUs holds a copy" if e.world_size > 1 else ""
    size = f"auto: {e.images:,} images are {format_bytes(e.decoded)} decoded"
    fits = f"{size}, {e.device} has {format_bytes(e.free_on_device)} free"
    exceeds = f"{fits}, of which {RESIDENT_SHARE:.0%} may go to images"
    if e.in_memory:
        if e.decoded <= room:
            return Choice("resident", f"{fits}{copies}, and there is nothing to decode")
        return Choice("streamed", f"{exceeds}; they come from memory, and there is nothing to decode")
    if not e.cache_exists and e.epochs == 1:
        return Choice("torchvision", f"{fits}, but each is needed only once; {describe_threads(e.cores)}")
    once = _describe_decoding(e)
    if not e.cache_exists and e.decoded <= room:
        return Choice("resident", f"{fits}{copies}; {once}")
    smaller = f"{exceeds}; made smaller they are {format_bytes(e.cached)}"
    if not e.cache_exists and e.cached > e.free_on_disk:
        disk = f"the disk has {format_bytes(e.free_on_disk)} free"
        return Choice("torchvision", f"{smaller}, and {disk}; {describe_threads(e.cores)}")
    origin = "in the pixel cache already" if e.cache_exists else once
    if e.cached <= room:
        return Choice("resident", f"{smaller}{copies}; {origin}", from_cache=True)
    return Choice("streamed", f"{smaller}, {origin}; {_describe_disk(e)}")


def describe_threads(count: int) -> str:
    """What the threads of the `torchvision` loader do."""
    return f"{count} threads decode and resize" if count > 1 else "one thread decodes and resizes"


def _describe_decoding(e: LoadEstimate) -> str:
    """How long decoding once takes, and what it saves."""
    seconds = format_duration(e.decoded / 3 / PIXELS_PER_CORE / e.cores)
    often = f"{e.epochs} times" if e.epochs else "in every epoch"
    return f"decoded once, in about {seconds}, instead of {often}"


def _describe_disk(e: LoadEstimate) -> str:
    """What a pixel cache asks of the disk: nothing, where it stays in memory."""
    if e.cached <= e.free_in_memory:
        return f"they stay in memory, of which {format_bytes(e.free_in_memory)} are free"
    each = e.cached / e.images
    return (
        f"memory has {format_bytes(e.free_in_memory)} free, so that the disk limits: at {format_bytes(each)} an "
        f"image, {1e9 / each:,.0f} images/s for each GB/s it reads"
    )
