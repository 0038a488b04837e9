"""Measuring: turns, windows, ratios; and the whole command on a few images."""

import gc
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks import arms as arming
from benchmarks import loader_rates
from benchmarks import measure as measuring
from benchmarks import parts as parting
from benchmarks.__main__ import MEASURED, main
from benchmarks.arms import (
    BASELINE,
    CACHED,
    FINISHED,
    TUNED,
    UINT8,
    UINT8_BASELINE,
    UINT8_TUNED,
    Task,
    compared,
    long_epochs,
    lying_ready,
    once,
    ordinary,
    ours,
    tuning,
)
from benchmarks.measure import Candidate, Found, Window, measure, rows
from benchmarks.memory import MemoryWatch
from benchmarks.parts import GATHER, PARTS, parts
from benchmarks.report import table
from benchmarks.rivals import rivals, torchvision_v2
from loaders import LoaderConfig, Source, build_loader, open_data
from loaders.backends import host
from loaders.sources import PixelArray
from loaders.system.instrument import Recorder, recording
from tests.loaders.test_loader import numbered


class Clock:
    """Time that only those who work or wait let pass; who works burns two cores."""

    now = burnt = 0.0
    left = 0.0
    """Seconds of work that threads of an arm have still to do when its turn is over."""

    def perf_counter(self) -> float:
        return self.now

    def process_time(self) -> float:
        return self.burnt

    def sleep(self, seconds: float) -> None:
        done = min(self.left, seconds)
        self.now, self.burnt, self.left = self.now + seconds, self.burnt + done, self.left - done

    def work(self, seconds: float) -> None:
        self.sleep(seconds)
        self.burnt += 2 * seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(measuring, "time", clock)
    return clock


def working(clock: Clock, cost: float, order: list[str], name: str) -> Candidate:
    """Batches of four images, each of which takes `cost` seconds."""

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            clock.work(4 * cost)
            order.append(name)
            yield torch.zeros(4, 1), torch.zeros(4)

    return Candidate("work", name, batches)


def test_arms_take_turns_and_their_rates_are_what_they_work(clock: Clock) -> None:
    order: list[str] = []
    arms = [working(clock, 1 / 100, order, "slow"), working(clock, 1 / 400, order, "fast")]
    told: list[tuple[int, int, str]] = []
    known: list[int] = []
    found = measure(
        arms,
        windows=3,
        seconds=2.0,
        tell=lambda *given: told.append(given),
        after=lambda so_far: known.extend(len(one.windows) for one in so_far.values()),
    )
    assert known == [1, 1, 2, 2]
    turns = [name for place, name in enumerate(order) if place == 0 or order[place - 1] != name]
    assert turns == ["slow", "fast"] * 4  # the first of them to warm up
    assert [done for done, _, _ in told] == list(range(8))
    assert [window.rate for window in found["slow"].windows] == pytest.approx([100] * 3)
    assert [window.rate for window in found["fast"].windows] == pytest.approx([400] * 3)
    slow, fast = rows(arms, found, baseline="slow")
    assert (slow["times_baseline"], fast["times_baseline"]) == pytest.approx((1, 4))
    assert slow["startup_seconds"] == pytest.approx(4 / 100)
    assert fast["images_per_core_second"] == pytest.approx(400 / 2)
    assert fast["cpu_seconds_per_1000"] == pytest.approx(2 * 1000 / 400)
    assert not fast["noisy"]


def test_what_lay_ready_is_not_counted_and_an_epoch_is_measured_whole(clock: Clock) -> None:
    order: list[str] = []
    ready = Candidate("g", "ready", working(clock, 1 / 100, order, "ready").batches, ahead=3)
    whole = Candidate("g", "whole", working(clock, 1 / 100, order, "whole").batches, together=7)
    found = measure([ready, whole], windows=1, seconds=0.1)
    assert [window.images for window in found["ready"].windows] == [3 * 4]  # 0.04 s each
    # The first, the warming up of half a window, the window: each after what lay ready, and one that was waited for.
    assert order.count("ready") == 1 + (3 + 1 + 2) + (3 + 1 + 3)
    assert [window.images for window in found["whole"].windows] == [7 * 4]
    assert order.count("whole") == 3 * 7


