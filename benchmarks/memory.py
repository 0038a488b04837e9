"""How much memory a piece of work takes, of this process, its workers and the GPU."""

import re
from multiprocessing import active_children
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

from benchmarks.watching import Watch


class MemoryWatch(Watch):
    """Looks at the memory in use within a `with` block."""

    seconds_between_looks = 0.05

    risen: int | None = None
    """By how many bytes it rose above what it was at the beginning, at most; None where the system does not tell."""

    def __enter__(self) -> Self:
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()  # what torch keeps of work that is over would serve this one, and not be seen
        self._before, self._most = memory_in_use(), 0
        return super().__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        now = memory_in_use()
        if self._before is not None and now is not None:
            self.risen = max(0, max(self._most, now) - self._before)

    def _look(self) -> None:
        for _ in self._looks():
            self._most = max(self._most, memory_in_use() or 0)


def memory_in_use() -> int | None:
    """Bytes of this process and its workers, pages they share counted once, and of the GPU; None if not told."""
    pids = ["self", *(str(child.pid) for child in active_children())]
    host = [_proportional_bytes(Path(f"/proc/{pid}/smaps_rollup")) for pid in pids]
    if host[0] is None:
        return None
    on_gpu = 0
    if torch.cuda.is_initialized():
        free, total = torch.cuda.mem_get_info()
        on_gpu = total - free
    return sum(part or 0 for part in host) + on_gpu


def _proportional_bytes(file: Path) -> int | None:
    """PSS: what is shared by n processes counts 1/n for each."""
    try:
        found = re.search(r"^Pss:\s+(\d+) kB", file.read_text(), re.MULTILINE)
    except OSError:  # it is over, or the system has no such file
        return None
    return 1024 * int(found[1]) if found else None
