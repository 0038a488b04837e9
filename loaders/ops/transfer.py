"""Copies of small arrays on the device: the plans, labels and places that the host sends along with a batch."""

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


def sent(array: NDArray[Any], device: torch.device) -> Tensor:
    """Returns a small array as a tensor on the device. The host does not wait: a GPU fetches it from pinned memory."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
