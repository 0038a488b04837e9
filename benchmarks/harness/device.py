"""The device that a suite measures on."""

import torch

from benchmarks.harness.options import MachineOptions
from train.device import choose_device


def chosen_device(options: MachineOptions) -> torch.device:
    """The device that `options.device` stands for on this machine.

    Raises:
        InputError: when there is no such device here.
    """
    return choose_device(options.device)


def synchronize(device: torch.device) -> None:
    """Waits until the device has done everything that was submitted to it; a CPU has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
