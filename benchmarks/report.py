"""What was measured, for people and for programs."""

import json
import shutil
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

from benchmarks.columns import by_group, cell, shown
from benchmarks.options import Result
from benchmarks.page import page
from benchmarks.picture import picture
from loaders import InputError
from loaders.system.files import write_whole

BENCH, REPORT, PICTURE = "bench.json", "report.html", "bench.png"


def table(rows: list[dict[str, Any]], wide: int | None = None) -> str:
    """A line per row, a block per group, fastest last; only columns in which there is anything.

    Args:
        wide: of a terminal, characters; what does not fit beside the names is left to the report, and that said.
    """
    columns = shown(rows)
    widest = max(len(row["name"]) for row in rows)
    cells = {id(row): [cell(row, column) for column in columns] for row in rows}
    widths = [
        max(len(column.title), *(len(line[place]) for line in cells.values())) for place, column in enumerate(columns)
    ]
    fit = len(columns)
    while wide is not None and fit > 1 and widest + sum(width + 2 for width in widths[:fit]) + len("  noisy") > wide:
        fit -= 1
    left, columns, widths = columns[fit:], columns[:fit], widths[:fit]
    titles = "  ".join(f"{column.title:>{width}}" for column, width in zip(columns, widths, strict=True))
    lines = [f"{'':{widest}}  {titles}"]
    for group, members in by_group(rows).items():
        lines += ["", group]
        for row in members:
            told = "  ".join(f"{text:>{width}}" for text, width in zip(cells[id(row)], widths, strict=False))
            lines.append(f"{row['name']:{widest}}  {told}{'  noisy' if row.get('noisy') else ''}")
    if left:
        lines += ["", f"{REPORT} has {', '.join(column.title for column in left)}, too"]
    return "\n".join(lines)


def print_json(result: Result) -> None:
    """The result as one line, for programs: a terminal would only be filled by it."""
    if not sys.stdout.isatty():
        print(json.dumps(result, default=str))


class Keeper:
    """Writes a result to a folder, as often as more of it becomes known."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.result: Result | None = None
        self._date = f"{datetime.now():%Y-%m-%d}"

    def __call__(self, result: Result) -> None:
        """Writes bench.json, then what is drawn from it."""
        self.result = {"theme": result["theme"], "date": self._date} | result
        write(self.result, self.folder)
        draw(self.result, self.folder)

    def conclude(self) -> None:
        """Prints the table, where everything lies, and, where it is piped, the result as one line of JSON."""
        if self.result is None:
            return
        wide = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        print(table(self.result["rows"], wide))
        print("", *sentences(self.result), sep="\n")
        print(f"\n{self.folder}: {BENCH}, {REPORT}, {PICTURE}")
        print_json(self.result)


def sentences(result: Result) -> list[str]:
    """What the figures come to, in words."""
    said = []
    if demand := result.get("demand"):
        said.append(f"cores per GPU: to supply {demand['images_per_second']:,.0f} images/s ({demand['origin']})")
    if (cost := result.get("plan_microseconds")) is not None:
        said.append(f"order and plan: {cost:.2f} µs an image")
    if diagnosis := result.get("diagnosis"):
        said.append(diagnosis["sentence"])
    said += [f"{row['name']}: {row['missing'] or row['switch']}" for row in result["rows"] if "switch" in row]
    return said + list(result.get("notes", ()))


def write(result: Result, folder: Path) -> None:
    """`bench.json` in `folder`."""
    text = json.dumps(result, indent=1, default=str) + "\n"
    write_whole(folder / BENCH, lambda part: part.write_text(text))


def draw(result: Result, folder: Path) -> None:
    """`report.html` and `bench.png` in `folder`, from what `bench.json` holds."""
    write_whole(folder / REPORT, lambda part: part.write_text(page(result)))
    if result["rows"]:
        write_whole(folder / PICTURE, lambda part: picture(result).savefig(part, format="png", dpi=144))


def read(path: Path) -> Result:
    """The result in a file, or in the `bench.json` of a folder.

    Raises:
        InputError: when there is none.
    """
    file = path / BENCH if path.is_dir() else path
    try:
        result = json.loads(file.read_text())
    except FileNotFoundError as error:
        raise InputError(f"there is no {file}") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{file} cannot be read as a result: {error}") from error
    if not isinstance(result, dict) or not isinstance(result.get("rows"), list):
        raise InputError(f"{file} holds no result: it has no rows")
    if "theme" not in result or not all(isinstance(row, dict) and "name" in row for row in result["rows"]):
        raise InputError(f"{file} holds no result: it has no theme, or a row no name")
    return result
