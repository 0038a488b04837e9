"""`redraw` and `keep`: what becomes of results that are there."""

import json
import re
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import tyro

from benchmarks.options import Result
from benchmarks.page import checkout
from benchmarks.report import draw, read
from loaders import InputError
from train.options import OptionalPath

RESULTS = Path(__file__).parent / "results"


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


def run_redraw(options: RedrawOptions) -> int:
    """Page and picture, beside the result or elsewhere."""
    beside = options.result if options.result.is_dir() else options.result.parent
    folder = options.out or beside
    result = read(options.result)
    if not all("images_per_second" in row for row in result["rows"]):  # of runs put together by hand, for one
        raise InputError(f"{options.result}: a row has no rate to draw")
    draw(result, folder)
    print(folder)
    return 0


def run_keep(options: KeepOptions) -> int:
    """A file that is there already is not overwritten."""
    result = read(options.result)
    file = RESULTS / result_name(result)
    if file.exists():
        raise InputError(f"{file} is there already")
    file.write_text(json.dumps(result, indent=1) + "\n")
    print(file)
    return 0


def result_name(result: Result) -> str:
    """loaders-cifar10-cpu-20261124-3f392b4030.json, steps-feature-gpu-h100-80gb-hbm3-20261124-3f392b4030.json."""
    environment, options = result.get("environment", {}), result.get("options", {})
    mode = options.get("mode", "both")
    gpus = environment.get("gpus") or []
    on = "cpu"
    if gpus:
        on = f"gpu-{_plain(gpus[0].lower().removeprefix('nvidia '))}"
    commit = checkout(environment.get("commit"))
    date = (result.get("date") or f"{datetime.now():%Y-%m-%d}").replace("-", "")[:8]
    data = _plain(Path(str(options.get("data", ""))).name.lower())  # of a folder, its own name
    return "-".join(filter(None, (result["theme"], mode.replace("both", ""), data, on, date, f"{commit}.json")))


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text).strip("-")
