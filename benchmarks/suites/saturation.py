"""`saturation`: how near a mode comes to its ceiling with each loader, and what is lost on the way."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from statistics import median

import torch

from benchmarks.harness.batches import endless
from benchmarks.harness.cold_cache import evict
from benchmarks.harness.device import chosen_device, synchronize
from benchmarks.harness.hardware import GpuActivity, GpuPoller, Shares, shares, work_per_image
from benchmarks.harness.loader_internals import CACHING_LOADERS, augment_images, augment_squares, prepare
from benchmarks.harness.measure import Batches, Candidate, Measurement, measure, measured_row, probe
from benchmarks.harness.options import describe_options, require_match
from benchmarks.harness.rates import speedup
from benchmarks.harness.result import MODE_KEYS, ModeSaturation, Result, Row, WriteResult
from benchmarks.harness.result_json import environment_from_json
from benchmarks.harness.workload import Workload, quick_batches, workload
from benchmarks.suites.options import SaturationOptions
from benchmarks.suites.rows import ALONE, AUGMENT, CEILING, END_TO_END, FED_BY
from loaders import InputError, available_loaders
from train.console import Reporter
from train.environment import describe_environment
from train.option_values import Mode

ReportMode = Callable[[ModeSaturation, Sequence[Row]], None]
"""Called with what is known of a mode."""

_KEYS = ("theme", "date", "environment", "options", "modes", "rows")
_LOSS_KEYS = (
    "saturation", "saturation_low", "saturation_high", "prep_stall", "fetch_stall", "data_wait", "supply_per_core",
    "cores_per_gpu",
)  # fmt: skip
_GPU_KEYS = ("gpu_utilisation", "gpu_watts", "gpu_memory_bytes")

_MOST_BYTES = 4e9  # of decoded images in an epoch: `resident` caches repeated ones, too
_FEWEST_BATCHES = 4  # of an epoch


def bench_saturation(options: SaturationOptions, reporter: Reporter, write: WriteResult) -> None:
    """Measures one mode after the other; what is known is written after each turn."""
    require_match(options.only, available_loaders())
    result = Result(
        keys=_KEYS,
        theme="saturation",
        environment=environment_from_json(describe_environment()),
        options=describe_options(options, device=str(chosen_device(options))),
        modes={},
    )
    for mode in options.modes:
        result = _bench_mode(result, mode, options, reporter, write)


def _bench_mode(
    before: Result, mode: Mode, options: SaturationOptions, reporter: Reporter, write: WriteResult
) -> Result:
    """The result with one mode more."""

    def with_mode(saturation: ModeSaturation, rows: Sequence[Row]) -> Result:
        return replace(before, modes={**(before.modes or {}), mode: saturation}, rows=(*before.rows, *rows))

    with workload(
        options,
        mode,
        model=options.model,
        recipe=options.recipe,
        size=options.size,
        batch_size=options.batch_size or quick_batches(chosen_device(options)),
        compile=options.compile,
    ) as work:
        found = measure_mode(work, mode, options, reporter, lambda *so_far: write(with_mode(*so_far)))
    result = with_mode(*found)
    write(result)
    return result


@dataclass
class FedLoader:
    """A loader that feeds the step."""

    name: str
    waits: list[float] = field(default_factory=list)
    """The trainer's own share of waiting, each epoch."""
    warm: str = ""
    """Name of the candidate that a cold epoch is compared with; empty where there is no cold one."""
    emptied: bool = True
    """Whether the page cache could be emptied each time."""
    note: str = ""
    """Why there is no fetch stall, if so."""

    @property
    def end_to_end(self) -> str:
        """Name of the candidate in which it feeds the step."""
        return f"{FED_BY}{self.name}"

    @property
    def alone(self) -> str:
        """Name of the candidate in which nothing is trained."""
        return f"{self.name} alone"

    @property
    def cold(self) -> str:
        """Name of the candidate that reads its files from the disk."""
        return f"{self.name}, cold"


def measure_mode(
    work: Workload, mode: Mode, options: SaturationOptions, reporter: Reporter, report: ReportMode
) -> tuple[ModeSaturation, list[Row]]:
    """How one mode was measured, and its rows; `report` is called with what is known after each turn but the last."""
    step = probe(Candidate(CEILING, CEILING, work.ceiling), options.seconds / 2).rate
    names = [name for name in available_loaders() if options.only in name or name == "baseline"]
    candidates, fed = [Candidate(CEILING, CEILING, work.ceiling), _augmenting(work)], []
    lengths: dict[str, int] = {}
    for name in names:
        try:
            lengths[name] = options.images or epoch_images(work, name, step, options.seconds)
            loader, its_candidates = feeding(work, name, lengths[name])
        except InputError as refused:  # a set that does not fit, for one
            reporter.warn(f"{mode}: {name} is left out: {' '.join(refused.lines)}")
            continue
        fed.append(loader)
        candidates += its_candidates
    with reporter.progress(f"saturation, {mode}") as show:
        measured = measure(
            candidates,
            windows=options.windows,
            seconds=options.seconds,
            report_progress=show,
            after_turn=lambda so_far: report(*summarize(work, mode, candidates, fed, lengths, so_far)),
        )
    saturation, rows = summarize(work, mode, candidates, fed, lengths, measured)
    activities = dict(_poll_gpu(work, fed, lengths, options.seconds))
    return saturation, [_with_activity(row, activities.get(row.name.removeprefix(f"{mode}: "))) for row in rows]


