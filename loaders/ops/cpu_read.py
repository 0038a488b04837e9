"""The first read on a CPU, image by image: box → anti-aliased resize → window, with torchvision's own resampling.

The resampling is ATen's on uint8, channels-last, written straight into the batch. It lets go of the interpreter's
lock, so threads suffice: there are no processes to start, no shared memory to run out of, and nothing to pickle.
"""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from loaders.sampling.plan import Plan
from loaders.system.instrument import stage

_SMALL_BYTES = 1 << 14  # of a box that NumPy flips


@cache
def _aten_resize() -> Callable[..., Tensor] | None:
    """ATen's `interpolate(antialias=True)` without the checks of what is known here; None where torch renamed it.

    It is private to torch. The checks cost about 3 µs an image, of the 40 that an image of 32 px takes in all.
    """
    found: Callable[..., Tensor] | None = getattr(getattr(torch._C, "_nn", None), "_upsample_bilinear2d_aa", None)
    return found


def resize_antialiased(image: Tensor, size: list[int], out: Tensor | None = None) -> Tensor:
    """torchvision's resize: bilinear with antialiasing, on uint8.

    Args:
        image: uint8 `[1, 3, h, w]`.
        size: height and width of the result, in pixels.
        out: uint8 `[1, 3, *size]`, channels-last, to write into.
    """
    if (aten := _aten_resize()) is not None:
        return aten(image, size, False, None, None) if out is None else aten(image, size, False, None, None, out=out)
    resized = functional.interpolate(image, size, mode="bilinear", antialias=True)
    return resized if out is None else out.copy_(resized)


class FirstRead(NamedTuple):
    """One image's first read, ready to be carried out."""

    image: Tensor
    """uint8 `[1, 3, h, w]`: the box, flipped."""
    resized: list[int]
    """Height and width that the box is resized to."""
    corner: tuple[int, int]
    """Top and left of the window in the resized box."""
    side: int
    """Side of the window, in pixels."""
    out: Tensor
    """uint8 `[1, 3, S1, S1]`, channels-last, to be written."""


Geometry = tuple[int, int, int, int, int, int]
"""Height and width to resize to, top and left of the window, whether to flip horizontally and vertically."""


def read_geometry(plan: Plan, *, flips: bool) -> list[Geometry]:
    """The geometry of each sample of a plan, as Python's numbers, without its flips unless `flips`.

    Converted for all at once: with one by one, and torch's flips, preparing a read of an image of 32 px took 24 to
    30 µs instead of 20.
    """
    flip = plan.flip if flips else np.zeros((len(plan), 2), np.bool_)
    geometry: list[Geometry] = np.column_stack([plan.resized, plan.window, flip]).tolist()
    return geometry


def prepare_read(pixels: NDArray[np.uint8], box: list[int], geometry: Geometry, side: int, out: Tensor) -> FirstRead:
    """The first read of `box` in an image `[H, W, 3]`, with a window of `side` pixels, into `out`.

    It equals `reference.first_read`, flipped. The box is flipped instead of what is read from it.
    """
    height, width, y, x, across, upside_down = geometry
    if across:
        x = width - side - x
    if upside_down:
        y = height - side - y
    return FirstRead(_part(pixels, box, bool(across), bool(upside_down)), [height, width], (y, x), side, out)


@stage("resize")
def carry_out(reads: list[FirstRead]) -> None:
    """Carries reads out, and empties the list."""
    for image, resized, corner, side, out in reads:
        if resized == [side, side] and corner == (0, 0):
            resize_antialiased(image, resized, out)
        else:
            _copy_window(resize_antialiased(image, resized), corner, out)
    reads.clear()


def _copy_window(whole: Tensor, corner: tuple[int, int], out: Tensor) -> None:
    """Copies the window at `corner` (top, left) to `out`; black where it leaves the image."""
    (y, x), side = corner, out.shape[-1]
    seen = whole[..., max(y, 0) : max(y + side, 0), max(x, 0) : max(x + side, 0)]
    down, right = max(-y, 0), max(-x, 0)
    if seen.shape != out.shape:
        out.zero_()
    out[..., down : down + seen.shape[-2], right : right + seen.shape[-1]] = seen


def _part(pixels: NDArray[np.uint8], box: list[int], across: bool, upside_down: bool) -> Tensor:
    """A part of an image `[H, W, 3]` as `[1, 3, h, w]`, channels-last, flipped; a view where that is possible.

    Small parts are flipped by NumPy: a call of torch is as fast, but lets go of the interpreter's lock and has to
    wait for it again. Torch's flip is vectorized, which counts for large ones.
    """
    top, left, height, width = box
    part = pixels[top : top + height, left : left + width]
    small = part.size <= _SMALL_BYTES
    if small and (across or upside_down):
        part = part[:: -1 if upside_down else 1, :: -1 if across else 1]
    if min(part.strides) < 0 or not part.flags.writeable:  # torch has no such tensors
        part = part.copy()
    image = torch.from_numpy(part.transpose(2, 0, 1)[None])
    if small or not (across or upside_down):
        return image
    return image.flip([axis for axis, flipped in ((-1, across), (-2, upside_down)) if flipped])
