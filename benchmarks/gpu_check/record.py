"""`gpu-check.json`: which programs have ended, and the table of what they found."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness.result import Environment, Record
from benchmarks.harness.result_json import Parsers, environment_from_json, read_json, record_from_json

PART_KEYS = ("name", "state", "seconds", "commit")
CHECK_KEYS = ("theme", "environment", "options", "parts", "table")


@dataclass(frozen=True, kw_only=True)
class Part(Record):
    """A program that has ended."""

    name: str
    state: str
    """done, failed, out of time, or no time left."""
    seconds: float
    commit: str | None = None
    """The checkout that it ran from."""


@dataclass(frozen=True, kw_only=True)
class Check(Record):
    """All that is known of a check."""

    theme: str = "gpu-check"
    environment: Environment
    options: Mapping[str, object]
    parts: tuple[Part, ...] = ()
    table: tuple[Mapping[str, str], ...] = ()
    """Fields of each `Line`."""


def read_check(file: Path) -> Check:
    """The check in a file."""
    parsers: Parsers = {
        "environment": environment_from_json,
        "parts": lambda parts: tuple(record_from_json(Part, part, {}) for part in parts),
        "table": tuple,
    }
    return record_from_json(Check, read_json(file), parsers)
