"""Options that several benchmarks share."""

from collections.abc import Collection
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

import torch

from loaders import InputError, Source, open_data
from loaders.system.machine import usable_cores
from train.console import Reporter
from train.device import choose_device
from train.option_values import DeviceName
from train.options import OptionalInt, OptionalPath, require_positive

Result = dict[str, Any]
"""What a benchmark found: theme, environment, options, rows, and what the theme adds; plain values throughout."""


class Keep(Protocol):
    """Writes a result where the user wants it; may be called again as more becomes known."""

    folder: Path

    def __call__(self, result: Result) -> None: ...


def require_named(only: str, names: Collection[str]) -> None:
    """Raises InputError where no name has `only` in it, and tells them all."""
    if not any(only in name for name in names):
        raise InputError(f"--only {only}: nothing of that name can be measured here; there are {', '.join(names)}")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """On which machine, and where to."""

    device: DeviceName = "auto"
    """auto: a GPU where there is one."""
    out: OptionalPath = None
    """Folder for bench.json, report.html and bench.png; runs/THEME-TIME, unless given."""

    @property
    def torch_device(self) -> torch.device:
        """What `device` stands for on this machine; raises InputError where it is not there."""
        return choose_device(self.device)

    def folder(self, theme: str) -> Path:
        """Where the result of a theme goes."""
        return self.out or Path("runs") / f"{theme}-{datetime.now():%Y%m%d-%H%M%S}"


@dataclass(frozen=True, kw_only=True)
class Where(Machine):
    """On which data, too."""

    data: str = "sample"
    """sample, cifar10, a folder, or a CSV file, as for training."""
    root: Path = Path("data")
    """Where named data sets lie, or are put."""
    workers: OptionalInt = None
    """Threads or processes; all usable cores, unless given."""

    @property
    def threads(self) -> int:
        """As many as there may be."""
        return self.workers or usable_cores()


@dataclass(frozen=True, kw_only=True)
class Windows(Where):
    """Which loaders take turns, and for how long."""

    only: str = ""
    """Only loaders whose name has this in it; the baseline always."""

    windows: int = 5
    """Turns that each arm has."""
    seconds: float = 1.0
    """Length of a turn, at least."""

    def __post_init__(self) -> None:
        require_positive(self, "windows", "seconds")


def opened(options: Where, reporter: Reporter) -> tuple[Source, Source]:
    """Training and validation images, with a progress bar."""
    with reporter.progress(f"preparing {options.data}") as show:
        return open_data(options.data, root=options.root.expanduser(), progress=show)


def told(options: Any, **decided: Any) -> dict[str, Any]:
    """Options as they are written to a result, with what was decided where they leave it open."""
    return {
        name: str(value) if isinstance(value, Path) else value for name, value in (asdict(options) | decided).items()
    }
