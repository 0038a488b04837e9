"""`dali`: NVIDIA DALI decodes and resizes, on a GPU with nvJPEG and its hardware decoders, else on the CPU.

The plan enters beside the encoded bytes: of each image only the plan's box is decoded, resized and cut to
the plan's window. The squares that come out are finished as everyone's are (`ops.finish`), on the
device they lie on, without a copy; so second read, flips and color are the same to the bit. DALI is not asked
to turn images upright, as it finds another orientation than Pillow in some files: it is given the plan as it is in
the image that the file holds, and what comes out is transposed.

Files are read here, not by DALI, as a decoder that fails takes its whole batch with it, and one that
forgives would train on half an image. What DALI cannot decode, and what does not look like the file that was
indexed, is decoded as `torchvision` does, which knows Pillow's verdict.
"""

import warnings
from collections import deque
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from loaders.backends.dali_pipeline import FLIPS, Pipeline, failure_reason
from loaders.backends.executor import Backend, BatchRequest, ExecutedBatch
from loaders.backends.threads import ThreadedExecutor, tasks_of
from loaders.backends.torchvision import ImageReader, load_box
from loaders.config import LoaderConfig
from loaders.errors import InputError, printable
from loaders.ops.finish import finish
from loaders.ops.transfer import sent
from loaders.sampling.plan import Plan
from loaders.sources.base import ReportUnreadable, Source
from loaders.sources.index import Progress
from loaders.sources.jpeg import find_frame, require_few_scans

AHEAD = 3
"""Batches in DALI's queue while one is consumed."""

_TAIL = 1024
"""Bytes at a JPEG's end among which its end marker is looked for; some cameras write something behind it."""


@dataclass(frozen=True)
class QueuedBatch:
    """A batch in DALI's queue."""

    request: BatchRequest
    blank: list[int]
    """Rows that DALI leaves blank: padding, and what the fallback decodes."""
    transposed: NDArray[np.int64]
    """Rows whose squares have to be transposed."""
    inputs: dict[str, Any]
    """What the pipeline is fed; held here to feed it to another pipeline where this one fails."""


