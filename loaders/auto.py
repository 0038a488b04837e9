"""The arithmetic by which "auto" decides between loaders, told to the user."""

from dataclasses import dataclass
from typing import NamedTuple

from loaders.system.format import format_bytes, format_duration

RESIDENT_SHARE = 0.6
"""Of the device's free memory that decoded images may take; the rest is for the model and its activations."""

PIXELS_PER_CORE = 150e6
"""Pixels a core decodes in a second, roughly: photographs of 0.19 megapixels (111 kB) took it 1.2 ms each."""


class Choice(NamedTuple):
    """A loader's name, and why it was chosen."""

    name: str
    reason: str
    from_cache: bool = False
    """`LoaderConfig.from_cache`: images come from a pixel cache, also to a loader that could decode them."""


@dataclass(frozen=True, kw_only=True)
class LoadEstimate:
    """What is to be loaded on a GPU, and what there is to do it with. All sources together; memory in bytes."""

    device: str
    images: int
    decoded: int
    """What all images take, decoded."""
    kept: int
    """What they take made smaller, as in a pixel cache."""
    in_memory: bool
    """There are pixels in memory already, and nothing to decode."""
    cached: bool
    """There is a pixel cache of them."""
    free_on_device: int
    free_on_disk: int
    free_in_memory: int
    cores: int
    epochs: int | None
    """How often each image will be wanted; many times, where that is unknown."""
    world_size: int = 1


def decide(s: LoadEstimate) -> Choice:
    """The loader that serves this best on a GPU.

    Decoding once pays where images are wanted more than once: they are kept on the device where they fit, made
    smaller where only that fits, and in a file otherwise. What a pixel cache has already is not decoded again.
    """
    room = RESIDENT_SHARE * s.free_on_device
    copies = f", each of {s.world_size} GPUs keeps a copy" if s.world_size > 1 else ""
    free = f"{s.device} has {format_bytes(s.free_on_device)} free"
    told = f"auto: {s.images:,} images are {format_bytes(s.decoded)} decoded, {free}"
    full = f"{told}, of which {RESIDENT_SHARE:.0%} may go to images"
    if s.in_memory:
        if s.decoded <= room:
            return Choice("resident", f"{told}{copies}, and there is nothing to decode")
        return Choice("streamed", f"{full}; they come from memory, and there is nothing to decode")
    seconds = format_duration(s.decoded / 3 / PIXELS_PER_CORE / s.cores)
    once = f"decoded once, in about {seconds}, instead of " + (f"{s.epochs} times" if s.epochs else "in every epoch")
    threads = describe_threads(s.cores)
    if not s.cached and s.epochs == 1:
        return Choice("torchvision", f"{told}, but each is wanted only once; {threads}")
    if not s.cached and s.decoded <= room:
        return Choice("resident", f"{told}{copies}; {once}")
    smaller = f"{full}; made smaller they are {format_bytes(s.kept)}"
    if not s.cached and s.kept > s.free_on_disk:
        return Choice("torchvision", f"{smaller}, and the disk has {format_bytes(s.free_on_disk)} free; {threads}")
    whence = "in the pixel cache already" if s.cached else once
    if s.kept <= room:
        return Choice("resident", f"{smaller}{copies}; {whence}", from_cache=True)
    return Choice("streamed", f"{smaller}, {whence}; {_disk_pace(s)}")


def describe_threads(count: int) -> str:
    """For people: what the threads of the `torchvision` loader do."""
    return f"{count} threads decode and resize" if count > 1 else "one thread decodes and resizes"


def _disk_pace(s: LoadEstimate) -> str:
    """What kept pixels ask of the disk: nothing, where they stay in memory."""
    if s.kept <= s.free_in_memory:
        return f"they stay in memory, of which {format_bytes(s.free_in_memory)} are free"
    each = s.kept / s.images
    return (
        f"memory has {format_bytes(s.free_in_memory)} free, so that the disk sets the pace: at {format_bytes(each)} an "
        f"image, {1e9 / each:,.0f} images/s for each GB/s it reads"
    )
