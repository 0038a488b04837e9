"""`ffcv`: images in one .beton file, written once, decoded and resized by compiled code on the CPU.

FFCV's file format, its writer and its libjpeg-turbo and OpenCV bindings carry the plan out, in a compiled
kernel that holds no interpreter's lock (`ffcv_kernel`). Its own `Loader` is not run: an error in its thread is
a silent hang, an early break leaves the thread behind, it sets torch's number of threads for the whole
process, compiles anew for each loader (seconds), and overwrites a batch on the host while a GPU may still be
copying it. The threads of `torchvision` keep the promises instead; a task of theirs is one call of the kernel.
"""

import os
import threading
import warnings
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from loaders.backends.executor import Backend, BatchRequest, ExecutedBatch
from loaders.backends.threads import ThreadedExecutor
from loaders.config import LoaderConfig
from loaders.errors import InputError, cause
from loaders.ops.decode import load_pixels
from loaders.sources.base import ReportUnreadable, Source, digest
from loaders.sources.index import Progress
from loaders.system.format import format_bytes
from loaders.system.instrument import stage
from loaders.system.machine import cache_folder, usable_cores

if TYPE_CHECKING:
    from loaders.backends.ffcv_file import Beton, Stored

Resampling = Literal["exact", "area"]
"""The reference's pixels; or FFCV's own way, OpenCV's INTER_AREA."""


class FFCVExecutor:
    """Writes or opens the .beton file when it is prepared.

    The file lies under `cache_folder()`, named by the source's fingerprint and what else its pixels depend on. Images
    that become unreadable are left out of it, and a later run that can read them writes it anew.

    Raises:
        InputError: when FFCV cannot be loaded, or the file cannot be written.
    """

    def __init__(self, source: Source, config: LoaderConfig, *, resampling: Resampling = "exact") -> None:
        self.source = source
        self._kernel, self._files = _libraries()
        self._config, self._resampling = config, resampling
        # "jpeg": photographs lie in it as JPEGs. Files written before are named so, too.
        self.path = cache_folder() / "ffcv" / f"{source.fingerprint}-jpeg-{_content(source)}.beton"
        """The file; it exists once the executor is prepared."""
        self._prepared: ThreadedExecutor | None = None

    def prepare(self, report: ReportUnreadable, progress: Progress | None) -> frozenset[int]:
        unreadable: set[int] = set()
        try:
            with self._files.locked(self.path):
                if (beton := self._opened()) is None:
                    self._write(unreadable, report, progress)
                    beton = self._files.Beton.open(self.path)
        except OSError as error:
            size = format_bytes(self.source.pixel_bytes)
            raise InputError(
                f'`loader="ffcv"`: {self.path} cannot be written ({cause(error)}): it may take up to {size}; '
                "SATURATE_CACHE names another folder"
            ) from error
        reader = BetonReader(self.source, beton, self._kernel, exact=self._resampling == "exact")
        self._prepared = ThreadedExecutor(self._config, reader)
        return frozenset(unreadable)

    def run(self, requests: Iterator[BatchRequest]) -> Generator[ExecutedBatch, None, None]:
        assert self._prepared is not None
        yield from self._prepared.run(requests)

    def execute(self, request: BatchRequest) -> ExecutedBatch:
        assert self._prepared is not None
        return self._prepared.execute(request)

    def files(self) -> list[Path]:
        return [self.path]

    # --- the file --------------------------------------------------------------------------------

    def _opened(self) -> "Beton | None":
        """The file, if it exists and has every image that the index calls good."""
        try:
            beton: Beton = self._files.Beton.open(self.path)
        except (FileNotFoundError, ValueError):
            return None
        present = ~np.isin(np.arange(len(self.source)), list(self.source.bad))
        fits = len(beton.images) == len(self.source) and np.array_equal(
            beton.images[present, 3:], self.source.stored_sizes[present]
        )
        return beton if fits else None

    def _write(self, unreadable: set[int], report: ReportUnreadable, progress: Progress | None) -> None:
        """Writes all images, read and decoded by threads; adds to `unreadable` those that cannot be read."""
        workers, count = self._config.workers or usable_cores(), len(self.source)

        def samples() -> "Iterator[Stored | None]":
            with ThreadPoolExecutor(workers, thread_name_prefix="saturate") as pool:
                for first in range(0, count, 2 * workers):  # no more of them in memory at a time
                    part = range(first, min(first + 2 * workers, count))
                    for index, stored in zip(part, pool.map(self._as_stored, part), strict=True):
                        if isinstance(stored, str):
                            unreadable.add(index)
                            report(index, stored)
                        yield None if isinstance(stored, str) else stored
                    if progress is not None:
                        progress(part.stop, count)

        largest = 3 * int(self.source.sizes.astype(np.int64).prod(axis=1).max())
        self._files.write(self.path, samples(), count, largest)

    def _as_stored(self, index: int) -> "Stored | str | None":
        """An image as it goes into the file: a JPEG as it is where that gives the same pixels here, else its pixels.

        Returns:
            None for an image that the index calls bad, and the reason for one that cannot be read any more.
        """
        source, files = self.source, self.source.images.encoded
        if index in source.bad:
            return None
        try:
            encoded = files.read(index) if files is not None and files.formats[index] == "JPEG" else None
            pixels = load_pixels(source.images, index, size=tuple(source.stored_sizes[index].tolist()), data=encoded)
        except (OSError, ValueError) as error:
            return cause(error)
        height, width = pixels.shape[:2]
        if max(height, width) > self._files.MOST_PIXELS_PER_SIDE:
            raise InputError(f'`loader="ffcv"`: {source.images.describe(index)}: {height} × {width} is too large')
        data, mode = np.ascontiguousarray(pixels).reshape(-1), self._kernel.RAW
        if encoded is not None:
            jpeg = np.frombuffer(encoded, np.uint8)
            if self._kernel.decodes_to(jpeg, pixels):
                data, mode = jpeg, self._kernel.JPEG
        stored: Stored = self._files.Stored(data, mode, height, width)
        return stored


