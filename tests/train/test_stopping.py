"""Signals: in which phase of a run they do what."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from train import prepare
from train.__main__ import main
from train.features import FeatureCache
from train.learner import Learner
from train.loop import TrainingLoop
from train.run_folder import LAST, RunFolder
from train.stopping import SIGNALS, InterruptedStartError, StopRequest

pytestmark = pytest.mark.usefixtures("small_runs")

REQUESTS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2]
PREPARING = ["choose_device", "_open_sources", "_build_model", "_image_loaders", "_prepare_loaders", "_begin_or_resume"]


def arguments(data: Path, out: Path, *more: str, mode: str = "finetune") -> list[str]:
    small = ["--size", "32", "--batch-size", "4", "--precision", "fp32", "--epochs", "1", "--device", "cpu"]
    return [mode, "--data", str(data), "--out", str(out), "--weights", "none", *small, *more]


@pytest.fixture(autouse=True)
def _survives_signals() -> Iterator[None]:
    """A signal that nobody hears would end the tests."""

    def unheard(number: int, _: object) -> None:
        raise AssertionError(f"{signal.Signals(number).name} was not heard")

    before = {number: signal.signal(number, unheard) for number in REQUESTS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def signalled(patch: pytest.MonkeyPatch, owner: object, name: str, number: signal.Signals) -> None:
    """The first call of a function begins with a signal."""
    original = getattr(owner, name)
    sent: list[None] = []

    def interrupted(*given: Any, **named: Any) -> object:
        if not sent:
            sent.append(None)
            os.kill(os.getpid(), number)
        return original(*given, **named)

    patch.setattr(owner, name, interrupted)


@pytest.mark.parametrize(("number", "phase"), [*zip([*REQUESTS, signal.SIGTERM], PREPARING, strict=True)])
def test_before_the_first_step_a_signal_ends_the_run_and_says_that_nothing_was_saved(
    image_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
    phase: str,
) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        signalled(patch, prepare, phase, number)
        assert main(arguments(image_folder, out)) == 128 + number
    said = capsys.readouterr().err
    assert f"{number.name}: ended before the first step. Nothing was saved" in said
    assert "Traceback" not in said
    assert not out.exists()
    assert main(arguments(image_folder, out)) == 0


@pytest.mark.parametrize(
    ("number", "owner", "name", "more"),
    [
        (signal.SIGHUP, FeatureCache, "compute", ("--views", "2")),
        (signal.SIGINT, Learner, "step", ()),
        (signal.SIGTERM, Learner, "step", ()),
        (signal.SIGUSR1, Learner, "step", ()),
        (signal.SIGUSR2, TrainingLoop, "_validate", ()),
    ],
)
def test_from_training_on_every_signal_saves_and_stops(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, owner: type, name: str,
    more: tuple[str, ...],
) -> None:  # fmt: skip
    given = arguments(image_folder, tmp_path / "run", *more, mode="feature")
    with monkeypatch.context() as patch:
        signalled(patch, owner, name, number)
        assert main(given) == 128 + number
    assert (tmp_path / "run" / LAST).is_file()
    assert main([*given, "--resume"]) == 0


@pytest.mark.parametrize("name", ["save", "draw_curves", "save_model"])
def test_a_signal_while_the_last_epoch_is_saved_lets_the_run_finish(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    signalled(monkeypatch, RunFolder, name, signal.SIGUSR2)
    assert main(arguments(image_folder, tmp_path / "run")) == 0
    assert (tmp_path / "run" / "summary.json").is_file()


def test_a_second_ctrl_c_interrupts_at_once() -> None:
    stop = StopRequest()
    stop.begin_training()
    with stop.listening():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGUSR1)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert stop.signal == signal.SIGTERM


def test_handlers_are_put_back_and_what_is_ignored_stays_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as `nohup` does
    before = [signal.getsignal(number) for number in SIGNALS]
    stop = StopRequest()
    with stop.listening():
        os.kill(os.getpid(), signal.SIGHUP)
        with stop.listening():
            pass
        with pytest.raises(InterruptedStartError):
            os.kill(os.getpid(), signal.SIGTERM)
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_a_run_in_a_thread_trains_and_leaves_signals_alone(image_folder: Path, tmp_path: Path) -> None:
    codes: list[int] = []
    before = [signal.getsignal(number) for number in SIGNALS]
    thread = threading.Thread(target=lambda: codes.append(main(arguments(image_folder, tmp_path / "run"))))
    thread.start()
    thread.join()
    assert codes == [0]
    assert [signal.getsignal(number) for number in SIGNALS] == before


def _wait(started: Connection) -> None:
    started.send(None)
    threading.Event().wait(60)


def test_a_forked_child_ends_by_signals_as_if_nobody_listened() -> None:
    stop = StopRequest()
    stop.begin_training()
    with stop.listening():
        here, there = multiprocessing.Pipe()
        child = multiprocessing.get_context("fork").Process(target=_wait, args=(there,))
        child.start()
        here.recv()
        child.terminate()
        child.join(30)
    assert child.exitcode == -signal.SIGTERM
