"""Text for people: lines, errors, and progress as a bar on a terminal, as plain lines elsewhere.

Whatever a program prints for people goes through here, where control characters are escaped: see `print_lines`.
"""

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from io import TextIOWrapper
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from loaders.errors import InputError, name_options, printable
from loaders.system.format import ProgressRate


class ProgressCallback(Protocol):
    """Called with the amount of work done, the total amount, and optionally a remark to show beside them."""

    def __call__(self, done: int, total: int, remark: str = "") -> None: ...


_SECONDS_BETWEEN_LINES = 30.0


def open_console(*, quiet: bool = False, plain: bool = False) -> Console:
    """A console on standard output that accepts any file name: what its encoding cannot express is escaped.

    Args:
        quiet: prints nothing.
        plain: prints text only, without bars or colors, on a terminal too.
    """
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    return Console(
        quiet=quiet,
        force_terminal=False if plain else None,
        force_jupyter=False,  # text there, too: HTML would be shown by the cell that runs at the time
        highlight=False,
        emoji=False,  # ":bug:" may be the name of a class
        soft_wrap=True,
    )


def print_lines(console: Console, *lines: str, style: str | None = None) -> None:
    """Prints lines. Control characters in a line, newlines among them, are escaped: see `loaders.errors.printable`."""
    console.print("\n".join(map(printable, lines)), style=style, markup=False)


def print_error(error: InputError, options: Mapping[str, str]) -> None:
    """Prints an error on standard error, with the fields that it names as `options` has them: see `name_options`."""
    lines = [printable(name_options(line, options)) for line in error.lines]
    print("error:", "\n".join(lines), file=sys.stderr)


@contextmanager
def shown_progress(console: Console, title: str) -> Iterator[ProgressCallback]:
    """Yields a callback that shows progress on `console`. Nothing is shown before its first call."""
    title = printable(title)
    if console.is_terminal:
        with _bar(console, title) as show:
            yield show
    else:
        yield _lines(console, title)


def with_rate(show: ProgressCallback, unit: str) -> Callable[[int, int], None]:
    """A callback of (done, total) that calls `show` with the throughput and the time left as the remark.

    Args:
        unit: plural of what is counted, "images" for example.
    """
    rate = ProgressRate(unit)
    return lambda done, total: show(done, total, rate(done, total))


@contextmanager
def _bar(console: Console, title: str) -> Iterator[ProgressCallback]:
    # The title must not be part of a column's format: braces or brackets in a path would be read as fields or markup.
    description = TextColumn("{task.description}", markup=False)
    remark_column = TextColumn("{task.fields[remark]}", markup=False)
    columns = (description, BarColumn(20), MofNCompleteColumn(), remark_column, TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        tasks: list[TaskID] = []

        def show(done: int, total: int, remark: str = "") -> None:
            if not tasks:
                tasks.append(bar.add_task(title, total=total, remark=""))
            remark = printable(remark)
            bar.update(tasks[0], completed=done, total=total, remark=remark)

        yield show


def _lines(console: Console, title: str) -> ProgressCallback:
    """A callback that prints a line every `_SECONDS_BETWEEN_LINES` seconds: none for work that takes less."""
    last = time.monotonic()

    def show(done: int, total: int, remark: str = "") -> None:
        nonlocal last
        if done < total and time.monotonic() - last > _SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            print_lines(console, f"{title}  {done}/{total}  {remark}".rstrip())

    return show
