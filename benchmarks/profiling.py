"""`profile`: where a training loop's time goes, what limits it, and what to change."""

import gzip
import os
import shlex
import shutil
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from itertools import count, pairwise
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import tyro
from torch.profiler import ProfilerActivity, profile, schedule

from benchmarks.columns import number
from benchmarks.diagnosis import Measured, diagnose
from benchmarks.measure import Candidate, Window, cpu_seconds, is_noisy, probed
from benchmarks.options import Keep, Result, Where, told
from benchmarks.workload import Workload, synchronise, workload
from loaders import Batch, InputError, available_loaders, build_loader
from loaders.system.instrument import ON_DEVICE, Recorder, Span, Stage, Total, recording, stage
from loaders.system.machine import usable_cores
from train.console import Reporter
from train.environment import describe_environment
from train.epoch_timer import EpochTimer
from train.option_values import Architecture, Mode, RecipeName
from train.options import OptionalInt, OptionalPath, require_positive
from train.process_group import joined_process_group

_TIMELINE_STEPS = 4
_FEWEST_STEPS = 5  # that are measured: each is a window then
_WARMED_UP, _TRACED, _ALONE = 0.25, 0.25, 0.06  # of --seconds, beside what is measured
_STEP: tuple[Stage, ...] = ("forward", "backward", "optimizer")


@dataclass(frozen=True, kw_only=True)
class ProfileOptions(Where):
    """Where the time of a mode's training loop goes, and what to change."""

    mode: tyro.conf.Positional[Mode] = "finetune"
    """feature: a new head on a frozen backbone; finetune: all weights."""
    loader: str = "auto"
    """Which loader feeds the step."""
    model: Architecture = "resnet18"
    """Which of torchvision's ResNets."""
    recipe: RecipeName = "default"
    """default, or classic: the blog post's setting."""
    size: OptionalInt = None
    """Side of the images in pixels; the trainer's, unless given."""
    batch_size: OptionalInt = None
    """Images per step; the recipe's, unless given."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the model; auto: on a GPU."""
    steps: int = 40
    """Steps that are measured at most, after a quarter of them to warm up."""
    seconds: float = 16.0
    """Fewer steps are measured, and traced, where they would take longer than this; 5 in any case."""
    trace_steps: int = 6
    """Steps of the trace at most; 0 for none."""
    weights: str = "none"
    """As for training; speed does not depend on them."""
    out: OptionalPath = None
    """Folder for bench.json, report.html and the trace; runs/profile-TIME, unless given."""

    def __post_init__(self) -> None:
        if self.steps < _FEWEST_STEPS:
            raise InputError(f"--steps {self.steps}: expected {_FEWEST_STEPS} or more")
        require_positive(self, "seconds")

    def lasting(self, steps: int, share: float, pace: float) -> int:
        """As many steps of `pace` seconds as fit into a share of the time, `steps` at most."""
        return min(steps, int(share * self.seconds / pace))


def bench_profile(options: ProfileOptions, reporter: Reporter, keep: Keep) -> None:
    """Measures some steps, says what limits them, then traces a few more."""
    with (
        joined_process_group(use_cuda=options.torch_device.type == "cuda") as world,
        workload(
            options,
            options.mode,
            world,
            loader=options.loader,
            model=options.model,
            recipe=options.recipe,
            size=options.size,
            batch_size=options.batch_size,
            compile=options.compile,
            weights=options.weights,
        ) as work,
    ):
        batches = endless(work)
        pace = warm_up(work, batches, options)
        steps = max(_FEWEST_STEPS, options.lasting(options.steps, 1, pace))
        seen = record_steps(work, batches, steps)
        alone = probed(Candidate("loader alone", options.loader, lambda: batches), _ALONE * options.seconds)
        result = described(options, work, seen, alone)
        result["nsys"] = nsys_line(keep.folder)
        if world.is_main:
            keep(result)
        if options.trace_steps:
            steps = max(1, options.lasting(options.trace_steps, _TRACED, pace))
            file = trace(work, batches, steps, keep.folder)
            result["trace"] = file.name
        if world.is_main:
            keep(result)
            reporter.say(f"trace: {result.get('trace', 'none')} (open it at https://ui.perfetto.dev)")
            reporter.say(f"Nsight Systems: {result['nsys']}\n")


def endless(work: Workload) -> Iterator[Batch]:
    """Batches of the trainer's loader, epoch after epoch."""
    loader = work.session.image_loader
    loader.prepare()
    for epoch in count():
        loader.set_epoch(epoch)
        yield from loader


