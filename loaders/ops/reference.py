"""Carries plans out in plain torch, on any device: the yardstick that every backend is compared with.

    image ─ first_read ─► uint8 square ─ finish: second read · flip · colour · normalise ─► batch

Written for clarity. The first read works on one image, as images differ in size; the rest on whole
batches. Between the stages pixels are uint8, as they are in torchvision's and Pillow's pipelines,
so that a backend may hand over at that point.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from loaders.ops.finish import finish
from loaders.sampling.plan import IMAGENET_MEAN, IMAGENET_STD, Plan


def execute(
    images: Sequence[Tensor],
    plan: Plan,
    *,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """The finished batch `[B, 3, S, S]`, channels-last, of B images (uint8 `[3, H, W]`) and their plans."""
    squares = torch.stack([first_read(image, plan, row) for row, image in enumerate(images)])
    return finish(squares.contiguous(memory_format=torch.channels_last), plan, mean=mean, std=std, dtype=dtype)


def first_read(image: Tensor, plan: Plan, row: int) -> Tensor:
    """Box → resize → window of one image: uint8 `[3, H, W]` → uint8 `[3, S1, S1]`.

    Bilinear with antialiasing. On the CPU this is ATen's uint8 resampling, the one torchvision uses
    there, bit for bit; elsewhere it is done in float32 and rounded, up to one level away.
    """
    top, left, height, width = plan.box[row].tolist()
    part = image[None, :, top : top + height, left : left + width]
    working = part if part.device.type == "cpu" else part.float()
    resized = functional.interpolate(working, tuple(plan.resized[row].tolist()), mode="bilinear", antialias=True)
    if resized.is_floating_point():
        resized = resized.round_().clamp_(0, 255).to(torch.uint8)
    return _window(resized[0], plan.window[row].tolist(), plan.read_size)


def _window(image: Tensor, corner: tuple[int, int], size: int) -> Tensor:
    """The square whose top left is `corner`, black where it leaves the image `[3, H, W]`."""
    height, width = image.shape[1:]
    top, left = corner
    above, before = max(-top, 0), max(-left, 0)
    below, behind = max(top + size - height, 0), max(left + size - width, 0)
    framed = functional.pad(image, (before, behind, above, below))
    return framed[:, top + above : top + above + size, left + before : left + before + size]
