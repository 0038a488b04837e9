"""Rates side by side: all arms take turns, window by window, so that a machine's moods fall on all alike."""

import gc
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing import active_children
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.memory import MemoryWatch
from train.garbage_collection import gc_disabled

NOISY = 0.15
"""Spread of a row's windows, as a share of their median, above which it is marked."""

_IDLE, _LOOK, _LONGEST_REST = 0.3, 0.05, 10.0
"""Cores in use below which nobody works any more; seconds of a look at that; and of all of them together."""

Tell = Callable[[int, int, str], None]
"""Called with how many windows are done, how many there are, and what comes now."""


@dataclass(frozen=True)
class Candidate:
    """One way to get batches."""

    group: str
    """Rows of different groups were handed different work, and are not compared."""
    name: str
    batches: Callable[[], Iterable[tuple[Tensor, Tensor]]]
    """Begins an endless run of (images `[B, ...]`, labels `[B]`)."""
    ahead: int = 0
    """Batches that may lie ready when a window begins, made while others had their turn: they are not counted."""
    together: int = 1
    """Batches that are only measured together: those of an epoch, where its beginning and end are to count."""
    before: Callable[[], None] = lambda: None
    """Done before each window, and not counted."""
    once: bool = False
    """Whether a window is over after `together` batches, however short: what comes then is other work."""


@dataclass(frozen=True)
class Window:
    """What an arm delivered in one turn."""

    images: int
    seconds: float
    cpu_seconds: float
    """Of this process and its workers."""
    device_seconds: float | None = None
    """The same span by CUDA events; None without a GPU."""

    @property
    def rate(self) -> float:
        """Images/s."""
        return self.images / self.seconds


@dataclass
class Found:
    """What was measured of one arm."""

    startup_seconds: float
    """From nothing to its first batch."""
    memory_bytes: int | None
    """By which it raised this process's and its workers' memory, and the GPU's, at most, until it had warmed up."""
    windows: list[Window] = field(default_factory=list)

    @property
    def rates(self) -> list[float]:
        """Of each turn, images/s."""
        return [window.rate for window in self.windows]


def measure(
    arms: Sequence[Candidate],
    *,
    windows: int,
    seconds: float,
    tell: Tell = lambda *_: None,
    after: Callable[[dict[str, Found]], None] = lambda _: None,
) -> dict[str, Found]:
    """So many windows of each arm, by its name, after a round of warming up.

    Args:
        seconds: length of a window, at least.
        after: called after each turn of all arms with what was found so far, the last turn apart.
    """
    running: dict[str, Iterator[tuple[Tensor, Tensor]]] = {}
    found: dict[str, Found] = {}
    total = (1 + windows) * len(arms)
    with gc_disabled():  # as in training; and collecting it would fall on whoever's turn it is
        for done, arm in enumerate(arms):
            tell(done, total, f"{arm.name}, warming up")
            _let_others_finish()
            with MemoryWatch() as memory:
                running[arm.name], startup = _started(arm, seconds / 2)
            found[arm.name] = Found(startup, memory.risen)
        for turn in range(windows):
            for place, arm in enumerate(arms):
                tell((1 + turn) * len(arms) + place, total, arm.name)
                gc.collect()
                if len(arms) > 1:
                    _let_others_finish()
                found[arm.name].windows.append(_window(arm, running[arm.name], seconds))
            if turn < windows - 1:
                after(found)
    return found


def _let_others_finish() -> None:
    """Waits until threads and workers have made what they make ahead: they would take the next one's cores, and what
    they burn would count as its own."""
    ends = time.perf_counter() + _LONGEST_REST
    while time.perf_counter() < ends:
        began, burnt = time.perf_counter(), cpu_seconds()
        time.sleep(_LOOK)
        if cpu_seconds() - burnt < _IDLE * (time.perf_counter() - began):
            return


def probed(arm: Candidate, seconds: float) -> Window:
    """A single window, after a warming up of half its length: its rate, roughly."""
    return measure([arm], windows=1, seconds=seconds)[arm.name].windows[0]


def _started(arm: Candidate, seconds: float) -> tuple[Iterator[tuple[Tensor, Tensor]], float]:
    """An arm's batches, warmed up, and how long the first took."""
    began = time.perf_counter()
    batches = iter(arm.batches())
    next(batches)
    _settle()
    startup = time.perf_counter() - began
    for _ in range(arm.together - 1):
        next(batches)
    _window(arm, batches, seconds)
    return batches, startup


def _window(arm: Candidate, batches: Iterator[tuple[Tensor, Tensor]], seconds: float) -> Window:
    arm.before()
    if arm.ahead and arm.together == 1:  # an epoch begins with nothing ready
        for _ in range(arm.ahead + 1):  # the last is waited for: a window ends with a delivery, and so begins with one
            next(batches)
    _settle()
    began, burnt, first, images = time.perf_counter(), cpu_seconds(), _mark(), 0
    # A batch at least: a busy machine may pause the process for that long.
    while not images or (time.perf_counter() - began < seconds and not arm.once):
        for _ in range(arm.together):
            images += len(next(batches)[1])
    last = _mark()
    _settle()
    device = first.elapsed_time(last) / 1000 if first is not None and last is not None else None
    return Window(images, time.perf_counter() - began, cpu_seconds() - burnt, device)


def _settle() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _mark() -> torch.cuda.Event | None:
    if not torch.cuda.is_available():
        return None
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def cpu_seconds() -> float:
    """Burnt so far by this process and its living workers."""
    return time.process_time() + sum(_process_seconds(child.pid) for child in active_children() if child.pid)


def _process_seconds(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:  # it is over
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # user and system time


def rows(arms: Sequence[Candidate], found: dict[str, Found], *, baseline: str) -> list[dict[str, Any]]:
    """A row for each arm: medians with the range, and times the baseline as the median over the turns."""
    return [
        row(arm, found[arm.name]) | {"times_baseline": times_as_fast(found[arm.name].rates, found[baseline].rates)}
        for arm in arms
    ]


def row(arm: Candidate, found: Found) -> dict[str, Any]:
    """What was measured of one arm, by itself."""
    rates = found.rates
    middle = median(rates)
    per_image = median(window.cpu_seconds / window.images for window in found.windows)
    device = [window.device_seconds for window in found.windows if window.device_seconds is not None]
    return {
        "group": arm.group,
        "name": arm.name,
        "images_per_second": middle,
        "low": min(rates),
        "high": max(rates),
        "noisy": is_noisy(rates, middle),
        "cpu_seconds_per_1000": 1000 * per_image,
        "images_per_core_second": 1 / per_image if per_image else None,
        "memory_bytes": found.memory_bytes,
        "startup_seconds": found.startup_seconds,
        "device_seconds": device or None,
        "windows": rates,
    }


def is_noisy(rates: Sequence[float], middle: float) -> bool:
    """Whether the rates of a row spread too widely around its own."""
    return (max(rates) - min(rates)) / middle > NOISY


def times_as_fast(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """How many times as fast, as the median over the turns."""
    return median(a / b for a, b in zip(ours, theirs, strict=True))
