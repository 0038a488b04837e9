"""The first read of a whole batch at once, on any device: box → anti-aliased resize → window.

The arithmetic is that of ATen's `_upsample_bilinear2d_aa` for uint8 on CPUs, which comes from Pillow-SIMD. Weights are
triangles computed in float64 and rounded to int16, at the highest precision that holds the largest of them. Pixels are
blended along the rows, rounded to uint8, and then blended along the columns. Integers are exact everywhere, so a GPU
returns what torchvision returns on a CPU, bit for bit.
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
"""The most values that an intermediate result may have; batches that need more are read in parts."""


def first_reads(pixels: Tensor, starts: NDArray[np.int64], widths: NDArray[np.int64], plan: Plan) -> Tensor:
    """Carries out the first read of B images that lie one behind the other; equals `reference.first_read`.

    Args:
        pixels: All pixels of all images, row by row: uint8 `[P, 3]`.
        starts: The place of each image's first pixel in `pixels`, `[B]`.
        widths: The images' widths in pixels, `[B]`.
        plan: The plans of the B images.

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
    """Yields runs of samples whose intermediate results are not too large; each has at least one sample."""
    wide = int(plan.resized.max()) * taps(plan, 1)  # weights for all that is resized, also beyond the window
    tall = _rows(plan) * plan.read_size * 3
    at_once = max(1, _MOST_VALUES // max(wide, tall))
    for first in range(0, len(plan), at_once):
        yield slice(first, first + at_once)


def taps(plan: Plan, axis: int) -> int:
    """Returns the most pixels along an axis (0: vertical) that contribute to one pixel of the result."""
    scale = (plan.box[:, 2 + axis] / plan.resized[:, axis]).max()
    return 2 * int(np.ceil(max(scale, 1.0))) + 1


def _rows(plan: Plan) -> int:
    """Returns the most rows of a box that contribute to its window."""
    height, resized = plan.box[:, 2], plan.resized[:, 0]
    seen = np.ceil(plan.read_size * height / resized).astype(np.int64) + taps(plan, 0)
    return int(np.minimum(height, seen).max())


def _read(pixels: Tensor, plan: Plan, geometry: Tensor) -> Tensor:
    """Returns uint8 `[B, S1, S1, 3]`. The geometry is that of `first_reads`, with a row for each sample."""
    starts, widths, top, left, height, width, tall, wide, y, x = geometry.unbind(1)
    across = _Axis.of(plan, 1, width, wide, x)
    down = _Axis.of(plan, 0, height, tall, y)
    # Along the rows, of those rows of each box that its window needs: [B, rows, S1, 3].
    rows = torch.arange(_rows(plan), device=pixels.device) + down.first[:, :1]
    rows = rows.minimum(height[:, None] - 1)
    begin = starts[:, None] + (top[:, None] + rows) * widths[:, None] + left[:, None]
    blended = across.blend(lambda column: pixels[begin[:, :, None] + column[:, None, :]], lambda w: w[:, None, :, None])
    # Along the columns: [B, S1, S1, 3].
    sample = torch.arange(len(starts), device=pixels.device)[:, None]
    return down.blend(
        lambda row: blended[sample, (row - down.first[:, :1]).clamp_(0, rows.shape[1] - 1)],
        lambda w: w[:, :, None, None],
    ) * (down.inside[:, :, None, None] & across.inside[:, None, :, None])


@dataclass(frozen=True)
class _Axis:
    """Which pixels of the box contribute to each of S pixels along one axis, and with which weights."""

    first: Tensor
    """The place in the box of the first pixel that contributes, int64 `[B, S]`."""
    weights: Tensor
    """The weights in units of 2 ** -precision, int32 `[B, S, taps]`."""
    precision: Tensor
    """The number of fractional bits of the weights, int32 `[B]`."""
    length: Tensor
    """The length of the box in pixels, int64 `[B]`."""
    inside: Tensor
    """Whether the pixel lies in the resized box at all, bool `[B, S]`."""

    @classmethod
    def of(cls, plan: Plan, axis: int, length: Tensor, resized: Tensor, window: Tensor) -> Self:
        """Computes the weights of `length` pixels resized to `resized`, in the window that begins at `window`.

        All three are int64 `[B]`.
        """
        places = window[:, None] + torch.arange(plan.read_size, device=length.device)
        inside = (places >= 0) & (places < resized[:, None])
        # The precision depends on the largest weight, which may lie beyond the window: hence all of them.
        longest = int(plan.resized[:, axis].max())
        every = torch.arange(longest, device=length.device).expand(len(length), longest)
        most = taps(plan, axis)
        first, weights = _triangles(length, resized, every, most)
        largest = weights.amax(2).masked_fill_(every >= resized[:, None], 0).amax(1)
        # ATen takes the first precision, up to 22, at which twice the largest weight does not fit into int16 anymore.
        highest = torch.arange(22, device=length.device)
        fits = (0.5 + largest[:, None] * (2 << highest)).to(torch.int64) < 1 << 15
        precision = fits.cumprod(1).sum(1)
        clamped = places.clamp(min=0).minimum(resized[:, None] - 1)
        first = first.gather(1, clamped)
        weights = weights.gather(1, clamped[:, :, None].expand(-1, -1, most))
        weights = (0.5 + weights * (1 << precision)[:, None, None]).to(torch.int32)
        return cls(first, weights, precision.to(torch.int32), length, inside)

    def blend(self, read: Callable[[Tensor], Tensor], spread: Callable[[Tensor], Tensor]) -> Tensor:
        """Returns the weighted sum, rounded to uint8, of what `read` returns for each tap's place (int64 `[B, S]`)."""
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
    """Returns the first tap and the weights of `places` in the resized box.

    The first tap is int64 `[B, R]`; the weights are float64 `[B, R, taps]`, with a sum of 1.
    """
    scale = (length.double() / resized)[:, None]
    support = scale.clamp(min=1)
    center = scale * (places + 0.5)
    first = (center - support + 0.5).to(torch.int64).clamp_(min=0)
    end = (center + support + 0.5).to(torch.int64).minimum(length[:, None])
    tap = first[:, :, None] + torch.arange(taps, device=length.device)
    distance = ((tap - center[:, :, None] + 0.5) * (1 / support)[:, :, None]).abs_()
    weights = (1 - distance).clamp_(min=0).masked_fill_(tap >= end[:, :, None], 0)
    return first, weights / weights.sum(2, keepdim=True)
