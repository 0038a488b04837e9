"""The diagnosis names what limits: on figures made up, and on loaders and steps that are slowed on purpose."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import simplejpeg

from benchmarks.harness.batches import endless
from benchmarks.harness.measure import Candidate, probe
from benchmarks.harness.options import DataOptions
from benchmarks.harness.workload import Workload, workload
from benchmarks.suites.diagnosis import Limit, Measured, diagnose, find_limit, without
from benchmarks.suites.profiling import measured_of, record_steps, time_steps
from loaders.backends.threads import ThreadedExecutor
from loaders.sources import ImageFiles
from loaders.system.instrument import stage
from train.learner import Learner

pytestmark = pytest.mark.usefixtures("small_runs")

# Two threads decode 1,000 images in 10 s, which takes both cores; the step, 3 s of it, waits for them.
DECODING = Measured(
    loader="torchvision",
    device="cuda",
    images=1000,
    seconds=10.0,
    waiting=7.0,
    step=3.0,
    launching=1.0,
    inline={"augment": 0.2},
    threads={"read": 1.0, "decode": 16.0, "resize": 2.0},
    workers=2,
    cores=2,
    cpu_seconds=19.0,
    alone=100.0,
    alone_cores=1.9,
    copying=0.5,
    queue=0.1,
    available=frozenset({"torchvision", "resident", "streamed", "baseline"}),
)


@pytest.mark.parametrize(
    ("changes", "limit"),
    [
        ({}, "decode"),
        ({"threads": {"read": 16.0, "decode": 1.0}, "cpu_seconds": 2.0}, "read"),
        ({"threads": {"decode": 5.0, "resize": 9.0}}, "resize"),
        ({"copying": 9.5}, "copy"),
        ({"inline": {"augment": 5.0}}, "augment"),
        ({"inline": {"plan": 6.0}, "device": "cpu"}, "plan"),
        ({"threads": {}, "inline": {}, "queue": None}, "loader"),
        ({"threads": {"augment": 1.0}, "queue": None}, "loader"),  # FFCV's and DALI's own threads report no stages
        ({"waiting": 0.1, "step": 9.9}, "step"),
        ({"waiting": 0.1, "step": 9.9, "launching": 9.9}, "step"),  # the host waits for room in the GPU's queue
        ({"waiting": 0.1, "step": 9.9, "launching": 9.0, "starved": 1.0}, "host"),
        ({"waiting": 2.0, "step": 7.0, "launching": 9.0, "starved": 1.0, "inline": {"augment": 2.0}}, "host"),
        ({"starved": 1.0}, "decode"),
    ],
)
def test_the_part_that_others_wait_for_limits(changes: dict[str, Any], limit: Limit) -> None:
    diagnosis = diagnose(replace(DECODING, **changes))
    assert diagnosis.limit == limit
    assert diagnosis.expected >= 100
    assert diagnosis.sentence.endswith(".")


def test_the_sentence_names_limit_change_and_gain() -> None:
    assert diagnose(DECODING).sentence == (
        "decoding limits: 1.90 of 2 cores busy, the step waits 70 % of the time, the queue before it 10 % full; "
        "LOADER=resident would lift it from 100 images/s to about 312 (3.12 ×)."
    )


def test_a_loader_that_reports_no_stages_is_described_by_what_it_delivers_alone() -> None:
    unknown = replace(DECODING, threads={}, inline={}, queue=None, loader="dali")
    assert diagnose(unknown).sentence == (
        "the loader limits: without the step it delivers 100 images/s, 1.90 of 2 cores busy; the step could take 333 "
        "and waits 70 % of the time; LOADER=resident would lift it from 100 images/s to at most 333 (3.33 ×)."
    )
    on_cpu = replace(unknown, device="cpu", available=frozenset({"resident", "torchvision", "dali"}))
    assert diagnose(on_cpu).change == "LOADER=torchvision"


def test_idle_cores_call_for_threads_and_busy_ones_do_not() -> None:
    alone = replace(DECODING, available=frozenset({"torchvision"}))
    assert "scaled-decoding" in diagnose(alone).change
    idle = replace(alone, cpu_seconds=4.0)
    assert diagnose(idle).change == "more threads (--workers 4)"
    assert diagnose(idle).expected == 200


def test_what_is_taken_away_leaves_the_rest_to_limit() -> None:
    assert without(DECODING, "read", "decode") == pytest.approx(1000 / 3.2)  # step and augmentation
    assert without(DECODING, "decode", "augment") == pytest.approx(1000 / 3.0)
    assert without(DECODING, "resize") == pytest.approx(1000 / 8.5)  # (1 + 16) s by two threads
    shared = replace(DECODING, device="cpu")  # all by the same two cores
    assert without(shared, "decode") == pytest.approx(100 * 19 / 3)


def test_a_step_that_shares_its_cores_with_decoding_gains_from_cached_pixels() -> None:
    shared = replace(DECODING, device="cpu", waiting=0.1, step=9.9, threads={"decode": 5.0}, cpu_seconds=20.0)
    assert find_limit(shared) == "step"
    assert "LOADER=streamed" in diagnose(shared).change  # of a CPU's memory, not all images whole are held
    assert diagnose(shared).expected == pytest.approx(100 * 20 / 15)


# --- slowed on purpose --------------------------------------------------------------------------


@pytest.fixture
def work(image_folder: Path) -> Iterator[Workload]:
    options = DataOptions(data=str(image_folder), root=image_folder, device="cpu", workers=2)
    with workload(options, "feature", loader="torchvision", size=32, batch_size=4, precision="fp32") as made:
        yield made


def slowed(function: Callable[..., Any], seconds: float) -> Callable[..., Any]:
    def slow(*given: Any, **named: Any) -> Any:
        time.sleep(seconds)
        return function(*given, **named)

    return slow


def quick_step(*_: object) -> None:
    with stage("forward"):
        pass


def diagnosed(work: Workload) -> tuple[str, str]:
    batches = endless(work.session.image_loader)
    time_steps(work, batches, 3)
    recorded = record_steps(work, batches, 6)
    diagnosis = diagnose(measured_of(recorded, work, probe(Candidate("", "alone", lambda: batches), 0.01)))
    return diagnosis.limit, diagnosis.sentence


def test_a_sleep_in_decoding(work: Workload, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Learner, "step", quick_step)
    monkeypatch.setattr(simplejpeg, "decode_jpeg", slowed(simplejpeg.decode_jpeg, 0.02))
    limit, sentence = diagnosed(work)
    assert limit == "decode"
    assert sentence.startswith("decoding limits")
    assert "LOADER=" in sentence


def test_a_slow_read(work: Workload, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Learner, "step", quick_step)
    monkeypatch.setattr(ImageFiles, "read", slowed(ImageFiles.read, 0.02))
    limit, sentence = diagnosed(work)
    assert limit == "read"
    assert sentence.startswith("reading files limits")


def test_a_throttled_copy(work: Workload, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Learner, "step", quick_step)
    monkeypatch.setattr(ThreadedExecutor, "_deliver", stage("copy")(slowed(ThreadedExecutor._deliver, 0.1)))
    limit, sentence = diagnosed(work)
    assert limit == "copy"
    assert sentence.startswith("copying to the device limits")


def test_a_slow_step(work: Workload, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Learner, "_logits", slowed(Learner._logits, 0.2))
    limit, sentence = diagnosed(work)
    assert limit == "step"
    assert sentence.startswith("the step limits")
