"""The figures of a row, as people read them: one list for terminal, page and Markdown."""

from collections.abc import Callable, Iterable, Sequence
from math import floor
from typing import NamedTuple

from benchmarks.harness.result import Row
from loaders.system.format import format_bytes

PASS_MARK = 0.97
"""Saturation that counts as reached; MLPerf Storage requires 0.90."""


class Column(NamedTuple):
    """One figure of a row."""

    key: str
    """A field of `Row`."""
    title: str
    formatted: Callable[[float], str]
    """Its figure as text."""
    explained: str


def percent(share: float) -> str:
    """A share as 61 %, or 0.4 %."""
    digits = 0 if share >= 0.0995 or share == 0 else 1
    return f"{share:.{digits}%}".replace("%", " %")


def tenths(share: float) -> str:
    """A share as 94.7 %."""
    return f"{share:.1%}".replace("%", " %")


def attained(share: float) -> str:
    """A share in tenths of a percent, rounded down: 96.96 % do not pass for 97."""
    return tenths(floor(1000 * share + 1e-9) / 1000)


def number(value: float) -> str:
    """Three digits at least where there are decimals to show: 12,345, 123, 12.3, 1.23."""
    if abs(value) >= 99.95:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 9.995 else f"{value:.2f}"


def times(value: float) -> str:
    """A factor as 1.23 ×."""
    return f"{number(value)} ×"


def seconds(value: float) -> str:
    """A time as 12.3 s."""
    return f"{number(value)} s"


_TIMES_BASELINE = (
    "against PIL and a DataLoader without workers that hand over the same; of steps, against plain fp32; "
    "of whole runs, by their time, against the first loader's"
)

COLUMNS = (
    Column("images_per_second", "images/s", number, "median of the windows; of whole runs, the seeds' mean"),
    Column("low", "low", number, "the slowest window, or seed"),
    Column("high", "high", number, "the fastest window, or seed"),
    Column("times_baseline", "× baseline", times, _TIMES_BASELINE),
    Column("times_tuned", "× tuned", times, "against the same with the workers that serve it best"),
    Column("times_before", "× before", times, "against the rung below it"),
    Column("saturation", "saturation", attained, "whole epochs end to end ÷ ceiling"),
    Column("saturation_low", "its low", attained, "the least of a turn"),
    Column("saturation_high", "its high", attained, "the most of a turn"),
    Column("prep_stall", "prep stall", percent, "of a warm epoch's time, what exceeds the ceiling's"),
    Column("fetch_stall", "fetch stall", percent, "of a cold epoch's time, what exceeds a warm one's"),
    Column("data_wait", "waiting", percent, "for data, by the trainer's own clock"),
    Column("cpu_seconds_per_1000", "CPU s/1000", number, "CPU seconds for 1,000 images, of all threads and workers"),
    Column("images_per_core_second", "images/s per core", number, "rate ÷ cores it burnt"),
    Column("cores_per_gpu", "cores per GPU", number, "cores burnt to supply what a GPU demands"),
    Column("memory_bytes", "memory", format_bytes, "by which it raised what is in use, at most"),
    Column("startup_seconds", "start", seconds, "to the first batch, with what earlier work left in caches"),
    Column("arithmetic_share", "arithmetic", percent, "of the GPU's peak"),
    Column("memory_share", "memory peak", percent, "least bytes that must move ÷ the GPU's bandwidth"),
    Column("gpu_utilisation", "GPU busy", percent, "share of time in which anything ran, by the driver"),
    Column("gpu_watts", "GPU W", number, "mean power, by the driver"),
    Column("val_top1", "top-1", tenths, "on all validation images"),
    Column("val_top1_low", "lowest", tenths, "top-1 of the worst seed"),
    Column("val_top1_high", "highest", tenths, "top-1 of the best seed"),
    Column("minutes", "time", lambda value: seconds(60 * value), "of the whole run"),
)


def figure(row: Row, column: Column) -> float | None:
    """A row's figure of a column; None where it has none."""
    value: float | None = getattr(row, column.key)
    return value


def shown(rows: Iterable[Row]) -> list[Column]:
    """The columns in which any row has a figure."""
    rows = list(rows)
    return [column for column in COLUMNS if any(figure(row, column) is not None for row in rows)]


def cell(row: Row, column: Column) -> str:
    """A row's figure as text; a dash where it has none."""
    value = figure(row, column)
    return "–" if value is None else column.formatted(value)


def by_group(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Rows of each group, in the order of their first; slowest first, unless a row has a `place`."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.group, []).append(row)
    return {
        name: sorted(members, key=lambda row: (row.place, row.images_per_second or 0.0))
        for name, members in groups.items()
    }


def rated(rows: Sequence[Row]) -> list[Row]:
    """The rows that have a rate: a rung of the ladder may lack what it needs."""
    return [row for row in rows if row.images_per_second is not None]


def rate_of(row: Row) -> float:
    """Images/s of a row that has a rate.

    Raises:
        ValueError: when it has none.
    """
    if row.images_per_second is None:
        raise ValueError(f"{row.name} has no rate")
    return row.images_per_second


def range_of(row: Row) -> tuple[float, float]:
    """Images/s of the slowest and the fastest window of a row that has a rate."""
    rate = rate_of(row)
    return rate if row.low is None else row.low, rate if row.high is None else row.high
