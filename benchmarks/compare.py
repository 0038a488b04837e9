"""`compare`: two results of the same theme, row by row."""

import re
from collections.abc import Iterable
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
    """Exit with code 1 where a row has become slower than this share of what it was, noise apart, or cannot be judged:
    it is gone, or has fewer than three windows. Refused for another machine or other settings."""


_FEWEST = 3
"""Windows of each result that tell: of two by two that are alike, one row in six has all of the new ones below."""
_MACHINE = ("processor", "usable_cores", "gpus", "torch_threads")
_NO_SETTINGS = frozenset({"out", "root", "windows", "seconds", "only", "demand"})
_COUNT = re.compile(r"\b\d+ (worker|thread)s?\b")


@dataclass(frozen=True)
class Change:
    """A row of both results."""

    group: str
    name: str
    old: float
    new: float
    """Images/s."""
    apart: bool
    """Whether the windows of one lie apart from those of the other."""
    enough: bool
    """Whether there are enough of them to tell."""

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
    """Names of rows that only the old one has a rate of."""
    there = {_key(row) for row in new["rows"] if row.get("images_per_second")}
    return [row["name"] for row in old["rows"] if row.get("images_per_second") and _key(row) not in there]


def _key(row: dict[str, Any]) -> tuple[str | None, str]:
    """By which a row is found again: with how many workers the ordinary loader is served best is no part of it."""
    return row.get("group"), _COUNT.sub(r"\1s", row["name"])


def _change(old: dict[str, Any], new: dict[str, Any]) -> Change:
    apart = new["high"] < old["low"] or new["low"] > old["high"]
    enough = min(len(row.get("windows") or row.get("seeds") or ()) for row in (old, new)) >= _FEWEST
    return Change(new["group"], new["name"], old["images_per_second"], new["images_per_second"], apart, enough)


def slower(changes: list[Change], least: float) -> list[Change]:
    """Those below that share, whose windows lie apart: the others may be noise."""
    return [change for change in changes if change.ratio < least and change.apart and change.enough]


def differences(old: Result, new: Result) -> list[str]:
    """Of machine and settings, what is not the same: it may be the reason."""
    was_on, is_on = (result.get("environment", {}) for result in (old, new))
    was, is_now = (result.get("options", {}) for result in (old, new))
    settings = sorted(set(was) & set(is_now) - _NO_SETTINGS)
    return _changed(was_on, is_on, _MACHINE) + _changed(was, is_now, settings)


def other_versions(old: Result, new: Result) -> list[str]:
    """Of what both were measured with: often what is to be judged, and so no hindrance."""
    was, is_now = (result.get("environment", {}).get("versions", {}) for result in (old, new))
    return _changed(was, is_now, sorted(set(was) & set(is_now)))


def _changed(was: dict[str, Any], is_now: dict[str, Any], names: Iterable[str]) -> list[str]:
    return [f"{name}: {was.get(name)} → {is_now.get(name)}" for name in names if was.get(name) != is_now.get(name)]


def run_compare(options: CompareOptions) -> int:
    """Prints a line per row; 1 where one has become slower than allowed, or cannot be judged.

    Raises:
        InputError: when there is nothing to compare, or that is to be judged what was measured otherwise.
    """
    old, new = read(options.old), read(options.new)
    changes = compare(old, new)
    widest = max(len(change.name) for change in changes)
    for change in changes:
        doubt = "" if change.apart else "  within the spread"
        doubt = doubt if change.enough else f"  fewer than {_FEWEST} windows, which tell nothing"
        told = f"{number(change.old):>10} → {number(change.new):>10} images/s  {change.ratio:5.2f} ×"
        print(f"{change.name:{widest}}  {told}{doubt}  ({change.group})")
    for name in (gone := unmatched(old, new)):
        print(f"not in the new one: {name}")
    other = differences(old, new)
    for difference in [*other, *other_versions(old, new)]:
        print(f"differs: {difference}")
    if options.fail_below is None:
        return 0
    if other:
        raise InputError(f"--fail-below: these were measured otherwise, and are not to be judged: {'; '.join(other)}")
    for change in (failed := slower(changes, options.fail_below)):
        print(f"slower than {options.fail_below:g} × what it was: {change.name} ({change.ratio:.2f} ×)")
    for name in (unknown := gone + [change.name for change in changes if not change.enough]):
        print(f"cannot be judged: {name}")
    return 1 if failed or unknown else 0
