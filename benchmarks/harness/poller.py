"""Polling something many times a second, beside the work that it is about."""

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from types import TracebackType
from typing import ClassVar, Self

_PAUSE = 20
"""Length of a pause in polls: to look at 2.4 GB of a process takes Linux 0.05 s, half a core's time at ten a second."""


class Poller(ABC):
    """Polls in a thread of its own within a `with` block; less often where a poll takes long."""

    seconds_between_polls: ClassVar[float]

    def __enter__(self) -> Self:
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name=type(self).__name__, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    @abstractmethod
    def _run(self) -> None:
        """Polls once for each item of `_ticks`; runs in the thread."""

    def _ticks(self) -> Iterator[None]:
        took = 0.0
        while not self._over.wait(max(self.seconds_between_polls, _PAUSE * took)):
            began = time.perf_counter()
            yield
            took = time.perf_counter() - began
