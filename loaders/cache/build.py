"""Builds pixel caches: decodes every image once, with all cores, and stores it (`cache.pixel_cache`).

A build may be killed at any time and goes on where it was. Only one process builds a cache; another one
that needs it waits and reports its progress.
"""

import errno
import fcntl
import json
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray

from loaders.cache.checksums import BLOCK, MANIFEST, checksum, count_blocks, damaged_blocks
from loaders.cache.checksums import from_json as checksums_from_json
from loaders.cache.checksums import to_json as checksums_to_json
from loaders.cache.pixel_cache import (
    PIXELS,
    PROGRESS,
    Layout,
    Preprocessing,
    find_cache,
    first_pixel,
    manifest_of,
    open_cache,
    root_of,
    unreadable_from_json,
)
from loaders.errors import InputError, cause
from loaders.ops.cpu_read import resize_antialiased
from loaders.ops.decode import load_pixels
from loaders.sources.base import CachedPixels, ReportUnreadable, Source
from loaders.sources.index import Progress
from loaders.system.files import replacing
from loaders.system.format import format_bytes
from loaders.system.machine import compute_on_one_core, free_on_disk, usable_cores
from loaders.system.shapes import read_json

_PART = "pixels.npy.part"
_LOCK = "lock"
_SECONDS_BETWEEN_SAVES = 1.0  # of the progress: what a kill may cost, and what is left to write at the end
_IMAGES_PER_TASK = 16
_TASKS_PER_WORKER = 4
_SECONDS_BETWEEN_POLLS = 0.5  # of another process that builds


def with_pixel_cache(
    source: Source,
    preprocessing: Preprocessing,
    *,
    report: ReportUnreadable,
    workers: int | None = None,
    progress: Progress | None = None,
    every_block: bool = False,
) -> Source:
    """The same samples of the same sizes, with cached pixels instead of files. The cache is built where there is none.

    Args:
        report: called for samples that become unreadable now; those that already were are in `CachedPixels.unreadable`.
        workers: threads that decode; all usable cores if it is None.
        progress: called with how many images are done and how many there are.
        every_block: verifies all pixels of a large cache, too, and not a sample of its blocks.

    Raises:
        InputError: when there is not enough room on the disk, or the folder cannot be written to.
    """
    own = open_cache(source, Layout.of(source, preprocessing), every_block=every_block)
    found = find_cache(source, preprocessing, every_block=every_block) if own is None else own
    if found is None or (own is not None and own.unreadable):  # what could not be read is tried again
        found = build_cache(source, preprocessing, report=report, workers=workers or usable_cores(), progress=progress)
    return replace(source, images=found)


def build_cache(
    source: Source,
    preprocessing: Preprocessing,
    *,
    report: ReportUnreadable,
    workers: int,
    progress: Progress | None = None,
) -> CachedPixels:
    """Decodes all images that are not in the source's own cache yet. Raises as `with_pixel_cache` does."""
    layout = Layout.of(source, preprocessing)
    try:
        layout.folder.mkdir(parents=True, exist_ok=True)
        with _locked(layout.folder, progress):
            found = open_cache(source, layout)
            if found is None or found.unreadable:
                _Build(source, layout, found, report, progress).run(workers)
            built = open_cache(source, layout)  # before another copy of the set, of other times, can take its place
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            problem = _describe_space(layout)
        else:
            problem = f"{cause(error)}; SATURATE_CACHE names another place"
        raise InputError(f"no pixels can be cached in {layout.folder}: {problem}") from error
    if built is None:
        raise InputError(f"{layout.folder} was changed while it was built: remove it, and begin anew")
    return built


@contextmanager
def _locked(folder: Path, progress: Progress | None) -> Iterator[None]:
    """Holds the folder's lock, which ends with the process, however that ends."""
    with open(folder / _LOCK, "a") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                others = read_json(folder / PROGRESS, {"done": int, "images": int})
                if progress is not None and others is not None:
                    progress(others["done"], others["images"])
                time.sleep(_SECONDS_BETWEEN_POLLS)
            except OSError as error:  # as of some network file systems
                raise OSError(error.errno, f"files cannot be locked there ({cause(error)})") from error
        yield


