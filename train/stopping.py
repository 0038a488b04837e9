"""Reasons to stop before the last epoch: a signal, or the time allowed."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequest:
    """Asked between steps, so that what is saved is whole. A second Ctrl-C interrupts at once."""

    def __init__(self, max_minutes: float | None = None) -> None:
        self.signal: signal.Signals | None = None
        self._deadline = None if max_minutes is None else time.monotonic() + 60 * max_minutes

    @property
    def out_of_time(self) -> bool:
        return self._deadline is not None and time.monotonic() > self._deadline

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM (what schedulers send before they kill) are taken as requests within the block."""
        before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        self.signal = signal.Signals(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        # Not by print: the signal may have come in the middle of one.
        os.write(2, f"\n{self.signal.name}: saving after this step; Ctrl-C again to quit at once\n".encode())