def test_what_others_still_make_ahead_is_on_nobodys_account(clock: Clock) -> None:
    """A DataLoader's workers go on after its turn, on the cores of whoever comes next."""

    def leaving_work() -> Iterator[tuple[Tensor, Tensor]]:
        for batch in working(clock, 1 / 100, [], "ahead").batches():
            clock.left = 3.0
            yield batch

    arms = [Candidate("g", "ahead", leaving_work), working(clock, 1 / 100, [], "alone")]
    found = measure(arms, windows=3, seconds=1.0)
    assert [window.cpu_seconds / window.seconds for window in found["alone"].windows] == pytest.approx([2.0] * 3)
    clock.left = 1e9  # who never rests is waited for no longer than a while
    measure(arms[1:], windows=1, seconds=1.0)


def test_no_collection_of_garbage_falls_into_a_window() -> None:
    """It would go through all that torch has imported, in whoever's turn it is; and it is as before afterwards."""
    seen: list[bool] = []

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            seen.append(gc.isenabled())
            yield torch.zeros(1), torch.zeros(1)

    measure([Candidate("g", "a", batches)], windows=1, seconds=0.001)
    assert set(seen) == {False}
    assert gc.isenabled()


def test_of_what_changes_by_being_done_a_window_has_no_more_than_one(clock: Clock) -> None:
    """A cold epoch, after which the next would be a warm one."""
    order: list[str] = []
    cold = Candidate("g", "cold", working(clock, 1 / 100, order, "cold").batches, together=7, once=True)
    found = measure([cold], windows=2, seconds=100.0)
    assert [window.images for window in found["cold"].windows] == [7 * 4] * 2
    assert found["cold"].windows[0].rate == pytest.approx(100)


def test_ratios_are_those_of_each_turn_and_a_wide_spread_is_marked() -> None:
    """A machine that slows down in the middle changes no ratio."""
    arms = [Candidate("g", "base", list), Candidate("g", "ours", list)]
    base = [Window(100, 1, 1), Window(50, 1, 1), Window(10, 1, 1)]
    ours = [Window(300, 1, 1), Window(150, 1, 1), Window(30, 1, 1)]
    _, row = rows(arms, {"base": Found(0, 0, base), "ours": Found(0, 0, ours)}, baseline="base")
    assert row["times_baseline"] == 3
    assert (row["low"], row["images_per_second"], row["high"]) == (30, 150, 300)
    assert row["noisy"]
    assert "noisy" in table([row])


def test_each_is_compared_with_the_ordinary_loader_that_hands_over_the_same() -> None:
    """To leave normalising to the device is less work: that is no merit of a loader's."""

    def row(group: str, name: str, *rates: float) -> dict[str, Any]:
        return {"group": group, "name": name, "windows": list(rates)}

    rows = compared(
        [
            row(FINISHED, BASELINE, 100, 50, 100),
            row(UINT8, UINT8_BASELINE, 200, 100, 200),
            row(FINISHED, f"{TUNED}4 workers", 400, 200, 400),
            row(FINISHED, "ours", 800, 400, 800),
            row(UINT8 + CACHED, "ours, uint8", 1600, 800, 1600),
            row(PARTS, "copy only", 1e6, 1e6, 1e6),
        ]
    )
    assert [row["times_baseline"] for row in rows] == [1, 1, 4, 8, 8, None]
    assert [row["times_tuned"] for row in rows] == [0.25, None, 1, 2, None, None]
    (tuned,) = [arm.name for arm in ordinary(task(numbered(4)), 3) if arm.name.startswith(UINT8_TUNED)]
    again = compared([*rows, row(UINT8, tuned, 400, 200, 400)])
    assert [row["times_tuned"] for row in again] == [0.25, 0.5, 1, 2, 4, None, 1]


