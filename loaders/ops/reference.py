"""The reference: carries plans out in plain torch on a CPU, one image at a time.

    image ─► first read ─► second read ─► flips ─► color ─► normalization ─► finished image

Every executor is compared with this module, and the tests check each of its steps against Pillow, torchvision or a
closed form. It is written to be obviously right, not to be fast, and shares no code with what it is compared with:
production code does not import it, and it imports none of `finish`, `resample` and `fused`.

Pixels are uint8 up to the flips. Color and normalization are computed in float32.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from loaders.sampling.plan import IMAGENET_MEAN, IMAGENET_STD, Plan


def execute(
    images: Sequence[NDArray[np.uint8]],
    plan: Plan,
    *,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Finishes the B images of a plan, each by itself.

    Args:
        images: B decoded images, `[H, W, 3]` each.
        plan: The plans of these images, in the same order.
        mean, std, dtype: As for `execute_one`.

    Returns:
        `[B, 3, S, S]` of `dtype`, channels-last.
    """
    assert len(images) == len(plan)
    finished = [execute_one(image, plan, row, mean=mean, std=std, dtype=dtype) for row, image in enumerate(images)]
    return torch.stack(finished).contiguous(memory_format=torch.channels_last)


def execute_one(
    image: NDArray[np.uint8],
    plan: Plan,
    row: int,
    *,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Finishes one image by one row of a plan.

    Args:
        image: The decoded image, `[H, W, 3]`, upright.
        mean, std: Per channel, of pixel values scaled to 0–1.
        dtype: The result's dtype. With uint8, pixels are rounded to whole levels and not normalized.

    Returns:
        `[3, S, S]` of `dtype`.
    """
    pixels = first_read(torch.tensor(image).permute(2, 0, 1), plan, row)
    if plan.inner is not None:
        pixels = second_read(pixels, plan, row)
    pixels = flip(pixels, plan, row)
    if plan.color is not None:
        pixels = jitter_color(pixels.float() / 255, plan, row) * 255
    if dtype == torch.uint8:
        return pixels.round().to(torch.uint8)
    return normalize(pixels, mean, std).to(dtype)


# --- geometry ------------------------------------------------------------------------------------


def first_read(image: Tensor, plan: Plan, row: int) -> Tensor:
    """Cuts the plan's box out of the image, resizes it with antialiasing and takes the window of the result.

    The resizing is torch's own of uint8 on a CPU, which torchvision uses, too. The window is black where it leaves the
    resized box.

    Args:
        image: uint8 `[3, H, W]`.

    Returns:
        uint8 `[3, S1, S1]`, where S1 is the plan's `read_size`.
    """
    top, left, height, width = plan.box[row].tolist()
    box = image[:, top : top + height, left : left + width]
    tall, wide = plan.resized[row].tolist()
    resized = functional.interpolate(box[None], (tall, wide), mode="bilinear", antialias=True)[0]
    y, x = (corner + torch.arange(plan.read_size) for corner in plan.window[row].tolist())
    inside_y, inside_x = (y >= 0) & (y < tall), (x >= 0) & (x < wide)
    window: Tensor = resized[:, y.clamp(0, tall - 1)][:, :, x.clamp(0, wide - 1)]
    return window.mul(inside_y[:, None] & inside_x)


def second_read(square: Tensor, plan: Plan, row: int) -> Tensor:
    """Reads the plan's inner box of a rotated square, in one bilinear interpolation of the square.

    Each pixel of the result belongs to a place in the inner box. That place is moved to the centers of the box's outer
    pixels if it lies beyond them, as a resize does, and turned back about the center of the square: there the square
    is interpolated. Beyond the square all is black.

    Args:
        square: uint8 `[3, S1, S1]`.

    Returns:
        uint8 `[3, S, S]`.
    """
    assert plan.inner is not None
    assert plan.angle is not None
    top, left, height, width = plan.inner[row].tolist()
    # Places in the inner box, in pixels from the center of the square.
    share = (torch.arange(plan.size, dtype=torch.float64) + 0.5) / plan.size
    y = (top + (share * height).clamp(0.5, height - 0.5) - plan.read_size / 2).float()[:, None]
    x = (left + (share * width).clamp(0.5, width - 0.5) - plan.read_size / 2).float()[None, :]
    # In `grid_sample`, -1 and 1 are the square's edges.
    radians, edge = math.radians(float(plan.angle[row])), plan.read_size / 2
    cos, sin = torch.tensor([math.cos(radians) / edge, math.sin(radians) / edge])
    grid = torch.stack([x * cos - y * sin, x * sin + y * cos], dim=-1)
    turned = functional.grid_sample(square[None].float(), grid[None], mode="bilinear", align_corners=False)[0]
    return turned.round().clamp(0, 255).to(torch.uint8)


def flip(square: Tensor, plan: Plan, row: int) -> Tensor:
    """Mirrors `[3, S, S]` left to right, top to bottom, or both, as the plan says."""
    horizontal, vertical = plan.flip[row].tolist()
    if horizontal:
        square = square.flip(2)
    if vertical:
        square = square.flip(1)
    return square


# --- color: torchvision's definitions for floating-point images ----------------------------------


def jitter_color(image: Tensor, plan: Plan, row: int) -> Tensor:
    """Adjusts brightness, contrast, saturation and hue in the plan's order: `[3, S, S]`, floating-point, 0–1."""
    assert plan.color is not None
    assert plan.color_order is not None
    factors = plan.color[row].astype(np.float32).tolist()
    for which in plan.color_order[row].tolist():
        adjust = (brightness, contrast, saturation, hue)[which]
        image = adjust(image, factors[which])
    return image


def brightness(image: Tensor, factor: float) -> Tensor:
    """Scales `[3, H, W]`; 0 is black, 1 leaves it as it is."""
    return (image * factor).clamp(0, 1)


def contrast(image: Tensor, factor: float) -> Tensor:
    """Interpolates between the mean of the gray image (0) and the image `[3, H, W]` (1), or extrapolates."""
    return torch.lerp(gray(image).mean(), image, factor).clamp(0, 1)


def saturation(image: Tensor, factor: float) -> Tensor:
    """Interpolates between the gray image (0) and the image `[3, H, W]` (1), or extrapolates."""
    return torch.lerp(gray(image), image, factor).clamp(0, 1)


def gray(image: Tensor) -> Tensor:
    """Luma by ITU-R BT.601 with torchvision's coefficients: `[3, H, W]` → `[H, W]`."""
    red, green, blue = image
    luma: Tensor = 0.2989 * red + 0.587 * green + 0.114 * blue
    return luma


def hue(image: Tensor, shift: float) -> Tensor:
    """Turns the hue of `[3, H, W]` by a share of a full turn; value and chroma stay.

    In sixths of a turn from red, a channel of HSV at `hue` is `value - chroma * min(k, 4 - k, 1)`, but no more than
    `value`, where k is `hue` plus 5 for red, 3 for green and 1 for blue, modulo 6.
    """
    red, green, blue = image
    value, chroma = image.amax(0), image.amax(0) - image.amin(0)
    divisor = torch.where(chroma > 0, chroma, 1)
    sixths = torch.where(
        value == red,
        (green - blue) / divisor,
        torch.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )
    channels = []
    for offset in (5, 3, 1):
        k = (offset + sixths + 6 * shift) % 6
        channels.append(value - chroma * torch.minimum(k, 4 - k).clamp(0, 1))
    return torch.stack(channels)


# --- normalization -------------------------------------------------------------------------------


def normalize(image: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Computes `(pixels / 255 - mean) / std` as `pixels * factor + offset`: `[3, S, S]`, 0–255 → float32.

    Factor and offset are rounded to float32; product and sum are not rounded before the end, as in a fused
    multiply-add.
    """
    factor = torch.tensor([1 / (255 * deviation) for deviation in std], dtype=torch.float32)
    offset = torch.tensor([-middle / deviation for middle, deviation in zip(mean, std, strict=True)])
    exact = image.double() * factor.double()[:, None, None] + offset.double()[:, None, None]
    return exact.float()
