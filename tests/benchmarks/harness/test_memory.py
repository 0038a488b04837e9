"""The memory that a piece of work takes."""

import time

import numpy as np
import pytest
import torch

from benchmarks.harness.memory import MemoryPoller


def test_memory_that_was_taken_is_seen_and_what_was_there_is_not() -> None:
    held = np.ones(30_000_000, np.uint8)
    with MemoryPoller() as poller:
        taken = np.ones(400_000_000, np.uint8)
        del taken
        time.sleep(0.2)
        held_on = np.ones(200_000_000, np.uint8)
    assert poller.risen is not None
    assert 150_000_000 < poller.risen < 450_000_000  # other tests may have left something to be released
    assert len(held) + len(held_on) == 230_000_000


def test_gpu_memory_that_torch_caches_for_the_next_work_is_seen_as_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    free, cached = 50 << 30, 10 << 30

    def empty() -> None:
        nonlocal free, cached
        free, cached = free + cached, 0

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free, 80 << 30))
    monkeypatch.setattr(torch.cuda, "empty_cache", empty)
    with MemoryPoller() as poller:
        free -= 12 << 30  # 2 GB more than were cached
    assert poller.risen is not None
    assert poller.risen == pytest.approx(12 << 30, rel=0.1)
