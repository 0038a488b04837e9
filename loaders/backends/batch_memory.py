"""Memory for batches that is reused as soon as the receiver has dropped a batch."""

from collections import deque
from weakref import finalize

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class BatchMemory:
    """Hands out tensors whose memory is reused when neither they nor any view of them is referenced any more.

    Fresh memory is expensive: the system hands it out page by page, each cleared first. On a virtual machine
    writing 602 KB (an image of 224 px in float32) took 237 µs in fresh memory and 13 µs in used.
    """

    def __init__(self, capacity: int) -> None:
        """`capacity`: how many free blocks are held for later use."""
        self._free: deque[NDArray[np.uint8]] = deque(maxlen=capacity)

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor with undefined content."""
        block = self._take(int(np.prod(shape)) * dtype.itemsize)
        # A view made for this tensor alone: as soon as the tensor's storage is freed, so is the view.
        view = block[:]
        finalize(view, self._free.append, block).atexit = False
        return torch.from_numpy(view).view(dtype).view(shape)

    def _take(self, size: int) -> NDArray[np.uint8]:
        """A free block of `size` bytes, or a new one."""
        for _ in range(len(self._free)):
            try:
                block = self._free.popleft()
            except IndexError:  # another thread was quicker
                break
            if block.nbytes == size:
                return block
            self._free.append(block)
        return np.empty(size, np.uint8)
