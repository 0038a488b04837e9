"""`ffcv`: images in one .beton file, written once, decoded and resized by compiled code on the CPU.

FFCV's file format, its writer and its libjpeg-turbo and OpenCV bindings carry the plan out, in a compiled
kernel that holds no interpreter's lock (`ffcv_kernel`). Its own `Loader` is not run: an error in its thread is
a silent hang, an early break leaves the thread behind, it sets torch's number of threads for the whole
process, compiles anew for each loader (seconds), and overwrites a batch on the host while a GPU may still be
copying it. The threads of the `torchvision` loader keep the promises instead; a batch is so many calls of the kernel.
"""

import threading
import warnings
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from loaders.backends.host import HostLoader, PendingBatch
from loaders.backends.kept import KeptLoader
from loaders.errors import InputError, cause
from loaders.loader import Batch, LoaderConfig
from loaders.sources.base import ImageFiles, Source, digest
from loaders.sources.index import Progress
from loaders.system.format import format_bytes
from loaders.system.instrument import stage
from loaders.system.machine import cache_folder

if TYPE_CHECKING:
    from loaders.backends.ffcv_file import Beton, Stored

Resampling = Literal["exact", "area"]
Photographs = Literal["jpeg", "raw"]


class FFCVLoader(HostLoader, KeptLoader):
    """Batches are the receiver's own.

    The file lies under `cache_folder()`, by the source's fingerprint and its files' times. A JPEG goes into it as it
    is, if that is to be (`photographs="jpeg"`) and it needs no turning; everything else as pixels.

    Raises:
        InputError: when FFCV cannot be loaded, or the file cannot be written.
    """

    name: ClassVar[str] = "ffcv"
    summary: ClassVar[str] = "FFCV: images in one file, decoded and resized by compiled code on the CPU"

    @classmethod
    def missing(cls) -> str | None:
        return None if find_spec("ffcv") is not None else "FFCV is not installed: make setup-ffcv"

    def __init__(
        self,
        source: Source,
        config: LoaderConfig,
        *,
        resampling: Resampling = "exact",
        photographs: Photographs = "jpeg",
    ) -> None:
        """
        Args:
            resampling: "exact" gives the reference's pixels; "area" is FFCV's own way, OpenCV's INTER_AREA.
            photographs: how images from files are kept: "raw" saves decoding, and takes some ten times the room.
        """
        super().__init__(source, config)
        self._kernel, self._files = _libraries()
        self._exact = resampling == "exact"
        self._photographs = photographs
        # A file may be edited and keep its length, which the source's fingerprint does not see.
        times = source.images.changed.astype("<i8").tobytes() if isinstance(source.images, ImageFiles) else b""
        self.path = cache_folder() / "ffcv" / f"{source.fingerprint}-{photographs}-{digest(times)}.beton"
        """The file; there once the loader is prepared."""
        self._beton: Beton | None = None
        self._scratch = threading.local()

    # --- the file --------------------------------------------------------------------------------

    def prepare(self, progress: Progress | None = None) -> None:
        if self._beton is not None:
            return
        try:
            with self._files.locked(self.path):
                if not self._is_there():
                    largest = 3 * int(self.source.sizes.astype(np.int64).prod(axis=1).max())
                    self._files.write(self.path, self._stored(progress), len(self.source), largest)
                    self._beton = self._files.Beton.open(self.path)
        except OSError as error:
            size = format_bytes(self.source.pixel_bytes)
            raise InputError(
                f"LOADER=ffcv: {self.path} cannot be written ({cause(error)}): it may take up to {size}; "
                "SATURATE_CACHE names another folder"
            ) from error

    def _is_there(self) -> bool:
        """Opens the file, if it is there and has every image that the index knows to be good."""
        try:
            beton = self._files.Beton.open(self.path)
        except (FileNotFoundError, ValueError):
            return False
        present = ~np.isin(np.arange(len(self.source)), list(self.source.bad))
        fits = len(beton.images) == len(self.source) and np.array_equal(
            beton.images[present, 3:], self.source.sizes[present]
        )
        self._beton = beton if fits else None
        return fits

    def _stored(self, progress: Progress | None) -> "Iterator[Stored | None]":
        """All images as they go into the file, read and decoded by threads, no more of them at a time than these."""
        count = len(self.source)
        with ThreadPoolExecutor(self.workers, thread_name_prefix="saturate") as pool:
            for first in range(0, count, 2 * self.workers):
                part = range(first, min(first + 2 * self.workers, count))
                yield from pool.map(self._store, part)
                if progress is not None:
                    progress(part.stop, count)

    def _store(self, index: int) -> "Stored | None":
        """An image as it goes into the file: a JPEG as it is where that gives the same pixels here."""
        if (pixels := self._decode_once(index)) is None:
            return None
        height, width = pixels.shape[:2]
        if max(height, width) > self._files.MOST_PIXELS_PER_SIDE:
            raise InputError(f"LOADER=ffcv: {self.source.images.describe(index)}: {height} × {width} is too large")
        images = self.source.images
        if isinstance(images, ImageFiles) and self._photographs == "jpeg" and images.formats[index] == "JPEG":
            data = np.frombuffer(images.read(index), np.uint8)
            if self._kernel.decodes_to(data, pixels):
                return self._as_stored(data, self._kernel.JPEG, height, width)
        return self._as_stored(np.ascontiguousarray(pixels).reshape(-1), self._kernel.RAW, height, width)

    def _as_stored(self, data: NDArray[np.uint8], mode: int, height: int, width: int) -> "Stored":
        stored: Stored = self._files.Stored(data, mode, height, width)
        return stored

    # --- batches ---------------------------------------------------------------------------------

    def _produce(self, start: int) -> Generator[Batch, None, None]:
        self.prepare()
        yield from super()._produce(start)

    def _read(self, squares: Tensor, batch: PendingBatch, ids: NDArray[np.int64], places: range) -> None:
        """Reads some of a batch's samples out of the file into `squares`; sets their labels."""
        assert self._beton is not None
        these = slice(places.start, places.stop)
        plan, mine = batch.plan[these], ids[these]
        flips = self._upload is None and plan.inner is None  # a GPU does it in passing
        decodes = isinstance(self.source.images, ImageFiles) and self._photographs == "jpeg"
        with stage("decode" if decodes else "resize"):  # the kernel does both; decoding takes longer
            failed = self._kernel.read_squares(
                self._beton.data,
                self._beton.images,
                mine,
                plan.box,
                plan.resized,
                plan.window,
                plan.flip if flips else np.zeros_like(plan.flip),
                self._exact,
                self._room(self._beton.most_bytes),
                squares.permute(0, 2, 3, 1).numpy(),
            )
        if failed >= 0:
            image = self.source.images.describe(int(mine[failed]))
            raise InputError(f"LOADER=ffcv: {image} cannot be decoded from {self.path}: remove that file")
        if flips:
            batch.plan.flip[these] = False  # done
        batch.labels[these] = torch.from_numpy(self._known_labels(mine))

    def _room(self, wanted: int) -> NDArray[np.uint8]:
        """This thread's memory to decode into; fresh memory would cost as much as a fifth of the decoding."""
        if not hasattr(self._scratch, "room"):
            self._scratch.room = np.empty(wanted, np.uint8)
        room: NDArray[np.uint8] = self._scratch.room
        return room


def _libraries() -> tuple[Any, Any]:
    """The modules that stand on FFCV and numba, which take seconds to import."""
    threads = torch.get_num_threads()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # both warn of what they themselves do in an old way
            from loaders.backends import ffcv_file, ffcv_kernel
    except (ImportError, OSError, AttributeError) as error:
        raise InputError(
            f"LOADER=ffcv: FFCV is installed and cannot be loaded ({error}): make setup-ffcv builds it anew"
        ) from error
    finally:
        torch.set_num_threads(threads)  # which FFCV sets to 1 when it is imported
    return ffcv_kernel, ffcv_file
