"""How much memory a piece of work takes, of this process, its workers and the GPU."""

import re
from multiprocessing import active_children
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

from benchmarks.harness.poller import Poller


class MemoryPoller(Poller):
    """Measures by how much the memory in use rises within a `with` block."""

    seconds_between_polls = 0.05

    risen: int | None = None
    """Bytes between the largest use within the block and the use at its beginning; None where the system does not
    report them."""

    def __enter__(self) -> Self:
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()  # else this work would be served, unseen, from what torch caches of earlier work
        self._before, self._most = memory_in_use(), 0
        return super().__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        now = memory_in_use()
        if self._before is not None and now is not None:
            self.risen = max(0, max(self._most, now) - self._before)

    def _run(self) -> None:
        for _ in self._ticks():
            self._most = max(self._most, memory_in_use() or 0)


def memory_in_use() -> int | None:
    """Bytes of this process and its workers, pages they share counted once, and of the GPU; None if not reported."""
    pids = ["self", *(str(child.pid) for child in active_children())]
    host = [_proportional_bytes(Path(f"/proc/{pid}/smaps_rollup")) for pid in pids]
    if host[0] is None:
        return None
    on_gpu = 0
    if torch.cuda.is_initialized():
        free, total = torch.cuda.mem_get_info()
        on_gpu = total - free
    return sum(size or 0 for size in host) + on_gpu


def _proportional_bytes(file: Path) -> int | None:
    """PSS: what n processes share counts 1/n for each."""
    try:
        found = re.search(r"^Pss:\s+(\d+) kB", file.read_text(), re.MULTILINE)
    except OSError:  # the process has ended, or the system has no such file
        return None
    return 1024 * int(found[1]) if found else None
