"""Emptying the page cache of files, so that the next epoch reads them from the disk."""

import ctypes
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

_MAY_REMAIN = 0.1  # of the files: others on the machine may be reading them


def evict(files: list[Path]) -> bool:
    """Asks the system to drop `files` from its page cache; returns whether it did, as far as can be known."""
    if not hasattr(os, "posix_fadvise"):
        return False
    evicted = {file.resolve() for file in files}
    for file, begin, end in _mapped():
        if file in evicted:  # pages that this process has mapped stay until it releases them
            _libc().madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), mmap.MADV_DONTNEED)
    for file in evicted:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fdatasync(descriptor)  # what is not yet written cannot be dropped
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
    checked = files[:: max(1, len(files) // 50)]
    return sum(map(cached_share, checked)) <= _MAY_REMAIN * len(checked)


def cached_share(file: Path) -> float:
    """How much of a file is in memory, 0 to 1; 1 where the system does not report it.

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
            begin, end = (int(address, 16) for address in span.split("-"))
            yield Path(path), begin, end
