"""Emptying the page cache of a source's files, so that the next epoch reads them from the disk."""

import os
from pathlib import Path

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
    """Whether the first bytes of a file can be had without the disk; True where the system does not tell."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        return os.preadv(descriptor, [bytearray(1)], 0, os.RWF_NOWAIT) > 0
    except BlockingIOError:
        return False
    except (OSError, AttributeError):  # a file system, or a system, without this
        return True
    finally:
        os.close(descriptor)
