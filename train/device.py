"""The device that a run computes on."""

import torch

from loaders import InputError
from loaders.system.machine import usable_cores
from train.option_values import DeviceName


def choose_device(requested: DeviceName, local_rank: int = 0) -> torch.device:
    """The requested device; for "auto" a GPU where there is one. Of several GPUs, the process's own.

    Raises:
        InputError: when a GPU was requested and there is none.
    """
    if requested == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: torch finds no GPU here (nvidia-smi and torch.version.cuda tell more)")
    if requested == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", local_rank)


def device_name(device: torch.device) -> str:
    """For people: the GPU's product name, or the number of usable CPU cores."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {usable_cores()} cores"
