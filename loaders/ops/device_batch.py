"""Finished batches of images that lie one behind the other: by Triton's kernels where they can be had, or in torch."""

from collections.abc import Sequence
from types import ModuleType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from loaders.ops import resample
from loaders.ops.finish import finish
from loaders.sampling.plan import Plan
from loaders.system.instrument import stage
from loaders.system.machine import can_compile


def fused_kernels(device: torch.device) -> ModuleType | None:
    """`loaders.ops.fused`, where the device can run it and what compiles it is there."""
    if device.type != "cuda" or not can_compile():
        return None
    try:
        from loaders.ops import fused
    except ModuleNotFoundError:  # torch without Triton
        return None
    return fused


def finished_batch(
    pixels: Tensor,
    starts: NDArray[np.int64],
    widths: NDArray[np.int64],
    plan: Plan,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
    kernels: ModuleType | None,
) -> Tensor:
    """The plans of B images carried out: `[B, 3, S, S]` of `dtype`, channels-last, on the device of `pixels`.

    Args:
        pixels: uint8 `[P, 3]`: all pixels of all images, row by row.
        starts: `[B]`: the place of each image's first pixel.
        widths: `[B]`, pixels.
        kernels: what `fused_kernels` found.
    """
    if kernels is not None:
        with stage("augment"):
            images: Tensor = kernels.batches(pixels, starts, widths, plan, mean=mean, std=std, dtype=dtype)
            return images
    with stage("resize"):
        squares = resample.first_reads(pixels, starts, widths, plan)
    return finish(squares, plan, mean=mean, std=std, dtype=dtype)
