"""Errors in what a user gave: the message names the cause and the remedy."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


class InputError(ValueError):
    """A folder, an option or a state that the user gave cannot be used. The message is for the user.

    It names the fields of the Python API in backticks; see `name_options`. Each argument is a line of it: a newline
    inside one comes from a name or another library's text, and programs print it escaped.
    """

    @property
    def lines(self) -> tuple[str, ...]:
        """The lines of the message."""
        return tuple(map(str, self.args))

    def __str__(self) -> str:
        return "\n".join(self.lines)


_FIELD = re.compile(r"`(\w+)(?:=\"?([^`]*?)\"?)?`")


def name_options(message: str, options: Mapping[str, str]) -> str:
    """Rewrites the fields that a message names in backticks as the options of a program.

    The packages name the fields of their own interface: `` `batch_size` ``, `` `on_bad_image="skip"` ``. A program
    passes what a user of it types instead: with `{"batch_size": "--batch-size", "loader": "LOADER"}`,
    `` `batch_size=8` `` becomes `--batch-size 8`, and `` `loader="dali"` `` becomes `LOADER=dali`. Other text in
    backticks stays as it is.

    Args:
        message: what an `InputError`, a note of a source or the reason of a bad image says.
        options: field → option, which begins with `--` unless it is a variable of make.
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


_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""C0, DEL and C1; marks that change the direction of text, and its separators of lines; lone surrogates."""


def printable(text: str) -> str:
    """The text with escapes such as `\\x1b` and `\\n` for all that a terminal carries out, or that begins a line.

    Names of files, classes and data sets, and the messages that contain them, are other people's: printed as they are,
    they could set a terminal's title, forge a line of output, or reverse what follows.
    """
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def cause(error: BaseException) -> str:
    """The reason of an error, for a message that names the file itself: an OSError's without number and file name."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


@dataclass(frozen=True)
class BadImage:
    """One image that cannot be decoded."""

    path: str
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


MOST_NAMED = 100
"""The largest number of bad images, or of classes, that one message names."""


def listed(bad: list[BadImage]) -> list[str]:
    """A line, indented, for each of the first `MOST_NAMED` images, and one that counts the rest."""
    lines = [str(image) for image in bad[:MOST_NAMED]]
    if len(bad) > MOST_NAMED:
        lines.append(f"and {len(bad) - MOST_NAMED} more")
    return [f"  {line}" for line in lines]


def named(names: Iterable[str]) -> str:
    """The first `MOST_NAMED` names, separated by commas, and how many more there are."""
    every = list(names)
    parts = every[:MOST_NAMED]
    if len(every) > MOST_NAMED:
        parts.append(f"and {len(every) - MOST_NAMED:,} more")
    return ", ".join(parts)


class BadImageError(InputError):
    """Images cannot be decoded, and `on_bad_image` is "raise" or there are too many of them to skip."""

    def __init__(self, bad: list[BadImage], total: int, remedy: str) -> None:
        super().__init__(f"{len(bad)} of {total} images cannot be decoded:", *listed(bad), remedy)
        self.bad = bad
