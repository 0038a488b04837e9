"""Rates side by side: all candidates take turns, window by window, so that a machine's drift affects all alike."""

import gc
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing import active_children
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from benchmarks.harness.memory import MemoryPoller
from benchmarks.harness.rates import is_noisy, speedup
from benchmarks.harness.result import MEASURED_KEYS, Row
from loaders.system.cuda_events import record_event
from train.garbage_collection import gc_disabled

_IDLE_CORES = 0.3
"""Cores in use below which all threads and workers count as idle."""
_LOOK_SECONDS = 0.05
_LONGEST_REST_SECONDS = 10.0

Batches = Iterator[tuple[Tensor, Tensor]]
"""Pairs of images `[B, ...]` and labels `[B]`."""

ReportProgress = Callable[[int, int, str], None]
"""Called with the number of windows that are done, the number of all, and what comes now."""


@dataclass(frozen=True)
class Candidate:
    """One way to get batches."""

    group: str
    """Rows of different groups were given different work, and are not compared."""
    name: str
    batches: Callable[[], Iterable[tuple[Tensor, Tensor]]]
    """Begins an endless run of (images `[B, ...]`, labels `[B]`)."""
    prefetched: int = 0
    """Batches that may lie ready when a window begins, made while others had their turn: they are not counted."""
    together: int = 1
    """Batches that are only measured together: those of an epoch, where its beginning and end are to count."""
    before: Callable[[], None] = lambda: None
    """Done before each window, and not counted."""
    once: bool = False
    """Whether a window is over after `together` batches, however short: what comes then is other work."""


@dataclass(frozen=True)
class Window:
    """What a candidate delivered in one turn."""

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
class Measurement:
    """What was measured of one candidate."""

    startup_seconds: float
    """From nothing to its first batch."""
    memory_bytes: int | None
    """Rise of the memory of this process, its workers and the GPU, at most, until it had warmed up."""
    windows: list[Window] = field(default_factory=list)

    @property
    def rates(self) -> list[float]:
        """Images/s of each turn."""
        return [window.rate for window in self.windows]


def measure(
    candidates: Sequence[Candidate],
    *,
    windows: int,
    seconds: float,
    report_progress: ReportProgress = lambda *_: None,
    after_turn: Callable[[dict[str, Measurement]], None] = lambda _: None,
) -> dict[str, Measurement]:
    """Measures windows of each candidate, after a round of warming up.

    Args:
        windows: number of windows of each candidate.
        seconds: length of a window, at least.
        report_progress: called before each window.
        after_turn: called after each turn of all candidates, the last one apart, with what was measured so far.

    Returns:
        What was measured, by a candidate's name.
    """
    running: dict[str, Batches] = {}
    measured: dict[str, Measurement] = {}
    total = (1 + windows) * len(candidates)
    with gc_disabled():  # as in training; and a collection would fall on whoever's turn it is
        for done, candidate in enumerate(candidates):
            report_progress(done, total, f"{candidate.name}, warming up")
            _wait_until_idle()
            with MemoryPoller() as memory:
                running[candidate.name], startup = _start(candidate, seconds / 2)
            measured[candidate.name] = Measurement(startup, memory.risen)
        for turn in range(windows):
            for place, candidate in enumerate(candidates):
                report_progress((1 + turn) * len(candidates) + place, total, candidate.name)
                gc.collect()
                if len(candidates) > 1:
                    _wait_until_idle()
                window = _measure_window(candidate, running[candidate.name], seconds)
                measured[candidate.name].windows.append(window)
            if turn < windows - 1:
                after_turn(measured)
    return measured


def _wait_until_idle() -> None:
    """Waits until threads and workers have made what they prefetch: they would take the next candidate's cores, and
    what they burn would count as its own."""
    ends = time.perf_counter() + _LONGEST_REST_SECONDS
    while time.perf_counter() < ends:
        began, burnt = time.perf_counter(), cpu_seconds()
        time.sleep(_LOOK_SECONDS)
        if cpu_seconds() - burnt < _IDLE_CORES * (time.perf_counter() - began):
            return


def probe(candidate: Candidate, seconds: float) -> Window:
    """A single window, after a warm-up of half its length: its rate, roughly."""
    return measure([candidate], windows=1, seconds=seconds)[candidate.name].windows[0]


def _start(candidate: Candidate, seconds: float) -> tuple[Batches, float]:
    """A candidate's batches, warmed up, and how long the first took."""
    began = time.perf_counter()
    batches = iter(candidate.batches())
    next(batches)
    _synchronize()
    startup = time.perf_counter() - began
    for _ in range(candidate.together - 1):
        next(batches)
    _measure_window(candidate, batches, seconds)
    return batches, startup


def _measure_window(candidate: Candidate, batches: Batches, seconds: float) -> Window:
    candidate.before()
    if candidate.prefetched and candidate.together == 1:  # an epoch begins with nothing ready
        # The last is waited for: a window ends with a delivery, and so begins with one.
        for _ in range(candidate.prefetched + 1):
            next(batches)
    _synchronize()
    began, burnt, first, images = time.perf_counter(), cpu_seconds(), _record_event(), 0
    # A batch at least: a busy machine may pause the process for that long.
    while not images or (time.perf_counter() - began < seconds and not candidate.once):
        for _ in range(candidate.together):
            images += len(next(batches)[1])
    last = _record_event()
    _synchronize()
    device = first.elapsed_time(last) / 1000 if first is not None and last is not None else None
    return Window(images, time.perf_counter() - began, cpu_seconds() - burnt, device)


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _record_event() -> torch.cuda.Event | None:
    return record_event() if torch.cuda.is_available() else None


def cpu_seconds() -> float:
    """CPU seconds burnt so far by this process and its living workers."""
    return time.process_time() + sum(_process_seconds(child.pid) for child in active_children() if child.pid)


def _process_seconds(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:  # the process has ended
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # user and system time


def rows_against(candidates: Sequence[Candidate], measured: Mapping[str, Measurement], *, baseline: str) -> list[Row]:
    """A row for each candidate: medians with their range, and the speedup as the median over the turns."""
    theirs = measured[baseline].rates
    return [
        replace(
            measured_row(candidate, measured[candidate.name]),
            times_baseline=speedup(measured[candidate.name].rates, theirs),
            keys=(*MEASURED_KEYS, "times_baseline"),
        )
        for candidate in candidates
    ]


def measured_row(candidate: Candidate, measurement: Measurement) -> Row:
    """What was measured of one candidate, by itself."""
    rates = measurement.rates
    middle = median(rates)
    per_image = median(window.cpu_seconds / window.images for window in measurement.windows)
    device = [window.device_seconds for window in measurement.windows if window.device_seconds is not None]
    return Row(
        keys=MEASURED_KEYS,
        group=candidate.group,
        name=candidate.name,
        images_per_second=middle,
        low=min(rates),
        high=max(rates),
        noisy=is_noisy(rates, middle),
        cpu_seconds_per_1000=1000 * per_image,
        images_per_core_second=1 / per_image if per_image else None,
        memory_bytes=measurement.memory_bytes,
        startup_seconds=measurement.startup_seconds,
        device_seconds=tuple(device) or None,
        windows=tuple(rates),
    )
