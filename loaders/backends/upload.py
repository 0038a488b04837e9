"""Copies host tensors to a GPU, beside what the GPU is computing."""

import torch
from torch import Tensor

from loaders.system.instrument import stage


class Upload:
    """Copies pinned tensors to a GPU on a stream of its own.

    The host's allocator reuses a pinned block only when the copy out of it is done, the device's only
    when the consuming stream is done with it (`record_stream`): no buffer is overwritten too early.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def __call__(self, tensor: Tensor) -> Tensor:
        """The copy, for the current stream, which waits for it; the host does not."""
        with torch.cuda.stream(self._stream), stage("copy"):
            copy = tensor.to(self._device, non_blocking=True)
        consumer = torch.cuda.current_stream(self._device)
        consumer.wait_stream(self._stream)
        copy.record_stream(consumer)
        return copy
