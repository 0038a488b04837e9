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
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from benchmarks.harness.batches import endless
from benchmarks.harness.device import chosen_device, synchronize
from benchmarks.harness.loader_internals import workers_of
from benchmarks.harness.measure import Candidate, Window, cpu_seconds, probe
from benchmarks.harness.options import describe_options
from benchmarks.harness.rates import is_noisy
from benchmarks.harness.result import RATE_KEYS, Result, Row, StageTime, TimelineSpan, WriteResult
from benchmarks.harness.result_json import environment_from_json
from benchmarks.harness.workload import Workload, workload
from benchmarks.report.columns import number
from benchmarks.suites.diagnosis import Measured, diagnose
from benchmarks.suites.options import FEWEST_STEPS, ProfileOptions
from loaders import Batch, InputError, available_loaders, build_loader
from loaders.system.instrument import ON_DEVICE, Recorder, Stage, Total, recording, stage
from loaders.system.machine import usable_cores
from train.console import Reporter
from train.environment import describe_environment
from train.epoch_timer import EpochTimer
from train.process_group import joined_process_group

_KEYS = (
    "theme", "date", "environment", "options", "diagnosis", "measured", "stages", "timeline", "rows", "notes",
)  # fmt: skip
_ROW_KEYS = (*RATE_KEYS, "times_baseline", "data_wait", "cpu_seconds_per_1000", "windows")

_TIMELINE_STEPS = 4
_WARMED_UP, _TRACED, _ALONE = 0.25, 0.25, 0.06  # of --seconds, beside what is measured
_STEP: tuple[Stage, ...] = ("forward", "backward", "optimizer")


def bench_profile(options: ProfileOptions, reporter: Reporter, write: WriteResult) -> None:
    """Measures some steps, says what limits them, then traces a few more."""
    with (
        joined_process_group(use_cuda=chosen_device(options).type == "cuda") as process_group,
        workload(
            options,
            options.mode,
            process_group,
            loader=options.loader,
            model=options.model,
            recipe=options.recipe,
            size=options.size,
            batch_size=options.batch_size,
            compile=options.compile,
            weights=options.weights,
        ) as work,
    ):
        batches = endless(work.session.image_loader)
        step_seconds = warm_up(work, batches, options)
        steps = max(FEWEST_STEPS, options.steps_within(1, step_seconds, most=options.steps))
        recorded = record_steps(work, batches, steps)
        alone = probe(Candidate("loader alone", options.loader, lambda: batches), _ALONE * options.seconds)
        result = replace(describe(options, work, recorded, alone), nsys=nsys_line(write.folder))
        if process_group.is_main:
            write(result)
        if options.trace_steps:
            steps = max(1, options.steps_within(_TRACED, step_seconds, most=options.trace_steps))
            file = trace(work, batches, steps, write.folder)
            result = replace(result, trace=file.name)
        if process_group.is_main:
            write(result)
            reporter.say(f"trace: {result.trace or 'none'} (open it at https://ui.perfetto.dev)")
            reporter.say(f"Nsight Systems: {result.nsys}", "")


