"""Plans carried out by a GPU in one pass over the pixels: crop, resize, flip, color, normalize (Triton).

    weights ─► read ─► finished batch                                   a plain crop
    weights ─► read ─► uint8 squares ─► turn ─► finished batch          where the plan has a second read
    weights ─► read or turn ─► uint8 squares ─► color ─► finished batch where the plan has color

The first read is that of `resample`, integer for integer. Each program computes one tile of one sample's result. It
goes down the rows of the box that contribute to the tile, blends each row horizontally once, and adds it to all lines
of the tile that it contributes to. So pixels are read about twice per tap, from a cache, while memory is read once for
the pixels and written once for the finished batch.

Color goes over the squares twice, because contrast needs the mean of the image as the steps before it left it. The
weights need float64 and the largest weight of each axis. They are computed beforehand into a table of some 5 KB per
sample, as each would be computed dozens of times in the tiles.
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
"""The number of places whose weights one program computes at once."""
_READ_TILE = (8, 256)
"""Lines of a tile, and values (pixels × 3) of each line; a thread has two columns. Compiled for an H100, these take 72
registers per thread. 16 lines would take 128, which leaves fewer warps to hide the latency of reads."""
_TURN_TILE = (4, 256)
"""The same for the second read: 147 registers per thread. 16 lines would take more than there are."""
_COLOR_SPAN = 1024
"""The number of pixels whose color one program adjusts."""


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
    """Carries out the plans of B images that lie one behind the other, with the result of `resample` and `finish`.

    Without a second read, pixels are equal, and normalized values up to one unit in the last place of `dtype`, as a GPU
    may round float32 otherwise. With a second read, pixels differ by up to one gray level where a bilinear value lies
    in the middle between two levels. With color, they differ by up to a hundredth of a level, as float32 is summed in
    another order, and with `dtype` uint8 by up to one level.

    Args:
        pixels: All pixels of all images, row by row: uint8 `[P, 3]`.
        starts: The place of each image's first pixel in `pixels`, `[B]`.
        widths: The images' widths in pixels, `[B]`.
        plan: The plans of the B images.
        mean, std, dtype: As for `finish.finish`.

    Returns:
        `[B, 3, S, S]` of `dtype`, channels-last, on the device of `pixels`.
    """
    plain = _Finishing(mean, std, torch.uint8)
    last = _Finishing(mean, std, dtype)
    with torch.cuda.device_of(pixels):
        ends = last if plan.ends_with_first_read else plain
        images = _first_reads(pixels, starts, widths, plan, ends)
        if plan.inner is not None:
            images = _second_reads(images, plan, last if plan.color is None else plain)
        return images if plan.color is None else _colored(images, plan, last)


class _Finishing:
    """How a kernel writes its pixels: as they are (uint8), or normalized as by `finish.normalize`."""

    def __init__(self, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.normalizes = dtype != torch.uint8
        self.numbers = [1 / (255 * s) for s in std] + [-m / s for m, s in zip(mean, std, strict=True)]


def _first_reads(
    pixels: Tensor, starts: NDArray[np.int64], widths: NDArray[np.int64], plan: Plan, finishing: _Finishing
) -> Tensor:
    """Carries out the first read. The result is flipped, too, unless there is a second read."""
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
    """Carries out the second read of uint8 squares `[B, 3, S1, S1]`, and the flips."""
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
    """Adjusts the color of uint8 squares `[B, 3, S, S]`."""
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
