"""`compare`: two results of the same theme, row by row."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.harness.result import Environment, Result, Row
from benchmarks.harness.result_json import read_result
from benchmarks.report.columns import number, range_of, rate_of
from benchmarks.report.options import CompareOptions
from loaders.errors import InputError, printable
from loaders.system.console import open_console, print_lines

_FEWEST = 3
"""Windows of each result that suffice: of two by two that are alike, one row in six has all of the new ones below."""
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
        """How many times as fast the new one is."""
        return self.new / self.old


def compare(old: Result, new: Result) -> list[Change]:
    """The rows that both have, by group and name, in the new one's order.

    Raises:
        InputError: when they are of different themes, or have no row in common.
    """
    if old.theme != new.theme:
        raise InputError(f"a result of {old.theme} is not to be compared with one of {new.theme}")
    before = {_key(row): row for row in old.rows if row.images_per_second}
    changes = [_change(before[_key(row)], row) for row in new.rows if row.images_per_second and _key(row) in before]
    if not changes:
        raise InputError("the two results have no row in common")
    return changes


def unmatched(old: Result, new: Result) -> list[str]:
    """Names of rows that only the old one has a rate of."""
    matched = {_key(row) for row in new.rows if row.images_per_second}
    return [row.name for row in old.rows if row.images_per_second and _key(row) not in matched]


def _key(row: Row) -> tuple[str, str]:
    """By which a row is found again: with how many workers the ordinary loader is served best is no part of it."""
    return row.group, _COUNT.sub(r"\1s", row.name)


def _change(old: Row, new: Row) -> Change:
    (old_low, old_high), (new_low, new_high) = range_of(old), range_of(new)
    apart = new_high < old_low or new_low > old_high
    enough = min(len(row.windows or row.seeds) for row in (old, new)) >= _FEWEST
    return Change(new.group, new.name, rate_of(old), rate_of(new), apart, enough)


def slower(changes: Sequence[Change], least: float) -> list[Change]:
    """Those below that share, whose windows lie apart: the others may be noise."""
    return [change for change in changes if change.ratio < least and change.apart and change.enough]


def differences(old: Result, new: Result) -> list[str]:
    """Of machine and settings, what is not the same: it may be the reason."""
    settings = sorted(set(old.options) & set(new.options) - _NO_SETTINGS)
    return [
        *_changed(_machine(old.environment), _machine(new.environment), _MACHINE),
        *_changed(old.options, new.options, settings),
    ]


def other_versions(old: Result, new: Result) -> list[str]:
    """Of what both were measured with: often what is to be judged, and so no hindrance."""
    before, now = ((result.environment or Environment()).versions for result in (old, new))
    return _changed(before, now, sorted(set(before) & set(now)))


def _machine(environment: Environment | None) -> dict[str, object]:
    facts = {name: getattr(environment or Environment(), name) for name in _MACHINE}
    return facts | {"gpus": list(facts["gpus"])}


def _changed(before: Mapping[str, object], now: Mapping[str, object], names: Iterable[str]) -> list[str]:
    return [f"{name}: {before[name]} → {now[name]}" for name in names if before[name] != now[name]]


def run_compare(options: CompareOptions) -> int:
    """Prints a line per row; 1 where one has become slower than allowed, or cannot be judged.

    Raises:
        InputError: when there is nothing to compare, or a result is to be judged that was measured otherwise.
    """
    old, new = read_result(options.old), read_result(options.new)
    changes = compare(old, new)
    console = open_console()
    print_lines(console, *_lines(changes))
    missing = unmatched(old, new)
    for name in missing:
        print_lines(console, f"not in the new one: {name}")
    other = differences(old, new)
    for difference in [*other, *other_versions(old, new)]:
        print_lines(console, f"differs: {difference}")
    if options.fail_below is None:
        return 0
    if other:
        raise InputError(f"--fail-below: these were measured otherwise, and are not to be judged: {'; '.join(other)}")
    failed = slower(changes, options.fail_below)
    for change in failed:
        print_lines(console, f"slower than {options.fail_below:g} × what it was: {change.name} ({change.ratio:.2f} ×)")
    unknown = missing + [change.name for change in changes if not change.enough]
    for name in unknown:
        print_lines(console, f"cannot be judged: {name}")
    return 1 if failed or unknown else 0


def _lines(changes: Sequence[Change]) -> Iterator[str]:
    """A line for each row."""
    names = [printable(change.name) for change in changes]
    widest = max(map(len, names))
    for name, change in zip(names, changes, strict=True):
        doubt = "" if change.apart else "  within the spread"
        if not change.enough:
            doubt = f"  fewer than {_FEWEST} windows, which are too few to tell"
        figures = f"{number(change.old):>10} → {number(change.new):>10} images/s  {change.ratio:5.2f} ×"
        yield f"{name:{widest}}  {figures}{doubt}  ({change.group})"
