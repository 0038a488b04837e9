"""`dali`: NVIDIA DALI decodes and resizes, on a GPU with nvJPEG and its hardware decoders, else on the CPU.

The plan enters beside the encoded bytes: of each image only the plan's box is decoded, resized and cut to
the plan's window. The squares that come out are finished as everyone's are (`loaders.ops.finish`), on the
device they lie on, without a copy; so second read, flips and colour are the same to the bit. DALI is not asked
to turn images upright, as it finds another orientation than Pillow in some files: it is given the plan as it is in
the image that the file holds, and what comes out is turned.

Files are read here, not by DALI, as a decoder that fails takes its whole batch with it, and one that
forgives would train on half an image. What is beyond DALI, and what does not look like the file that was
indexed, goes the way of the `torchvision` loader, which knows Pillow's verdict.
"""

import warnings
from collections import deque
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import islice
from typing import Any, ClassVar

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from loaders.backends.host import MOST_SAMPLES_PER_TASK, HostLoader, PendingBatch
from loaders.errors import InputError
from loaders.loader import Batch, LoaderConfig
from loaders.ops.finish import finish
from loaders.ops.transfer import sent
from loaders.sampling.order import PADDING
from loaders.sampling.plan import Plan, RandomResizedCrop
from loaders.sources.base import ImageFiles, PixelArray, Source

AHEAD = 3
"""Batches in DALI's hands while one is consumed."""

HARDWARE_SHARE = 0.65
"""Of the JPEGs for a GPU's hardware decoder, the rest for its cores: DALI's default."""

_TAIL = 1024
"""Bytes at a JPEG's end among which its end marker is looked for; some cameras write something behind it."""

_FLIPS = ("horizontal", "vertical")
_BLANK_PIXELS = np.zeros((1, 1, 3), np.uint8)
_BLANK_FILE = np.frombuffer(simplejpeg.encode_jpeg(_BLANK_PIXELS, colorspace="RGB"), np.uint8)


@dataclass(frozen=True)
class _Running:
    """A batch in DALI's hands."""

    making: PendingBatch
    """Its images are not used: they are DALI's."""
    ids: NDArray[np.int64]
    elsewhere: list[int]
    """Places that DALI leaves blank."""
    transposed: NDArray[np.int64]
    """Places whose squares are to be transposed."""
    inputs: dict[str, Any]
    """What the pipeline is fed; kept, to feed it to another one where this one fails."""


