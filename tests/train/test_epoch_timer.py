"""The share of time spent waiting for data, by a timer that the test turns."""

from collections.abc import Iterator

import pytest
import torch

from loaders import Batch
from train.epoch_timer import EpochTimer


def test_waiting_is_the_time_until_a_batch_is_handed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("train.epoch_timer.time.perf_counter", lambda: now)

    def slow_loader() -> Iterator[Batch]:
        nonlocal now
        for _ in range(4):
            now += 3.0
            yield Batch(torch.zeros(5, 3, 2, 2), torch.zeros(5, dtype=torch.int64))

    timer = EpochTimer(torch.device("cpu"))
    for _ in timer.timed(slow_loader()):
        now += 1.0
    assert (timer.seconds, timer.images) == (16.0, 20)
    assert timer.data_wait == pytest.approx(12 / 16)
    assert timer.images_per_second == pytest.approx(20 / 16)


@pytest.mark.needs_cuda
def test_on_a_gpu_waiting_is_the_devices() -> None:
    device = torch.device("cuda")
    batches = [Batch(torch.zeros(5, 3, 2, 2, device=device), torch.zeros(5, device=device))] * 3
    timer = EpochTimer(device)
    for _ in timer.timed(batches):
        torch.cuda._sleep(50_000_000)  # some tens of milliseconds of the device's time, in which nothing waits
    torch.cuda.synchronize()
    assert timer.data_wait < 0.2