@dataclass
class RecordedSteps:
    """What was recorded of some steps. Times in seconds."""

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
    time_steps(work, batches, 1)  # which compiles
    step_seconds = time_steps(work, batches, 1)
    more = options.steps_within(_WARMED_UP, step_seconds, most=options.steps // 4 - 2)
    return time_steps(work, batches, more) if more > 0 else step_seconds


def time_steps(work: Workload, batches: Iterator[Batch], steps: int) -> float:
    """Seconds that each of so many steps takes, by the main process's clock."""
    device, began = work.learner.device, time.perf_counter()
    for _ in range(steps):
        work.step(next(batches))
    synchronize(device)
    step_seconds = torch.tensor((time.perf_counter() - began) / steps, dtype=torch.float64, device=device)
    work.session.process_group.broadcast([step_seconds])
    return float(step_seconds)


def record_steps(work: Workload, batches: Iterator[Batch], steps: int) -> RecordedSteps:
    """Takes and records `steps` steps."""
    device = work.learner.device
    recorder = Recorder(cuda=device.type == "cuda")
    with _captured(device), recording(recorder):
        began, burnt = time.perf_counter(), cpu_seconds()
        timer = EpochTimer(device)
        marks = [(0, began)]
        for done, batch in enumerate(timer.timed(_waited(batches, steps)), 1):
            work.step(batch)
            if 5 * done // steps > 5 * (done - 1) // steps:
                synchronize(device)
                marks.append((timer.images, time.perf_counter()))
        seconds, burnt = marks[-1][1] - began, cpu_seconds() - burnt
        waiting = timer.data_wait * timer.seconds
    rates = [(b[0] - a[0]) / (b[1] - a[1]) for a, b in pairwise(marks)]
    return RecordedSteps(timer.images, seconds, burnt, waiting, recorder, recorder.totals(), began, rates)


def _waited(batches: Iterator[Batch], steps: int) -> Iterator[Batch]:
    """The next `steps` batches; what the host waits for each is recorded as a stage."""
    for _ in range(steps):
        with stage("wait"):
            batch = next(batches)
        yield batch


@contextmanager
def _captured(device: torch.device) -> Iterator[None]:
    """The range that Nsight Systems records with `--capture-range=cudaProfilerApi`."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.profiler.start()
    try:
        yield
    finally:
        torch.cuda.profiler.stop()


def measured_of(recorded: RecordedSteps, work: Workload, alone: Window) -> Measured:
    """The recorded steps, and the loader without them, as the diagnosis takes them."""
    loader, cuda = work.session.image_loader, work.learner.device.type == "cuda"
    totals = recorded.totals

    def own(name: Stage) -> float:
        total = totals[name]
        return total.device if total.device is not None else total.inline

    apart = {*_STEP, "wait"} | ({"copy"} if cuda else set())  # a GPU copies beside everything else
    inline = {name: own(name) for name in totals if name not in apart}
    if cuda:  # what the host does, the device waits for only where it is in its queue
        inline = {name: spent for name, spent in inline.items() if name in ON_DEVICE}
    waited = [spent for spent in recorded.recorder.queue if spent[1]]
    return Measured(
        loader=loader.name,
        device="cuda" if cuda else "cpu",
        images=recorded.images,
        seconds=recorded.seconds,
        waiting=recorded.waiting,
        step=sum(own(name) for name in _STEP if name in totals),
        launching=sum(total.inline for name, total in totals.items() if name in ON_DEVICE),
        starved=sum(recorded.recorder.idle) / max(1, len(recorded.recorder.idle)),
        inline={name: spent for name, spent in inline.items() if spent},
        threads={name: total.threads for name, total in totals.items() if total.threads},
        workers=workers_of(loader),
        cores=usable_cores(),
        cpu_seconds=recorded.cpu_seconds,
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


def describe(options: ProfileOptions, work: Workload, recorded: RecordedSteps, alone: Window) -> Result:
    """The result: diagnosis, stages, a timeline, and one row."""
    measured = measured_of(recorded, work, alone)
    loader, stages = work.session.image_loader, stage_times(recorded)
    device, size = str(work.learner.device), work.config.spec.size
    return Result(
        keys=_KEYS,
        theme="profile",
        environment=environment_from_json(describe_environment()),
        options=describe_options(options, device=device, loader=loader.name, size=size),
        diagnosis=diagnose(measured),
        measured=asdict(measured) | {"available": sorted(measured.available)},
        stages=stages,
        timeline=timeline(recorded),
        rows=(_row(options, loader.name, recorded, measured),),
        notes=(
            *map(_stage_note, stages),
            f"{loader.name} alone, without the step: {number(measured.alone)} images/s, "
            f"{number(measured.alone_cores)} of {measured.cores} cores busy",
        ),
    )


def _row(options: ProfileOptions, loader: str, recorded: RecordedSteps, measured: Measured) -> Row:
    return Row(
        keys=_ROW_KEYS,
        group=f"{options.mode}: steps profiled",
        name=f"fed by {loader}",
        images_per_second=measured.rate,
        low=min(recorded.rates),
        high=max(recorded.rates),
        noisy=is_noisy(recorded.rates, measured.rate),
        data_wait=measured.wait,
        cpu_seconds_per_1000=1000 * recorded.cpu_seconds / recorded.images,
        windows=tuple(recorded.rates),
    )


def _stage_note(stage: StageTime) -> str:
    return f"{stage.stage:<10} {number(stage.microseconds_per_image):>8} µs an image  {stage.where}"


def stage_times(recorded: RecordedSteps) -> tuple[StageTime, ...]:
    """Time by stage and by place, in the order in which a batch passes the stages."""
    times = []
    for name, total in recorded.totals.items():
        places = {"the step's thread": total.inline, "other threads": total.threads, "device": total.device or 0.0}
        for where, spent in places.items():
            if spent:
                per_image = 1e6 * spent / recorded.images
                times.append(StageTime(stage=name, where=where, seconds=spent, microseconds_per_image=per_image))
    order = get_args(Stage)
    return tuple(sorted(times, key=lambda time: order.index(time.stage)))


def timeline(recorded: RecordedSteps) -> tuple[TimelineSpan, ...]:
    """The stays in stages during a few steps in the middle: seconds from the first of them."""
    spans, main = recorded.recorder.spans, threading.get_ident()
    waits = [span for span in spans if span.stage == "wait"]
    first = len(waits) // 2
    begin = waits[first].began
    end = waits[min(first + _TIMELINE_STEPS, len(waits) - 1)].began if len(waits) > first + 1 else waits[first].ended
    inside = sorted((span for span in spans if begin <= span.began and span.ended <= end), key=lambda span: span.began)
    others = [thread for thread in dict.fromkeys(span.thread for span in inside) if thread != main]
    names = {main: "step"} | {thread: f"thread {place}" for place, thread in enumerate(others, 1)}
    return tuple(
        TimelineSpan(stage=span.stage, thread=names[span.thread], begin=span.began - begin, end=span.ended - begin)
        for span in sorted(inside, key=lambda span: span.thread != main)
    )


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
    if not cuda:  # else it logs as an error that there is no GPU
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
    """The command line for the same steps under Nsight Systems, with the stages as NVTX ranges."""
    command = [sys.executable, "-m", "benchmarks", *sys.argv[1:], "--trace-steps", "0"]
    return (
        "nsys profile --trace=cuda,nvtx,osrt,cudnn,cublas --capture-range=cudaProfilerApi --capture-range-end=stop "
        f"--output={shlex.quote(str(folder / 'nsys'))} {shlex.join(command)}"
    )
