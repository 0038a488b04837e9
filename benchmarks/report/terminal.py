"""A result as text for a terminal."""

from collections.abc import Sequence

from benchmarks.harness.result import Result, Row
from benchmarks.report.columns import by_group, cell, shown
from benchmarks.report.draw import REPORT
from loaders.errors import printable


def table(rows: Sequence[Row], width: int | None = None) -> list[str]:
    """A line per row, a block per group, fastest last; only columns in which there is anything.

    Args:
        width: of a terminal, in characters; columns that do not fit beside the names are named in a last line, as the
            report has them.
    """
    columns = shown(rows)
    names = {id(row): printable(row.name) for row in rows}
    widest = max(map(len, names.values()))
    cells = {id(row): [cell(row, column) for column in columns] for row in rows}
    widths = [
        max(len(column.title), *(len(line[place]) for line in cells.values())) for place, column in enumerate(columns)
    ]
    fitting = len(columns) if width is None else _fitting(widths, width - widest - len("  noisy"))
    left_out, columns, widths = columns[fitting:], columns[:fitting], widths[:fitting]
    titles = "  ".join(f"{column.title:>{wide}}" for column, wide in zip(columns, widths, strict=True))
    lines = [f"{'':{widest}}  {titles}"]
    for group, members in by_group(rows).items():
        lines += ["", group]
        for row in members:
            figures = "  ".join(f"{text:>{wide}}" for text, wide in zip(cells[id(row)], widths, strict=False))
            lines.append(f"{names[id(row)]:{widest}}  {figures}{'  noisy' if row.noisy else ''}")
    if left_out:
        lines += ["", f"{REPORT} has {', '.join(column.title for column in left_out)}, too"]
    return lines


def _fitting(widths: Sequence[int], room: int) -> int:
    """The number of columns that fit into `room` characters, two apart; one at least."""
    fitting = len(widths)
    while fitting > 1 and sum(wide + 2 for wide in widths[:fitting]) > room:
        fitting -= 1
    return fitting


def sentences(result: Result) -> list[str]:
    """What the figures come to, in words."""
    lines = []
    if result.demand is not None:
        demand = result.demand
        lines.append(f"cores per GPU: to supply {demand.images_per_second:,.0f} images/s ({demand.origin})")
    if result.plan_microseconds is not None:
        lines.append(f"order and plan: {result.plan_microseconds:.2f} µs an image")
    if result.diagnosis is not None:
        lines.append(result.diagnosis.sentence)
    lines += [f"{row.name}: {row.missing or row.switch}" for row in result.rows if row.switch is not None]
    return [*lines, *result.notes]
