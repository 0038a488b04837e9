"""Checksums of the blocks of a pixel file: written while it is built, verified when it is opened and while it is read.

CRC-32 was the fastest of zlib and hashlib: 5 GB/s on one core, where BLAKE2b had 1 GB/s. It finds accidents, which is
what it is for: whoever can write to the file can change the manifest as well.
"""

import os
import threading
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from loaders.errors import InputError
from loaders.sources.base import CachedPixels
from loaders.system.machine import usable_cores
from loaders.system.shapes import Either, has_shape, read_json

MANIFEST = "manifest.json"

BLOCK = 16 << 20
"""Bytes that have a checksum of their own."""
MOST_BYTES_VERIFIED_AT_OPENING = 1 << 30
"""Of larger files a sample of blocks. 1 GiB takes 0.2 s in memory, and what the disk has to read is needed soon."""
SAMPLED_BLOCKS = 16
"""256 MiB, evenly spread, with the first and the last block."""
_CHUNK = 1 << 20
_SHARE_VERIFYING = 0.05  # of one core and of the disk, while a run reads the same file

Checksums = Sequence[int | None]
"""One of each block; None of a block that is not complete yet."""
_SHAPE = {"block": int, "crc32": [Either(None, range(1 << 32))]}

_Identity = tuple[str, int, int, int, int]
_verdicts: dict[_Identity, Literal["damaged", "sampled", "verified"]] = {}
"""What this process knows of pixel files as they are now: they are opened several times, and verified once."""


def to_json(checksums: Checksums) -> dict[str, Any]:
    """What manifest and progress say."""
    return {"block": BLOCK, "crc32": list(checksums)}


def from_json(content: dict[str, Any], size: int) -> Checksums | None:
    """The checksums in a manifest or a progress, for a file of `size` bytes.

    None where there are none: they came with a later version than the format, and files written before are accepted
    as they are. Nothing can vouch for these, and they were on the disk before their manifest was.

    Raises:
        ValueError: when there is something else.
    """
    if "checksums" not in content:
        return None
    found = content["checksums"]
    if not has_shape(found, _SHAPE) or found["block"] != BLOCK or len(found["crc32"]) != count_blocks(size):
        raise ValueError("its checksums are damaged")
    checksums: list[int | None] = found["crc32"]
    return checksums


