"""`compare`: two results of the same theme, row by row."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from benchmarks.columns import number
from benchmarks.options import Result
from benchmarks.report import read
from loaders import InputError
from train.options import OptionalFloat


@dataclass(frozen=True)
class CompareOptions:
    """Two results, row by row: how many times as fast is the new one?"""

    old: tyro.conf.Positional[Path]
    """A bench.json, or a folder with one."""
    new: tyro.conf.Positional[Path]
    """Another."""
    fail_below: OptionalFloat = None
    """Exit with code 1 where a row has become slower than this share of what it was; noise apart."""


@dataclass(frozen=True)
class Change:
    """A row of both results."""

    group: str
    name: str
    old: float
    new: float
    """Images/s."""
    certain: bool
    """Whether the windows of one lie apart from those of the other."""

    @property
    def ratio(self) -> float:
        return self.new / self.old


def compare(old: Result, new: Result) -> list[Change]:
    """The rows that both have, by group and name, in the new one's order.

    Raises:
        InputError: when they are of different themes, or have no row in common.
    """
    if old.get("theme") != new.get("theme"):
        raise InputError(f"a result of {old.get('theme')} is not to be compared with one of {new.get('theme')}")
    before = {_key(row): row for row in old["rows"]}
    both = [(before[_key(row)], row) for row in new["rows"] if _key(row) in before]
    changes = [
        _change(was, is_now) for was, is_now in both if was.get("images_per_second") and is_now.get("images_per_second")
    ]
    if not changes:
        raise InputError("the two results have no row in common")
    return changes


def unmatched(old: Result, new: Result) -> list[str]:
    """Names of rows that only the old one has."""
    there = set(map(_key, new["rows"]))
    return [row["name"] for row in old["rows"] if _key(row) not in there]


def _key(row: dict[str, Any]) -> tuple[str | None, str]:
    return row.get("group"), row["name"]


def _change(old: dict[str, Any], new: dict[str, Any]) -> Change:
    apart = new["high"] < old["low"] or new["low"] > old["high"]
    return Change(new["group"], new["name"], old["images_per_second"], new["images_per_second"], apart)


def slower(changes: list[Change], least: float) -> list[Change]:
    """Those below that share, whose windows lie apart: the others may be noise."""
    return [change for change in changes if change.ratio < least and change.certain]


def differences(old: Result, new: Result) -> list[str]:
    """What else is not the same, and may be the reason."""
    found = []
    for part, names in (("environment", ("processor", "usable_cores", "gpus", "torch_threads")), ("options", None)):
        was, is_now = old.get(part, {}), new.get(part, {})
        for name in names or sorted(set(was) & set(is_now) - {"out", "root"}):
            if was.get(name) != is_now.get(name):
                found.append(f"{name}: {was.get(name)} → {is_now.get(name)}")
    return found


def run_compare(options: CompareOptions) -> int:
    """Prints a line per row; 1 where one has become slower than allowed."""
    old, new = read(options.old), read(options.new)
    changes = compare(old, new)
    widest = max(len(change.name) for change in changes)
    for change in changes:
        doubt = "" if change.certain else "  within the spread"
        told = f"{number(change.old):>10} → {number(change.new):>10} images/s  {change.ratio:5.2f} ×"
        print(f"{change.name:{widest}}  {told}{doubt}  ({change.group})")
    for name in unmatched(old, new):
        print(f"not in the new one: {name}")
    for difference in differences(old, new):
        print(f"differs: {difference}")
    if options.fail_below is None:
        return 0
    for change in (failed := slower(changes, options.fail_below)):
        print(f"slower than {options.fail_below:g} × what it was: {change.name} ({change.ratio:.2f} ×)")
    return 1 if failed else 0
