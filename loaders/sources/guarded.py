"""Reading files that somebody else wrote, and may have exchanged since: never a pipe or a device, never without end."""

import os
import stat

BYTES_PER_PIXEL = 8
"""What an image takes uncompressed, in 16-bit RGBA."""

METADATA_BYTES = 64 << 20
"""Bytes that a file may have beyond its pixels: profiles, thumbnails, a video behind the photograph."""


def most_bytes(max_pixels: int) -> int:
    """The largest allowed length of an image file, where images may have `max_pixels`."""
    return METADATA_BYTES + BYTES_PER_PIXEL * max_pixels


def read_file(path: str, *, length: int | None = None, at_most: int | None = None) -> bytes:
    """All bytes of a regular file.

    The file is judged after it was opened, so that nothing can take its place in between. Opening does not wait for
    the writer of a named pipe.

    Args:
        path: the file, or a link to it.
        length: the length in bytes that it had when it was indexed.
        at_most: the largest allowed length in bytes.

    Raises:
        OSError: when it cannot be opened or read.
        ValueError: when it is no regular file, is too long, or has another length.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode):
            raise ValueError("it is no regular file")
        size = facts.st_size
        if length is not None and size != length:
            raise ValueError(f"its length is {size:,} bytes, and was {length:,} when it was indexed")
        if at_most is not None and size > at_most:
            raise ValueError(f"its {size:,} bytes are more than the {at_most:,} that an image file may have")
        return _read(descriptor, size)
    except MemoryError as error:
        raise ValueError("there is not enough memory to read it") from error
    finally:
        os.close(descriptor)


def _read(descriptor: int, size: int) -> bytes:
    """The first `size` bytes; fewer where the file ends before."""
    data = os.read(descriptor, size)
    if len(data) == size:
        return data
    parts = [data]  # the system returns at most 2 GiB at once
    while parts[-1]:
        parts.append(os.read(descriptor, size - sum(map(len, parts))))
    return b"".join(parts)
