"""`readme-tables`: the tables of measured figures in README and docs, written from the results.

In a page a table stands between two comments that name it and its file:

    <!-- table: loaders benchmarks/results/loaders-cpu-20261124-3f392b4030.json -->
    ...
    <!-- end -->
"""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from benchmarks.harness.result import Result, RunSummary
from benchmarks.harness.result_json import read_result
from benchmarks.report.columns import by_group, cell, shown, tenths
from benchmarks.report.options import TablesOptions
from benchmarks.suites.rows import PARTS, compare_with_ordinary
from loaders.errors import InputError
from loaders.system.console import open_console, print_lines

_TABLE = re.compile(r"(<!-- table: (\S+) (\S+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
_LOADERS = ("images_per_second", "low", "high", "times_baseline", "times_tuned", "cores_per_gpu", "startup_seconds")
_MAIN = ("images_per_second", "times_baseline", "times_tuned", "cores_per_gpu")
_ACCURACY = ("images_per_second", "times_baseline", "val_top1", "val_top1_low", "val_top1_high", "minutes")
_SATURATION = ("images_per_second", "saturation", "prep_stall", "fetch_stall", "cores_per_gpu")


def run_tables(options: TablesOptions) -> int:
    """Rewrites the pages whose tables differ from their results."""
    console = open_console()
    for page in pages(options.root):
        text = page.read_text()
        fresh = with_tables(text, options.root)
        if fresh != text:
            page.write_text(fresh)
        state = "changed" if fresh != text else "as it should be"
        print_lines(console, f"{page}: {state}, {len(_TABLE.findall(text))} tables")
    return 0


def pages(root: Path) -> list[Path]:
    """The pages that may have tables."""
    return [root / "README.md", *sorted((root / "docs").glob("*.md"))]


def with_tables(text: str, root: Path) -> str:
    """The text with every table as its result, a path below `root`, has it.

    Raises:
        InputError: when a table is of no known kind, or its result is missing.
    """

    def table(found: re.Match[str]) -> str:
        kind, file = found[2], found[3]
        if kind not in TABLES:
            raise InputError(f"there is no table {kind}; there are {', '.join(TABLES)}")
        return f"{found[1]}{TABLES[kind](found[4], read_result(root / file))}{found[5]}"

    return _TABLE.sub(table, text)


def rates(result: Result, keys: tuple[str, ...], *, without: str | None = None, **titles: str) -> str:
    """A line per row, a block per group but for one; columns in which there is anything, some by other `titles`."""
    columns = [column for column in shown(result.rows) if column.key in keys]
    columns = [column._replace(title=titles.get(column.key, column.title)) for column in columns]
    lines = ["| | " + " | ".join(column.title for column in columns) + " |", "| --- |" + " --- |" * len(columns)]
    for group, members in by_group(result.rows).items():
        if group == without:
            continue
        lines.append(f"| **{group}** |" + " |" * len(columns))
        for row in members:
            noisy = " (noisy)" if row.noisy else ""
            lines.append(f"| {row.name}{noisy} | " + " | ".join(cell(row, column) for column in columns) + " |")
    return "\n".join(lines) + "\n"


def runs(table: str, result: Result) -> str:
    """Figures of training runs; the first two cells of each line, what was run and how, are the README's own.

    Raises:
        InputError: when table and result have not as many runs, or a row is no run.
    """
    head, rule, *lines = table.strip().splitlines()
    if len(lines) != len(result.rows):
        raise InputError(f"a table of {len(lines)} runs, and {len(result.rows)} in its result")
    summaries = [row.summary for row in result.rows if row.summary is not None]
    if len(summaries) < len(result.rows):
        raise InputError("a row of the result has no summary of a run")
    filled = [
        "|".join(line.split("|")[:3]) + "| " + " | ".join(_run_cells(summary)) + " |"
        for line, summary in zip(lines, summaries, strict=True)
    ]
    return "\n".join([head, rule, *filled]) + "\n"


def _run_cells(summary: RunSummary) -> list[str]:
    last = "–" if summary.last_val_top1 is None else tenths(summary.last_val_top1)
    wait = f"{summary.data_wait:.0%}".replace("%", " %")
    return [tenths(summary.val_top1), last, f"{summary.seconds:.0f} s", f"{summary.images_per_second:.0f}", wait]


def _loaders(result: Result, keys: tuple[str, ...], *, without: str | None = None) -> str:
    """Older results have all rows compared with finished batches, whatever their own work was."""
    return rates(replace(result, rows=compare_with_ordinary(result.rows)), keys, without=without)


def _accuracy(result: Result) -> str:
    loaders = result.options["loaders"]
    assert isinstance(loaders, list | tuple)
    return rates(result, _ACCURACY, times_baseline=f"× {loaders[0]}, by time")


TABLES: dict[str, Callable[[str, Result], str]] = {
    "loaders-in-short": lambda _, result: _loaders(result, _MAIN, without=PARTS),
    "loaders": lambda _, result: _loaders(result, _LOADERS),
    "accuracy": lambda _, result: _accuracy(result),
    "saturation": lambda _, result: rates(result, _SATURATION),
    "runs": runs,
}
"""Kind → what writes it, from the table as it is and its result."""
