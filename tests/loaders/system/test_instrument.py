"""Stages: time measured by stage and thread while a recorder is active, and nothing otherwise."""

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import pytest
import torch

from loaders import LoaderConfig, PlanSpec, RandomResizedCrop, build_loader, open_data
from loaders.system import instrument
from loaders.system.instrument import Recorder, Stage, recording, stage


class Clock:
    now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(instrument, "time", clock)
    return clock


def test_a_stage_within_another_is_not_counted_twice(clock: Clock) -> None:
    @stage("decode")
    def decode() -> None:
        clock.now += 2

    with recording(Recorder()) as recorder:
        with stage("read"):
            clock.now += 1
            decode()
            clock.now += 1
        decode()
    decode()
    totals = recorder.totals()
    assert (totals["read"].inline, totals["decode"].inline) == (2, 4)
    assert totals["read"].threads == 0
    assert totals["read"].device is None
    assert [span.stage for span in recorder.spans] == ["decode", "read", "decode"]


def test_other_threads_are_counted_apart(clock: Clock) -> None:
    def work() -> None:
        with stage("resize"):
            clock.now += 3

    with recording(Recorder()) as recorder:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert (recorder.totals()["resize"].inline, recorder.totals()["resize"].threads) == (0, 3)


def test_nested_recorders_both_record_and_the_outer_one_goes_on_alone(clock: Clock) -> None:
    def work(name: Stage, seconds: float) -> None:
        with stage(name):
            clock.now += seconds

    with recording(Recorder()) as outer:
        work("read", 1)
        with recording(Recorder()) as inner:
            work("read", 2)
            with stage("decode"):
                clock.now += 4
                work("resize", 8)
            instrument.note_queue(iter([True, False, True]))
        work("decode", 16)
        instrument.note_queue(iter([False]))
    work("read", 32)
    instrument.note_queue(iter([True]))
    assert {name: total.inline for name, total in outer.totals().items()} == {"read": 3, "decode": 20, "resize": 8}
    assert {name: total.inline for name, total in inner.totals().items()} == {"read": 2, "decode": 4, "resize": 8}
    assert (outer.queue, inner.queue) == ([(2, 3), (0, 1)], [(2, 3)])


def test_a_failure_in_the_inner_block_leaves_the_outer_recorder_active(clock: Clock) -> None:
    def fail() -> None:
        with recording(Recorder()), stage("read"):
            clock.now += 1
            raise KeyError

    with recording(Recorder()) as outer:
        with pytest.raises(KeyError):
            fail()
        with stage("decode"):
            clock.now += 2
    assert {name: total.inline for name, total in outer.totals().items()} == {"read": 1, "decode": 2}


def test_blocks_that_overlap_in_two_threads_end_apart(clock: Clock) -> None:
    """The recorder that began first stops first, while the other one is active."""
    began, ended = threading.Event(), threading.Event()
    first, second = Recorder(), Recorder()

    def record() -> None:
        with recording(first):
            began.set()
            assert ended.wait(10)

    thread = threading.Thread(target=record)
    thread.start()
    assert began.wait(10)
    with recording(second):
        with stage("read"):
            clock.now += 1
        ended.set()
        thread.join()
        with stage("decode"):
            clock.now += 2
    assert [span.stage for span in first.spans] == ["read"]
    assert [span.stage for span in second.spans] == ["read", "decode"]


def test_a_thread_that_is_already_running_is_recorded_by_a_recorder_that_starts_later(clock: Clock) -> None:
    with ThreadPoolExecutor(1) as pool:

        @stage("decode")
        def decode() -> None:
            clock.now += 3

        pool.submit(decode).result()
        with recording(Recorder()) as outer:
            pool.submit(decode).result()
            with recording(Recorder()) as inner:
                pool.submit(decode).result()
            pool.submit(decode).result()
    assert (outer.totals()["decode"].threads, inner.totals()["decode"].threads) == (9, 3)


def test_a_recorder_cannot_be_active_twice(clock: Clock) -> None:
    recorder = Recorder()
    with recording(recorder):
        with pytest.raises(ValueError, match="active already"), recording(recorder):
            pass
        with stage("read"):
            clock.now += 1
    assert recorder.totals()["read"].inline == 1


def test_annotations_of_nested_recorders_are_nested(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `torch.profiler` needs them: what begins last ends first."""
    calls: list[tuple[str, int]] = []
    numbers = count()

    class Annotation:
        def __init__(self, name: str) -> None:
            assert name == "read"
            self.number = next(numbers)

        def __enter__(self) -> None:
            calls.append(("enter", self.number))

        def __exit__(self, *_: object) -> None:
            calls.append(("exit", self.number))

    monkeypatch.setattr(torch.profiler, "record_function", Annotation)
    with recording(Recorder(trace=True)), recording(Recorder(trace=True)), stage("read"):
        pass
    assert calls == [("enter", 0), ("enter", 1), ("exit", 1), ("exit", 0)]


def test_stages_and_a_recorder_of_the_hosts_time_need_no_torch() -> None:
    program = """
import sys
sys.modules["torch"] = sys.modules["torchvision"] = None
from loaders import sources
from loaders.system import console
from loaders.system.instrument import Recorder, Stage, recording, stage
with recording(Recorder()) as recorder, stage("read"):
    pass
assert list(recorder.totals()) == ["read"]
"""
    root = Path(instrument.__file__).parents[2]
    result = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_a_stage_begun_before_recording_is_left_out(clock: Clock) -> None:
    begun = stage("plan")
    begun.__enter__()
    with recording(Recorder()) as recorder:
        begun.__exit__()
        with stage("read"):
            clock.now += 1
    assert list(recorder.totals()) == ["read"]


def test_a_loader_marks_its_stages_and_notes_its_queue(image_folder: Path) -> None:
    source, _ = open_data(str(image_folder), root=image_folder)
    spec = PlanSpec(RandomResizedCrop(16), horizontal_flip=0.5)
    loader = build_loader(source, LoaderConfig(spec=spec, training=True, batch_size=4), loader="torchvision")
    with recording(Recorder()) as recorder:
        assert len(list(loader)) == 6
    totals = recorder.totals()
    assert {"plan", "read", "decode", "resize", "augment"} <= set(totals)
    assert totals["plan"].inline > 0
    assert totals["decode"].inline == 0 < totals["decode"].threads
    assert len([span for span in recorder.spans if span.stage == "read"]) == 24
    assert len(recorder.queue) == 6
    assert all(0 <= finished <= in_flight for finished, in_flight in recorder.queue)


class Event:
    """A CUDA event that the GPU has reached when `reached` is set."""

    reached = True

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        pass

    def query(self) -> bool:
        return self.reached


def test_a_gpu_that_has_finished_a_step_when_the_next_begins_is_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", Event)
    for name in ("range_push", "range_pop"):
        monkeypatch.setattr(torch.cuda.nvtx, name, lambda *_: None)
    with recording(Recorder(cuda=True)) as recorder:
        for reached in (True, False, True, True):
            monkeypatch.setattr(Event, "reached", reached)
            for name in ("augment", "forward", "backward", "optimizer"):
                with stage(name):  # type: ignore[arg-type]
                    pass
    assert recorder.idle == [False, True, True]  # there is no step before the first
