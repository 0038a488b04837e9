"""Rates side by side: all arms take turns, window by window, so that a machine's moods fall on all alike."""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import active_children
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

NOISY = 0.15
"""Spread of a row's windows, as a share of their median, above which it is marked."""

_SKIPPED = 6  # batches at the beginning of a window: some were made while others had their turn


@dataclass(frozen=True)
class Arm:
    """One way to get batches."""

    group: str
    """Rows of different groups were handed different work, and are not compared."""
    name: str
    batches: Callable[[], Iterable[tuple[Tensor, Tensor]]]
    """Begins an endless run of (images `[B, ...]`, labels `[B]`)."""


@dataclass(frozen=True)
class Window:
    """What an arm delivered in one turn."""

    images: int
    seconds: float
    cpu_seconds: float
    """Of this process and its workers."""

    @property
    def rate(self) -> float:
        return self.images / self.seconds


def measure(
    arms: Sequence[Arm], *, windows: int, seconds: float, tell: Callable[[int, int, str], None] = lambda *_: None
) -> dict[str, list[Window]]:
    """So many windows of each arm, by its name, after a round of warming up.

    Args:
        seconds: length of a window, at least.
        tell: called with how many windows are done, how many there are, and what comes now.
    """
    running: dict[str, Iterator[tuple[Tensor, Tensor]]] = {}
    total = (1 + windows) * len(arms)
    for done, arm in enumerate(arms):
        tell(done, total, f"{arm.name}, warming up")
        running[arm.name] = iter(arm.batches())
        _window(running[arm.name], seconds / 2)
    found: dict[str, list[Window]] = {arm.name: [] for arm in arms}
    for turn in range(windows):
        for place, (name, batches) in enumerate(running.items()):
            tell((1 + turn) * len(arms) + place, total, name)
            found[name].append(_window(batches, seconds))
    return found


def _window(batches: Iterator[tuple[Tensor, Tensor]], seconds: float) -> Window:
    for _ in range(_SKIPPED):
        next(batches)
    _settle()
    began, burnt, images = time.perf_counter(), cpu_seconds(), 0
    while time.perf_counter() - began < seconds:
        images += len(next(batches)[1])
    _settle()
    return Window(images, time.perf_counter() - began, cpu_seconds() - burnt)


def _settle() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def cpu_seconds() -> float:
    """Burnt so far by this process and its living workers."""
    return time.process_time() + sum(_process_seconds(child.pid) for child in active_children() if child.pid)


def _process_seconds(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:  # it is over
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # user and system time


def rows(arms: Sequence[Arm], found: dict[str, list[Window]], *, baseline: str) -> list[dict[str, Any]]:
    """A row for each arm: medians with the range, and times the baseline as the median over the turns."""
    return [_row(arm, found[arm.name], found[baseline]) for arm in arms]


def _row(arm: Arm, windows: list[Window], baseline: list[Window]) -> dict[str, Any]:
    rates = [window.rate for window in windows]
    middle = median(rates)
    return {
        "group": arm.group,
        "name": arm.name,
        "images_per_second": middle,
        "low": min(rates),
        "high": max(rates),
        "noisy": (max(rates) - min(rates)) / middle > NOISY,
        "times_baseline": median(ours.rate / theirs.rate for ours, theirs in zip(windows, baseline, strict=True)),
        "cpu_seconds_per_1000": median(1000 * window.cpu_seconds / window.images for window in windows),
        "windows": rates,
    }
