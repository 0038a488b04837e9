"""Where a training epoch's time goes: the share of it that is spent waiting for data."""

import time
from collections import deque
from collections.abc import Iterable, Iterator
from typing import TypeVar

import torch

from loaders.system.cuda_events import record_event
from train.batches import TrainingBatch

BatchT = TypeVar("BatchT", bound=TrainingBatch)


class EpochTimer:
    """Times an epoch and, within it, the waiting for batches.

    On a GPU the device's waiting is measured by CUDA events, from the end of one step to the beginning of the next:
    the host runs ahead of the device, and may wait for data while the device still computes. The waiting includes
    finishing the batch on the device. On a CPU it is the time until the loader delivers a batch.
    """

    def __init__(self, device: torch.device) -> None:
        """Starts the timer."""
        self._cuda = device.type == "cuda"
        self._started = time.perf_counter()
        self._waited = 0.0
        self._gaps: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque()
        self.images = 0

    def timed(self, batches: Iterable[BatchT]) -> Iterator[BatchT]:
        """Yields `batches` and measures how long each was waited for."""
        iterator = iter(batches)
        while True:
            requested = time.perf_counter()
            step_ended = self._record_event()
            batch = next(iterator, None)
            if batch is None:
                return
            step_begins = self._record_event()
            if step_ended is None or step_begins is None:
                self._waited += time.perf_counter() - requested
            else:
                self._gaps.append((step_ended, step_begins))
            self.images += len(batch.labels)
            yield batch

    def _record_event(self) -> torch.cuda.Event | None:
        """An event at the present end of the device's queue; None on a CPU."""
        return record_event() if self._cuda else None

    @property
    def seconds(self) -> float:
        """Time since the timer was started."""
        return time.perf_counter() - self._started

    @property
    def images_per_second(self) -> float:
        """Throughput of this process so far."""
        return self.images / self.seconds

    @property
    def data_wait(self) -> float:
        """Share of the time so far that was spent waiting for data, 0 to 1."""
        while self._gaps and self._gaps[0][1].query():  # events that the device has not reached count the next time
            step_ended, step_begins = self._gaps.popleft()
            self._waited += step_ended.elapsed_time(step_begins) / 1000
        return min(1.0, self._waited / self.seconds)
