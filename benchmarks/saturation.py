"""`saturation`: how near a mode comes to its ceiling with each loader, and what is lost on the way."""

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import median
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.arms import KEEPING_PIXELS, Batches, endless, made_ready
from benchmarks.cold import evict, files_read
from benchmarks.hardware import GpuWatch, shares, work_per_image
from benchmarks.measure import Candidate, Found, measure, probed, row, times_as_fast
from benchmarks.options import Keep, Result, Windows, require_named, told
from benchmarks.workload import Workload, quick_batches, synchronise, workload
from loaders import InputError, Loader, available_loaders
from loaders.ops.device_batch import finished_batch, fused_kernels
from loaders.ops.finish import finish
from loaders.sampling.plan import Plan
from train.console import Reporter
from train.environment import describe_environment
from train.option_values import Architecture, Mode, RecipeName
from train.options import OptionalInt

CEILING, END_TO_END, ALONE, AUGMENT = "ceiling", "end to end", "loader alone", "device augmentation alone"

Known = Callable[[dict[str, Any], list[dict[str, Any]]], None]

_MOST_BYTES = 4e9  # of decoded images in an epoch: `resident` keeps repeated ones, too
_FEWEST_BATCHES = 4  # of an epoch


@dataclass(frozen=True, kw_only=True)
class SaturationOptions(Windows):
    """How near each mode comes to its ceiling with each loader here, and what is lost to preparing and fetching."""

    mode: Literal["both", "feature", "finetune"] = "both"
    """Which step is fed."""
    model: Architecture = "resnet18"
    """Which of torchvision's ResNets."""
    recipe: RecipeName = "default"
    """default, or classic: the blog post's setting."""
    size: OptionalInt = None
    """Side of the images in pixels; the trainer's, unless given."""
    batch_size: OptionalInt = None
    """Images per step, unless given the recipe's; on a CPU 16, as a step of 256 takes it seconds."""
    images: OptionalInt = None
    """Length of an epoch; as many as step and loader manage in --seconds, unless given."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the model; auto: on a GPU."""

    @property
    def modes(self) -> tuple[Mode, ...]:
        """The modes that are asked for, in the order they are measured in."""
        return ("finetune", "feature") if self.mode == "both" else (self.mode,)


def bench_saturation(options: SaturationOptions, reporter: Reporter, keep: Keep) -> None:
    """One mode after the other; what is known is kept after each turn."""
    device = options.torch_device
    require_named(options.only, available_loaders())
    result: Result = {
        "theme": "saturation",
        "environment": describe_environment(),
        "options": told(options, device=str(device)),
        "modes": {},
        "rows": [],
    }
    for mode in options.modes:
        with workload(
            options,
            mode,
            model=options.model,
            recipe=options.recipe,
            size=options.size,
            batch_size=options.batch_size or quick_batches(device),
            compile=options.compile,
        ) as work:
            measure_mode(work, mode, options, reporter, partial(_keep_mode, keep, result, mode))


