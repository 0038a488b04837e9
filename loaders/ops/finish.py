"""What remains to be done with a batch after its first read, on any device, in plain torch.

    uint8 squares ─► second read ─► flips ─► color ─► normalization ─► finished batch

This is what executors use in production; `reference` does the same independently, one image at a time, and the tests
compare the two. Between the stages up to the flips, pixels are uint8, as they are in torchvision's and Pillow's
pipelines, so that an executor may hand over at any of these points.
"""

from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from loaders.ops.transfer import sent
from loaders.sampling.plan import IMAGENET_MEAN, IMAGENET_STD, Plan
from loaders.system.instrument import stage


@stage("augment")
def finish(
    squares: Tensor,
    plan: Plan,
    *,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    dtype: torch.dtype = torch.float32,
    out: Tensor | None = None,
    flipped: bool = False,
) -> Tensor:
    """What remains after the first read: second read, flips, color, normalization.

    Args:
        squares: uint8 `[B, 3, S1, S1]`, channels-last.
        mean, std: per channel, of pixel values scaled to 0–1.
        dtype: of the result; uint8 leaves normalising to whoever receives the pixels.
        out: where the result is to be written; may be `squares`, if that has its shape and dtype.
        flipped: whether the squares have the plan's flips already.

    Returns:
        `[B, 3, S, S]` of `dtype`, channels-last, on the device of `squares`.
    """
    if plan.inner is not None:
        squares = second_read(squares, plan)
    if not flipped:
        squares = flip(squares, plan)
    if plan.color is not None:
        pixels = jitter_color(squares.float() / 255, plan) * 255
        squares = pixels.round_().to(torch.uint8) if dtype == torch.uint8 else pixels
    if dtype != torch.uint8:
        return normalize(squares, mean, std, dtype, out)
    return squares if out is None or out is squares else out.copy_(squares)