class DaliExecutor:
    """Feeds a DALI pipeline, several batches ahead.

    Raises:
        InputError: on iterating, when DALI cannot build its pipeline.
    """

    def __init__(self, source: Source, config: LoaderConfig) -> None:
        self.source = source
        self.decoded_by_fallback = 0
        """Samples that another decoder had to take over, since the executor was made."""
        self._config = config
        self._reader = ImageReader(source, load_box(source, scaled_decoding=config.scaled_decoding))
        self._fallback = ThreadedExecutor(config, self._reader)
        self._pipeline = Pipeline(source, config, threads=self._fallback.workers, depth=AHEAD)
        self._has_warned = False
        self._stored_sizes = _sizes_in_files(source)
        files = source.images.encoded
        self._orientations = np.ones(len(source), np.uint8) if files is None else files.orientations

    def prepare(self, report: ReportUnreadable, progress: Progress | None) -> frozenset[int]:  # noqa: ARG002
        return frozenset()

    def files(self) -> list[Path]:
        return self.source.images.files()

    def run(self, requests: Iterator[BatchRequest]) -> Generator[ExecutedBatch, None, None]:
        pool = ThreadPoolExecutor(self._fallback.workers, thread_name_prefix="saturate")
        queued: deque[QueuedBatch] = deque()
        try:
            for request in islice(requests, AHEAD):
                self._enqueue(self._queued(pool, request), queued)
            while queued:
                squares = self._await(queued)
                batch = queued.popleft()
                for request in islice(requests, 1):
                    self._enqueue(self._queued(pool, request), queued)
                if squares is None:
                    self.decoded_by_fallback += int((~batch.request.padded).sum())
                    yield self.execute(batch.request)
                else:
                    yield self._complete(pool, batch, squares)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            self._pipeline.drain(len(queued))

    def execute(self, request: BatchRequest) -> ExecutedBatch:
        """Executes a batch by the fallback."""
        return self._fallback.execute(request)

    # --- into the pipeline -----------------------------------------------------------------------

    def _queued(self, pool: ThreadPoolExecutor, request: BatchRequest) -> QueuedBatch:
        """Reads a batch's files and makes ready what the pipeline is fed."""
        ids, plan = request.ids, request.plan
        array = self.source.images.array
        if array is not None:  # one array for all: each of many takes DALI some time
            images: Any = np.ascontiguousarray(array[ids])
            blank = np.flatnonzero(request.padded).tolist()
        else:
            found = list(pool.map(self._input, ids.tolist(), request.padded.tolist()))  # reading may let a thread wait
            images = [self._pipeline.blank_image if image is None else image for image in found]
            blank = [row for row, image in enumerate(found) if image is None]
        stored = _as_stored(plan, self.source.stored_sizes[ids], self._orientations[ids])
        # In C's order, as DALI expects.
        box, resized, window = (np.array(a, np.int32, order="C") for a in (stored.box, stored.resized, stored.window))
        box[blank], resized[blank], window[blank] = (0, 0, 1, 1), plan.read_size, 0
        inputs: dict[str, Any] = {"image": images, "corner": box[:, :2].copy(), "extent": box[:, 2:].copy()}
        if self._pipeline.cuts:
            inputs |= {"resized": resized.astype(np.float32), "window": window}
        inputs |= {name: stored.flip[:, i].astype(np.int32) for i, name in enumerate(FLIPS)}
        transposed = np.setdiff1d(np.flatnonzero(self._orientations[ids] >= 5), blank)
        return QueuedBatch(request, blank, transposed, inputs)

    def _input(self, index: int, padded: bool) -> NDArray[np.uint8] | None:
        """What DALI is given of a sample: a file's bytes, or cached pixels; None where it is given nothing."""
        files, decoded = self.source.images.encoded, self.source.images.decoded
        if padded or self._stored_sizes[index, 0] == 0:
            return None
        with suppress(OSError, ValueError):
            if decoded is not None:
                return decoded.pixels_of(index)
            assert files is not None
            data = files.read(index)
            if _is_intact(data, *self._stored_sizes[index].tolist()):
                return np.frombuffer(data, np.uint8)
        return None

    def _enqueue(self, batch: QueuedBatch, queued: deque[QueuedBatch]) -> None:
        queued.append(batch)
        self._pipeline.feed(batch.inputs, batch.request.plan.read_size)

    # --- out of the pipeline ---------------------------------------------------------------------

    def _await(self, queued: deque[QueuedBatch]) -> Tensor | None:
        """The squares of the first batch in the queue; None where the pipeline failed; a new one has the others."""
        try:
            squares = self._pipeline.take()
        except Exception as error:  # DALI's come as whatever type it finds fitting
            self._pipeline.discard()
            for batch in list(queued)[1:]:
                self._pipeline.feed(batch.inputs, batch.request.plan.read_size)
            self._warn_once(error)
            return None
        return from_dlpack(squares).permute(0, 3, 1, 2)

    def _warn_once(self, error: Exception) -> None:
        """Warns, as batches that the fallback decodes are slower."""
        if not self._has_warned:
            self._has_warned = True
            warnings.warn(
                f"DALI failed on a batch, which another decoder takes over: {printable(failure_reason(error))}",
                RuntimeWarning,
                stacklevel=2,
            )

    def _complete(self, pool: ThreadPoolExecutor, batch: QueuedBatch, squares: Tensor) -> ExecutedBatch:
        plan, device, dtype = batch.request.plan, self._config.device, self._config.dtype
        if len(batch.transposed):
            rows = sent(batch.transposed, device)
            squares[rows] = squares[rows].transpose(2, 3)
        unreadable: dict[int, str] = {}
        for row in batch.blank:
            unreadable |= self._read_blank(squares[row : row + 1], batch.request, row)
        if device.type == "cuda":
            images = self._finish(squares, plan)
            # Copied where nothing was left to do, so that nothing of the receiver's belongs to DALI.
            images = squares.clone(memory_format=torch.channels_last) if images is squares else images
        elif dtype == torch.uint8 and plan.ends_with_first_read:  # nothing is left to do
            images = squares
        else:
            images = self._fallback.empty_images(len(plan), plan.size, dtype)
            parts = [(squares[rows], plan[rows], images[rows]) for rows in tasks_of(len(plan), self._fallback.workers)]
            for task in [pool.submit(self._finish, *part) for part in parts]:
                task.result()
        return ExecutedBatch(images, unreadable)

    def _read_blank(self, square: Tensor, request: BatchRequest, row: int) -> Mapping[int, str]:
        """Fills a row that DALI left blank: padding, or a sample that the CPU decodes.

        Returns the row and the reason where the sample cannot be read.
        """
        if request.padded[row]:
            square.zero_()
            return {}
        shape, on_gpu = (1, request.plan.read_size, request.plan.read_size, 3), square.device.type == "cuda"
        # Pinned, so that the host does not wait until the GPU has done all that is queued before the copy.
        read = torch.empty(shape, dtype=torch.uint8, pin_memory=on_gpu).permute(0, 3, 1, 2)
        unreadable = self._reader.read(request.part(slice(row, row + 1)), read, flips=request.plan.inner is None)
        self.decoded_by_fallback += 1
        square.copy_(read, non_blocking=True)
        return {row + first: reason for first, reason in unreadable.items()}

    def _finish(self, squares: Tensor, plan: Plan, out: Tensor | None = None) -> Tensor:
        config, flipped = self._config, plan.inner is None
        return finish(squares, plan, mean=config.mean, std=config.std, dtype=config.dtype, out=out, flipped=flipped)


