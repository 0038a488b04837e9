"""Where time goes, by stage: nothing is measured, and next to nothing done, unless somebody records.

    with recording(Recorder()) as recorder:
        ...
    recorder.totals()  # {"decode": Total(seconds=1.9, ...), ...}

Each stage is named where its work is done: `with stage("read"):`, or `@stage("augment")` for a whole function.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import ContextDecorator, contextmanager
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch

Stage = Literal["plan", "read", "decode", "resize", "copy", "augment", "forward", "backward", "optimizer", "wait"]
"""Order and plan, bytes from disk, bytes → pixels, the first read, host → device, all after it, the step's three parts,
and what the step waits for data."""

ON_DEVICE: frozenset[Stage] = frozenset({"resize", "copy", "augment", "forward", "backward", "optimizer"})
"""Stages whose work a GPU does when the thread that runs the step has asked for it."""


class Span(NamedTuple):
    """One stay in a stage."""

    stage: Stage
    thread: int
    """As `threading.get_ident` has it."""
    began: float
    ended: float
    """Seconds, by `time.perf_counter`, of the host."""
    own: float
    """Seconds of it that were not spent in a stage within."""


@dataclass(frozen=True)
class Total:
    """What all stays in a stage come to."""

    inline: float
    """Seconds in the thread that recorded, which runs the step."""
    threads: float
    """Seconds in all other threads together."""
    device: float | None
    """Seconds of the GPU, where it does this stage's work; without what it did meanwhile for other streams."""


class Recorder:
    """Takes down every stay in a stage, of all threads."""

    def __init__(self, *, cuda: bool = False, trace: bool = False) -> None:
        """
        Args:
            cuda: takes down the device's time as well, and marks stages as NVTX ranges.
            trace: marks stages for `torch.profiler`.
        """
        self._cuda, self._trace = cuda, trace
        self._main = threading.get_ident()
        self._local = threading.local()
        self.spans: list[Span] = []
        self.queue: list[tuple[int, int]] = []
        """Of each batch when it was asked for: how many batches were finished, of how many under way."""
        self.idle: list[bool] = []
        """Of each forward pass but the first, when it was begun: whether the device had done all of the step before."""
        self._events: list[tuple[Stage, torch.cuda.Event, torch.cuda.Event]] = []
        self._stepped: torch.cuda.Event | None = None  # the last optimizer's end

    def begin(self, name: Stage) -> None:
        """Enters a stage; to be followed by `end` in the same thread."""
        event = traced = None
        if self._trace:
            traced = torch.profiler.record_function(name)
            traced.__enter__()
        if self._cuda:
            torch.cuda.nvtx.range_push(name)
            if name in ON_DEVICE and threading.get_ident() == self._main:
                if name == "forward" and self._stepped is not None:
                    self.idle.append(self._stepped.query())
                event = self._mark()
        self._stack.append(_Open(name, event, traced, time.perf_counter()))

    def end(self) -> None:
        """Leaves the stage entered last. One that was entered before recording began is not counted."""
        ended = time.perf_counter()
        if not self._stack:
            return
        left = self._stack.pop()
        if self._cuda:
            torch.cuda.nvtx.range_pop()
            if left.event is not None:
                over = self._mark()
                self._events.append((left.stage, left.event, over))
                if left.stage == "optimizer":
                    self._stepped = over
        if left.traced is not None:
            left.traced.__exit__(None, None, None)
        took = ended - left.began
        if self._stack:
            self._stack[-1].within += took
        self.spans.append(Span(left.stage, threading.get_ident(), left.began, ended, took - left.within))

    @property
    def _stack(self) -> "list[_Open]":
        """The stages that the calling thread is in."""
        if not hasattr(self._local, "stack"):
            self._local.stack = []
        stack: list[_Open] = self._local.stack
        return stack

    def _mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()  # on the current stream: a copy's is its own
        return event

    def totals(self) -> dict[Stage, Total]:
        """Seconds by stage. Waits for the device, if there is one."""
        device: dict[Stage, float] = {}
        if self._cuda:
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
class _Open:
    stage: Stage
    event: torch.cuda.Event | None
    traced: torch.profiler.record_function | None
    began: float
    within: float = 0.0


_recorder: Recorder | None = None


@contextmanager
def recording(recorder: Recorder) -> Iterator[Recorder]:
    """Lets `recorder` take down what happens within the block, in all threads."""
    global _recorder
    _recorder = recorder
    try:
        yield recorder
    finally:
        _recorder = None


class stage(ContextDecorator):  # noqa: N801 - used as a function is
    """Marks work as belonging to a stage. Without a recorder it costs 0.2 µs."""

    def __init__(self, name: Stage) -> None:
        self.name: Stage = name

    def __enter__(self) -> None:
        if _recorder is not None:
            _recorder.begin(self.name)

    def __exit__(self, *_: object) -> None:
        if _recorder is not None:
            _recorder.end()


def note_queue(finished: Iterator[bool]) -> None:
    """Tells a recorder, if there is one, which of the batches under way are finished, as one is asked for."""
    if _recorder is not None:
        states = list(finished)
        _recorder.queue.append((sum(states), len(states)))
