"""Emptying the page cache of a source's files, so that the next epoch reads them from the disk."""

import ctypes
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from loaders import Loader, Source
from loaders.backends.ffcv import FFCVLoader
from loaders.backends.resident import ResidentLoader
from loaders.sources import ImageFiles
from loaders.sources.base import CachedPixels

_MAY_REMAIN = 0.1  # of the files: others on the machine may be reading them


def files_read(loader: Loader) -> list[Path]:
    """The files whose bytes a prepared loader reads in every epoch; none where all is in memory."""
    if isinstance(loader, ResidentLoader):
        return []
    return [loader.path] if isinstance(loader, FFCVLoader) else files_of(loader.source)


def files_of(source: Source) -> list[Path]:
    """The files that a source's images lie in; none where they are in memory."""
    images = source.images
    if isinstance(images, ImageFiles):
        return [Path(path) for path in dict.fromkeys(images.describe(index) for index in range(len(source)))]
    if isinstance(images, CachedPixels):
        address = images.pixels.ctypes.data
        return [file for file, begin, end in _mapped() if begin <= address < end]
    return []


def evict(files: list[Path]) -> bool:
    """Asks the system to forget the content of `files`; whether it did, as far as can be told."""
    if not hasattr(os, "posix_fadvise"):
        return False
    wanted = {file.resolve() for file in files}
    for file, begin, end in _mapped():
        if file in wanted:  # what this process has mapped stays, unless it lets go of it
            _libc().madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), mmap.MADV_DONTNEED)
    for file in wanted:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fdatasync(descriptor)  # what is not yet written cannot be forgotten
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
    asked = files[:: max(1, len(files) // 50)]
    return sum(map(cached_share, asked)) <= _MAY_REMAIN * len(asked)


def cached_share(file: Path) -> float:
    """How much of a file is in memory, 0 to 1; 1 where the system does not tell.

    By `mincore`, as asking for bytes without waiting (`RWF_NOWAIT`) lets Linux fetch them.
    """
    try:
        mapped = np.memmap(file, np.uint8, "r")
        pages = np.ones(-(-len(mapped) // mmap.PAGESIZE), np.uint8)
        _libc().mincore(
            ctypes.c_void_p(mapped.ctypes.data), ctypes.c_size_t(len(mapped)), ctypes.c_void_p(pages.ctypes.data)
        )
    except (ValueError, AttributeError):  # an empty file; a system without it
        return 1.0
    return float((pages & 1).mean())


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)


def _mapped() -> Iterator[tuple[Path, int, int]]:
    """Files that this process has mapped, with first and last address of each mapping."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, *_, path = line.split(maxsplit=5) if line.count("/") else ("", "")
        if path.startswith("/"):
            begin, end = (int(part, 16) for part in span.split("-"))
            yield Path(path), begin, end
