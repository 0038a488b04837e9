"""FFCV's .beton files: one field, `image`, a sample's place in the file being its id.

They are FFCV's own, so that FFCV's decoders and tools read them as well. A sample without an image (it cannot
be decoded) has height and width 0.
"""

import fcntl
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from ffcv.fields import RGBImageField
from ffcv.memory_allocator import MemoryAllocator
from ffcv.reader import Reader
from ffcv.writer import MAX_PAGE_SIZE, MIN_PAGE_SIZE, DatasetWriter
from numpy.typing import NDArray

from loaders.errors import InputError
from loaders.system.files import replacing

FIELD = "image"
MOST_PIXELS_PER_SIDE = 65535  # FFCV counts them in 16 bits


@dataclass(frozen=True)
class Stored:
    """How an image goes into the file."""

    data: NDArray[np.uint8]
    """`[n]`: a JPEG's bytes, or pixels."""
    mode: int
    """FFCV's: `ffcv_kernel.JPEG` or `RAW`."""
    height: int
    width: int


@dataclass(frozen=True)
class Beton:
    """An open file."""

    path: Path
    data: NDArray[np.uint8]
    """All of it, read through the page cache."""
    images: NDArray[np.int64]
    """`[N, 5]`: of each sample the place in the file, length in bytes, mode, height and width."""

    @classmethod
    def open(cls, path: Path) -> Self:
        """ValueError where it is not such a file, or not all of one."""
        try:
            reader = Reader(str(path))
            fields, table = reader.metadata["f0"], reader.alloc_table
            images = np.zeros((len(fields), 5), np.int64)
            images[table["sample_id"].astype(np.int64), 1] = table["size"]
            for column, name in ((0, "data_ptr"), (2, "mode"), (3, "height"), (4, "width")):
                images[:, column] = fields[name]
        except (AssertionError, LookupError, MemoryError, OverflowError) as error:  # of a damaged count, too
            raise ValueError(f"{path} is no .beton file of images") from error
        data = np.asarray(np.memmap(path, np.uint8, "r"))
        if len(images) and images[:, :2].sum(axis=1).max() > len(data):
            raise ValueError(f"{path} is cut short")
        return cls(path, data, images)

    @property
    def max_bytes(self) -> int:
        """Bytes of the largest image, decoded."""
        return 3 * int((self.images[:, 3] * self.images[:, 4]).max())


def write(path: Path, samples: Iterable[Stored | None], count: int, largest: int) -> None:
    """Writes `count` samples, all of them or none.

    FFCV's own writer forks processes, which hang where one of them fails; here it is driven from one thread.

    Args:
        largest: bytes of the largest image: they lie in pages, none of which an image may cross.

    Raises:
        InputError: when an image is too large for the format.
        OSError: when the file cannot be written.
    """
    page = max(MIN_PAGE_SIZE, 1 << (largest - 1).bit_length())
    if page >= MAX_PAGE_SIZE:
        raise InputError(f"`loader=ffcv`: an image of {largest:,} bytes is too large for FFCV's format")
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, shared=True) as part, _writer(part, count, page) as writer:
        _fill(writer, samples)


@contextmanager
def _writer(part: Path, count: int, page: int) -> Iterator[DatasetWriter]:
    """FFCV's writer, and the shared memory it keeps what it knows of the samples in."""
    writer = DatasetWriter(str(part), {FIELD: RGBImageField()}, page_size=page, num_workers=1)
    writer.num_samples, writer.metadata_sm = count, None
    try:
        writer.prepare()
        yield writer
    finally:
        if writer.metadata_sm is not None and not isinstance(writer.metadata_sm, int):
            writer.metadata_sm.close()
            writer.metadata_sm.unlink()


def _fill(writer: DatasetWriter, samples: Iterable[Stored | None]) -> None:
    known = np.zeros(writer.num_samples, writer.metadata_type)
    allocator = MemoryAllocator(writer.fname, writer.data_region_start, writer.page_size)
    with allocator:
        for place, stored in enumerate(samples):
            if stored is None:
                continue
            allocator.set_current_sample(place)
            pointer, room = allocator.malloc(stored.data.size)
            room[:] = stored.data
            known["f0"][place] = (stored.mode, stored.width, stored.height, pointer)
    writer.metadata_sm.buf[: known.nbytes] = known.tobytes()
    writer.finalize(allocator.allocations)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Lets one process at a time write `path`; where files cannot be locked they may write it side by side.

    What differs from it only behind the last hyphen goes: of what the files were before, or left by a process that was
    killed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with (path.parent / ".lock").open("a") as lock:
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)  # ends with this process, however that ends
            for other in path.parent.glob(f"*{path.name.rpartition('-')[0]}-*"):
                if other != path:
                    other.unlink()
        yield
