"""Options that several suites share. This module is imported before torch is."""

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from loaders.errors import InputError
from loaders.system.machine import usable_cores
from train.option_values import DeviceName
from train.options import OptionalInt, OptionalPath, require_positive


@dataclass(frozen=True, kw_only=True)
class MachineOptions:
    """The device to measure on, and the folder to write to."""

    device: DeviceName = "auto"
    """auto: a GPU where there is one."""
    out: OptionalPath = None
    """Folder for bench.json, report.html and bench.png; runs/THEME-TIME, unless given."""

    def folder(self, theme: str) -> Path:
        """The folder for the result of a theme."""
        return self.out or Path("runs") / f"{theme}-{datetime.now():%Y%m%d-%H%M%S}"


@dataclass(frozen=True, kw_only=True)
class DataOptions(MachineOptions):
    """The data to measure with."""

    data: str = "sample"
    """sample, cifar10, a folder, or a CSV file, as for training."""
    root: Path = Path("data")
    """Where named data sets lie, or are put."""
    workers: OptionalInt = None
    """Threads or processes; all usable cores, unless given."""

    @property
    def threads(self) -> int:
        """The number of threads or processes to use."""
        return self.workers or usable_cores()


@dataclass(frozen=True, kw_only=True)
class TurnOptions(DataOptions):
    """The loaders that take turns, and the length of a turn."""

    only: str = ""
    """Only loaders whose name has this in it; the baseline always."""

    windows: int = 5
    """Turns that each loader has."""
    seconds: float = 1.0
    """Length of a turn, at least."""

    def __post_init__(self) -> None:
        require_positive(self, "windows", "seconds")


def require_match(only: str, names: Collection[str]) -> None:
    """Raises InputError, with all names, where none contains `only`."""
    if not any(only in name for name in names):
        raise InputError(f"--only {only}: nothing of that name can be measured here; there are {', '.join(names)}")


def describe_options(options: Any, **decided: object) -> Mapping[str, object]:
    """The fields of an options dataclass as a result records them.

    Args:
        options: any dataclass instance.
        decided: what a suite has decided where the options leave it open.
    """
    return {
        name: str(value) if isinstance(value, Path) else value for name, value in (asdict(options) | decided).items()
    }
