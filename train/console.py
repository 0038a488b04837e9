"""What a person sees of a run."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager

from loaders.errors import name_options
from loaders.system.console import ProgressCallback, open_console, print_lines, shown_progress
from train.options import OPTION_NAMES


def as_typed(message: str) -> str:
    """A message with the options and Make variables that a person types."""
    return name_options(message, OPTION_NAMES)


class Reporter:
    """Prints for one process. A quiet one prints nothing: it serves the other processes of a distributed run.

    Messages of the packages below name fields in backticks (`batch_size`); they are printed as the option or Make
    variable that a person types.
    """

    def __init__(self, *, quiet: bool = False, plain: bool = False, rewrite: Callable[[str], str] = as_typed) -> None:
        """
        Args:
            quiet, plain: see `loaders.system.console.open_console`.
            rewrite: applied to each line before it is printed.
        """
        self.console = open_console(quiet=quiet, plain=plain)
        self._rewrite = rewrite

    def say(self, *lines: str) -> None:
        """Prints the lines of a message. Control characters inside them are escaped."""
        self._print(lines)

    def facts(self, rows: dict[str, str]) -> None:
        """Prints names and values, aligned."""
        widest = max(map(len, rows))
        for name, value in rows.items():
            self.say(f"{name:<{widest}}  {value}")

    def warn(self, text: str, *more: str) -> None:
        """Prints the lines of a warning."""
        self._print((f"warning: {text}", *more), style="yellow")

    def progress(self, title: str) -> AbstractContextManager[ProgressCallback]:
        """Shows the progress of a piece of work: see `loaders.system.console.shown_progress`."""
        return shown_progress(self.console, title)

    def _print(self, lines: Iterable[str], style: str | None = None) -> None:
        print_lines(self.console, *map(self._rewrite, lines), style=style)