def summarize(
    work: Workload,
    mode: Mode,
    candidates: Sequence[Candidate],
    fed: Sequence[FedLoader],
    lengths: Mapping[str, int],
    measured: Mapping[str, Measurement],
) -> tuple[ModeSaturation, list[Row]]:
    """How one mode was measured, and its rows."""
    ceiling = median(measured[CEILING].rates)
    peaks = _shares(work, ceiling)
    saturation = ModeSaturation(
        keys=MODE_KEYS,
        ceiling=ceiling,
        epoch_images=dict(lengths),
        batch_size=work.config.batch_size,
        size=work.config.spec.size,
        precision=str(work.learner.precision),
        arithmetic_share=peaks.arithmetic,
        memory_share=peaks.memory,
        augmentation_share=speedup(measured[CEILING].rates, measured[AUGMENT].rates),
    )
    rows = {candidate.name: measured_row(candidate, measured[candidate.name]) for candidate in candidates}
    for loader in fed:
        rows[loader.end_to_end] = with_losses(rows[loader.end_to_end], loader, measured)
    baselines = speedups_over_baseline(fed, measured)
    rows = {
        name: replace(row, times_baseline=baselines.get(name), keys=(*row.keys, "times_baseline"))
        for name, row in rows.items()
    }
    rows[CEILING] = replace(
        rows[CEILING],
        arithmetic_share=peaks.arithmetic,
        memory_share=peaks.memory,
        keys=(*rows[CEILING].keys, "arithmetic_share", "memory_share"),
    )
    titled = [replace(row, group=f"{mode}: {row.group}", name=f"{mode}: {row.name}") for row in rows.values()]
    # After the losses, which say why a loader has no fetch stall.
    notes = {loader.name: loader.note for loader in fed if loader.note}
    return replace(saturation, notes=notes), titled


