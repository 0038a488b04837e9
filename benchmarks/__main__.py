"""`python -m benchmarks loaders`: every loader here against the ordinary one; `steps`: what each switch is worth."""

import json
import sys
import time
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro

from benchmarks import report
from benchmarks.arms import BASELINE, Task, long_epochs, ordinary, ours
from benchmarks.measure import measure, rows
from benchmarks.steps import StepsOptions, bench_steps, told
from loaders import InputError, LoaderConfig, build_loader, open_data
from loaders.machine import usable_cores
from train.console import Reporter
from train.folder import describe_environment
from train.precision import choose_precision


@dataclass(frozen=True)
class Options:
    """Measures loaders side by side: random resized crop and flip, training order."""

    theme: tyro.conf.Positional[Literal["loaders"]]
    """What is measured."""
    data: str = "sample"
    """sample, cifar10, a folder, or a CSV file, as for training."""
    root: Path = Path("data")
    """Where named data sets lie, or are put."""
    size: int = 224
    """Side of the images in pixels."""
    batch_size: int = 64
    """Images per batch."""
    images: int = 4096
    """Length of an epoch at least: smaller sets are repeated within it."""
    windows: int = 5
    """Turns that each loader has."""
    seconds: float = 1.5
    """Length of a turn."""
    device: Literal["auto", "cuda", "cpu"] = "auto"
    """Where batches are delivered."""
    workers: Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="")] = None
    """Threads or processes; all usable cores, unless given."""
    only: str = ""
    """Only loaders whose name has this in it; the baseline always."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="PATH", help_behavior_hint="")] = None
    """Folder for bench.json; runs/bench-TIME, unless given."""


def main(arguments: list[str] | None = None) -> int:
    """Measures, prints a table, and one line of JSON at the end."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["steps"]:
        return run_steps(arguments[1:])
    options = tyro.cli(Options, args=arguments, prog="python -m benchmarks", config=(tyro.conf.FlagCreatePairsOff,))
    try:
        result = bench_loaders(options, Reporter())
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(report.table(result["rows"]))
    print(f"\norder and plan: {result['plan_microseconds']:.2f} µs an image")
    file = report.write(result, options.out or Path("runs") / f"bench-{datetime.now():%Y%m%d-%H%M%S}")
    print(file)
    print(json.dumps(result, default=str))
    return 0


def run_steps(arguments: list[str]) -> int:
    """The ladder of `python -m benchmarks steps`."""
    prog, plain = "python -m benchmarks steps", (tyro.conf.FlagCreatePairsOff,)
    options = tyro.cli(StepsOptions, args=arguments, prog=prog, config=plain)
    try:
        result = bench_steps(options, Reporter())
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(told(result["rows"]))
    print(report.write(result, options.out or Path("runs") / f"steps-{datetime.now():%Y%m%d-%H%M%S}"))
    print(json.dumps(result, default=str))
    return 0


def bench_loaders(options: Options, reporter: Reporter) -> dict[str, Any]:
    """All loaders take turns on the same images."""
    cuda = options.device == "cuda" or (options.device == "auto" and torch.cuda.is_available())
    device = torch.device("cuda" if cuda else "cpu")
    with reporter.progress(f"preparing {options.data}") as show:
        train, _ = open_data(options.data, root=options.root, progress=lambda done, total: show(done, total, ""))
    dtype = choose_precision("auto", device).dtype
    workers = options.workers or usable_cores()
    task = Task(long_epochs(train, options.images), options.size, options.batch_size, device, dtype, workers)
    arms = [arm for arm in (*ordinary(task), *ours(task)) if options.only in arm.name or arm.name == BASELINE]
    with reporter.progress("measuring") as show:
        found = measure(arms, windows=options.windows, seconds=options.seconds, tell=show)
    return {
        "theme": "loaders",
        "environment": describe_environment(),
        "options": asdict(options) | {"device": str(device), "dtype": str(dtype), "workers": workers},
        "rows": rows(arms, found, baseline=BASELINE),
        "plan_microseconds": plan_microseconds(task),
    }


def plan_microseconds(task: Task) -> float:
    """What order and plan cost for each image: the median of five epochs."""
    loader = build_loader(task.source, LoaderConfig(spec=task.spec, training=True, batch_size=task.batch_size))
    costs = []
    for epoch in range(5):
        loader.set_epoch(epoch)
        began = time.perf_counter()
        images = sum(len(ids) for ids, _ in loader.planned(0))
        costs.append(1e6 * (time.perf_counter() - began) / images)
    return float(np.median(costs))


if __name__ == "__main__":
    sys.exit(main())
