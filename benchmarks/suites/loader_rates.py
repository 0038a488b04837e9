"""`loaders`: every loader that is usable here against the ordinary one, as it is and tuned."""

import time
from collections.abc import Mapping
from dataclasses import replace
from statistics import median

import torch

from benchmarks.harness.data import open_images, repeat_to
from benchmarks.harness.device import chosen_device
from benchmarks.harness.measure import Candidate, Measurement, measure, measured_row
from benchmarks.harness.options import describe_options, require_match
from benchmarks.harness.result import Demand, Result, Row, WriteResult
from benchmarks.harness.result_json import environment_from_json
from benchmarks.harness.workload import measured_ceiling
from benchmarks.suites.candidates import (
    Task,
    ordinary_candidates,
    project_candidates,
    refusals,
    tuning_candidates,
)
from benchmarks.suites.competitors import competitor_candidates
from benchmarks.suites.loader_parts import part_candidates
from benchmarks.suites.options import LoaderOptions
from benchmarks.suites.rows import CACHED, FINISHED, compare_with_ordinary
from loaders import InputError, LoaderConfig, build_loader
from loaders.errors import name_options
from train.console import Reporter
from train.environment import describe_environment
from train.options import OPTION_NAMES
from train.precision import choose_precision

_KEYS = ("theme", "date", "environment", "options", "tuning", "plan_microseconds", "notes", "rows")


def bench_loaders(options: LoaderOptions, reporter: Reporter, write: WriteResult) -> None:
    """All loaders take turns on the same images."""
    task = _task(options, reporter)
    others = [*competitor_candidates(task), *project_candidates(task), *part_candidates(task)]
    require_match(options.only, [candidate.name for candidate in [*ordinary_candidates(task, 1), *others]])
    workers, rates = tune(task, options, reporter)
    candidates = choose(ordinary_candidates(task, workers), others, options.only)
    result = Result(
        keys=_KEYS,
        theme="loaders",
        environment=environment_from_json(describe_environment()),
        options=describe_options(options, device=str(task.device), dtype=str(task.dtype), workers=task.workers),
        tuning={str(count): rate for count, rate in rates.items()},
        plan_microseconds=plan_microseconds(task),
        notes=tuple(f"{name} is left out: {why}" for name, why in refusals(task).items()),
    )

    def with_rows(measured: Mapping[str, Measurement]) -> Result:
        rows = [measured_row(candidate, measured[candidate.name]) for candidate in candidates]
        return replace(result, rows=compare_with_ordinary(rows))

    with reporter.progress("measuring") as show:
        measured = measure(
            candidates,
            windows=options.windows,
            seconds=options.seconds,
            report_progress=show,
            after_turn=lambda so_far: write(with_rows(so_far)),
        )
    result = with_rows(measured)
    write(result)
    write(with_demand(result, options))


def _task(options: LoaderOptions, reporter: Reporter) -> Task:
    """The task for the options' data and device."""
    device = chosen_device(options)
    train, _ = open_images(options, reporter)
    source = repeat_to(train, options.images)
    dtype: torch.dtype = choose_precision("auto", device).dtype
    return Task(source, options.size, options.batch_size, device, dtype, options.threads)


def with_demand(result: Result, options: LoaderOptions) -> Result:
    """The result with the cores that each row needs to supply what a GPU demands; or a note that says why it has none.

    The demand is measured where the options state none.
    """
    try:
        demand = _demand(options)
    except InputError as error:  # of so few images, or such small ones, loaders can be measured all the same
        reason = name_options(" ".join(error.lines), OPTION_NAMES)
        note = f"no cores per GPU, as no model can be trained on these images: {reason}"
        return replace(result, notes=(*result.notes, note))
    rows = tuple(
        replace(row, cores_per_gpu=cores_needed(row, demand.images_per_second), keys=(*row.keys, "cores_per_gpu"))
        for row in result.rows
    )
    return replace(result, rows=rows, demand=demand)


def _demand(options: LoaderOptions) -> Demand:
    if options.demand is not None:
        return Demand(images_per_second=options.demand, origin="as asked")  # a value that scripts read
    ceiling = measured_ceiling(options, "feature", options.size)
    return Demand(images_per_second=ceiling, origin="feature extraction's ceiling here")


def tune(task: Task, options: LoaderOptions, reporter: Reporter) -> tuple[int, dict[int, float]]:
    """The number of workers that serves the ordinary loader best here, and images/s for each number tried."""
    candidates = tuning_candidates(task)
    with reporter.progress("tuning the baseline") as show:
        measured = measure(list(candidates.values()), windows=2, seconds=options.seconds, report_progress=show)
    rates = {count: median(measured[candidate.name].rates) for count, candidate in candidates.items()}
    return max(rates, key=rates.__getitem__), rates


def choose(ordinary: list[Candidate], others: list[Candidate], only: str) -> list[Candidate]:
    """The candidates whose names contain `only`, and the ordinary ones that they are compared with; the baseline
    always."""
    every = [*ordinary, *others]
    requested = [candidate for candidate in every if only in candidate.name]
    groups = {FINISHED, *(candidate.group.removesuffix(CACHED) for candidate in requested)}
    compared_with = [candidate for candidate in ordinary if candidate.group in groups]
    return [candidate for candidate in every if candidate in requested or candidate in compared_with]


def cores_needed(row: Row, demand: float) -> float | None:
    """CPU cores that a loader burns to supply `demand` images/s; None where it burnt nothing measurable."""
    per_core = row.images_per_core_second
    return demand / per_core if per_core else None


def plan_microseconds(task: Task) -> float:
    """What order and plan cost for each image: the median of five epochs."""
    loader = build_loader(task.source, LoaderConfig(spec=task.spec, training=True, batch_size=task.batch_size))
    costs = []
    for epoch in range(5):
        loader.set_epoch(epoch)
        began = time.perf_counter()
        images = sum(map(len, loader.requests()))
        costs.append(1e6 * (time.perf_counter() - began) / images)
    return median(costs)
