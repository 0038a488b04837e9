"""What limits a training loop, what to change, and what to expect of it: arithmetic on what a profile measured.

The loop is a pipeline: threads read, decode and resize; the step's own thread plans, hands batches over and submits the
rest to the device. The part that the others wait for is the bottleneck; the share of finished batches in the queue
before the step shows on which side of the queue it is.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from benchmarks.harness.result import Diagnosis
from benchmarks.report.columns import number, percent
from loaders.system.instrument import Stage

Limit = Literal["step", "host", "loader", "plan", "read", "decode", "resize", "copy", "augment"]
"""The step's arithmetic; the host that launches it; a loader that reports no stages; or one of its stages."""

ENOUGH = 0.05
"""Share of the time that the step waits, below which data do not limit it."""
_BUSY = 0.8  # of the cores, above which more threads do not help; of the host's time, above which it limits

_WORK = {
    "loader": "the loader",
    "plan": "drawing order and plans",
    "read": "reading files",
    "decode": "decoding",
    "resize": "resizing",
    "copy": "copying to the device",
    "augment": "augmentation",
}


@dataclass(frozen=True)
class Measured:
    """Some steps of a training loop. Times in seconds."""

    loader: str
    device: Literal["cpu", "cuda"]
    images: int
    seconds: float
    waiting: float
    """What the step waits for data: on a GPU by its own events, with what it does to finish batches."""
    step: float
    """Forward, backward and optimizer: on a GPU the device's time."""
    launching: float
    """The host's time for the same, and for what a GPU does to a batch before it."""
    inline: Mapping[Stage, float]
    """Time by stage while the step waited: in the thread that runs it, or by the GPU."""
    threads: Mapping[Stage, float]
    """Time by stage in all other threads together."""
    workers: int
    """Threads, or processes, of the loader."""
    cores: int
    cpu_seconds: float
    alone: float
    """Images/s of the loader without the step."""
    alone_cores: float
    """Cores that are busy then."""
    copying: float = 0.0
    """The copy engine's time, beside everything else."""
    starved: float = 0.0
    """Share of the steps at whose beginning a GPU had done all of the one before: it had nothing to do."""
    queue: float | None = None
    """Share of the batches in flight that were finished when the step asked for one, 0 to 1; None if not known."""
    available: frozenset[str] = field(default_factory=frozenset)
    """Loaders that are usable here."""

    @property
    def rate(self) -> float:
        """Images/s."""
        return self.images / self.seconds

    @property
    def ceiling(self) -> float:
        """Images/s if data cost nothing."""
        return self.images / self.step

    @property
    def wait(self) -> float:
        """Share of the time that the step waits for data, 0 to 1."""
        return self.waiting / self.seconds

    @property
    def cores_busy(self) -> float:
        """Cores that were busy, on average."""
        return self.cpu_seconds / self.seconds


def diagnose(measured: Measured) -> Diagnosis:
    """The part that limits, and the change most likely to help."""
    limit = find_limit(measured)
    change, expected = remedy(measured, limit)
    gain = expected / measured.rate
    about = "at most" if limit == "loader" else "about"  # the rate of another loader is not known
    prospect = f"would lift it from {number(measured.rate)} images/s to {about} {number(expected)} ({number(gain)} ×)"
    if gain < 1.02:
        prospect = f"is what may help; how much, this profile of {number(measured.rate)} images/s cannot tell"
    sentence = f"{_state(measured, limit)}; {change} {prospect}."
    return Diagnosis(limit=limit, change=change, expected=expected, sentence=sentence)


def find_limit(measured: Measured) -> Limit:
    """Which part the others wait for."""
    # A GPU that idles between kernels takes as long for a step as the host takes to launch it.
    if measured.starved > _BUSY and measured.launching > _BUSY * measured.seconds:
        return "host"
    if measured.wait < ENOUGH:
        return "step"
    if measured.copying > 0.8 * measured.seconds:
        return "copy"
    inline = {name: spent for name, spent in measured.inline.items() if name in _WORK}
    blocked = max(0.0, measured.waiting - sum(inline.values()))
    first = max(inline, key=inline.__getitem__, default=None)
    if first is not None and inline[first] >= blocked:
        return _stage(first)
    threads = {name: spent for name, spent in measured.threads.items() if name in _WORK}
    if sum(threads.values()) < 0.5 * blocked:  # it waits for threads of another library, which report no stages
        return "loader" if first is None or inline[first] < 0.5 * measured.waiting else _stage(first)
    return _stage(max(threads, key=threads.__getitem__))