class DaliLoader(HostLoader):
    """Batches are the receiver's own.

    Raises:
        InputError: when DALI cannot be loaded on this machine; on iterating, when it cannot build its pipeline.
    """

    name: ClassVar[str] = "dali"
    summary: ClassVar[str] = "NVIDIA DALI decodes and resizes, on the GPU where there is one"

    @classmethod
    def missing(cls) -> str | None:
        if find_spec("nvidia") is not None and find_spec("nvidia.dali") is not None:
            return None
        wheel = f"nvidia-dali-cuda{'120' if (torch.version.cuda or '').startswith('12') else '130'}"
        return f"NVIDIA DALI is not installed: python -m pip install {wheel}"

    def __init__(
        self, source: Source, config: LoaderConfig, *, ahead: int = AHEAD, hardware_share: float = HARDWARE_SHARE
    ) -> None:
        """
        Args:
            ahead: batches in DALI's hands while one is consumed, 1 or more.
            hardware_share: of the JPEGs for a GPU's hardware decoder, 0 to 1.
        """
        if ahead < 1 or not 0 <= hardware_share <= 1:
            raise InputError(f"LOADER=dali: expected {ahead=} to be 1 or more, {hardware_share=} to be 0 to 1")
        super().__init__(source, config)
        self._ahead = ahead
        self._hardware_share = hardware_share
        self._cuts = not isinstance(config.spec.crop, RandomResizedCrop)  # a window out of what was resized
        self._pipeline: Any = None
        self._told = False
        self.by_fallback = 0
        """Samples that another decoder had to take on, since the loader was made."""
        self._stored_sizes = _stored_sizes(source)
        self._orientations, self._blank = np.ones(len(source), np.uint8), _BLANK_PIXELS
        if isinstance(source.images, ImageFiles):
            self._orientations, self._blank = source.images.orientations, _BLANK_FILE
        try:
            import nvidia.dali  # noqa: F401
        except (ImportError, OSError) as error:
            raise InputError(f"LOADER=dali: NVIDIA DALI is installed and cannot be loaded: {error}") from error

    def _produce(self, start: int) -> Generator[Batch, None, None]:
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="saturate")
        rows = self.planned(start)
        running: deque[_Running] = deque()
        try:
            with torch.inference_mode(False):  # even where the receiver iterates in it: the threads are not in it
                for ids, plan in islice(rows, self._ahead):
                    self._feed(self._begun(pool, ids, plan), running)
            while running:
                with torch.inference_mode(False):
                    squares = self._await(running)
                    batch = running.popleft()
                    for ids, plan in islice(rows, 1):
                        self._feed(self._begun(pool, ids, plan), running)
                    made = self._by_fallback(batch) if squares is None else self._completed(pool, batch, squares)
                yield made
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            self._drain(len(running))

    # --- into the pipeline -----------------------------------------------------------------------

    def _begun(self, pool: ThreadPoolExecutor, ids: NDArray[np.int64], plan: Plan) -> _Running:
        """Reads a batch's files and makes ready what the pipeline is fed."""
        images = self.source.images
        if isinstance(images, PixelArray):  # one array: DALI takes its time over each of many
            given: Any = np.ascontiguousarray(images.pixels[ids])
            elsewhere = np.flatnonzero(ids == PADDING).tolist()
        else:
            found = list(pool.map(self._image, ids.tolist()))  # files may let a thread wait
            given = [self._blank if image is None else image for image in found]
            elsewhere = [place for place, image in enumerate(found) if image is None]
        stored = _as_stored(plan, self.source.stored_sizes[ids], self._orientations[ids])
        # In C's order, as DALI takes arrays to be.
        box, resized, window = (np.array(a, np.int32, order="C") for a in (stored.box, stored.resized, stored.window))
        box[elsewhere], resized[elsewhere], window[elsewhere] = (0, 0, 1, 1), plan.read_size, 0
        inputs: dict[str, Any] = {"image": given, "corner": box[:, :2].copy(), "extent": box[:, 2:].copy()}
        if self._cuts:
            inputs |= {"resized": resized.astype(np.float32), "window": window}
        inputs |= {name: stored.flip[:, i].astype(np.int32) for i, name in enumerate(_FLIPS)}
        labels = torch.from_numpy(self._known_labels(ids))
        transposed = np.setdiff1d(np.flatnonzero(self._orientations[ids] >= 5), elsewhere)
        return _Running(PendingBatch(torch.empty(0), labels, plan, []), ids, elsewhere, transposed, inputs)

    def _image(self, index: int) -> NDArray[np.uint8] | None:
        """What DALI is given of a sample: a file's bytes, or kept pixels; None where it is given nothing."""
        images = self.source.images
        if index == PADDING or self._stored_sizes[index, 0] == 0:
            return None
        if not isinstance(images, ImageFiles):
            return images.pixels_of(index)
        with suppress(OSError):
            data = images.read(index)
            if _is_intact(data, *self._stored_sizes[index].tolist()):
                return np.frombuffer(data, np.uint8)
        return None

    def _feed(self, batch: _Running, running: deque[_Running]) -> None:
        running.append(batch)
        if self._pipeline is None:
            try:
                self._pipeline = self._built(batch.making.plan.read_size)
            except Exception as error:  # as below; a driver that is too old, memory that others have taken
                raise InputError(f"LOADER=dali: DALI cannot build its pipeline here: {_reason(error)}") from error
        with suppress(Exception):  # where an earlier batch has failed meanwhile: that will be found out in its turn
            for name, values in batch.inputs.items():
                self._pipeline.feed_input(name, values)
            self._pipeline.schedule_run()

    def _built(self, side: int) -> Any:
        """The pipeline: decode the box, resize it, keep the window."""
        from nvidia.dali import Pipeline, fn, types

        on_gpu = self.config.device.type == "cuda"
        pipeline = Pipeline(
            batch_size=self.config.batch_size,
            num_threads=self.workers,
            device_id=_index(self.config.device) if on_gpu else None,
            prefetch_queue_depth=self._ahead,
        )
        with pipeline:
            box = {
                "start": fn.external_source(name="corner", dtype=types.INT32, ndim=1),
                "shape": fn.external_source(name="extent", dtype=types.INT32, ndim=1),
                "axes": [0, 1],
            }
            if isinstance(self.source.images, ImageFiles):
                image = fn.decoders.image_slice(
                    fn.external_source(name="image", dtype=types.UINT8, ndim=1),
                    **box,
                    device="mixed" if on_gpu else "cpu",
                    # As libjpeg-turbo does it, on a GPU too: or colours differ at every edge.
                    jpeg_fancy_upsampling=True,
                    hw_decoder_load=self._hardware_share,
                    adjust_orientation=False,
                )
            else:
                image = fn.external_source(name="image", dtype=types.UINT8, ndim=3, layout="HWC")
                image = fn.slice(image.gpu() if on_gpu else image, **box)
            resized = fn.external_source(name="resized", dtype=types.FLOAT, ndim=1) if self._cuts else [side, side]
            square = fn.resize(image, size=resized, antialias=True, interp_type=types.INTERP_LINEAR)
            if self._cuts:
                square = fn.slice(
                    square,
                    start=fn.external_source(name="window", dtype=types.INT32, ndim=1),
                    shape=[side, side],
                    axes=[0, 1],
                    out_of_bounds_policy="pad",
                    fill_values=0,
                )
            square = fn.flip(square, **{name: fn.external_source(name=name, ndim=0) for name in _FLIPS})
            pipeline.set_outputs(square)
        pipeline.build()
        self._prime(pipeline)
        return pipeline

    def _prime(self, pipeline: Any) -> None:
        """Fills and empties its queue once: scheduled for the first time, it wants as many batches as that holds."""
        blank: dict[str, Any] = {"image": self._blank, "corner": np.zeros(2, np.int32), "extent": np.ones(2, np.int32)}
        if self._cuts:
            blank |= {"resized": np.ones(2, np.float32), "window": np.zeros(2, np.int32)}
        blank |= dict.fromkeys(_FLIPS, np.zeros((), np.int32))
        for _ in range(self._ahead):
            for name, value in blank.items():
                pipeline.feed_input(name, [value])
        pipeline.schedule_run()
        for _ in range(self._ahead):
            pipeline.share_outputs()
            pipeline.release_outputs()

    # --- out of the pipeline ---------------------------------------------------------------------

    def _await(self, running: deque[_Running]) -> Tensor | None:
        """The squares of the first batch that runs; None where the pipeline failed, the others then run in a new one.

        They are uint8 `[B, 3, S1, S1]`, channels-last, on the device; DALI's memory, which it frees in the order of
        the stream that consumes them.
        """
        device = self.config.device
        stream = torch.cuda.current_stream(device) if device.type == "cuda" else None
        try:
            [squares] = self._pipeline.share_outputs(cuda_stream=stream)
            self._pipeline.release_outputs()
        except Exception as error:  # DALI's come as whatever type it finds fitting
            self._pipeline = None
            again = [running.popleft() for _ in range(len(running))]
            running.append(again[0])
            for batch in again[1:]:
                self._feed(batch, running)
            self._tell(error)
            return None
        return from_dlpack(squares.as_tensor()).permute(0, 3, 1, 2)

    def _tell(self, error: Exception) -> None:
        """Warns once, as batches that go the fallback's way are slower."""
        if not self._told:
            self._told = True
            warnings.warn(
                f"DALI failed on a batch, which another decoder takes on: {_reason(error)}",
                RuntimeWarning,
                stacklevel=2,
            )

    def _completed(self, pool: ThreadPoolExecutor, batch: _Running, squares: Tensor) -> Batch:
        making, device = batch.making, self.config.device
        if len(batch.transposed):
            at = sent(batch.transposed, device)
            squares[at] = squares[at].transpose(2, 3)
        for place in batch.elsewhere:
            self._put(squares[place : place + 1], batch, place)
        flip = making.plan.flip.copy()
        if making.plan.inner is None:
            flip[np.setdiff1d(np.arange(len(flip)), batch.elsewhere)] = False  # done
        plan = replace(making.plan, flip=flip)
        if device.type == "cuda":
            images = self._finish(squares, plan)
            # Copied where nothing was left to do, so that nothing of the receiver's is DALI's.
            images = squares.clone(memory_format=torch.channels_last) if images is squares else images
            return Batch(images, sent(making.labels.numpy(), device))
        if self.config.dtype == torch.uint8 and plan.inner is None and plan.color is None:  # nothing is left to do
            return Batch(self._finish(squares, plan), making.labels)
        images, _ = self._empty_batch(len(flip), plan)
        parts = [slice(first, first + MOST_SAMPLES_PER_TASK) for first in range(0, len(flip), MOST_SAMPLES_PER_TASK)]
        for task in [pool.submit(self._finish, squares[part], plan[part], images[part]) for part in parts]:
            task.result()
        return Batch(images, making.labels)

    def _finish(self, squares: Tensor, plan: Plan, out: Tensor | None = None) -> Tensor:
        config = self.config
        return finish(squares, plan, mean=config.mean, std=config.std, dtype=config.dtype, out=out)

    def _put(self, square: Tensor, batch: _Running, place: int) -> None:
        """One sample that DALI left blank: padding, or what the `torchvision` loader makes of it."""
        side = batch.making.plan.read_size
        read = torch.empty((1, side, side, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
        self._read(read, batch.making, batch.ids, range(place, place + 1))
        self.by_fallback += int(batch.ids[place] != PADDING)
        square.copy_(read)

    def _by_fallback(self, batch: _Running) -> Batch:
        """The whole batch as the `torchvision` loader makes it."""
        plan = batch.making.plan
        making = PendingBatch(*self._empty_batch(len(batch.ids), plan), plan, [])
        self._fill(making, batch.ids, range(len(batch.ids)))
        self.by_fallback += int((batch.ids != PADDING).sum())
        return self._deliver(making)

    def _drain(self, outstanding: int) -> None:
        """Takes out of the pipeline what nobody wants any more, so that the next iteration finds it empty."""
        try:
            for _ in range(outstanding):
                self._pipeline.share_outputs()
                self._pipeline.release_outputs()
        except Exception:  # as above
            self._pipeline = None


def _reason(error: Exception) -> str:
    """What DALI says beside where in this file, and of its pipeline."""
    lines = str(error).partition("encountered:")[2] or str(error)
    return " ".join(lines.split("Current pipeline")[0].split()) or type(error).__name__


def _index(device: torch.device) -> int:
    """Which GPU it is."""
    return torch.cuda.current_device() if device.index is None else device.index


def _stored_sizes(source: Source) -> NDArray[np.int32]:
    """`[N, 2]`: height and width of each image as its file has it; 0 for what is not left to DALI.

    That is JPEG and PNG in RGB or grey, which DALI reads as Pillow does.
    """
    sizes, images = source.stored_sizes.copy(), source.images
    if not isinstance(images, ImageFiles):
        return sizes
    plain = np.isin(images.modes, ("RGB", "L"))
    known = np.isin(images.formats, ("JPEG", "MPO", "PNG"))
    turned = images.orientations >= 5
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
        flip ^= plan.flip
    transposed = orientations >= 5
    for pairs in (box, resized, window, flip):
        pairs[transposed] = pairs[transposed, ..., ::-1]
    return replace(plan, box=box.reshape(-1, 4), resized=resized, window=window, flip=flip)


def _is_intact(data: bytes, height: int, width: int) -> bool:
    """Whether a JPEG or PNG file begins as one of this size does, and ends."""
    if data.startswith(b"\x89PNG"):
        size, depth = data[16:24], data[24:25]
        return size == width.to_bytes(4) + height.to_bytes(4) and depth <= b"\x08" and b"IEND" in data[-12:]
    try:
        return simplejpeg.decode_jpeg_header(data)[:2] == (height, width) and b"\xff\xd9" in data[-_TAIL:]
    except ValueError:
        return False
