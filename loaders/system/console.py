"""Progress that people see: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from loaders.system.format import ProgressRate


class Show(Protocol):
    """Called with how much is done, how much there is, and perhaps a remark."""

    def __call__(self, done: int, total: int, remark: str = "") -> None: ...


_SECONDS_BETWEEN_LINES = 30.0


def open_console(*, quiet: bool = False) -> Console:
    """For standard output, which then takes any file name: what it cannot encode is escaped."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    return Console(quiet=quiet, highlight=False, soft_wrap=True)


@contextmanager
def shown_progress(console: Console, title: str) -> Iterator[Show]:
    """Yields what is to be called as it goes on. Nothing is shown before its first call."""
    if console.is_terminal:
        with _bar(console, title) as show:
            yield show
    else:
        yield _lines(console, title)


def paced(show: Show, what: str) -> Callable[[int, int], None]:
    """Shows (done, total) with the rate and the time left as the remark."""
    pace = ProgressRate(what)
    return lambda done, total: show(done, total, pace(done, total))


@contextmanager
def _bar(console: Console, title: str) -> Iterator[Show]:
    # The title is no column of its own: what looks like a field or like markup in a path would be taken for that.
    named, remarks = (TextColumn(f"{{task.{what}}}", markup=False) for what in ("description", "fields[remark]"))
    columns = (named, BarColumn(20), MofNCompleteColumn(), remarks, TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        tasks: list[TaskID] = []

        def show(done: int, total: int, remark: str = "") -> None:
            if not tasks:
                tasks.append(bar.add_task(title, total=total, remark=remark))
            bar.update(tasks[0], completed=done, total=total, remark=remark)

        yield show


def _lines(console: Console, title: str) -> Show:
    """A line every half minute, and none for what takes less."""
    last = time.monotonic()

    def show(done: int, total: int, remark: str = "") -> None:
        nonlocal last
        if done < total and time.monotonic() - last > _SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            console.print(f"{title}  {done}/{total}  {remark}".rstrip(), markup=False)

    return show
