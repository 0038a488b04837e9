"""The share of time spent waiting for data, by a clock that the test turns."""

from collections.abc import Iterator

import pytest
import torch

from loaders import Batch
from train.clock import EpochClock


def test_waiting_is_the_time_until_a_batch_is_handed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("train.clock.time.perf_counter", lambda: now)

    def slow_loader() -> Iterator[Batch]:
        nonlocal now
        for _ in range(4):
            now += 3.0
            yield Batch(torch.zeros(5, 3, 2, 2), torch.zeros(5, dtype=torch.int64))

    clock = EpochClock(torch.device("cpu"))
    for _ in clock.watch(slow_loader()):
        now += 1.0
    assert (clock.seconds, clock.images) == (16.0, 20)
    assert clock.data_wait == pytest.approx(12 / 16)
    assert clock.images_per_second == pytest.approx(20 / 16)


@pytest.mark.needs_cuda
def test_on_a_gpu_waiting_is_the_devices() -> None:
    device = torch.device("cuda")
    batches = [Batch(torch.zeros(5, 3, 2, 2, device=device), torch.zeros(5, device=device))] * 3
    clock = EpochClock(device)
    for _ in clock.watch(batches):
        torch.cuda._sleep(50_000_000)  # some tens of milliseconds of the device's time, in which nothing waits
    torch.cuda.synchronize()
    assert clock.data_wait < 0.2
