"""Reasons to stop before the last epoch: a signal, or the time allowed."""

import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class InterruptedRunError(Exception):
    """A signal stopped the run; its state has been saved."""

    def __init__(self, received: signal.Signals) -> None:
        super().__init__(received.name)
        self.exit_code = 128 + received


class StopRequest:
    """Whether the run has been asked to stop. It is read between steps, so that what is saved is consistent.

    A second Ctrl-C interrupts at once.
    """

    def __init__(self, max_minutes: float | None = None) -> None:
        """`max_minutes`: the time allowed for training, from now on; unlimited, unless given."""
        self.signal: signal.Signals | None = None
        self.max_minutes = math.inf if max_minutes is None else max_minutes
        self._deadline = time.monotonic() + 60 * self.max_minutes

    @property
    def out_of_time(self) -> bool:
        """Whether the time allowed is over."""
        return time.monotonic() > self._deadline

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Takes Ctrl-C and SIGTERM, which schedulers send before they kill, as requests within the block.

        Only the main thread may: in another one, a program that trains beside other work, signals stay what they were.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._receive) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _receive(self, number: int, _: FrameType | None) -> None:
        self.signal = signal.Signals(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        # os.write instead of print: the signal may have arrived in the middle of a print.
        os.write(2, f"\n{self.signal.name}: saving after this step; Ctrl-C again to quit at once\n".encode())
