"""The device that a run computes on."""

from typing import Literal

import torch

from loaders import InputError
from loaders.system.machine import usable_cores

DeviceName = Literal["auto", "cuda", "cpu"]


def choose_device(asked: DeviceName, local_rank: int = 0) -> torch.device:
    """A GPU where there is one, the process's own of several; or what was asked for.

    Raises:
        InputError: when a GPU was asked for and there is none.
    """
    if asked == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: torch finds no GPU here (nvidia-smi and torch.version.cuda tell more)")
    if asked == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", local_rank)


def device_name(device: torch.device) -> str:
    """For people: a GPU's own name, or how many cores there are."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {usable_cores()} cores"
