"""Where a loader stands: the order of the current epoch, and how many of its samples have been delivered."""

import numpy as np
from numpy.typing import NDArray

from loaders.errors import InputError
from loaders.sampling import order
from loaders.sampling.order import LastBatch
from loaders.system.shapes import has_shape


class Cursor:
    """The order of each epoch, cut into batches, and the position within it.

    Positions count samples over all ranks, so a position stays meaningful when the batch size or the number of
    ranks changes.
    """

    def __init__(
        self,
        ids: NDArray[np.int64],
        *,
        batch_size: int,
        shuffle: bool,
        last: LastBatch,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """
        Args:
            ids: int64 `[N]`, the samples that every epoch goes through; they become read-only.
            batch_size: samples per batch and rank.
            shuffle: a new random order each epoch; otherwise the order of `ids`.
            last: what happens to an incomplete last batch; see `order.batches`.
        """
        ids.flags.writeable = False
        self.ids = ids
        self.epoch = 0
        self.delivered = 0
        """Samples of the epoch delivered so far, over all ranks."""
        self._batch_size, self._last, self._rank, self._world_size = batch_size, last, rank, world_size
        self._shuffle, self._seed = shuffle, seed
        self._start = 0  # samples that the next iteration skips: an earlier run has delivered them
        self._shuffled: tuple[int, NDArray[np.int64]] | None = None  # the epoch drawn last, and its order

    def __len__(self) -> int:
        """Batches of the next iteration: the whole epoch, or what is left of it after `seek`."""
        return self._count(self._start)

    @property
    def remaining(self) -> int:
        """Batches of the current epoch that have not been delivered."""
        return self._count(self.delivered)

    @property
    def sequence(self) -> NDArray[np.int64]:
        """int64 `[N]`: the ids of the current epoch in order, over all ranks. Read-only."""
        if not self._shuffle:
            return self.ids
        if self._shuffled is None or self._shuffled[0] != self.epoch:
            shuffled = order.shuffled(self.ids, seed=self._seed, epoch=self.epoch)
            shuffled.flags.writeable = False
            self._shuffled = self.epoch, shuffled
        return self._shuffled[1]

    def batch_ids(self, start: int = 0) -> NDArray[np.int64]:
        """int64 `[K, batch_size]`: this rank's batches of the current epoch after its first `start` samples.

        `PADDING` stands where there is no sample. Read-only.
        """
        ids = order.batches(
            self.sequence,
            batch_size=self._batch_size,
            last=self._last,
            rank=self._rank,
            world_size=self._world_size,
            start=start,
        )
        ids.flags.writeable = False
        return ids

    def begin(self) -> int:
        """Begins an iteration; returns how many samples of the epoch it skips."""
        start, self._start = self._start, 0
        self.delivered = start
        return start

    def advance(self) -> None:
        """Counts one more batch of every rank as delivered."""
        delivered = self.delivered + self._batch_size * self._world_size
        # The samples that training drops at the end count as delivered with the last batch: the epoch is over.
        self.delivered = delivered if delivered < len(self.ids) and self._count(delivered) else len(self.ids)

    def set_epoch(self, epoch: int) -> None:
        """Moves to the beginning of another epoch; naming the current epoch changes nothing."""
        if epoch != self.epoch:
            self.epoch, self._start, self.delivered = epoch, 0, 0

    def seek(self, epoch: int, delivered: int) -> None:
        """Moves to the position after `delivered` samples of `epoch`; the next iteration starts there.

        Raises:
            InputError: when there is no such position.
        """
        if not (has_shape(epoch, range(1 << 63)) and has_shape(delivered, range(len(self.ids) + 1))):
            raise InputError(f"there is no position after {delivered!s:.20} samples of epoch {epoch!s:.20}: begin anew")
        self.epoch, self._start, self.delivered = epoch, delivered, delivered

    def _count(self, start: int) -> int:
        return order.count_batches(
            len(self.ids),
            batch_size=self._batch_size,
            last=self._last,
            world_size=self._world_size,
            start=start,
        )
