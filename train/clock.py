"""Where a training epoch's time goes: the share that is spent waiting for data."""

import time
from collections import deque
from collections.abc import Iterable, Iterator

import torch

from loaders import Batch


class EpochClock:
    """Times an epoch and, within it, the waiting for batches.

    On a GPU the waiting is the device's: from the end of one step to the beginning of the next, by
    CUDA events, as the host, which runs ahead, waits for data without anything being lost. It includes
    finishing the batch on the device. On a CPU it is the time until the loader hands a batch over.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._begin = time.perf_counter()
        self._waited = 0.0
        self._gaps: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque()
        self.images = 0

    def watch(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Passes `batches` on and measures what is waited for each."""
        iterator = iter(batches)
        while True:
            before, ended = time.perf_counter(), self._mark()
            batch = next(iterator, None)
            if batch is None:
                return
            begun = self._mark()
            if ended is None or begun is None:
                self._waited += time.perf_counter() - before
            else:
                self._gaps.append((ended, begun))
            self.images += len(batch.labels)
            yield batch

    def _mark(self) -> torch.cuda.Event | None:
        if not self._cuda:
            return None
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._begin

    @property
    def images_per_second(self) -> float:
        return self.images / self.seconds

    @property
    def data_wait(self) -> float:
        """Share of the time so far, 0 to 1."""
        while self._gaps and self._gaps[0][1].query():  # what the device has not come to yet is left for the next time
            ended, begun = self._gaps.popleft()
            self._waited += ended.elapsed_time(begun) / 1000
        return min(1.0, self._waited / self.seconds)