def _stage(name: Stage) -> Limit:
    if name == "forward" or name == "backward" or name == "optimizer" or name == "wait":
        raise ValueError(f"{name} is no work of a loader")
    return name


def remedy(measured: Measured, limit: Limit) -> tuple[str, float]:
    """A change, and the images/s to expect of it."""
    if limit == "step":
        caching = _caching_loader(measured)
        if measured.device == "cpu" and caching and without(measured, "read", "decode") > 1.05 * measured.rate:
            return f"LOADER={caching}, which leaves the cores to the step,", without(measured, "read", "decode")
        if measured.device == "cpu":
            return "a GPU, or a smaller --size, where the accuracy allows,", measured.rate
        return "a larger --batch-size, or more GPUs (NGPU=2),", measured.rate
    if limit == "host":
        return "--compile on, or a larger --batch-size,", min(measured.ceiling, 2 * measured.rate)
    if limit in ("read", "decode") and (caching := _caching_loader(measured)):
        return f"LOADER={caching}", without(measured, "read", "decode")
    if limit == "resize" and measured.device == "cuda" and (caching := _caching_loader(measured)):
        return f"LOADER={caching}", without(measured, "read", "decode", "resize")
    if limit == "copy" and (caching := _first(measured, "resident")):
        return f"LOADER={caching}", without(measured, "copy")
    if limit == "loader" and (other := _caching_loader(measured) or _first(measured, "torchvision")):
        return f"LOADER={other}", measured.ceiling
    if limit in ("read", "decode", "resize") and measured.cores_busy < _BUSY * measured.cores:
        more = 2 * measured.workers
        return f"more threads (--workers {more})", _bounded(measured, measured.rate * more / measured.workers)
    if limit in ("decode", "resize"):
        return "more cores for each GPU, or --scaled-decoding,", measured.rate
    return {
        "read": "a faster disk, or memory for all files,",
        "copy": "pinned memory and a wider link",
        "augment": "a recipe with less augmentation (--recipe default)",
        "plan": "a larger --batch-size",
    }.get(limit, "another loader (python -m loaders lists them)"), _bounded(measured, without(measured, limit))


def without(measured: Measured, *stages: str) -> float:
    """Images/s if these stages took nothing, no more than the step manages.

    What is left of the threads' work is shared among them, beside the step and what its own thread does. Where all
    cores of a CPU are busy, time shrinks as their work does, the step's included.
    """
    removed = sum(spent for name, spent in measured.threads.items() if name in stages)
    if measured.device == "cpu" and measured.cores_busy > _BUSY * measured.cores:
        return measured.rate / max(0.1, 1 - removed / measured.cpu_seconds)
    inline, threads = (
        sum(spent for name, spent in spending.items() if name in _WORK and name not in stages)
        for spending in (measured.inline, measured.threads)
    )
    return max(measured.rate, measured.images / max(measured.step + inline, threads / max(1, measured.workers)))


def _bounded(measured: Measured, rate: float) -> float:
    return max(measured.rate, min(measured.ceiling, rate))


def _caching_loader(measured: Measured) -> str | None:
    """A loader that decodes each image once. On a CPU not `resident`, which holds all images whole in memory that other
    work needs; smaller ones in a file are as fast."""
    return _first(measured, *(("resident", "streamed") if measured.device == "cuda" else ("streamed",)))


def _first(measured: Measured, *names: str) -> str | None:
    """The first of these loaders that is usable here and not in use."""
    return next((name for name in names if name in measured.available and name != measured.loader), None)


def _state(measured: Measured, limit: Limit) -> str:
    """What limits, with the figures that show it."""
    queue = "" if measured.queue is None else f", the queue before it {percent(measured.queue)} full"
    if limit in ("step", "host"):
        waits = f"it waits for data {percent(measured.wait)} of the time{queue}"
        return f"the step limits: {waits}" if limit == "step" else f"launching the step limits: {waits}, the GPU idles"
    busy = f"{number(measured.cores_busy)} of {measured.cores} cores busy"
    if limit == "loader":
        alone = f"{number(measured.alone)} images/s, {number(measured.alone_cores)} of {measured.cores} cores busy"
        demand = f"the step could take {number(measured.ceiling)} and waits {percent(measured.wait)} of the time"
        return f"the loader limits: without the step it delivers {alone}; {demand}{queue}"
    return f"{_WORK[limit]} limits: {busy}, the step waits {percent(measured.wait)} of the time{queue}"
