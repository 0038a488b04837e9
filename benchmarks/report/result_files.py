"""`redraw` and `keep`: what becomes of results that were written earlier."""

import re
from datetime import datetime
from pathlib import Path

from benchmarks.harness.result import Environment, Result
from benchmarks.harness.result_json import as_text, read_result
from benchmarks.report.draw import draw
from benchmarks.report.options import KeepOptions, RedrawOptions
from benchmarks.report.page import checkout
from loaders.errors import InputError
from loaders.system.console import open_console, print_lines

RESULTS = Path(__file__).parents[1] / "results"


def run_redraw(options: RedrawOptions) -> int:
    """Draws page and chart, beside the result or elsewhere."""
    beside = options.result if options.result.is_dir() else options.result.parent
    folder = options.out or beside
    result = read_result(options.result)
    # Of runs put together by hand, for one; a rung that could not be measured has a rate of null.
    if not all("images_per_second" in row.keys for row in result.rows):
        raise InputError(f"{options.result}: a row has no rate to draw")
    draw(result, folder)
    print_lines(open_console(), str(folder))
    return 0


def run_keep(options: KeepOptions) -> int:
    """Copies a result to the folder of results; a file that exists is not overwritten."""
    result = read_result(options.result)
    file = RESULTS / result_name(result)
    if file.exists():
        raise InputError(f"{file} is there already")
    file.write_text(as_text(result, indent=1) + "\n")
    print_lines(open_console(), str(file))
    return 0


def result_name(result: Result) -> str:
    """loaders-cifar10-cpu-20261124-3f392b4030.json, steps-feature-gpu-h100-80gb-hbm3-20261124-3f392b4030.json."""
    environment = result.environment or Environment()
    mode = str(result.options.get("mode", "both"))
    data = _plain(Path(str(result.options.get("data", ""))).name.lower())  # of a folder, its own name
    gpu = f"gpu-{_plain(environment.gpus[0].lower().removeprefix('nvidia '))}" if environment.gpus else "cpu"
    date = (result.date or f"{datetime.now():%Y-%m-%d}").replace("-", "")[:8]
    words = (result.theme, mode.replace("both", ""), data, gpu, date, f"{checkout(environment.commit)}.json")
    return "-".join(filter(None, words))


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text).strip("-")
