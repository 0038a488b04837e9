"""`torchvision`: threads decode and resize on the CPU; works everywhere.

Plans are carried out with torchvision's own resampling, see `ops.cpu_read`.
"""

import math
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from loaders.backends.executor import Backend, BatchRequest, Executor
from loaders.backends.threads import ThreadedExecutor
from loaders.config import LoaderConfig
from loaders.errors import cause
from loaders.ops.cpu_read import FirstRead, carry_out, prepare_read, read_geometry
from loaders.ops.decode import load_pixels
from loaders.sampling.plan import scale_boxes
from loaders.sources.base import Source

MAX_BYTES_WAITING = 1 << 20
"""Images are first all prepared, then all resized, up to this size together. Resizing lets go of the interpreter's
lock, and the less a thread does between two resizings, the less the threads wait for each other."""


Box: TypeAlias = list[int]
"""Top, left, height and width, in pixels."""

LoadBox: TypeAlias = Callable[[int, Box, list[int]], tuple[NDArray[np.uint8], Box]]
"""Called with a sample's id, the box of its plan, and the height and width that the box is resized to.

Returns an image's pixels as uint8 `[H, W, 3]`, as far as the box needs them, and the box in them. Raises OSError or
ValueError where the image cannot be read.
"""


class ImageReader:
    """Reads samples image by image, from files or pixels."""

    def __init__(self, source: Source, load: LoadBox) -> None:
        self.source = source
        self._load = load

    def read(self, request: BatchRequest, squares: Tensor, *, flips: bool) -> dict[int, str]:
        plan, padded, boxes = request.plan, request.padded.tolist(), request.plan.box.tolist()
        reads: list[FirstRead] = []
        waiting = 0
        unreadable: dict[int, str] = {}
        geometry = read_geometry(plan, flips=flips)
        for row, (index, out) in enumerate(zip(request.ids.tolist(), squares.split(1), strict=True)):
            if padded[row]:
                out.zero_()
                continue
            try:
                pixels, box = self._load(index, boxes[row], list(geometry[row][:2]))
            except (OSError, ValueError) as error:
                unreadable[row] = cause(error)
                out.zero_()
                continue
            reads.append(prepare_read(pixels, box, geometry[row], plan.read_size, out))
            waiting += pixels.nbytes
            if waiting > MAX_BYTES_WAITING:
                carry_out(reads)
                waiting = 0
        carry_out(reads)
        return unreadable


def load_box(source: Source, *, scaled_decoding: bool = False) -> LoadBox:
    """Decodes files, and takes pixels as they are.

    Args:
        scaled_decoding: see `LoaderConfig`.
    """

    def load(index: int, box: Box, resized: list[int]) -> tuple[NDArray[np.uint8], Box]:
        height, width = sizes[index].tolist()
        enough = sufficient_size((height, width), box, resized) if scaled_decoding else None
        pixels = load_pixels(images, index, size=(height, width), at_least=enough, rows=box[0] + box[2])
        if pixels.shape[1] != width:
            box = scale_boxes(np.array([box]), np.array([(height, width)]), np.array([pixels.shape[:2]]))[0].tolist()
        return pixels, box

    images, sizes = source.images, source.stored_sizes
    return load


def sufficient_size(size: tuple[int, int], box: list[int], resized: list[int]) -> tuple[int, int]:
    """Height and width at which the box still has as many pixels as it is resized to; no more than `size`."""
    share = min(1.0, max(resized[0] / box[2], resized[1] / box[3]))
    return math.ceil(size[0] * share), math.ceil(size[1] * share)


def build(source: Source, config: LoaderConfig) -> Executor:
    return ThreadedExecutor(config, ImageReader(source, load_box(source, scaled_decoding=config.scaled_decoding)))


BACKEND = Backend("torchvision", "threads decode and resize on the CPU, with torchvision's resampling", build)
