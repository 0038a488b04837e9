"""Looking at something many times a second, beside the work that it is about."""

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from types import TracebackType
from typing import ClassVar, Self


class Watch(ABC):
    """Looks, in a thread of its own, within a `with` block."""

    seconds_between_looks: ClassVar[float]

    def __enter__(self) -> Self:
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, name=type(self).__name__, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    @abstractmethod
    def _look(self) -> None:
        """Looks as often as `_looks` yields; in the thread."""

    def _looks(self) -> Iterator[None]:
        while not self._over.wait(self.seconds_between_looks):
            yield
