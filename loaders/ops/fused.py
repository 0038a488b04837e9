"""Plans carried out by a GPU in one pass over the pixels: crop, resize, flip, colour, normalise (Triton).

    weights ─► read ─► finished batch                                   a plain crop
    weights ─► read ─► uint8 squares ─► turn ─► finished batch          where the plan has a second read
    weights ─► read or turn ─► uint8 squares ─► color ─► finished batch where the plan has colour

The first read is that of `resample`, integer for integer. Each program makes a tile of one sample's batch: it goes
down the rows of the box that the tile is made of, blends each row across once, and adds it to all lines of the tile
it belongs to. So pixels are read about twice per tap, out of a cache, and memory sees what it must: the pixels
once and the finished batch once. Colour goes over the squares twice: contrast needs the mean of an image as the
steps before it left it. The weights, which want float64 and the largest of each axis, are drawn up
beforehand in a table of some 5 KB a sample: in the tiles each would be computed dozens of times.
"""

from collections.abc import Sequence

import numpy as np
import torch
import triton
from numpy.typing import NDArray
from torch import Tensor

from loaders.ops import kernels, resample
from loaders.ops.finish import second_read_places
from loaders.ops.transfer import sent
from loaders.sampling.plan import IMAGENET_MEAN, IMAGENET_STD, Plan

_SPAN = 128
"""Places whose weights one program draws up at once."""
_READ_TILE, _TURN_TILE = (8, 256), (4, 256)
"""Lines, and values (pixels × 3) of each; a thread has two columns. Compiled for an H100 these take 72 and 147
registers a thread, 16 lines would take 128 and more than there are: fewer warps to hide the waiting for reads."""
_COLOR_SPAN = 1024
"""Pixels whose colour one program adjusts."""


def batches(
    pixels: Tensor,
    starts: NDArray[np.int64],
    widths: NDArray[np.int64],
    plan: Plan,
    *,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """The finished batch of B images that lie one behind the other; equals `resample` and `finish.finish`.

    Bit for bit without a second read, up to what float32 rounds otherwise on a GPU: one unit in the last place of
    `dtype`. With one, up to one grey level where a bilinear value lies in the middle between two. With colour, up to a
    hundredth of a level, as sums of float32 come in another order, and with `dtype` uint8 up to one.

    Args:
        pixels: uint8 `[P, 3]`: all pixels of all images, row by row.
        starts: `[B]`: the place of each image's first pixel.
        widths: `[B]`, pixels.
        mean, std, dtype: as for `finish.finish`.

    Returns:
        `[B, 3, S, S]` of `dtype`, channels-last, on the device of `pixels`.
    """
    plain, last = _Finishing(mean, std, torch.uint8), _Finishing(mean, std, dtype)
    with torch.cuda.device_of(pixels):
        ends = last if plan.inner is None and plan.color is None else plain
        images = _first_reads(pixels, starts, widths, plan, ends)
        if plan.inner is not None:
            images = _second_reads(images, plan, last if plan.color is None else plain)
        return images if plan.color is None else _colored(images, plan, last)


class _Finishing:
    """What becomes of a pixel in the end: itself as uint8, or normalised as `finish.normalize` does."""

    def __init__(self, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype) -> None:
        self.dtype, self.normalizes = dtype, dtype != torch.uint8
        self.numbers = [1 / (255 * s) for s in std] + [-m / s for m, s in zip(mean, std, strict=True)]


def _first_reads(
    pixels: Tensor, starts: NDArray[np.int64], widths: NDArray[np.int64], plan: Plan, finishing: _Finishing
) -> Tensor:
    """The first read; flipped and finished, unless there is a second."""
    side, count, device = plan.read_size, len(plan), pixels.device
    flip = plan.flip if plan.inner is None else np.zeros_like(plan.flip)
    geometry = sent(
        np.column_stack([starts, widths, plan.box, plan.resized, plan.window, flip]).astype(np.int64), device
    )
    taps = max(resample.taps(plan, 0), resample.taps(plan, 1))
    weights = torch.empty((count, 2, taps, side), dtype=torch.int16, device=device)
    first = torch.empty((count, 2, side), dtype=torch.int32, device=device)
    shift = torch.empty((count, 2), dtype=torch.int32, device=device)
    kernels.weigh[count, 2](geometry, weights, first, shift, side, taps, _SPAN, enable_fp_fusion=False)
    out = torch.empty((count, side, side, 3), dtype=finishing.dtype, device=device)
    kernels.read[_grid(side, count, _READ_TILE)](
        pixels, geometry, weights, first, shift, out, side, taps, *finishing.numbers, finishing.normalizes,
        *_READ_TILE, enable_fp_fusion=False,
    )  # fmt: skip
    return out.permute(0, 3, 1, 2)


def _second_reads(squares: Tensor, plan: Plan, finishing: _Finishing) -> Tensor:
    """The second read of uint8 squares `[B, 3, S1, S1]`, flipped and finished."""
    count, device = len(plan), squares.device
    x, y, to_frame = (sent(array, device) for array in second_read_places(plan))
    flip = sent(np.ascontiguousarray(plan.flip, np.int32), device)
    out = torch.empty((count, plan.size, plan.size, 3), dtype=finishing.dtype, device=device)
    kernels.turn[_grid(plan.size, count, _TURN_TILE)](
        squares, x, y, to_frame, flip, out, plan.read_size, plan.size, *finishing.numbers, finishing.normalizes,
        *_TURN_TILE, enable_fp_fusion=False,
    )  # fmt: skip
    return out.permute(0, 3, 1, 2)


def _colored(squares: Tensor, plan: Plan, finishing: _Finishing) -> Tensor:
    """The colour of uint8 squares `[B, 3, S, S]`, and the end."""
    assert plan.color is not None
    assert plan.color_order is not None
    count, device, pixels = len(plan), squares.device, plan.size**2
    factors = sent(np.ascontiguousarray(plan.color, np.float32), device)
    order = sent(np.ascontiguousarray(plan.color_order, np.int32), device)
    parts = triton.cdiv(pixels, _COLOR_SPAN)
    sums = torch.empty((count, parts), dtype=torch.float32, device=device)
    out = torch.empty((count, plan.size, plan.size, 3), dtype=finishing.dtype, device=device)
    for measures in (True, False):
        kernels.color[parts, count](
            squares, factors, order, sums, out, pixels, *finishing.numbers, finishing.normalizes, measures,
            triton.next_power_of_2(parts), _COLOR_SPAN, enable_fp_fusion=False,
        )  # fmt: skip
    return out.permute(0, 3, 1, 2)


def _grid(side: int, count: int, tile: tuple[int, int]) -> tuple[int, int, int]:
    return triton.cdiv(3 * side, tile[1]), triton.cdiv(side, tile[0]), count
