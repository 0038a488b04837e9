"""The pipeline of `dali`: decode a box, resize it, keep the window, flip."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import simplejpeg
import torch

from loaders.config import LoaderConfig
from loaders.errors import InputError
from loaders.sampling.plan import RandomResizedCrop
from loaders.sources.base import Source

_HARDWARE_SHARE = 0.65
"""Share of the JPEGs for a GPU's hardware decoder, the rest for its cores: DALI's default."""

FLIPS = ("horizontal", "vertical")
_BLANK_PIXELS = np.zeros((1, 1, 3), np.uint8)
_BLANK_FILE = np.frombuffer(simplejpeg.encode_jpeg(_BLANK_PIXELS, colorspace="RGB"), np.uint8)


class Pipeline:
    """A DALI pipeline that decodes each box, resizes it and keeps the window; built when it is fed first."""

    def __init__(self, source: Source, config: LoaderConfig, *, threads: int, depth: int) -> None:
        """
        Args:
            threads: CPU threads that decode.
            depth: batches in its queue.
        """
        self.cuts = not isinstance(config.spec.crop, RandomResizedCrop)
        """Whether it cuts a window out of what was resized."""
        self._decodes = source.images.encoded is not None
        self.blank_image = _BLANK_FILE if self._decodes else _BLANK_PIXELS
        """What it is fed for a row that it leaves blank."""
        self._config, self._threads, self._depth = config, threads, depth
        self._pipeline: Any = None

    def feed(self, inputs: Mapping[str, Any], side: int) -> None:
        """Schedules a batch. Where an earlier batch has failed meanwhile, `take` will raise."""
        if self._pipeline is None:
            try:
                self._pipeline = self._built(side)
            except Exception as error:  # of any type; a driver that is too old, memory that others have taken
                raise InputError(
                    f'`loader="dali"`: DALI cannot build its pipeline here: {failure_reason(error)}'
                ) from error
        with suppress(Exception):
            for name, values in inputs.items():
                self._pipeline.feed_input(name, values)
            self._pipeline.schedule_run()

    def take(self) -> Any:
        """The squares of the batch that was fed first; raises what DALI raises where it failed.

        They are DALI's tensor: uint8 `[B, S1, S1, 3]` on the device, in memory that it frees in the order of the stream
        that consumes them.
        """
        device = self._config.device
        stream = torch.cuda.current_stream(device) if device.type == "cuda" else None
        [squares] = self._pipeline.share_outputs(cuda_stream=stream)
        self._pipeline.release_outputs()
        return squares.as_tensor()

    def discard(self) -> None:
        """Drops a pipeline that failed; the next batch builds another."""
        self._pipeline = None

    def drain(self, outstanding: int) -> None:
        """Takes out what nobody will ask for, so that the next iteration finds it empty."""
        try:
            for _ in range(outstanding):
                self._pipeline.share_outputs()
                self._pipeline.release_outputs()
        except Exception:  # of any type
            self._pipeline = None

    def _built(self, side: int) -> Any:
        """The pipeline: decode the box, resize it, keep the window."""
        from nvidia import dali
        from nvidia.dali import fn, types

        on_gpu = self._config.device.type == "cuda"
        pipeline = dali.Pipeline(
            batch_size=self._config.batch_size,
            num_threads=self._threads,
            device_id=_index(self._config.device) if on_gpu else None,
            prefetch_queue_depth=self._depth,
        )
        with pipeline:
            box = {
                "start": fn.external_source(name="corner", dtype=types.INT32, ndim=1),
                "shape": fn.external_source(name="extent", dtype=types.INT32, ndim=1),
                "axes": [0, 1],
            }
            if self._decodes:
                image = fn.decoders.image_slice(
                    fn.external_source(name="image", dtype=types.UINT8, ndim=1),
                    **box,
                    device="mixed" if on_gpu else "cpu",
                    # As libjpeg-turbo does it, on a GPU too: or colours differ at every edge.
                    jpeg_fancy_upsampling=True,
                    hw_decoder_load=_HARDWARE_SHARE,
                    adjust_orientation=False,
                )
            else:
                image = fn.external_source(name="image", dtype=types.UINT8, ndim=3, layout="HWC")
                image = fn.slice(image.gpu() if on_gpu else image, **box)
            resized = fn.external_source(name="resized", dtype=types.FLOAT, ndim=1) if self.cuts else [side, side]
            square = fn.resize(image, size=resized, antialias=True, interp_type=types.INTERP_LINEAR)
            if self.cuts:
                square = fn.slice(
                    square,
                    start=fn.external_source(name="window", dtype=types.INT32, ndim=1),
                    shape=[side, side],
                    axes=[0, 1],
                    out_of_bounds_policy="pad",
                    fill_values=0,
                )
            square = fn.flip(square, **{name: fn.external_source(name=name, ndim=0) for name in FLIPS})
            pipeline.set_outputs(square)
        pipeline.build()
        self._prime(pipeline)
        return pipeline

    def _prime(self, pipeline: Any) -> None:
        """Fills and empties its queue once: scheduled for the first time, it expects as many batches as that holds."""
        blank: dict[str, Any] = {
            "image": self.blank_image,
            "corner": np.zeros(2, np.int32),
            "extent": np.ones(2, np.int32),
        }
        if self.cuts:
            blank |= {"resized": np.ones(2, np.float32), "window": np.zeros(2, np.int32)}
        blank |= dict.fromkeys(FLIPS, np.zeros((), np.int32))
        for _ in range(self._depth):
            for name, value in blank.items():
                pipeline.feed_input(name, [value])
        pipeline.schedule_run()
        for _ in range(self._depth):
            pipeline.share_outputs()
            pipeline.release_outputs()


def failure_reason(error: Exception) -> str:
    """What DALI says beside where in this file, and of its pipeline."""
    lines = str(error).partition("encountered:")[2] or str(error)
    return " ".join(lines.split("Current pipeline")[0].split()) or type(error).__name__


def _index(device: torch.device) -> int:
    """Which GPU it is."""
    return torch.cuda.current_device() if device.index is None else device.index
