"""Counts, sizes, durations and rates, formatted for people."""

import time


class ProgressRate:
    """Formats the throughput of a piece of work and the time left, from reports of its progress.

        rate = ProgressRate("images")
        rate(done, total)  # "1,234 images/s, 3 min left"

    Work done before the first report, by an earlier run for example, does not count towards the throughput.
    """

    def __init__(self, unit: str) -> None:
        """
        Args:
            unit: plural of what is counted.
        """
        self._unit = unit
        self._first: tuple[int, float] | None = None  # the first report: work done, and when

    def __call__(self, done: int, total: int) -> str:
        """Throughput since the first report, and time left; empty where that report is the only one."""
        now = time.monotonic()
        if self._first is None:
            self._first = done, now
        done_before, began = self._first
        if done <= done_before or now <= began:
            return ""
        rate = (done - done_before) / (now - began)
        return f"{rate:,.0f} {self._unit}/s, {format_duration((total - done) / rate)} left"


def format_count(count: int, singular: str) -> str:
    """A count and what is counted: 1 epoch, 3 epochs."""
    return f"{count} {singular}" if count == 1 else f"{count} {singular}s"


def format_bytes(count: float) -> str:
    """A number of bytes in decimal units: 12 kB, 184 MB, 1.2 GB, 78 GB."""
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            decimals = 1 if count < 10 * size else 0
            return f"{count / size:.{decimals}f} {unit}"
    return f"{count / 1e3:.0f} kB"


def format_duration(seconds: float) -> str:
    """A duration: 12 s, 3 min, 2.5 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
