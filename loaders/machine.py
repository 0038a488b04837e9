"""What this process may use of the machine it runs on."""

import os
import re
import shutil
import sysconfig
import tempfile
from contextlib import suppress
from pathlib import Path

import torch
from threadpoolctl import ThreadpoolController

_CGROUP = Path("/sys/fs/cgroup")


def usable_cores(cgroup: Path = _CGROUP) -> int:
    """CPU cores this process may use: its affinity, and no more than its cgroup's quota, at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cgroup_quota(cgroup)
    return cores if quota is None else max(1, min(cores, int(quota)))


def compute_on_one_core() -> None:
    """Lets torch use no more threads than the calling one, for what this one asks of it.

    Where threads share the cores already, each operation's own threads wait for each other: loading photographs
    with two workers on two cores was 12 % slower so.
    """
    torch.get_num_threads()  # sets the thread's number, once; what is set before that is lost
    ThreadpoolController().select(user_api="openmp").limit(limits=1)


def can_compile() -> bool:
    """Whether there are a C compiler and Python's headers, which torch's compiler and Triton want."""
    header = Path(sysconfig.get_path("include")) / "Python.h"
    return header.exists() and any(map(shutil.which, filter(None, (os.environ.get("CC"), "cc", "gcc", "clang"))))


def _cgroup_quota(cgroup: Path) -> float | None:
    """Cores' worth of time by the cgroup's quota (version 2, then 1); None where there is no limit."""
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        pass
    try:
        allowed = int((cgroup / "cpu/cpu.cfs_quota_us").read_text())
        return allowed / int((cgroup / "cpu/cpu.cfs_period_us").read_text()) if allowed > 0 else None
    except (OSError, ValueError):
        return None


def free_memory(device: torch.device, cgroup: Path = _CGROUP) -> int:
    """Bytes that can still be had on the device; of a CPU's memory no more than its cgroup allows."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    available = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    free = 1024 * int(available[1]) if available else os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        with suppress(OSError, ValueError):  # no such file, or "max"
            free = min(free, int((cgroup / limit).read_text()) - int((cgroup / used).read_text()))
    return max(0, free)


def free_on_disk(folder: Path) -> int:
    """Bytes that can still be written where a folder lies, or is to be made."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def told_bytes(count: float) -> str:
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
