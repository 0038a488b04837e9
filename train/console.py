"""What a person sees of a run."""

from contextlib import AbstractContextManager

from loaders.system.console import ProgressCallback, open_console, shown_progress


class Reporter:
    """Prints for one process; a quiet one prints nothing, for the others of a distributed run."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.console = open_console(quiet=quiet)

    def say(self, text: str = "") -> None:
        self.console.print(text, markup=False)

    def facts(self, rows: dict[str, str]) -> None:
        """Names and values, aligned."""
        widest = max(map(len, rows))
        for name, value in rows.items():
            self.say(f"{name:<{widest}}  {value}")

    def warn(self, text: str) -> None:
        self.console.print(f"warning: {text}", style="yellow", markup=False)

    def progress(self, title: str) -> AbstractContextManager[ProgressCallback]:
        """Of a piece of work: see `loaders.system.console.shown_progress`."""
        return shown_progress(self.console, title)