def second_read(squares: Tensor, plan: Plan) -> Tensor:
    """Inner box and rotation in one bilinear read: uint8 `[B, 3, S1, S1]` → uint8 `[B, 3, S, S]`.

    A pixel of the result lies somewhere in the inner box; its place there (clamped to the box's outer
    pixel centres, as a resize does), turned back about the square's centre, is where it is read.
    Black beyond the square.
    """
    x, y, (cos, sin) = (sent(array, squares.device) for array in second_read_places(plan))
    x, y, cos, sin = x[:, None, :], y[:, :, None], cos[:, None, None], sin[:, None, None]
    grid = torch.stack([x * cos - y * sin, x * sin + y * cos], dim=-1)
    read = functional.grid_sample(squares.float(), grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return read.round_().clamp_(0, 255).to(torch.uint8).contiguous(memory_format=torch.channels_last)


def second_read_places(plan: Plan) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Where the second read looks: x and y before the rotation, `[B, S]`, and the rotation's cosine and sine, `[2, B]`.

    In pixels from the square's centre; cosine and sine also take these to `grid_sample`'s frame of -1 to 1.
    Drawn up in float64 on the host and moved as float32: a thousandth of a pixel matters to nobody.
    """
    assert plan.inner is not None
    assert plan.angle is not None
    side = plan.read_size
    top, left, height, width = (plan.inner.T[:, :, None]).astype(np.float64)
    places = (np.arange(plan.size) + 0.5) / plan.size
    y = top + np.clip(places * height, 0.5, height - 0.5) - side / 2
    x = left + np.clip(places * width, 0.5, width - 0.5) - side / 2
    radians = np.deg2rad(plan.angle)
    to_frame = np.stack([np.cos(radians), np.sin(radians)]) * 2 / side
    return x.astype(np.float32), y.astype(np.float32), to_frame.astype(np.float32)


def flip(squares: Tensor, plan: Plan) -> Tensor:
    """Flips the samples whose plan says so; uint8 `[B, 3, S, S]` in and out, the input left as it was."""
    for column, dimension in ((0, -1), (1, -2)):
        rows = np.flatnonzero(plan.flip[:, column])
        if len(rows):
            at = sent(rows, squares.device)
            flipped = squares[at].flip(dimension)
            squares = squares.clone()
            squares[at] = flipped
    return squares


_BLOCK = 2
"""Images normalized at once on a CPU, in memory that stays in its cache and is used again for the next ones: with 16 in
fresh memory, an image of 224 px took 436 µs instead of 64."""


def normalize(
    squares: Tensor, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype, out: Tensor | None = None
) -> Tensor:
    """(pixels / 255 - mean) / std, computed in float32.

    Args:
        squares: `[B, 3, S, S]`, channels-last, pixels 0–255 in any dtype.
        out: `[B, 3, S, S]` of `dtype`, channels-last, to write into.
    """
    if out is None:
        out = torch.empty_like(squares, dtype=dtype, memory_format=torch.channels_last)
    # A row of pixels at a time, 224 × 3 values: with three at a time, one per channel, it takes 4 times as long.
    factor, offset = _factor_and_offset(tuple(mean), tuple(std), squares.shape[-1], squares.device)
    rows, finished = squares.permute(0, 2, 3, 1).reshape(-1, len(factor)), out.permute(0, 2, 3, 1).view(-1, len(factor))
    at_once = min(len(rows), _BLOCK * squares.shape[-2]) if squares.device.type == "cpu" else len(rows)
    float32 = None if dtype == torch.float32 else rows.new_empty((at_once, len(factor)), dtype=torch.float32)
    for read, written in zip(rows.split(at_once), finished.split(at_once), strict=True):
        working = written if float32 is None else float32[: len(read)]
        torch.addcmul(offset, working.copy_(read), factor, out=working)
        if working is not written:
            written.copy_(working)
    return out


@cache
def _factor_and_offset(
    mean: tuple[float, ...], std: tuple[float, ...], width: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """For a row of pixels, `[width * 3]` each; kept, as sending them anew would let the host wait for the GPU."""
    scale = [1 / (255 * s) for s in std]
    shift = [-m / s for m, s in zip(mean, std, strict=True)]
    with torch.inference_mode(False):
        factor, offset = (torch.tensor(values * width, device=device) for values in (scale, shift))
    return factor, offset


# --- colour: torchvision's definitions for floating-point images ---------------------------------


def jitter_color(images: Tensor, plan: Plan) -> Tensor:
    """Brightness, contrast, saturation and hue, each sample in its own order: float `[B, 3, S, S]`, 0–1."""
    assert plan.color is not None
    assert plan.color_order is not None
    images = images.clone(memory_format=torch.channels_last)
    for place in range(4):
        for which, adjust in enumerate((brightness, contrast, saturation, hue)):
            rows = np.flatnonzero(plan.color_order[:, place] == which)
            if len(rows):
                factor = sent(plan.color[rows, which].astype(np.float32), images.device)
                at = sent(rows, images.device)
                images[at] = adjust(images[at], factor[:, None, None, None])
    return images


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Blends with black; 1 leaves `[B, 3, H, W]` as it is."""
    return (images * factor).clamp(0, 1)


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Blends with the mean of the grey image; 1 leaves `[B, 3, H, W]` as it is."""
    return torch.lerp(grey(images).mean(dim=(1, 2, 3), keepdim=True), images, factor).clamp(0, 1)


def saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Blends with the grey image; 1 leaves `[B, 3, H, W]` as it is."""
    return torch.lerp(grey(images), images, factor).clamp(0, 1)


def grey(images: Tensor) -> Tensor:
    """Luma by ITU-R 601-2 with torchvision's coefficients: `[B, 3, H, W]` → `[B, 1, H, W]`."""
    red, green, blue = images[:, 0:1], images[:, 1:2], images[:, 2:3]
    return 0.2989 * red + 0.587 * green + 0.114 * blue


def hue(images: Tensor, shift: Tensor) -> Tensor:
    """Turns the hue of `[B, 3, H, W]` by `shift` turns (`[B, 1, 1, 1]`), by way of HSV."""
    value, low = images.amax(1, keepdim=True), images.amin(1, keepdim=True)
    chroma = value - low
    red, green, blue = images[:, 0:1], images[:, 1:2], images[:, 2:3]
    safe = torch.where(chroma > 0, chroma, 1)
    sixths = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    # Back to RGB: each channel falls from `value` by `chroma` along a trapezoid of the hue, a third of a turn apart.
    k = torch.cat([(corner + sixths + 6 * shift) % 6 for corner in (5, 3, 1)], dim=1)
    return value - chroma * torch.minimum(k, 4 - k).clamp(0, 1)
