"""Memory for batches that is used again when the receiver has let go of a batch."""

from collections import deque
from weakref import finalize

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class BatchMemory:
    """Lends tensors whose memory comes back when nobody holds them, nor any view of them, any more.

    Fresh memory is dear: the system hands it out page by page, each cleared first. On a virtual machine
    writing 602 KB (an image of 224 px in float32) took 237 µs in fresh memory and 13 µs in used.
    """

    def __init__(self, most: int) -> None:
        """`most`: how many blocks are kept for later use."""
        self._free: deque[NDArray[np.uint8]] = deque(maxlen=most)

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor with anything in it."""
        wanted = int(np.prod(shape)) * dtype.itemsize
        block = self._take(wanted)
        # A view made for this tensor, which alone holds it: as soon as the tensor's storage is gone, so is the view.
        lent = block[:]
        finalize(lent, self._free.append, block).atexit = False
        return torch.from_numpy(lent).view(dtype).view(shape)

    def _take(self, wanted: int) -> NDArray[np.uint8]:
        for _ in range(len(self._free)):
            try:
                block = self._free.popleft()
            except IndexError:  # another thread was quicker
                break
            if block.nbytes == wanted:
                return block
            self._free.append(block)
        return np.empty(wanted, np.uint8)