class _Build:
    """One process's work on a cache, of which it holds the lock."""

    def __init__(
        self,
        source: Source,
        layout: Layout,
        found: CachedPixels | None,
        report: ReportUnreadable,
        progress: Progress | None,
    ) -> None:
        """`found`: a cache that is complete except for unreadable files."""
        self.source, self.layout = source, layout
        self.report, self.progress = report, progress
        self.path = layout.folder / (PIXELS if found else _PART)
        self.done, self.unreadable = len(source), dict(found.unreadable) if found else {}
        if found is None:
            self.done, self.unreadable = self._resumed() or self._begin()
        size = self.path.stat().st_size
        self._first = size - layout.bytes  # where the pixels begin
        state = read_json(layout.folder / (PROGRESS if found is None else MANIFEST), dict) or {}
        self._checksums = list(checksums_from_json(state, size) or [None] * count_blocks(size))
        if found is None:
            self._forget_damaged()
        self._retried = self._blocks_of(self.unreadable)
        for block in self._retried:
            self._checksums[block] = None
        self._require_space()

    def _resumed(self) -> tuple[int, dict[int, str]] | None:
        """How many images an earlier build of the same content has done, and which were unreadable."""
        expected = {"content": self.layout.content, "done": range(len(self.source) + 1), "gone": {str: str}}
        progress = read_json(self.layout.folder / PROGRESS, expected)
        if progress is None:
            return None
        if not self.path.is_file():
            self.path = self.layout.folder / PIXELS  # killed between its last two steps
        try:
            unreadable = unreadable_from_json(progress["gone"], progress["done"])
            first_pixel(self.path, self.layout.bytes)
            checksums_from_json(progress, self.path.stat().st_size)
        except (FileNotFoundError, ValueError):
            return None
        return progress["done"], unreadable

    def _begin(self) -> tuple[int, dict[int, str]]:
        """Removes the files of another content, and makes an empty file of the right length."""
        for name in (MANIFEST, PROGRESS, PIXELS, _PART):
            (self.layout.folder / name).unlink(missing_ok=True)
        self.path = self.layout.folder / _PART
        with open(self.path, "wb") as file:
            _write_header(file, self.layout.bytes)
            file.truncate(file.tell() + self.layout.bytes)
        return 0, {}

    def _forget_damaged(self) -> None:
        """Takes images as not done from the first one on whose pixels did not reach the disk, as in a power failure."""
        with open(self.path, "rb") as file:
            damaged = damaged_blocks(file.fileno(), self._checksums, range(len(self._checksums)))
        if damaged:
            place = max(0, damaged[0] * BLOCK - self._first)
            self.done = min(self.done, int(np.searchsorted(self.layout.offsets, place, "right")) - 1)
            self.unreadable = {index: reason for index, reason in self.unreadable.items() if index < self.done}
            self._checksums[damaged[0] :] = [None] * (len(self._checksums) - damaged[0])

    def _blocks_of(self, images: Iterable[int]) -> set[int]:
        """The blocks that the pixels of some images lie in."""
        begins, ends = self._first + self.layout.offsets[:-1], self._first + self.layout.offsets[1:]
        return {block for i in images for block in range(int(begins[i]) // BLOCK, count_blocks(int(ends[i])))}

    def _complete_checksums(self, done: int) -> None:
        """Adds those of the blocks in which all images are done."""
        end = self._first + int(self.layout.offsets[done])
        complete = len(self._checksums) if done == len(self.source) else end // BLOCK
        for block in range(complete):
            if self._checksums[block] is None and block not in self._retried:
                self._checksums[block] = checksum(self._file, block)

    def _require_space(self) -> None:
        missing = self.layout.bytes - 512 * self.path.stat().st_blocks
        if missing > free_on_disk(self.layout.folder):
            if not self.done:
                self.path.unlink()
            raise InputError(f"no pixels can be cached in {self.layout.folder}: {_describe_space(self.layout)}")

    def run(self, workers: int) -> None:
        """Decodes what is missing; leaves a complete cache, or one to go on with."""
        with open(self.path, "r+b", buffering=0) as file:
            self._file = file.fileno()
            if self.done == len(self.source):  # images are written into a complete cache: it is none meanwhile
                self._save(self._state())
                (self.layout.folder / MANIFEST).unlink(missing_ok=True)
            try:
                self._fill(workers)
            finally:
                self._retried.clear()  # all have been tried
                self._save(self._state())
        self._complete()

    def _fill(self, workers: int) -> None:
        """Decodes and writes by threads, ahead of what is counted as done; one more thread syncs it to the disk."""
        pool = ThreadPoolExecutor(workers, thread_name_prefix="saturate", initializer=compute_on_one_core)
        saver = ThreadPoolExecutor(1, thread_name_prefix="saturate-save")
        tasks: deque[tuple[list[int], Future[dict[int, str]]]] = deque()
        saving, saved = saver.submit(lambda: None), time.monotonic()
        try:
            for ids in self._runs():
                tasks.append((ids, pool.submit(self._write, ids)))
                if len(tasks) >= workers * _TASKS_PER_WORKER:
                    self._count(*tasks.popleft())
                if saving.done() and time.monotonic() - saved > _SECONDS_BETWEEN_SAVES:
                    saving.result()
                    saving, saved = saver.submit(self._save, self._state()), time.monotonic()
            while tasks:
                self._count(*tasks.popleft())
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            saver.shutdown(wait=True)
        saving.result()

    def _runs(self) -> Iterator[list[int]]:
        """The images to decode: those that were unreadable before, then the next ones."""
        yield from ([index] for index in list(self.unreadable))
        for first in range(self.done, len(self.source), _IMAGES_PER_TASK):
            yield list(range(first, min(first + _IMAGES_PER_TASK, len(self.source))))

    def _write(self, ids: list[int]) -> dict[int, str]:
        """Decodes some images and writes them to their places; returns the unreadable ones, and why."""
        failed = {}
        offsets, places = self.layout.offsets, np.array(ids)
        # For the largest: fresh memory for each would cost more.
        room = np.empty(int((offsets[places + 1] - offsets[places]).max()), np.uint8)
        for index in ids:
            if index in self.source.bad:
                continue
            try:
                pixels = self._decoded(index, room)
            except (OSError, ValueError) as error:
                failed[index] = cause(error)
                continue
            _write_at(self._file, pixels.data.cast("B"), self._first + int(self.layout.offsets[index]))
        return failed

    def _decoded(self, index: int, room: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """One image as it is stored: uint8 `[H, W, 3]`, contiguous; perhaps in `room`."""
        height, width = self.layout.sizes[index].tolist()
        size = tuple(self.source.sizes[index].tolist())
        enough = (height, width) if self.layout.preprocessing.scaled_decoding else None
        pixels = load_pixels(self.source.images, index, size=size, at_least=enough)
        return resized(pixels, room[: height * width * 3].reshape(height, width, 3))

    def _count(self, ids: list[int], task: Future[dict[int, str]]) -> None:
        failed = task.result()
        for index in ids:
            if index in failed:
                self.report(index, failed[index])
                self.unreadable[index] = failed[index]
            else:
                self.unreadable.pop(index, None)
        self.done = max(self.done, ids[-1] + 1)
        if self.progress is not None:
            self.progress(self.done, len(self.source))

    def _state(self) -> dict[str, Any]:
        """The progress, as `progress.json` records it, but for the checksums."""
        state = {"content": self.layout.content, "root": root_of(self.source), "images": len(self.source)}
        return state | {"done": self.done, "gone": dict(self.unreadable)}

    def _save(self, state: dict[str, Any]) -> None:
        """Records the progress, once the pixels it counts are on the disk."""
        os.fdatasync(self._file)
        self._complete_checksums(state["done"])
        with replacing(self.layout.folder / PROGRESS, durable=True) as part:
            part.write_text(json.dumps(state | {"checksums": checksums_to_json(self._checksums)}))

    def _complete(self) -> None:
        """Gives the files their names, the manifest last."""
        folder, source = self.layout.folder, self.source
        arrays: dict[str, NDArray[Any]] = {
            "offsets": self.layout.offsets,
            "sizes": np.stack([self.layout.sizes, source.sizes], axis=1),
            "labels": source.labels,
        }
        for name, array in arrays.items():
            with replacing(folder / f"{name}.npy", durable=True) as part, open(part, "wb") as file:
                np.save(file, array)
        os.replace(self.path, folder / PIXELS)
        with replacing(folder / MANIFEST, durable=True) as part:
            part.write_text(json.dumps(manifest_of(source, self.layout, self.unreadable, self._checksums)))
        (folder / PROGRESS).unlink(missing_ok=True)


def resized(pixels: NDArray[np.uint8], room: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """uint8 `[H, W, 3]` → the shape of `room`, contiguous: torchvision's resize, bilinear with antialiasing.

    `room` is written to, unless nothing has to be resized. ATen writes channels-last into it: turned afterwards,
    its result took as long again as resizing.
    """
    if pixels.shape == room.shape:
        return np.ascontiguousarray(pixels)
    whole = np.require(pixels, requirements=["C", "W"])
    image, out = (torch.from_numpy(array).permute(2, 0, 1)[None] for array in (whole, room))
    resize_antialiased(image, list(room.shape[:2]), out)
    return room


def _describe_space(layout: Layout) -> str:
    free = free_on_disk(layout.folder)
    return (
        f"{format_bytes(layout.bytes)} are needed, {format_bytes(free)} are free. A smaller `cache_size` takes less, "
        "SATURATE_CACHE names another place, and `loader=torchvision` caches nothing."
    )


def _write_header(file: BinaryIO, length: int) -> None:
    np.lib.format.write_array_header_1_0(file, {"shape": (length,), "fortran_order": False, "descr": "|u1"})


def _write_at(file: int, data: memoryview, place: int) -> None:
    """Writes all of it, letting go of the interpreter's lock; OSError where the disk is full."""
    while data:
        written = os.pwrite(file, data, place)
        data, place = data[written:], place + written
