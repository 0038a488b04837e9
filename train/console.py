"""What a person sees: a progress bar on a terminal, plain lines elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

_SECONDS_BETWEEN_LINES = 30.0


class Reporter:
    """Prints for one process; a quiet one prints nothing, for the others of a distributed run."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.console = Console(quiet=quiet, highlight=False, soft_wrap=True)

    def say(self, text: str = "") -> None:
        self.console.print(text, markup=False)

    def facts(self, rows: dict[str, str]) -> None:
        """Names and values, aligned."""
        widest = max(map(len, rows))
        for name, value in rows.items():
            self.say(f"{name:<{widest}}  {value}")

    def warn(self, text: str) -> None:
        self.console.print(f"warning: {text}", style="yellow", markup=False)

    @contextmanager
    def progress(self, title: str) -> Iterator[Callable[[int, int, str], None]]:
        """Yields a function to call with (done, total, remark). Nothing is shown before its first call."""
        if self.console.is_terminal:
            with self._bar(title) as show:
                yield show
        else:
            yield self._lines(title)

    @contextmanager
    def _bar(self, title: str) -> Iterator[Callable[[int, int, str], None]]:
        columns = (TextColumn(title), BarColumn(20), MofNCompleteColumn(), TextColumn("{task.fields[remark]}"))
        with Progress(*columns, TimeRemainingColumn(), console=self.console, transient=True) as bar:
            tasks: list[TaskID] = []

            def show(done: int, total: int, remark: str) -> None:
                if not tasks:
                    tasks.append(bar.add_task(title, total=total, remark=remark))
                bar.update(tasks[0], completed=done, total=total, remark=remark)

            yield show

    def _lines(self, title: str) -> Callable[[int, int, str], None]:
        """A line every half minute, and none for what takes less."""
        last = time.monotonic()

        def show(done: int, total: int, remark: str) -> None:
            nonlocal last
            if done < total and time.monotonic() - last > _SECONDS_BETWEEN_LINES:
                last = time.monotonic()
                self.say(f"{title}  {done}/{total}  {remark}".rstrip())

        return show
