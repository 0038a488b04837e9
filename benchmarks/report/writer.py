"""What becomes of a result while it is measured, and at the end."""

import shutil
import sys
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from benchmarks.harness.result import Record, Result
from benchmarks.harness.result_json import BENCH, as_text, write_record
from benchmarks.report.draw import CHART, REPORT, draw
from benchmarks.report.terminal import sentences, table
from loaders.system.console import open_console, print_lines


class ResultWriter:
    """Writes a result to a folder, as often as more of it becomes known."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.result: Result | None = None
        self._date = f"{datetime.now():%Y-%m-%d}"

    def __call__(self, result: Result) -> None:
        """Writes bench.json, then what is drawn from it."""
        self.result = replace(result, date=self._date)
        write_record(self.result, self.folder / BENCH)
        draw(self.result, self.folder)

    def conclude(self) -> None:
        """Prints the table, the folder, and, where the output is piped, the result as one line of JSON."""
        if self.result is None:
            return
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        lines = [*table(self.result.rows, width), "", *sentences(self.result), ""]
        print_lines(open_console(), *lines, f"{self.folder}: {BENCH}, {REPORT}, {CHART}")
        print_json(self.result)


def print_json(record: Record) -> None:
    """Prints a record as one line, for programs: a terminal would only be filled by it."""
    if not sys.stdout.isatty():
        print(as_text(record))