def _keep_mode(keep: Keep, result: Result, mode: Mode, told: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Keeps what is known of a mode, in the place of what was known of it before."""
    others = [row for row in result["rows"] if not row["name"].startswith(f"{mode}: ")]
    result["modes"][mode], result["rows"] = told, others + rows
    keep(result)


@dataclass
class Fed:
    """A loader that feeds the step."""

    name: str
    waits: list[float] = field(default_factory=list)
    """The trainer's own share of waiting, each epoch."""
    warm: str = ""
    """Name of the arm that a cold epoch is compared with; empty where there is no cold one."""
    emptied: bool = True
    """Whether the page cache could be emptied each time."""
    note: str = ""
    """Why there is no fetch stall, if so."""


def measure_mode(work: Workload, mode: Mode, options: SaturationOptions, reporter: Reporter, known: Known) -> None:
    """Measures one mode; `known` is told of it after each turn."""
    step = probed(Candidate(CEILING, CEILING, work.ceiling), options.seconds / 2).rate
    lengths: dict[str, int] = {}
    names = [name for name in available_loaders() if options.only in name or name == "baseline"]
    arms, fed = [Candidate(CEILING, CEILING, work.ceiling), _augmenting(work)], []
    for name in names:
        try:
            lengths[name] = options.images or epoch_images(work, name, step, options.seconds)
            this, its = feeding(work, name, lengths[name])
        except InputError as refused:  # a set that does not fit, for one
            reporter.warn(f"{mode}: {name} is left out: {refused}")
            continue
        fed.append(this)
        arms += its
    with reporter.progress(f"saturation, {mode}") as show:
        found = measure(
            arms,
            windows=options.windows,
            seconds=options.seconds,
            tell=show,
            after=lambda so_far: known(*summary(work, mode, arms, fed, lengths, so_far)),
        )
    told, rows = summary(work, mode, arms, fed, lengths, found)
    by_name = {row["name"].removeprefix(f"{mode}: "): row for row in rows}
    for name, watched in _watched(work, fed, lengths, options.seconds):
        by_name[name] |= watched
    known(told, rows)


def summary(
    work: Workload, mode: Mode, arms: list[Candidate], fed: list[Fed], lengths: dict[str, int], found: dict[str, Found]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What one mode comes to, and its rows."""
    by_name = {arm.name: row(arm, found[arm.name]) | {"group": f"{mode}: {arm.group}"} for arm in arms}
    for this in fed:
        by_name[_fed_name(this.name)] |= losses(this, found)
    compare_with_baseline(by_name, fed, found)
    ceiling = by_name[CEILING]
    ceiling |= _shares(work, ceiling["images_per_second"])
    return {
        "ceiling": ceiling["images_per_second"],
        "epoch_images": lengths,
        "batch_size": work.config.batch_size,
        "size": work.config.spec.size,
        "precision": str(work.learner.precision),
        "arithmetic_share": ceiling["arithmetic_share"],
        "memory_share": ceiling["memory_share"],
        "augmentation_share": times_as_fast(found[CEILING].rates, found[AUGMENT].rates),
        "notes": {this.name: this.note for this in fed if this.note},
    }, [one | {"name": f"{mode}: {name}"} for name, one in by_name.items()]


def epoch_images(work: Workload, name: str, step: float, seconds: float) -> int:
    """As many as step and loader together manage in so many seconds, in whole batches.

    Some batches at least, and no more than memory can hold. A slow loader's epochs are shorter, as a fast one's would
    take it minutes.
    """
    source, batch_size = work.session.image_loader.source, work.config.batch_size
    rate = step
    if name not in KEEPING_PIXELS:  # which would have to decode them first
        few = _FEWEST_BATCHES * batch_size
        alone = Candidate(ALONE, name, lambda: endless(work.loader(name, few)))
        rate = min(step, probed(alone, seconds / 2).rate)
    fit = _MOST_BYTES / max(1.0, source.pixel_bytes / len(source))
    return max(_FEWEST_BATCHES, int(min(fit, rate * seconds)) // batch_size) * batch_size


def feeding(work: Workload, name: str, images: int) -> tuple[Fed, list[Candidate]]:
    """A loader's arms for epochs of so many images: alone, end to end, and with a cold cache where it reads files."""
    fed, together = Fed(name), max(1, images // work.config.batch_size)
    loader = work.loader(name, images)
    warm = Candidate(END_TO_END, _fed_name(name), lambda: work.end_to_end(loader, fed.waits), together=together)
    arms = [Candidate(ALONE, f"{name} alone", lambda: endless(work.loader(name, images)), together=together), warm]
    if not files_read(made_ready(loader)):
        fed.note = "its data are in memory: nothing is fetched in an epoch"
        return fed, arms
    fed.warm, length, there = warm.name, images, len(work.session.image_loader.source)
    if there < images:  # repeated images would be read from the disk once only
        length = max(1, there // work.config.batch_size) * work.config.batch_size
        arms.append(_end_to_end(work, name, f"{name}, warm, {length} images", length))
        fed.warm = arms[-1].name
    files = files_read(made_ready(work.loader(name, length)))

    def empty() -> None:
        fed.emptied &= evict(files)

    # One epoch each time: the next would find in memory what this one has read.
    arms.append(replace(_end_to_end(work, name, f"{name}, cold", length), before=empty, once=True))
    return fed, arms


def _end_to_end(work: Workload, name: str, title: str, images: int) -> Candidate:
    return Candidate(
        END_TO_END,
        title,
        lambda: work.end_to_end(work.loader(name, images), []),
        together=images // work.config.batch_size,
    )


def _fed_name(name: str) -> str:
    return f"fed by {name}"


def _augmenting(work: Workload) -> Candidate:
    """What the device does to finish a batch: on a GPU from whole images on, on a CPU after the first read."""
    loader, config = work.session.image_loader, work.config

    def batches() -> Batches:
        ids, plan = next(loader.planned(0))
        labels = torch.zeros(len(ids), dtype=torch.int64)
        make = _from_images(loader, ids, plan) if config.device.type == "cuda" else _from_squares(loader, plan)
        while True:
            yield make(), labels

    return Candidate(AUGMENT, AUGMENT, batches)


def _from_images(loader: Loader, ids: NDArray[np.int64], plan: Plan) -> Callable[[], Tensor]:
    """All of a plan, for black images of the right sizes."""
    config, sizes = loader.config, loader.source.stored_sizes[ids].astype(np.int64)
    places = np.concatenate([[0], np.cumsum(sizes.prod(axis=1))])
    pixels = torch.zeros((int(places[-1]), 3), dtype=torch.uint8, device=config.device)
    kernels = fused_kernels(config.device)
    return lambda: finished_batch(
        pixels, places[:-1], sizes[:, 1], plan, mean=config.mean, std=config.std, dtype=config.dtype, kernels=kernels
    )


def _from_squares(loader: Loader, plan: Plan) -> Callable[[], Tensor]:
    """What comes after the first read."""
    config, side = loader.config, plan.read_size
    squares = torch.zeros((config.batch_size, side, side, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    return lambda: finish(squares, plan, mean=config.mean, std=config.std, dtype=config.dtype)


def losses(fed: Fed, found: dict[str, Found]) -> dict[str, Any]:
    """Saturation, prep and fetch stall, as medians over the turns; cores needed per GPU.

    The prep stall is the share of a warm epoch's time by which it exceeds the ceiling's (DS-Analyzer's differential
    runs, arXiv 2007.06775); the fetch stall that of a cold epoch's time by which it exceeds a warm one's.
    """
    warm, ceiling, alone = (found[name].windows for name in (_fed_name(fed.name), CEILING, f"{fed.name} alone"))
    saturations = [ours.rate / step.rate for ours, step in zip(warm, ceiling, strict=True)]
    saturation = median(saturations)
    fetch = None
    if fed.warm and fed.emptied:
        pairs = zip(found[f"{fed.name}, cold"].windows, found[fed.warm].windows, strict=True)
        fetch = max(0.0, median(1 - cold.rate / cached.rate for cold, cached in pairs))
    elif fed.warm:
        fed.note = "the page cache could not be emptied here (posix_fadvise): no cold epoch"
    burnt = median(window.cpu_seconds / window.images for window in alone)
    return {
        "saturation": saturation,
        "saturation_low": min(saturations),
        "saturation_high": max(saturations),
        "prep_stall": max(0.0, 1 - saturation),
        "fetch_stall": fetch,
        "data_wait": median(fed.waits[-len(warm) :]) if fed.waits else None,
        "supply_per_core": 1 / burnt if burnt else None,
        "cores_per_gpu": burnt * median(step.rate for step in ceiling),
    }


def compare_with_baseline(rows: dict[str, dict[str, Any]], fed: list[Fed], found: dict[str, Found]) -> None:
    """Notes how many times as fast as the baseline each is, among those that do the same."""
    for one in rows.values():
        one["times_baseline"] = None
    for this in fed:
        for title in ("fed by {}", "{} alone"):
            name, baseline = title.format(this.name), title.format("baseline")
            if baseline in found:  # it may have been left out
                rows[name]["times_baseline"] = times_as_fast(found[name].rates, found[baseline].rates)


def _shares(work: Workload, rate: float) -> dict[str, float | None]:
    """Of the GPU's peaks; null on a CPU."""
    learner, config = work.learner, work.config
    images = torch.zeros((2, 3, config.spec.size, config.spec.size), dtype=config.dtype, device=config.device)
    with suppress(NotImplementedError):
        done = work_per_image(learner.model, images, head_only=work.session.options.mode == "feature")
        return shares(rate, done, config.device, lowered=learner.precision.lowered)
    return {"arithmetic_share": None, "memory_share": None}


def _watched(
    work: Workload, fed: list[Fed], lengths: dict[str, int], seconds: float
) -> Iterator[tuple[str, dict[str, float | None]]]:
    """What the driver says of the GPU while the ceiling, then each loader, runs for an epoch."""
    if work.config.device.type != "cuda":
        return
    runs = {CEILING: work.ceiling()} | {
        _fed_name(this.name): work.end_to_end(work.loader(this.name, lengths[this.name]), []) for this in fed
    }
    for name, batches in runs.items():
        next(batches)  # the first takes longer
        with GpuWatch(work.config.device) as watch:
            ends = time.perf_counter() + seconds
            while time.perf_counter() < ends:
                next(batches)
            synchronise(work.config.device)
        yield name, watch.seen