@dataclass
class Seen:
    """What was recorded of some steps."""

    images: int
    seconds: float
    cpu_seconds: float
    waiting: float
    recorder: Recorder
    totals: dict[Stage, Total]
    began: float
    rates: list[float]
    """Images/s of each fifth of the steps."""


def warm_up(work: Workload, batches: Iterator[Batch], options: ProfileOptions) -> float:
    """Steps that are not counted; the seconds of one, the same for all ranks, as they all take as many steps."""
    timed(work, batches, 1)  # which compiles
    pace = timed(work, batches, 1)
    more = options.lasting(options.steps // 4 - 2, _WARMED_UP, pace)
    return timed(work, batches, more) if more > 0 else pace


def timed(work: Workload, batches: Iterator[Batch], steps: int) -> float:
    """Seconds that each of so many steps takes, by the main process's clock."""
    device, began = work.learner.device, time.perf_counter()
    for _ in range(steps):
        work.step(next(batches))
    synchronise(device)
    pace = torch.tensor((time.perf_counter() - began) / steps, dtype=torch.float64, device=device)
    work.session.process_group.broadcast([pace])
    return float(pace)


def record_steps(work: Workload, batches: Iterator[Batch], steps: int) -> Seen:
    """Takes down so many steps."""
    device = work.learner.device
    recorder = Recorder(cuda=device.type == "cuda")
    with _captured(device), recording(recorder):
        began, burnt, clock = time.perf_counter(), cpu_seconds(), EpochTimer(device)
        marks = [(0, began)]
        for done, batch in enumerate(clock.timed(_waited(batches, steps)), 1):
            work.step(batch)
            if 5 * done // steps > 5 * (done - 1) // steps:
                synchronise(device)
                marks.append((clock.images, time.perf_counter()))
        seconds, burnt = marks[-1][1] - began, cpu_seconds() - burnt
        waiting = clock.data_wait * clock.seconds
    rates = [(b[0] - a[0]) / (b[1] - a[1]) for a, b in pairwise(marks)]
    return Seen(clock.images, seconds, burnt, waiting, recorder, recorder.totals(), began, rates)


def _waited(batches: Iterator[Batch], steps: int) -> Iterator[Batch]:
    """So many batches; what the host waits for each is a stage."""
    for _ in range(steps):
        with stage("wait"):
            batch = next(batches)
        yield batch


@contextmanager
def _captured(device: torch.device) -> Iterator[None]:
    """What Nsight Systems records, where it was told to wait for it."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.profiler.start()
    try:
        yield
    finally:
        torch.cuda.profiler.stop()


def measured_of(seen: Seen, work: Workload, alone: Window) -> Measured:
    """The recorded steps, and the loader without them, as the diagnosis takes them."""
    loader, cuda = work.session.image_loader, work.learner.device.type == "cuda"
    totals = seen.totals

    def own(name: Stage) -> float:
        total = totals[name]
        return total.device if total.device is not None else total.inline

    apart = {*_STEP, "wait"} | ({"copy"} if cuda else set())  # a GPU copies beside everything else
    inline = {name: own(name) for name in totals if name not in apart}
    if cuda:  # what the host does, the device waits for only where it is in its queue
        inline = {name: spent for name, spent in inline.items() if name in ON_DEVICE}
    waited = [spent for spent in seen.recorder.queue if spent[1]]
    return Measured(
        loader=loader.name,
        device="cuda" if cuda else "cpu",
        images=seen.images,
        seconds=seen.seconds,
        waiting=seen.waiting,
        step=sum(own(name) for name in _STEP if name in totals),
        launching=sum(total.inline for name, total in totals.items() if name in ON_DEVICE),
        starved=sum(seen.recorder.idle) / max(1, len(seen.recorder.idle)),
        inline={name: spent for name, spent in inline.items() if spent},
        threads={name: total.threads for name, total in totals.items() if total.threads},
        workers=getattr(loader, "workers", 1),
        cores=usable_cores(),
        cpu_seconds=seen.cpu_seconds,
        copying=(totals["copy"].device or 0.0) if cuda and "copy" in totals else 0.0,
        queue=sum(done / under_way for done, under_way in waited) / len(waited) if waited else None,
        alone=alone.rate,
        alone_cores=alone.cpu_seconds / alone.seconds,
        available=frozenset(filter(partial(can_serve, work), available_loaders())),
    )


def can_serve(work: Workload, name: str) -> bool:
    """Whether a loader takes this data set on this machine: it may not fit, for one."""
    try:
        build_loader(work.session.image_loader.source, work.config, loader=name)
    except InputError:
        return False
    return True


def described(options: ProfileOptions, work: Workload, seen: Seen, alone: Window) -> Result:
    """The result: diagnosis, stages, a timeline, and one row."""
    measured = measured_of(seen, work, alone)
    diagnosis = diagnose(measured)
    loader, per_stage = work.session.image_loader, stage_rows(seen)
    return {
        "theme": "profile",
        "environment": describe_environment(),
        "options": told(options, device=str(work.learner.device), loader=loader.name, size=work.config.spec.size),
        "diagnosis": asdict(diagnosis),
        "measured": asdict(measured) | {"available": sorted(measured.available)},
        "stages": per_stage,
        "timeline": timeline(seen),
        "rows": [
            {
                "group": f"{options.mode}: steps profiled",
                "name": f"fed by {loader.name}",
                "images_per_second": measured.rate,
                "low": min(seen.rates),
                "high": max(seen.rates),
                "noisy": is_noisy(seen.rates, measured.rate),
                "times_baseline": None,
                "data_wait": measured.wait,
                "cpu_seconds_per_1000": 1000 * seen.cpu_seconds / seen.images,
                "windows": seen.rates,
            }
        ],
        "notes": [
            f"{row['stage']:<10} {number(row['microseconds_per_image']):>8} µs an image  {row['where']}"
            for row in per_stage
        ]
        + [
            f"{loader.name} alone, without the step: {number(measured.alone)} images/s, "
            f"{number(measured.alone_cores)} of {measured.cores} cores busy"
        ],
    }


def stage_rows(seen: Seen) -> list[dict[str, Any]]:
    """Time by stage and by whose it is, in the order of a batch's way."""
    found = []
    for name, total in seen.totals.items():
        kinds = {"the step's thread": total.inline, "other threads": total.threads, "device": total.device or 0.0}
        found += [
            {"stage": name, "where": where, "seconds": spent, "microseconds_per_image": 1e6 * spent / seen.images}
            for where, spent in kinds.items()
            if spent
        ]
    order = get_args(Stage)
    return sorted(found, key=lambda row: order.index(row["stage"]))


def timeline(seen: Seen) -> list[dict[str, Any]]:
    """The stays in stages during a few steps in the middle: seconds from the first of them."""
    spans, main = seen.recorder.spans, threading.get_ident()
    waits = [span for span in spans if span.stage == "wait"]
    first = len(waits) // 2
    begin = waits[first].began
    end = waits[min(first + _TIMELINE_STEPS, len(waits) - 1)].began if len(waits) > first + 1 else waits[first].ended
    inside = sorted((span for span in spans if begin <= span.began and span.ended <= end), key=lambda span: span.began)
    others = [thread for thread in dict.fromkeys(span.thread for span in inside) if thread != main]
    names = {main: "step"} | {thread: f"thread {place}" for place, thread in enumerate(others, 1)}
    return [_shifted(span, begin, names[span.thread]) for span in sorted(inside, key=lambda span: span.thread != main)]


def _shifted(span: Span, begin: float, thread: str) -> dict[str, Any]:
    return {"stage": span.stage, "thread": thread, "begin": span.began - begin, "end": span.ended - begin}


def trace(work: Workload, batches: Iterator[Batch], steps: int, folder: Path) -> Path:
    """Steps by `torch.profiler`, as a compressed trace that Perfetto opens: `trace-rankN.json.gz`."""
    file = folder / f"trace-rank{work.session.process_group.rank}.json.gz"
    cuda = work.learner.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]

    def write(profiler: Any) -> None:
        plain = file.with_suffix("")
        profiler.export_chrome_trace(str(plain))
        with open(plain, "rb") as read, gzip.open(file, "wb") as written:
            shutil.copyfileobj(read, written)
        plain.unlink()

    folder.mkdir(parents=True, exist_ok=True)
    plan = schedule(wait=0, warmup=1, active=steps)
    if not cuda:  # else it says as an error that there is no GPU
        os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*Profiler clears events at the end of each cycle")
        with (
            profile(activities=activities, schedule=plan, on_trace_ready=write) as profiler,
            recording(Recorder(cuda=cuda, trace=True)),
        ):
            for batch in _waited(batches, 1 + steps):
                work.step(batch)
                profiler.step()
    return file


def nsys_line(folder: Path) -> str:
    """What to copy for the same steps under Nsight Systems, with the stages as NVTX ranges."""
    mine = [sys.executable, "-m", "benchmarks", *sys.argv[1:], "--trace-steps", "0"]
    return (
        "nsys profile --trace=cuda,nvtx,osrt,cudnn,cublas --capture-range=cudaProfilerApi --capture-range-end=stop "
        f"--output={shlex.quote(str(folder / 'nsys'))} {shlex.join(mine)}"
    )
