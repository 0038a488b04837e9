"""Reasons to stop before the last epoch: a signal, or the time allowed."""

import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""What asks a run to stop: Ctrl-C, what schedulers send before they kill, a terminal that is closed, and the warnings
that Slurm's `--signal` sends before the time is over."""


class InterruptedRunError(BaseException):
    """A signal stopped the run. No `except Exception` takes it for an error of what it interrupts."""

    def __init__(self, received: signal.Signals) -> None:
        super().__init__(received.name)
        self.exit_code = 128 + received


class InterruptedStartError(InterruptedRunError):
    """A signal stopped the run before its first step: there was nothing to save."""

    def __init__(self, received: signal.Signals) -> None:
        super().__init__(received)
        self.args = (f"{received.name}: ended before the first step. Nothing was saved, and what was is untouched.",)


class StopRequest:
    """Whether the run has been asked to stop.

    Before training a signal ends the run at once. In training it is read between steps, so that what is saved is
    consistent; a second Ctrl-C interrupts at once.
    """

    def __init__(self, max_minutes: float | None = None) -> None:
        """`max_minutes`: the time allowed for the run, from now on; unlimited, unless given."""
        self.signal: signal.Signals | None = None
        """The first signal that was received in training."""
        self.max_minutes = math.inf if max_minutes is None else max_minutes
        self._deadline = time.monotonic() + 60 * self.max_minutes
        self._training = False
        self._process = os.getpid()

    @property
    def out_of_time(self) -> bool:
        """Whether the time allowed is over."""
        return time.monotonic() > self._deadline

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Takes `SIGNALS` as requests within the block. Blocks may be nested.

        Only a program's main thread can do so; in another one, as in a notebook, signals do what they did before.
        Ignored signals stay ignored: `nohup` asks for that.
        """
        before: dict[signal.Signals, object] = {}
        if threading.current_thread() is threading.main_thread():
            handlers = {number: signal.getsignal(number) for number in SIGNALS}
            before = {number: it for number, it in handlers.items() if it not in (None, signal.SIG_IGN)}
        for number in before:
            signal.signal(number, self._receive)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)  # type: ignore[arg-type]

    def begin_training(self) -> None:
        """From now on there is something to save: signals are only noted."""
        self._training = True

    def _receive(self, number: int, _: FrameType | None) -> None:
        received = signal.Signals(number)
        if os.getpid() != self._process:  # a forked child has no run to save
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif not self._training:
            raise InterruptedStartError(received)
        elif self.signal is None:
            self.signal = received
            # os.write instead of print: the signal may have arrived in the middle of a print.
            os.write(2, f"\n{received.name}: saving after this step; Ctrl-C again to quit at once\n".encode())
        elif received == signal.SIGINT:
            raise KeyboardInterrupt