def test_what_is_asked_for_comes_with_what_it_is_compared_with() -> None:
    ordinary_ones, others = ordinary(task(numbered(4)), 1), ours(task(numbered(4)))
    asked = {arm.name for arm in loader_rates.chosen(ordinary_ones, others, "torchvision")}
    assert {arm.name for arm in ordinary_ones} < asked
    finished = [arm for arm in others if arm.group == FINISHED]
    names = [arm.name for arm in loader_rates.chosen(ordinary_ones, finished, "torchvision")]
    assert names == [ordinary_ones[0].name, ordinary_ones[2].name, "torchvision"]


def test_short_sets_are_repeated_and_bad_images_left_out() -> None:
    source = numbered(10, bad=[3])
    long = long_epochs(source, 40)
    assert len(long) == 40
    assert set(long.labels.tolist()) == set(range(10)) - {3}
    assert not long.bad
    assert len(long_epochs(source, 4)) == 9


def test_what_is_repeated_is_found_once() -> None:
    long = long_epochs(numbered(10, bad=[3]), 40)
    images, places = once(long)
    assert sorted(images.labels.tolist()) == sorted(set(range(10)) - {3})
    np.testing.assert_array_equal(images.labels[places], long.labels)


@pytest.mark.parametrize("name", ["torchvision", "streamed", "resident", "baseline"])
def test_no_more_batches_lie_ready_than_is_said(name: str) -> None:
    given = task(numbered(16))
    config = LoaderConfig(spec=given.spec, training=True, batch_size=given.batch_size, workers=given.workers)
    with recording(Recorder()) as recorder:
        assert len(list(build_loader(given.source, config, loader=name))) == 8
    assert max((under_way for _, under_way in recorder.queue), default=0) == lying_ready(name, given)


def task(source: Source) -> Task:
    return Task(long_epochs(source, 64), 24, 8, torch.device("cpu"), torch.bfloat16, 2)


def test_every_arm_delivers_what_its_group_says(monkeypatch: pytest.MonkeyPatch) -> None:
    given = task(numbered(16))
    dtypes = {UINT8: {torch.uint8}, FINISHED: {torch.bfloat16, torch.float32}}
    arms = [*ordinary(given, 2), *torchvision_v2(given), *ours(given)]
    assert len({arm.name for arm in arms}) == len(arms) >= 8
    for group in (FINISHED, UINT8):
        assert [arm.group for arm in ordinary(given, 2)].count(group) == 2  # as it is, and tuned
    assert set(tuning(given)) == {1, 2, 4}
    assert tuning(given)[2].name in {arm.name for arm in arms}
    batches_ready = 2 * 8 * 3 * 24 * 24 * 4  # of a worker, in /dev/shm
    for room, counts in ((10, {1, 2, 3}), (3, {1}), (1, {0})):
        monkeypatch.setattr(arming, "free_on_disk", lambda _, room=room: room * batches_ready)
        assert set(tuning(given)) == counts
        assert sum(tuning(replace(given, workers=64))) <= room  # they are alive together
    arms += tuning(given).values()
    for arm in arms:
        batches = iter(arm.batches())
        for _ in range(2):
            images, labels = next(batches)
            assert images.shape == (8, 3, 24, 24)
            assert images.dtype in dtypes[arm.group]
            assert set(labels.tolist()) <= set(range(16))
        del batches


def test_torchvisions_arm_serves_every_kind_of_file(image_folder: Path) -> None:
    from PIL import Image

    from benchmarks.rivals import TorchvisionDataset
    from tests.conftest import smooth_image

    Image.fromarray(smooth_image(20, 30, 0)).convert("L").save(image_folder / "train" / "oak" / "grey.jpg")
    Image.fromarray(smooth_image(20, 30, 0)).convert("P").save(image_folder / "train" / "oak" / "palette.png")
    source, _ = open_data(str(image_folder), root=image_folder)
    dataset = TorchvisionDataset(task(source))
    assert {tuple(dataset[place][0].shape) for place in range(len(source))} == {(3, 24, 24)}