def _content(source: Source) -> str:
    """Names what the pixels of a source depend on besides its fingerprint.

    A file may be edited and keep its length, which the fingerprint does not see. A pixel cache has other pixels.
    """
    files, cached_sizes = source.images.encoded, source.images.sizes
    if cached_sizes is not None:
        return digest(cached_sizes.astype("<i4").tobytes(), *map(os.fsencode, source.images.files()))
    return digest(b"" if files is None else files.changed.astype("<i8").tobytes())


class BetonReader:
    """Reads samples out of a .beton file."""

    def __init__(self, source: Source, beton: "Beton", kernel: Any, *, exact: bool) -> None:
        self.source = source
        self._beton, self._kernel, self._exact = beton, kernel, exact
        # The kernel decodes and resizes; decoding takes longer.
        self._stage = stage("resize" if source.images.encoded is None else "decode")
        self._scratch = threading.local()
        self._largest = beton.max_bytes

    def read(self, request: BatchRequest, squares: Tensor, *, flips: bool) -> dict[int, str]:
        plan = request.plan
        self._beton.require_whole()
        with self._stage:
            failed = self._kernel.read_squares(
                self._beton.data,
                self._beton.images,
                np.where(request.padded, -1, request.ids),
                plan.box,
                plan.resized,
                plan.window,
                plan.flip if flips else _no_flips(len(request)),
                self._exact,
                self._room(self._largest),
                squares.permute(0, 2, 3, 1).numpy(),
            )
        if failed >= 0:
            image = self.source.images.describe(int(request.ids[failed]))
            raise InputError(f'`loader="ffcv"`: {image} cannot be decoded from {self._beton.path}: remove that file')
        return {}

    def _room(self, size: int) -> NDArray[np.uint8]:
        """This thread's memory to decode into; fresh memory would cost as much as a fifth of the decoding."""
        if not hasattr(self._scratch, "room"):
            self._scratch.room = np.empty(size, np.uint8)
        room: NDArray[np.uint8] = self._scratch.room
        return room


def _no_flips(count: int) -> NDArray[np.bool_]:
    """`[count, 2]`; read-only, as the arrays of plans are: numba compiles once for each kind of argument."""
    flips = np.zeros((count, 2), np.bool_)
    flips.flags.writeable = False
    return flips


def _libraries() -> tuple[Any, Any]:
    """The modules that stand on FFCV and numba, which take seconds to import."""
    threads = torch.get_num_threads()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # both use deprecated interfaces
            from loaders.backends import ffcv_file, ffcv_kernel
    except (ImportError, OSError, AttributeError) as error:
        raise InputError(
            f'`loader="ffcv"`: FFCV is installed and cannot be loaded ({error}): make setup-ffcv builds it anew'
        ) from error
    finally:
        torch.set_num_threads(threads)  # which FFCV sets to 1 when it is imported
    return ffcv_kernel, ffcv_file


def missing() -> str | None:
    return None if find_spec("ffcv") is not None else "FFCV is not installed: make setup-ffcv"


BACKEND = Backend(
    "ffcv",
    "FFCV: images in one file, decoded and resized by compiled code on the CPU",
    FFCVExecutor,
    missing,
)