def count_blocks(size: int) -> int:
    """Blocks of a file of `size` bytes; the last one may be shorter."""
    return -(-size // BLOCK)


def checksum(file: int, block: int) -> int:
    """The checksum of a block as it is now, of an open file."""
    place, end, value = block * BLOCK, (block + 1) * BLOCK, 0
    while place < end and (data := os.pread(file, min(_CHUNK, end - place), place)):
        value = zlib.crc32(data, value)
        place += len(data)
    return value


def damaged_blocks(file: int, checksums: Checksums, blocks: Iterable[int]) -> list[int]:
    """Those of `blocks` whose content is not what was written. All usable cores work."""
    known = [block for block in blocks if checksums[block] is not None]
    with ThreadPoolExecutor(usable_cores(), thread_name_prefix="saturate-verify") as pool:
        found = pool.map(lambda block: checksum(file, block), known)
        return [block for block, value in zip(known, found, strict=True) if value != checksums[block]]


def is_intact(path: Path, checksums: Checksums | None, *, every_block: bool) -> bool:
    """Whether a pixel file holds what was written, as far as it is verified at opening.

    Args:
        every_block: verifies more than a sample of a large file.
    """
    if checksums is None:
        return True
    with open(path, "rb") as file:
        identity = _identity(path, os.fstat(file.fileno()))
        if identity[2] <= MOST_BYTES_VERIFIED_AT_OPENING:
            every_block = True
        if _verdicts.get(identity) in ("damaged", "verified") or (identity in _verdicts and not every_block):
            return _verdicts[identity] != "damaged"
        blocks = range(len(checksums)) if every_block else _sample(len(checksums))
        if damaged_blocks(file.fileno(), checksums, blocks):
            _verdicts[identity] = "damaged"
            return False
    _verdicts[identity] = "verified" if every_block else "sampled"
    return True


def _sample(count: int) -> list[int]:
    """Blocks evenly spread over all, with the first and the last."""
    return sorted({place * (count - 1) // (SAMPLED_BLOCKS - 1) for place in range(SAMPLED_BLOCKS)})


def _identity(path: Path, stat: os.stat_result) -> _Identity:
    """Differs when the file was replaced or written to: nobody can set the time of change (ctime)."""
    return str(path), stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


class PixelGuard:
    """Notices while a pixel file is read that it was cut short, or that its content changed or is damaged.

    A file that is cut short between `check` and the read that follows, a few milliseconds later, still ends the process
    by SIGBUS, as does a disk that fails: a memory map has no other way to say so.
    """

    def __init__(self, cached: CachedPixels, *, rank: int = 0, world_size: int = 1) -> None:
        """The ranks of a run share the verifying."""
        self._cached = cached
        self._rank, self._world_size = rank, world_size
        self._identity: _Identity | None = None
        self._to_verify: list[int] = []
        self._damage: InputError | None = None

    def check(self) -> None:
        """Called before each task that reads: 0.3 µs.

        Raises:
            InputError: when the file is shorter than its map, or a damaged block was found.
        """
        if self._cached.mapping.size() < len(self._cached.mapping):
            raise InputError(
                f"{self._cached.path} was cut short while it was read: run this again, and the cache is built anew"
            )
        if self._damage is not None:
            raise self._damage

    @contextmanager
    def verifying(self) -> Iterator[None]:
        """Verifies in the background, for one pass over the images, what was not verified when the file was opened.

        It begins anew where the file was written to since, and goes on in the next pass where it was not done.
        """
        self._begin()
        if not self._to_verify:
            yield
            return
        ended = threading.Event()
        thread = threading.Thread(target=self._verify, args=(ended,), name="saturate-verify", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _begin(self) -> None:
        """Lists the blocks to verify where the file is another than in the pass before."""
        path = self._cached.path
        try:
            identity = _identity(path, path.stat())
        except OSError:  # removed: what is mapped stays
            return
        if identity == self._identity:
            return
        self._identity, self._to_verify = identity, []
        if _verdicts.get(identity) != "verified":
            count = count_blocks(len(self._cached.mapping))
            self._to_verify = list(range(self._rank, count, self._world_size))[::-1]

    def _verify(self, ended: threading.Event) -> None:
        """Takes block by block from the list, at `_SHARE_VERIFYING` of the time."""
        path = self._cached.path
        with suppress(OSError, ValueError), open(path, "rb") as file:
            manifest = path.with_name(MANIFEST)
            checksums = _checksums_in(manifest, len(self._cached.mapping))
            while checksums is not None and self._to_verify and not ended.is_set():
                block, began = self._to_verify[-1], time.monotonic()
                if checksums[block] not in (None, checksum(file.fileno(), block)):
                    # Another process may have decoded what was unreadable, or have begun another copy's cache.
                    if _checksums_in(manifest, len(self._cached.mapping)) == checksums:
                        self._damage = _damaged(path, block)
                    return
                self._to_verify.pop()
                if not self._to_verify and self._world_size == 1 and self._identity is not None:
                    _verdicts[self._identity] = "verified"
                ended.wait((time.monotonic() - began) / _SHARE_VERIFYING)


def _checksums_in(manifest: Path, size: int) -> Checksums | None:
    content = read_json(manifest, dict)
    return None if content is None else from_json(content, size)


def _damaged(path: Path, block: int) -> InputError:
    """The error to raise for a damaged block. Without its manifest the cache is built anew when it is opened next."""
    problem = f"{path} is damaged: bytes {block * BLOCK:,} to {(block + 1) * BLOCK:,} are not what was written there"
    try:
        path.with_name(MANIFEST).unlink(missing_ok=True)
    except OSError:
        return InputError(f"{problem}; remove {path.parent}, and run this again")
    return InputError(f"{problem}; run this again, and the cache is built anew")
