"""`loaders`: every loader that can be used here against the ordinary one, as it is and tuned."""

import time
from dataclasses import dataclass
from statistics import median

from benchmarks.arms import CACHED, FINISHED, Task, compared, long_epochs, ordinary, ours, refusals, tuning
from benchmarks.measure import Candidate, Found, measure, row
from benchmarks.options import Keep, Result, Windows, opened, require_named, told
from benchmarks.parts import parts
from benchmarks.rivals import rivals
from benchmarks.workload import measured_ceiling
from loaders import InputError, LoaderConfig, build_loader
from train.console import Reporter
from train.environment import describe_environment
from train.options import OptionalFloat, require_positive
from train.precision import choose_precision


@dataclass(frozen=True, kw_only=True)
class LoaderOptions(Windows):
    """Every loader here against the ordinary one: random resized crop and flip, training order."""

    size: int = 224
    """Side of the images in pixels."""
    batch_size: int = 64
    """Images per batch."""
    images: int = 4096
    """Length of an epoch at least: smaller sets are repeated within it."""
    demand: OptionalFloat = None
    """Images/s a GPU wants, for the cores it needs; what feature extraction reaches here, unless given."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "size", "batch_size", "images", "demand")


def bench_loaders(options: LoaderOptions, reporter: Reporter, keep: Keep) -> None:
    """All loaders take turns on the same images."""
    device = options.torch_device
    train, _ = opened(options, reporter)
    dtype = choose_precision("auto", device).dtype
    task = Task(long_epochs(train, options.images), options.size, options.batch_size, device, dtype, options.threads)
    others = [*rivals(task), *ours(task), *parts(task)]
    require_named(options.only, [arm.name for arm in [*ordinary(task, 1), *others]])
    workers, tried = tune(task, options, reporter)
    arms = chosen(ordinary(task, workers), others, options.only)
    result: Result = {
        "theme": "loaders",
        "environment": describe_environment(),
        "options": told(options, device=str(device), dtype=str(dtype), workers=task.workers),
        "tuning": tried,
        "plan_microseconds": plan_microseconds(task),
        "notes": [f"{name} is left out: {why}" for name, why in refusals(task).items()],
    }

    def told_rows(so_far: dict[str, Found]) -> Result:
        return {"rows": compared([row(arm, so_far[arm.name]) for arm in arms])}

    with reporter.progress("measuring") as show:
        found = measure(
            arms,
            windows=options.windows,
            seconds=options.seconds,
            tell=show,
            after=lambda so_far: keep(result | told_rows(so_far)),
        )
    result |= told_rows(found)
    keep(result)
    demand, origin = options.demand, "as asked"
    if demand is None:
        try:
            demand, origin = measured_ceiling(options, "feature", options.size), "feature extraction's ceiling here"
        except InputError as refused:  # of so few images, or such small ones, loaders can be measured all the same
            result["notes"].append(f"no cores per GPU, as no model can be trained on these images: {refused}")
            keep(result)
            return
    for one in result["rows"]:
        one["cores_per_gpu"] = cores_needed(one, demand)
    keep(result | {"demand": {"images_per_second": demand, "origin": origin}})


def tune(task: Task, options: LoaderOptions, reporter: Reporter) -> tuple[int, dict[int, float]]:
    """The number of workers that serves the ordinary loader best here, and images/s for each number tried."""
    arms = tuning(task)
    with reporter.progress("tuning the baseline") as show:
        found = measure(list(arms.values()), windows=2, seconds=options.seconds, tell=show)
    tried = {count: median(window.rate for window in found[arm.name].windows) for count, arm in arms.items()}
    return max(tried, key=tried.__getitem__), tried


def chosen(ordinary: list[Candidate], others: list[Candidate], only: str) -> list[Candidate]:
    """The arms asked for, and the ordinary ones that they are compared with; the baseline always."""
    asked = [arm for arm in [*ordinary, *others] if only in arm.name]
    groups = {FINISHED, *(arm.group.removesuffix(CACHED) for arm in asked)}
    return [arm for arm in [*ordinary, *others] if arm in asked or (arm in ordinary and arm.group in groups)]


def cores_needed(row: Result, demand: float) -> float | None:
    """CPU cores that a loader burns to supply so many images/s; None where it burnt nothing measurable."""
    per_core = row["images_per_core_second"]
    return demand / per_core if per_core else None


def plan_microseconds(task: Task) -> float:
    """What order and plan cost for each image: the median of five epochs."""
    loader = build_loader(task.source, LoaderConfig(spec=task.spec, training=True, batch_size=task.batch_size))
    costs = []
    for epoch in range(5):
        loader.set_epoch(epoch)
        began = time.perf_counter()
        images = sum(len(ids) for ids, _ in loader.planned(0))
        costs.append(1e6 * (time.perf_counter() - began) / images)
    return median(costs)
