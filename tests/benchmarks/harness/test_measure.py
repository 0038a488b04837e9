"""Measuring: turns, windows, ratios."""

import gc
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from benchmarks.harness import measure as measure_module
from benchmarks.harness.measure import Candidate, Measurement, Window, measure, rows_against
from benchmarks.report.terminal import table


class Clock:
    """Time that only those who work or wait let pass; who works burns two cores."""

    now = burnt = 0.0
    left = 0.0
    """Seconds of work that threads of a candidate have still to do when its turn is over."""

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
    monkeypatch.setattr(measure_module, "time", clock)
    return clock


def working(clock: Clock, cost: float, order: list[str], name: str) -> Candidate:
    """Batches of four images, each of which takes `cost` seconds."""

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            clock.work(4 * cost)
            order.append(name)
            yield torch.zeros(4, 1), torch.zeros(4)

    return Candidate("work", name, batches)


def test_candidates_take_turns_and_their_rates_are_what_they_work(clock: Clock) -> None:
    order: list[str] = []
    candidates = [working(clock, 1 / 100, order, "slow"), working(clock, 1 / 400, order, "fast")]
    reported: list[tuple[int, int, str]] = []
    known: list[int] = []
    measured = measure(
        candidates,
        windows=3,
        seconds=2.0,
        report_progress=lambda *given: reported.append(given),
        after_turn=lambda so_far: known.extend(len(one.windows) for one in so_far.values()),
    )
    assert known == [1, 1, 2, 2]
    turns = [name for place, name in enumerate(order) if place == 0 or order[place - 1] != name]
    assert turns == ["slow", "fast"] * 4  # the first of them to warm up
    assert [done for done, _, _ in reported] == list(range(8))
    assert [window.rate for window in measured["slow"].windows] == pytest.approx([100] * 3)
    assert [window.rate for window in measured["fast"].windows] == pytest.approx([400] * 3)
    slow, fast = rows_against(candidates, measured, baseline="slow")
    assert (slow.times_baseline, fast.times_baseline) == pytest.approx((1, 4))
    assert slow.startup_seconds == pytest.approx(4 / 100)
    assert fast.images_per_core_second == pytest.approx(400 / 2)
    assert fast.cpu_seconds_per_1000 == pytest.approx(2 * 1000 / 400)
    assert not fast.noisy


def test_what_lay_ready_is_not_counted_and_an_epoch_is_measured_whole(clock: Clock) -> None:
    order: list[str] = []
    ready = Candidate("g", "ready", working(clock, 1 / 100, order, "ready").batches, prefetched=3)
    whole = Candidate("g", "whole", working(clock, 1 / 100, order, "whole").batches, together=7)
    measured = measure([ready, whole], windows=1, seconds=0.1)
    assert [window.images for window in measured["ready"].windows] == [3 * 4]  # 0.04 s each
    # The first, the warming up of half a window, the window: each after what lay ready, and one that was waited for.
    assert order.count("ready") == 1 + (3 + 1 + 2) + (3 + 1 + 3)
    assert [window.images for window in measured["whole"].windows] == [7 * 4]
    assert order.count("whole") == 3 * 7


def test_what_others_still_make_ahead_is_on_nobodys_account(clock: Clock) -> None:
    """A DataLoader's workers go on after its turn, on the cores of whoever comes next."""

    def leaving_work() -> Iterator[tuple[Tensor, Tensor]]:
        for batch in working(clock, 1 / 100, [], "ahead").batches():
            clock.left = 3.0
            yield batch

    candidates = [Candidate("g", "ahead", leaving_work), working(clock, 1 / 100, [], "alone")]
    measured = measure(candidates, windows=3, seconds=1.0)
    assert [window.cpu_seconds / window.seconds for window in measured["alone"].windows] == pytest.approx([2.0] * 3)
    clock.left = 1e9  # who never rests is waited for no longer than a while
    measure(candidates[1:], windows=1, seconds=1.0)


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
    measured = measure([cold], windows=2, seconds=100.0)
    assert [window.images for window in measured["cold"].windows] == [7 * 4] * 2
    assert measured["cold"].windows[0].rate == pytest.approx(100)


def test_ratios_are_those_of_each_turn_and_a_wide_spread_is_marked() -> None:
    """A machine that slows down in the middle changes no ratio."""
    candidates = [Candidate("g", "base", list), Candidate("g", "ours", list)]
    base = [Window(100, 1, 1), Window(50, 1, 1), Window(10, 1, 1)]
    ours = [Window(300, 1, 1), Window(150, 1, 1), Window(30, 1, 1)]
    _, row = rows_against(
        candidates, {"base": Measurement(0, 0, base), "ours": Measurement(0, 0, ours)}, baseline="base"
    )
    assert row.times_baseline == 3
    assert (row.low, row.images_per_second, row.high) == (30, 150, 300)
    assert row.noisy
    assert any("noisy" in line for line in table([row]))
