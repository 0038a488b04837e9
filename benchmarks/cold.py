"""Emptying the page cache of a source's files, so that the next epoch reads them from the disk."""

import ctypes
import os
from pathlib import Path

import numpy as np

from loaders import Source
from loaders.sources import ImageFiles

_MAY_REMAIN = 0.1  # of the files: others on the machine may be reading them


def files_of(source: Source) -> list[Path] | None:
    """The files whose bytes a loader reads in every epoch; None where it reads none of a source's own."""
    images = source.images
    if not isinstance(images, ImageFiles):
        return None
    return [Path(path) for path in dict.fromkeys(images.describe(index) for index in range(len(source)))]


def evict(files: list[Path]) -> bool:
    """Asks the system to forget the content of `files`; whether it did, as far as can be told."""
    if not hasattr(os, "posix_fadvise"):
        return False
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fdatasync(descriptor)  # what is not yet written cannot be forgotten
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
    asked = files[:: max(1, len(files) // 50)]
    return sum(map(is_cached, asked)) <= _MAY_REMAIN * len(asked)


def is_cached(file: Path) -> bool:
    """Whether the first page of a file is in memory; True where the system does not tell.

    By `mincore`, as asking for bytes without waiting (`RWF_NOWAIT`) lets Linux fetch them.
    """
    libc, answer = ctypes.CDLL(None), ctypes.c_ubyte(1)
    try:
        mapped = np.memmap(file, np.uint8, "r", shape=(1,))
        libc.mincore(ctypes.c_void_p(mapped.ctypes.data), ctypes.c_size_t(1), ctypes.byref(answer))
    except (ValueError, AttributeError):  # an empty file; a system without it
        return True
    return bool(answer.value & 1)