def test_each_part_does_only_its_own_work(image_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, _ = open_data(str(image_folder), root=image_folder)
    done: list[str] = []
    for module, name in ((host, "load_pixels"), (host, "antialiased")):
        monkeypatch.setattr(module, name, noting(done, name, getattr(module, name)))
    expected = {"decode": {"load_pixels"}, "resize": {"antialiased"}, "copy": set()}
    arms = parts(task(source))[:3]
    assert [arm.name.split()[0] for arm in arms] == list(expected)
    for arm in arms:
        done.clear()
        batches = iter(arm.batches())
        assert [len(next(batches)[1]) for _ in range(3)] == [8] * 3
        del batches  # its threads end
        assert set(done) == expected[arm.name.split()[0]]
    assert [arm.name.split()[0] for arm in parts(task(numbered(16)))] == ["resize", "copy"]


def test_one_part_decodes_whole_images(image_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, _ = open_data(str(image_folder), root=image_folder)
    shapes: list[tuple[int, ...]] = []
    load = parting.load_pixels

    def noted(*given: Any) -> Any:
        shapes.append((pixels := load(*given)).shape[:2])
        return pixels

    monkeypatch.setattr(parting, "load_pixels", noted)
    (arm,) = [arm for arm in parts(task(source)) if arm.name.startswith("decode whole")]
    next(iter(arm.batches()))
    assert set(shapes) <= set(map(tuple, source.sizes.tolist()))


def noting(done: list[str], name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def noted(*given: Any, **named: Any) -> Any:
        done.append(name)
        return function(*given, **named)

    return noted


def test_memory_that_was_taken_is_seen_and_what_was_there_is_not() -> None:
    held = np.ones(30_000_000, np.uint8)
    with MemoryWatch() as watch:
        taken = np.ones(400_000_000, np.uint8)
        del taken
        time.sleep(0.2)
        kept = np.ones(200_000_000, np.uint8)
    assert watch.risen is not None
    assert 150_000_000 < watch.risen < 450_000_000  # other tests may have left something to be given back
    assert len(held) + len(kept) == 230_000_000


def test_what_torch_keeps_of_a_gpus_memory_for_the_next_work_is_seen_as_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    free, kept = 50 << 30, 10 << 30

    def empty() -> None:
        nonlocal free, kept
        free, kept = free + kept, 0

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free, 80 << 30))
    monkeypatch.setattr(torch.cuda, "empty_cache", empty)
    with MemoryWatch() as watch:
        free -= 12 << 30  # 2 GB more than were kept
    assert watch.risen is not None
    assert watch.risen == pytest.approx(12 << 30, rel=0.1)


def test_the_command_prints_a_table_and_ends_with_the_json_it_writes(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["--size", "32", "--images", "64", "--batch-size", "4", "--windows", "2", "--seconds", "0.05"]
    given = ["loaders", "--data", str(image_folder), "--out", str(tmp_path / "out"), "--workers", "1", *small]
    assert main([*given, "--only", "torchvision", "--demand", "1000"]) == 0
    lines = capsys.readouterr().out.splitlines()
    result = json.loads(lines[-1])
    assert json.loads((tmp_path / "out" / "bench.json").read_text()) == result
    assert {"theme", "environment", "options", "rows"} <= set(result)
    names = [row["name"] for row in result["rows"]]
    assert BASELINE in names
    assert {"torchvision", "torchvision, uint8", "torchvision, uint8, scaled decoding"} < set(names)
    assert "resident" not in names
    tuned = max(result["tuning"], key=result["tuning"].__getitem__)
    assert any(name.startswith("tuned baseline") and f" {tuned} worker" in name for name in names)
    for row in result["rows"]:
        assert row["low"] <= row["images_per_second"] <= row["high"]
        assert row["cores_per_gpu"] == pytest.approx(row["cpu_seconds_per_1000"])  # of 1,000 images/s
        assert any(row["name"] in line for line in lines[:-1])
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"bench.json", "report.html", "bench.png"}


def test_loaders_of_images_too_small_to_train_on_are_measured_all_the_same(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loader_rates, "tune", lambda *_: (1, {1: 1.0}))
    small = ["--size", "16", "--images", "16", "--batch-size", "4", "--windows", "2", "--seconds", "0.01"]
    given = ["loaders", "--data", str(image_folder), "--out", str(tmp_path / "out"), "--workers", "1", *small]
    assert main([*given, "--only", BASELINE]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert len(result["rows"]) == 2
    assert "--size 16: a ResNet needs 32 pixels or more" in result["notes"][-1]


def test_data_that_are_not_there_are_an_error_and_no_trace(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["loaders", "--data", "/no/such/folder"]) == 2
    assert capsys.readouterr().err.startswith("error: DATA: there is no folder or CSV file /no/such/folder")


def test_a_result_that_is_there_already_is_not_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bench.json").write_text("{}")
    for theme in MEASURED:
        assert main([theme, "--out", str(tmp_path)]) == 2
        assert capsys.readouterr().err.startswith(f"error: {tmp_path} holds another result: choose another OUT")
    assert (tmp_path / "bench.json").read_text() == "{}"


@pytest.mark.parametrize("theme", ["loaders", "saturation"])
def test_only_what_is_not_there_is_refused_and_what_is_there_told(
    image_folder: Path, capsys: pytest.CaptureFixture[str], theme: str
) -> None:
    assert main([theme, "--data", str(image_folder), "--only", "torchvison", "--device", "cpu"]) == 2
    assert re.match(r"error: --only torchvison: .* there are .*torchvision", capsys.readouterr().err)


def test_a_package_that_the_interpreter_lacks_is_named() -> None:
    lacking = "import runpy, sys; sys.modules['tyro'] = None; runpy.run_module('benchmarks', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", lacking], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.split("; ")[0]) == (2, f"error: {sys.executable} has no tyro")


