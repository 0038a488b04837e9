"""What goes wrong with what a user gave: the message names the thing and the remedy."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


class InputError(ValueError):
    """Something the user gave cannot be used: a folder, an option, a state. The message is for the user."""


_FIELD = re.compile(r"`(\w+)(?:=\"?([^`\"]*)\"?)?`")


def name_options(message: str, options: Mapping[str, str]) -> str:
    """Rewrites the fields that a message names in backticks as the options of a program.

    The packages name the fields of their own interface: `` `batch_size` ``, `` `on_bad_image="skip"` ``. A program
    passes what a user of it types instead: with `{"batch_size": "--batch-size", "loader": "LOADER"}`,
    `` `batch_size=8` `` becomes `--batch-size 8`, and `` `loader="dali"` `` becomes `LOADER=dali`. Other text in
    backticks stays as it is.
    """

    def option(found: re.Match[str]) -> str:
        field, value = found.groups()
        if field not in options:
            return found[0]
        name = options[field]
        if value is None:
            return name
        return f"{name} {value}" if name.startswith("--") else f"{name}={value}"

    return _FIELD.sub(option, message)


def cause(error: BaseException) -> str:
    """What went wrong, for a message that names the file itself: of an OSError only the system's words."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


@dataclass(frozen=True)
class BadImage:
    """One image that cannot be decoded."""

    path: str
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


MOST_NAMED = 100
"""Bad images, or classes, that one message names."""


def listed(bad: list[BadImage]) -> str:
    """A line for each, the last of many for the rest."""
    more = [f"and {len(bad) - MOST_NAMED} more"] * (len(bad) > MOST_NAMED)
    return "".join(f"\n  {line}" for line in [*bad[:MOST_NAMED], *more])


def named(names: Iterable[str]) -> str:
    """The names, of many the first and how many more there are."""
    every = list(names)
    more = [f"and {len(every) - MOST_NAMED:,} more"] * (len(every) > MOST_NAMED)
    return ", ".join([*every[:MOST_NAMED], *more])


class BadImageError(InputError):
    """Images that cannot be decoded, under `on_bad_image="raise"` or when they are too many to skip."""

    def __init__(self, bad: list[BadImage], total: int, remedy: str) -> None:
        super().__init__(f"{len(bad)} of {total} images cannot be decoded:{listed(bad)}\n{remedy}")
        self.bad = bad
