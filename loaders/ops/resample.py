"""The first read of a whole batch at once, on any device: box → anti-aliased resize → window.

The arithmetic is that of ATen's `_upsample_bilinear2d_aa` for uint8 on CPUs (from Pillow-SIMD): triangular
weights in float64, rounded to int16 at the highest precision that holds the largest of them, first along
the rows, rounded to uint8, then along the columns. In integers it is exact everywhere, so a GPU gives
what torchvision gives on a CPU, to the bit.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from loaders.ops.transfer import sent
from loaders.sampling.plan import Plan

_MOST_VALUES = 1 << 26
"""Values of the largest intermediate result; batches that need more are read in parts."""


def first_reads(pixels: Tensor, starts: NDArray[np.int64], widths: NDArray[np.int64], plan: Plan) -> Tensor:
    """`reference.first_read` of B images that lie one behind the other.

    Args:
        pixels: uint8 `[P, 3]`: all pixels of all images, row by row.
        starts: `[B]`: the place of each image's first pixel.
        widths: `[B]`, pixels.

    Returns:
        uint8 `[B, 3, S1, S1]`, channels-last, on the device of `pixels`.
    """
    side = plan.read_size
    out = torch.empty((len(plan), side, side, 3), dtype=torch.uint8, device=pixels.device)
    geometry = sent(np.column_stack([starts, widths, plan.box, plan.resized, plan.window]), pixels.device)
    for rows in _parts(plan):
        out[rows] = _read(pixels, plan[rows], geometry[rows])
    return out.permute(0, 3, 1, 2)


def _parts(plan: Plan) -> Iterator[slice]:
    """Runs of samples whose intermediate results are not too large; at least one sample each."""
    wide = int(plan.resized.max()) * taps(plan, 1)  # weights for all that is resized, also beyond the window
    tall = _rows(plan) * plan.read_size * 3
    at_once = max(1, _MOST_VALUES // max(wide, tall))
    for first in range(0, len(plan), at_once):
        yield slice(first, first + at_once)


def taps(plan: Plan, axis: int) -> int:
    """The most pixels along an axis (0: vertical) that contribute to one pixel of the result."""
    scale = (plan.box[:, 2 + axis] / plan.resized[:, axis]).max()
    return 2 * int(np.ceil(max(scale, 1.0))) + 1


def _rows(plan: Plan) -> int:
    """The most rows of a box that its window is made of."""
    height, resized = plan.box[:, 2], plan.resized[:, 0]
    seen = np.ceil(plan.read_size * height / resized).astype(np.int64) + taps(plan, 0)
    return int(np.minimum(height, seen).max())


def _read(pixels: Tensor, plan: Plan, geometry: Tensor) -> Tensor:
    """uint8 `[B, S1, S1, 3]`; the geometry is that of `first_reads`, a row for each sample."""
    starts, widths, top, left, height, width, tall, wide, y, x = geometry.unbind(1)
    across = _Axis.of(plan, 1, width, wide, x)
    down = _Axis.of(plan, 0, height, tall, y)
    # Along the rows, of those rows of each box that its window needs: [B, rows, S1, 3].
    rows = torch.arange(_rows(plan), device=pixels.device) + down.first[:, :1]
    rows = rows.minimum(height[:, None] - 1)
    begin = starts[:, None] + (top[:, None] + rows) * widths[:, None] + left[:, None]
    squeezed = across.blend(
        lambda column: pixels[begin[:, :, None] + column[:, None, :]], lambda w: w[:, None, :, None]
    )
    # Along the columns: [B, S1, S1, 3].
    sample = torch.arange(len(starts), device=pixels.device)[:, None]
    return down.blend(
        lambda row: squeezed[sample, (row - down.first[:, :1]).clamp_(0, rows.shape[1] - 1)],
        lambda w: w[:, :, None, None],
    ) * (down.inside[:, :, None, None] & across.inside[:, None, :, None])


@dataclass(frozen=True)
class _Axis:
    """How each of S pixels along one axis is made of pixels of the box."""

    first: Tensor
    """int64 `[B, S]`: the place in the box of the first that contributes."""
    weights: Tensor
    """int32 `[B, S, taps]`, in units of 2 ** -precision."""
    precision: Tensor
    """int32 `[B]`."""
    length: Tensor
    """int64 `[B]`, of the box."""
    inside: Tensor
    """bool `[B, S]`: whether the pixel lies in the resized box at all."""

    @classmethod
    def of(cls, plan: Plan, axis: int, length: Tensor, resized: Tensor, window: Tensor) -> Self:
        """For `length` pixels resized to `resized`, and the window at `window` of these; int64 `[B]` each."""
        places = window[:, None] + torch.arange(plan.read_size, device=length.device)
        inside = (places >= 0) & (places < resized[:, None])
        # The precision hangs on the largest weight, which may lie beyond the window: hence all of them.
        longest = int(plan.resized[:, axis].max())
        every = torch.arange(longest, device=length.device).expand(len(length), longest)
        most = taps(plan, axis)
        first, weights = _triangles(length, resized, every, most)
        largest = weights.amax(2).masked_fill_(every >= resized[:, None], 0).amax(1)
        # ATen looks for the highest precision, no more than 22, at which twice the largest weight does not fit yet.
        highest = torch.arange(22, device=length.device)
        fits = (0.5 + largest[:, None] * (2 << highest)).to(torch.int64) < 1 << 15
        precision = fits.cumprod(1).sum(1)
        clamped = places.clamp(min=0).minimum(resized[:, None] - 1)
        first = first.gather(1, clamped)
        weights = weights.gather(1, clamped[:, :, None].expand(-1, -1, most))
        weights = (0.5 + weights * (1 << precision)[:, None, None]).to(torch.int32)
        return cls(first, weights, precision.to(torch.int32), length, inside)

    def blend(self, read: Callable[[Tensor], Tensor], spread: Callable[[Tensor], Tensor]) -> Tensor:
        """The weighted sum, rounded to uint8, of what `read` finds at each tap's place (int64 `[B, S]`)."""
        precision = self.precision.view(-1, 1, 1, 1)
        total: Tensor | None = None
        for tap in range(self.weights.shape[2]):
            # Beyond the box the weight is 0, and any place will do.
            place = (self.first + tap).minimum(self.length[:, None] - 1)
            part = read(place).to(torch.int32).mul_(spread(self.weights[:, :, tap]))
            total = part.add_(1 << (precision - 1)) if total is None else total.add_(part)
        assert total is not None
        return total.bitwise_right_shift_(precision).clamp_(0, 255).to(torch.uint8)


def _triangles(length: Tensor, resized: Tensor, places: Tensor, taps: int) -> tuple[Tensor, Tensor]:
    """First tap (int64 `[B, R]`) and weights (float64 `[B, R, taps]`, their sum 1) of `places` in the resized box."""
    scale = (length.double() / resized)[:, None]
    support = scale.clamp(min=1)
    center = scale * (places + 0.5)
    first = (center - support + 0.5).to(torch.int64).clamp_(min=0)
    end = (center + support + 0.5).to(torch.int64).minimum(length[:, None])
    tap = first[:, :, None] + torch.arange(taps, device=length.device)
    distance = ((tap - center[:, :, None] + 0.5) * (1 / support)[:, :, None]).abs_()
    weights = (1 - distance).clamp_(min=0).masked_fill_(tap >= end[:, :, None], 0)
    return first, weights / weights.sum(2, keepdim=True)
