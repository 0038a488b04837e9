"""Time by stage: each stage marks its work, and recorders, while any is active, measure it.

    with recording(Recorder()) as recorder:
        ...
    recorder.totals()  # {"decode": Total(inline=0.1, threads=1.9, device=None), ...}

Code marks a stage where the work is done: `with stage("read"):` for a block, `@stage("augment")` for a function.
Without a recorder nothing is measured.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import ContextDecorator, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:  # only recorders of the GPU's time and traces need torch; whoever marks stages may do without it
    import torch

Stage = Literal["plan", "read", "decode", "resize", "copy", "augment", "forward", "backward", "optimizer", "wait"]
"""The stages on the path of a batch.

- `plan`: drawing the order and the plans.
- `read`: reading bytes from disk or from the pixel cache.
- `decode`: decoding bytes to pixels.
- `resize`: the first read of the plan, crop and resize.
- `copy`: host-to-device copies.
- `augment`: everything after the first read: second read, flips, color, normalization.
- `forward`, `backward`, `optimizer`: the three parts of the training step.
- `wait`: the time in which the step waits for data.
"""

ON_DEVICE: frozenset[Stage] = frozenset({"resize", "copy", "augment", "forward", "backward", "optimizer"})
"""Stages whose work runs on the GPU when the thread that runs the step launches it."""


class Span(NamedTuple):
    """One execution of a stage by one thread."""

    stage: Stage
    thread: int
    """Identifier of the thread, see `threading.get_ident`."""
    began: float
    """Host time of `time.perf_counter`, seconds."""
    ended: float
    """Host time of `time.perf_counter`, seconds."""
    own: float
    """Duration in seconds without the stages that ran inside this one."""


@dataclass(frozen=True)
class Total:
    """The time that all spans of a stage take together."""

    inline: float
    """Seconds in the thread that created the recorder, which runs the step."""
    threads: float
    """Seconds in all other threads, summed."""
    device: float | None
    """Seconds of the GPU, without its work for other streams; `None` where the stage does not run on a GPU."""


class Recorder:
    """Records the spans of all stages, in all threads, while it is active; see `recording`."""

    def __init__(self, *, cuda: bool = False, trace: bool = False) -> None:
        """
        Args:
            cuda: measures the GPU's time as well, and marks stages as NVTX ranges.
            trace: marks stages for `torch.profiler`.
        """
        self._cuda = cuda
        self._trace = trace
        self._main = threading.get_ident()
        self._local = threading.local()
        self.spans: list[Span] = []
        """The spans in the order in which they ended."""
        self.queue: list[tuple[int, int]] = []
        """One entry per requested batch: how many batches in flight were finished, and how many were in flight."""
        self.idle: list[bool] = []
        """One entry per forward pass but the first: whether the GPU had finished the step before when it began."""
        self._events: list[tuple[Stage, torch.cuda.Event, torch.cuda.Event]] = []
        self._step_end: torch.cuda.Event | None = None  # the end of the last optimizer step

    def begin(self, name: Stage) -> None:
        """Enters a stage. The same thread must call `end` afterwards."""
        event = annotation = None
        if self._trace:
            import torch

            annotation = torch.profiler.record_function(name)
            annotation.__enter__()
        if self._cuda:
            import torch

            from loaders.system.cuda_events import record_event

            torch.cuda.nvtx.range_push(name)
            if name in ON_DEVICE and threading.get_ident() == self._main:
                if name == "forward" and self._step_end is not None:
                    self.idle.append(self._step_end.query())
                event = record_event()
        self._stack.append(_OpenSpan(name, event, annotation, time.perf_counter()))

    def end(self) -> None:
        """Leaves the stage that the thread entered last; ignores one that it entered before the recorder was active."""
        ended = time.perf_counter()
        if not self._stack:
            return
        span = self._stack.pop()
        if self._cuda:
            import torch

            from loaders.system.cuda_events import record_event

            torch.cuda.nvtx.range_pop()
            if span.event is not None:
                end_event = record_event()
                self._events.append((span.stage, span.event, end_event))
                if span.stage == "optimizer":
                    self._step_end = end_event
        if span.annotation is not None:
            span.annotation.__exit__(None, None, None)
        duration = ended - span.began
        if self._stack:
            self._stack[-1].nested += duration
        self.spans.append(Span(span.stage, threading.get_ident(), span.began, ended, duration - span.nested))

    @property
    def _stack(self) -> "list[_OpenSpan]":
        """The stages that the calling thread is in, the innermost last."""
        if not hasattr(self._local, "stack"):
            self._local.stack = []
        stack: list[_OpenSpan] = self._local.stack
        return stack

    def totals(self) -> dict[Stage, Total]:
        """Seconds by stage. With `cuda`, waits until the GPU has finished its work."""
        device: dict[Stage, float] = {}
        if self._cuda:
            import torch

            torch.cuda.synchronize()
        for name, began, ended in self._events:
            device[name] = device.get(name, 0.0) + began.elapsed_time(ended) / 1000
        host: dict[tuple[Stage, bool], float] = {}
        for span in self.spans:
            key = span.stage, span.thread == self._main
            host[key] = host.get(key, 0.0) + span.own
        names = dict.fromkeys(name for name, _ in host)
        return {
            name: Total(host.get((name, True), 0.0), host.get((name, False), 0.0), device.get(name)) for name in names
        }


@dataclass
class _OpenSpan:
    """A stage that has been entered and not left."""

    stage: Stage
    event: "torch.cuda.Event | None"
    annotation: "torch.profiler.record_function | None"
    began: float
    nested: float = 0.0
    """Seconds so far in the stages inside this one."""


# A module global and not a context variable: threads that are already running must see a recorder that starts later.
# The tuple is replaced and never changed, so that a stage reads it without a lock.
_active: tuple[Recorder, ...] = ()
_changing_active = threading.Lock()


@contextmanager
def recording(recorder: Recorder) -> Iterator[Recorder]:
    """Keeps `recorder` active within the block, for all threads.

    Blocks may be nested or overlap in several threads; every active recorder records.

    Raises:
        ValueError: when `recorder` is active already.
    """
    global _active
    with _changing_active:
        if recorder in _active:
            raise ValueError("this recorder is active already: use another one for a nested recording")
        _active = (*_active, recorder)
    try:
        yield recorder
    finally:
        with _changing_active:
            _active = tuple(other for other in _active if other is not recorder)


class stage(ContextDecorator):  # noqa: N801 - used as a function is
    """Marks the work of a block or a function as belonging to a stage. Without a recorder it costs 0.2 µs."""

    def __init__(self, name: Stage) -> None:
        self.name: Stage = name

    def __enter__(self) -> None:
        if _active:
            for recorder in _active:
                recorder.begin(self.name)

    def __exit__(self, *_: object) -> None:
        if _active:
            for recorder in reversed(_active):  # NVTX ranges and profiler annotations must be nested
                recorder.end()


def note_queue(finished: Iterator[bool]) -> None:
    """Records, as a batch is requested, how many of the batches in flight are finished.

    Args:
        finished: one value per batch in flight; not consumed without a recorder.
    """
    if _active:
        states = list(finished)
        for recorder in _active:
            recorder.queue.append((sum(states), len(states)))