def epoch_images(work: Workload, name: str, step: float, seconds: float) -> int:
    """Length of an epoch: as many images as step and loader together manage in `seconds`, in whole batches.

    Some batches at least, and no more than memory can hold. A slow loader's epochs are shorter, as a fast one's would
    take it minutes.
    """
    source, batch_size = work.session.image_loader.source, work.config.batch_size
    rate = step
    if name not in CACHING_LOADERS:  # which would have to decode them first
        few = _FEWEST_BATCHES * batch_size
        alone = Candidate(ALONE, name, lambda: endless(work.loader(name, few)))
        rate = min(step, probe(alone, seconds / 2).rate)
    fit = _MOST_BYTES / max(1.0, source.pixel_bytes / len(source))
    return max(_FEWEST_BATCHES, int(min(fit, rate * seconds)) // batch_size) * batch_size


def feeding(work: Workload, name: str, images: int) -> tuple[FedLoader, list[Candidate]]:
    """A loader's candidates for epochs of `images`: alone, end to end, and with a cold cache where it reads files."""
    fed, together = FedLoader(name), max(1, images // work.config.batch_size)
    loader = work.loader(name, images)
    warm = Candidate(END_TO_END, fed.end_to_end, lambda: work.end_to_end(loader, fed.waits), together=together)
    alone = Candidate(ALONE, fed.alone, lambda: endless(work.loader(name, images)), together=together)
    candidates = [alone, warm]
    if not prepare(loader).executor.files():
        fed.note = "its data are in memory: nothing is fetched in an epoch"
        return fed, candidates
    fed.warm, length, available = warm.name, images, len(work.session.image_loader.source)
    if available < images:  # repeated images would be read from the disk once only
        length = max(1, available // work.config.batch_size) * work.config.batch_size
        candidates.append(_end_to_end(work, name, f"{name}, warm, {length} images", length))
        fed.warm = candidates[-1].name
    files = prepare(work.loader(name, length)).executor.files()

    def empty() -> None:
        fed.emptied &= evict(files)

    # One epoch each time: the next would find in memory what this one has read.
    candidates.append(replace(_end_to_end(work, name, fed.cold, length), before=empty, once=True))
    return fed, candidates


def _end_to_end(work: Workload, name: str, title: str, images: int) -> Candidate:
    return Candidate(
        END_TO_END,
        title,
        lambda: work.end_to_end(work.loader(name, images), []),
        together=images // work.config.batch_size,
    )


def _augmenting(work: Workload) -> Candidate:
    """What the device does to finish a batch: on a GPU from whole images on, on a CPU after the first read."""
    loader, config = work.session.image_loader, work.config

    def batches() -> Batches:
        request = next(loader.requests())
        labels = torch.zeros(len(request), dtype=torch.int64)
        augment = (augment_images if config.device.type == "cuda" else augment_squares)(loader, request)
        while True:
            yield augment(), labels

    return Candidate(AUGMENT, AUGMENT, batches)


def with_losses(row: Row, fed: FedLoader, measured: Mapping[str, Measurement]) -> Row:
    """The row with saturation, prep and fetch stall, as medians over the turns, and cores needed per GPU.

    The prep stall is the share of a warm epoch's time by which it exceeds the ceiling's (DS-Analyzer's differential
    runs, arXiv 2007.06775); the fetch stall that of a cold epoch's time by which it exceeds a warm one's.
    """
    warm, ceiling, alone = (measured[name].windows for name in (fed.end_to_end, CEILING, fed.alone))
    saturations = [ours.rate / step.rate for ours, step in zip(warm, ceiling, strict=True)]
    saturation = median(saturations)
    burnt = median(window.cpu_seconds / window.images for window in alone)
    return replace(
        row,
        saturation=saturation,
        saturation_low=min(saturations),
        saturation_high=max(saturations),
        prep_stall=max(0.0, 1 - saturation),
        fetch_stall=_fetch_stall(fed, measured),
        data_wait=median(fed.waits[-len(warm) :]) if fed.waits else None,
        supply_per_core=1 / burnt if burnt else None,
        cores_per_gpu=burnt * median(step.rate for step in ceiling),
        keys=(*row.keys, *_LOSS_KEYS),
    )


def _fetch_stall(fed: FedLoader, measured: Mapping[str, Measurement]) -> float | None:
    """None, with a note that says why, where there is no cold epoch."""
    if not fed.warm:
        return None
    if not fed.emptied:
        fed.note = "the page cache could not be emptied here (posix_fadvise): no cold epoch"
        return None
    pairs = zip(measured[fed.cold].windows, measured[fed.warm].windows, strict=True)
    return max(0.0, median(1 - cold.rate / cached.rate for cold, cached in pairs))


def speedups_over_baseline(fed: Sequence[FedLoader], measured: Mapping[str, Measurement]) -> dict[str, float]:
    """Name of a candidate → its speedup over the baseline that does the same; empty where that was left out."""
    baseline = FedLoader("baseline")
    if baseline.end_to_end not in measured:
        return {}
    return {
        name: speedup(measured[name].rates, measured[theirs].rates)
        for loader in fed
        for name, theirs in ((loader.end_to_end, baseline.end_to_end), (loader.alone, baseline.alone))
    }


def _shares(work: Workload, rate: float) -> Shares:
    """The shares of the GPU's peaks that the step uses at `rate` images/s; None on a CPU."""
    learner, config = work.learner, work.config
    images = torch.zeros((2, 3, config.spec.size, config.spec.size), dtype=config.dtype, device=config.device)
    with suppress(NotImplementedError):
        done = work_per_image(learner.model, images, head_only=work.session.options.mode == "feature")
        return shares(rate, done, config.device, lowered=learner.precision.lowered)
    return Shares()


def _poll_gpu(
    work: Workload, fed: Sequence[FedLoader], lengths: Mapping[str, int], seconds: float
) -> Iterator[tuple[str, GpuActivity]]:
    """What the driver reports of the GPU while the ceiling, then each loader, runs for an epoch."""
    if work.config.device.type != "cuda":
        return
    runs = {CEILING: work.ceiling()} | {
        loader.end_to_end: work.end_to_end(work.loader(loader.name, lengths[loader.name]), []) for loader in fed
    }
    for name, batches in runs.items():
        next(batches)  # the first takes longer
        with GpuPoller(work.config.device) as poller:
            ends = time.perf_counter() + seconds
            while time.perf_counter() < ends:
                next(batches)
            synchronize(work.config.device)
        yield name, poller.activity


def _with_activity(row: Row, activity: GpuActivity | None) -> Row:
    if activity is None:
        return row
    return replace(
        row,
        gpu_utilisation=activity.utilisation,
        gpu_watts=activity.watts,
        gpu_memory_bytes=activity.memory_bytes,
        keys=(*row.keys, *_GPU_KEYS),
    )