def _sizes_in_files(source: Source) -> NDArray[np.int32]:
    """`[N, 2]`: height and width of each image as its file has it; 0 for what is not left to DALI.

    That is JPEG and PNG in RGB or grey, which DALI reads as Pillow does.
    """
    sizes, files = source.stored_sizes.copy(), source.images.encoded
    if files is None:
        return sizes
    plain = np.isin(files.modes, ("RGB", "L"))
    known = np.isin(files.formats, ("JPEG", "MPO", "PNG"))
    turned = files.orientations >= 5
    sizes[turned] = sizes[turned, ::-1]
    sizes[~(plain & known)] = 0
    return sizes


def _as_stored(plan: Plan, sizes: NDArray[np.int32], orientations: NDArray[np.uint8]) -> Plan:
    """The first reads, of upright images of `sizes`, as they are in images that lie in their files by EXIF orientation.

    The squares are upright after this plan's flips and, from orientation 5 on, transposing. Its flips are also those of
    `plan`, unless a second read comes before these.
    """
    across, upside_down = np.isin(orientations, (2, 3, 6, 7)), np.isin(orientations, (3, 4, 7, 8))
    flip = np.stack([across, upside_down], axis=1)
    mirrored = flip[:, ::-1]  # rows, columns
    box = np.stack([np.where(mirrored, sizes - plan.box[:, :2] - plan.box[:, 2:], plan.box[:, :2]), plan.box[:, 2:]], 1)
    resized, window = plan.resized.copy(), np.where(mirrored, plan.resized - plan.read_size - plan.window, plan.window)
    if plan.inner is None:
        flip = flip ^ plan.flip
    transposed = orientations >= 5
    for pairs in (box, resized, window, flip):
        pairs[transposed] = pairs[transposed, ..., ::-1]
    return replace(plan, box=box.reshape(-1, 4), resized=resized, window=window, flip=flip)


def _is_intact(data: bytes, height: int, width: int) -> bool:
    """Whether a JPEG or PNG file begins as one of this size does, and ends; and does not have too many scans."""
    if data.startswith(b"\x89PNG"):
        size, depth = data[16:24], data[24:25]
        return size == width.to_bytes(4) + height.to_bytes(4) and depth <= b"\x08" and b"IEND" in data[-12:]
    frame = find_frame(data)
    try:
        require_few_scans(data, frame)
        found = simplejpeg.decode_jpeg_header(data)[:2] if frame is None else (frame.height, frame.width)
    except ValueError:
        return False
    return found == (height, width) and b"\xff\xd9" in data[-_TAIL:]


def missing() -> str | None:
    if find_spec("nvidia") is not None and find_spec("nvidia.dali") is not None:
        return None
    wheel = f"nvidia-dali-cuda{'120' if (torch.version.cuda or '').startswith('12') else '130'}"
    return f"NVIDIA DALI is not installed: python -m pip install {wheel}"


def build(source: Source, config: LoaderConfig) -> DaliExecutor:
    try:
        import nvidia.dali  # noqa: F401
    except (ImportError, OSError) as error:
        raise InputError(f'`loader="dali"`: NVIDIA DALI is installed and cannot be loaded: {error}') from error
    return DaliExecutor(source, config)


BACKEND = Backend("dali", "NVIDIA DALI decodes and resizes, on the GPU where there is one", build, missing)
