"""Batches finished on the device from images that lie one behind the other: by Triton's kernels, or in plain torch."""

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
    """Returns the module `loaders.ops.fused`, or None where the device cannot run it or nothing can compile it."""
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
    """Carries out the plans of B images that lie one behind the other.

    Args:
        pixels: All pixels of all images, row by row: uint8 `[P, 3]`.
        starts: The place of each image's first pixel in `pixels`, `[B]`.
        widths: The images' widths in pixels, `[B]`.
        plan: The plans of the B images.
        mean, std, dtype: As for `finish.finish`.
        kernels: What `fused_kernels` returned for the device of `pixels`.

    Returns:
        `[B, 3, S, S]` of `dtype`, channels-last, on the device of `pixels`.
    """
    if kernels is not None:
        with stage("augment"):
            images: Tensor = kernels.batches(pixels, starts, widths, plan, mean=mean, std=std, dtype=dtype)
            return images
    with stage("resize"):
        squares = resample.first_reads(pixels, starts, widths, plan)
    return finish(squares, plan, mean=mean, std=std, dtype=dtype)