def test_pixels_in_memory_and_numbers_of_them_are_what_they_were() -> None:
    source = numbered(5)
    long = long_epochs(source, 12)
    assert isinstance(long.images, PixelArray)
    assert isinstance(source.images, PixelArray)
    for place in range(12):
        np.testing.assert_array_equal(long.images.pixels[place], source.images.pixels[long.labels[place]])


@pytest.mark.needs_ffcv
@pytest.mark.needs_dali
@pytest.mark.filterwarnings("ignore")  # of FFCV's and DALI's own
def test_rivals_deliver_uint8_batches_of_their_own(image_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ffcv.pipeline.compiler import Compiler

    source, _ = open_data(str(image_folder), root=image_folder)
    names = [arm.name for arm in rivals(task(source))]
    assert {"FFCV, its own way", "FFCV, its own way, raw at 256 px", "DALI, its own way"} < set(names)
    for given, compiles in ((task(source), False), (task(numbered(16)), True)):  # all compiled takes a minute
        monkeypatch.setattr(Compiler, "is_enabled", compiles)
        for arm in rivals(given):
            images, labels = next(iter(arm.batches()))
            assert images.shape == (8, 3, 24, 24)
            assert images.dtype == torch.uint8
            assert labels.numel() == 8


def test_parts_of_the_pixel_cache_are_measured_too(image_folder: Path) -> None:
    source, _ = open_data(str(image_folder), root=image_folder)
    arms = {arm.name: arm for arm in parts(task(source))}
    for name in (GATHER, "copy as many bytes as lie there, one thread"):
        assert len(next(iter(arms[name].batches()))[1]) == 8
    assert len(next(iter(arms["build the pixel cache, 2 threads"].batches()))[1]) == 64
