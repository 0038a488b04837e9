"""What this process may use of the machine it runs on."""

import os
import re
import shutil
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from threadpoolctl import ThreadpoolController

if TYPE_CHECKING:  # torch is imported where it is needed: programs ask for cores and folders before they need it
    import torch

SHARED_MEMORY = Path("/dev/shm")
_CGROUPS = Path("/sys/fs/cgroup")
_MEMBERSHIPS = Path("/proc/self/cgroup")


def usable_cores(cgroups: Path = _CGROUPS, memberships: Path = _MEMBERSHIPS) -> int:
    """CPU cores this process may use: its affinity, and no more than its cgroups' quotas, at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = map(_quota, _groups("cpu", cgroups, memberships))
    return max(1, min([cores, *(int(quota) for quota in quotas if quota is not None)]))


def compute_on_one_core() -> None:
    """Lets torch use no more threads than the calling one, for what this one asks of it.

    Where threads share the cores already, each operation's own threads wait for each other: loading photographs
    with two workers on two cores was 12 % slower so.
    """
    import torch

    torch.get_num_threads()  # sets the thread's number, once; what is set before that is lost
    ThreadpoolController().select(user_api="openmp").limit(limits=1)


def can_compile() -> bool:
    """Whether there are a C compiler and Python's headers, which torch's compiler and Triton want."""
    header = Path(sysconfig.get_path("include")) / "Python.h"
    return header.exists() and any(map(shutil.which, filter(None, (os.environ.get("CC"), "cc", "gcc", "clang"))))


def _groups(controller: str, cgroups: Path, memberships: Path) -> Iterator[Path]:
    """The control groups this process is in, each with those above it: what any of them allows holds for it.

    Of version 2 and of version 1, as far as they can be seen: in a container that is its own as the root.
    """
    yield from (cgroups, cgroups / controller)
    with suppress(OSError, ValueError):
        for line in memberships.read_text().splitlines():
            _, controllers, own = line.split(":", 2)
            if controller in controllers.split(",") or not controllers:
                root = cgroups / controller if controllers else cgroups
                below = Path(own.strip("/"))
                yield from (root / path for path in (below, *below.parents) if path != Path("."))


def _quota(group: Path) -> float | None:
    """Cores' worth of time that a control group has; None where that is not limited."""
    try:
        quota, period = (group / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        pass
    try:
        allowed = int((group / "cpu.cfs_quota_us").read_text())
        return allowed / int((group / "cpu.cfs_period_us").read_text()) if allowed > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None


def free_memory(device: "torch.device", cgroups: Path = _CGROUPS, memberships: Path = _MEMBERSHIPS) -> int:
    """Bytes that can still be had on the device; of a CPU's memory no more than the cgroups allow.

    Files that are kept in memory count as free, as they go where memory is wanted; so does what torch keeps of a GPU's.
    """
    if device.type == "cuda":
        import torch

        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    available = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    free = 1024 * int(available[1]) if available else os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for group in _groups("memory", cgroups, memberships):
        for limit, used in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            with suppress(OSError, ValueError):  # no such file, or "max"
                held = int((group / used).read_text()) - _bytes_of_files(group)
                free = min(free, int((group / limit).read_text()) - held)
    return max(0, free)


def _bytes_of_files(group: Path) -> int:
    """What a control group's memory holds of files; 0 where that is not told."""
    try:
        counts = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return 0
    return sum(int(counts.get(f"total_{name}", counts.get(name, 0))) for name in ("active_file", "inactive_file"))


def free_on_disk(folder: Path) -> int:
    """Bytes that can still be written where a folder lies, or is to be made."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def format_bytes(count: float) -> str:
    """For people: 12 kB, 184 MB, 1.2 GB, 78 GB."""
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.{1 if count < 10 * size else 0}f} {unit}"
    return f"{count / 1e3:.0f} kB"


def cache_folder() -> Path:
    """Where what can be made again is kept: `$SATURATE_CACHE`, else `saturate` in `$XDG_CACHE_HOME` or `~/.cache`."""
    if chosen := os.environ.get("SATURATE_CACHE"):
        return Path(chosen)
    if chosen := os.environ.get("XDG_CACHE_HOME"):
        return Path(chosen) / "saturate"
    try:
        return Path.home() / ".cache" / "saturate"
    except RuntimeError:  # a user without a home, as in some containers
        return Path(tempfile.gettempdir()) / "saturate"
