"""Stages: time told apart by stage and thread while somebody records, and nothing otherwise."""

import threading
from pathlib import Path

import pytest
import torch

from loaders import LoaderConfig, PlanSpec, RandomResizedCrop, build_loader, open_data
from loaders.system import instrument
from loaders.system.instrument import Recorder, recording, stage


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


def test_a_stage_begun_before_recording_is_left_out(clock: Clock) -> None:
    begun = stage("plan")
    begun.__enter__()
    with recording(Recorder()) as recorder:
        begun.__exit__()
        with stage("read"):
            clock.now += 1
    assert list(recorder.totals()) == ["read"]


def test_a_loader_tells_its_stages_and_its_queue(image_folder: Path) -> None:
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
    assert all(0 <= done <= under_way for done, under_way in recorder.queue)


class Event:
    """A GPU's, which comes to it when `reached` is set."""

    reached = True

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        pass

    def query(self) -> bool:
        return self.reached


def test_a_gpu_that_is_done_with_a_step_when_the_next_begins_is_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", Event)
    for name in ("range_push", "range_pop"):
        monkeypatch.setattr(torch.cuda.nvtx, name, lambda *_: None)
    with recording(Recorder(cuda=True)) as recorder:
        for reached in (True, False, True, True):
            monkeypatch.setattr(Event, "reached", reached)
            for name in ("augment", "forward", "backward", "optimizer"):
                with stage(name):  # type: ignore[arg-type]
                    pass
    assert recorder.idle == [False, True, True]  # before the first there is none
