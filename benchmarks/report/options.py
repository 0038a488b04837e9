"""Options of the commands that read results. This module is imported before torch is."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from train.options import OptionalFloat, OptionalPath


@dataclass(frozen=True)
class CompareOptions:
    """Two results, row by row: how many times as fast is the new one?"""

    old: tyro.conf.Positional[Path]
    """A bench.json, or a folder with one."""
    new: tyro.conf.Positional[Path]
    """Another."""
    fail_below: OptionalFloat = None
    """Exit with code 1 where a row has become slower than this share of what it was, noise apart, or cannot be judged:
    it is missing, or has fewer than three windows. Refused for another machine or other settings."""


@dataclass(frozen=True)
class RedrawOptions:
    """Draws report.html and bench.png anew, from bench.json alone."""

    result: tyro.conf.Positional[Path]
    """A bench.json, or a folder with one."""
    out: OptionalPath = None
    """Folder to draw to; where the result lies, unless given."""


@dataclass(frozen=True)
class KeepOptions:
    """Copies a result to benchmarks/results, under a name of theme, GPU or CPU, date and commit."""

    result: tyro.conf.Positional[Path]
    """A bench.json, or a folder with one."""


@dataclass(frozen=True)
class TablesOptions:
    """Writes the tables of README and docs anew, from the results they name."""

    root: Path = Path(__file__).parents[2]
    """The checkout."""
