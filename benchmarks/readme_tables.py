"""`readme-tables`: the tables of measured figures in README and docs, written from the results.

In a page a table stands between two comments that name it and its file:

    <!-- table: loaders benchmarks/results/loaders-cpu-20261124-3f392b4030.json -->
    ...
    <!-- end -->
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.arms import compared
from benchmarks.columns import by_group, cell, shown, tenths
from benchmarks.options import Result
from benchmarks.parts import PARTS
from benchmarks.report import read
from loaders import InputError

_TABLE = re.compile(r"(<!-- table: (\S+) (\S+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
_LOADERS = ("images_per_second", "low", "high", "times_baseline", "times_tuned", "cores_per_gpu", "startup_seconds")
_MAIN = ("images_per_second", "times_baseline", "times_tuned", "cores_per_gpu")
_ACCURACY = ("images_per_second", "times_baseline", "val_top1", "val_top1_low", "val_top1_high", "minutes")
_SATURATION = ("images_per_second", "saturation", "prep_stall", "fetch_stall", "cores_per_gpu")


@dataclass(frozen=True)
class TablesOptions:
    """Writes the tables of README and docs anew, from the results they name."""

    root: Path = Path(__file__).parent.parent
    """The checkout."""


def run_tables(options: TablesOptions) -> int:
    """Changes the pages that differ."""
    for page in pages(options.root):
        text = page.read_text()
        fresh = with_tables(text, options.root)
        if fresh != text:
            page.write_text(fresh)
        print(f"{page}: {'changed' if fresh != text else 'as it should be'}, {len(_TABLE.findall(text))} tables")
    return 0


def pages(root: Path) -> list[Path]:
    """What may have tables."""
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
        return f"{found[1]}{TABLES[kind](found[4], read(root / file))}{found[5]}"

    return _TABLE.sub(table, text)


def rates(result: Result, keys: tuple[str, ...], *, without: str | None = None, **titles: str) -> str:
    """A line per row, a block per group but for one; columns in which there is anything, some by other `titles`."""
    columns = [column for column in shown(result["rows"]) if column.key in keys]
    columns = [column._replace(title=titles.get(column.key, column.title)) for column in columns]
    lines = ["| | " + " | ".join(column.title for column in columns) + " |", "| --- |" + " --- |" * len(columns)]
    for group, members in by_group(result["rows"]).items():
        if group == without:
            continue
        lines.append(f"| **{group}** |" + " |" * len(columns))
        for row in members:
            noisy = " (noisy)" if row.get("noisy") else ""
            lines.append(f"| {row['name']}{noisy} | " + " | ".join(cell(row, column) for column in columns) + " |")
    return "\n".join(lines) + "\n"


def runs(table: str, result: Result) -> str:
    """Figures of training runs; the first two cells of each line, what was run and how, are the README's own.

    Raises:
        InputError: when table and result have not as many runs.
    """
    head, rule, *lines = table.strip().splitlines()
    if len(lines) != len(result["rows"]):
        raise InputError(f"a table of {len(lines)} runs, and {len(result['rows'])} in its result")
    filled = [
        "|".join(line.split("|")[:3]) + "| " + " | ".join(_run_cells(row["summary"])) + " |"
        for line, row in zip(lines, result["rows"], strict=True)
    ]
    return "\n".join([head, rule, *filled]) + "\n"


def _compared(result: Result) -> Result:
    """Older results have all rows compared with finished batches, whatever their own work was."""
    return result | {"rows": compared(result["rows"])}


def _run_cells(summary: Result) -> list[str]:
    accuracies = [tenths(summary[key]) for key in ("val_top1", "last_val_top1")]
    wait = f"{summary['data_wait']:.0%}".replace("%", " %")
    return [*accuracies, f"{summary['seconds']:.0f} s", f"{summary['images_per_second']:.0f}", wait]


TABLES: dict[str, Callable[[str, Result], str]] = {
    "loaders-in-short": lambda _, result: rates(_compared(result), _MAIN, without=PARTS),
    "loaders": lambda _, result: rates(_compared(result), _LOADERS),
    "accuracy": lambda _, result: rates(
        result, _ACCURACY, times_baseline=f"× {result['options']['loaders'][0]}, by time"
    ),
    "saturation": lambda _, result: rates(result, _SATURATION),
    "runs": runs,
}
"""Kind → what writes it, from the table as it is and its result."""
