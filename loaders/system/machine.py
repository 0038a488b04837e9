"""Resources of the machine that this process may use: cores, memory, disk, folders."""

import os
import re
import shutil
import stat
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from threadpoolctl import ThreadpoolController

from loaders.errors import InputError

if TYPE_CHECKING:  # torch is imported where it is needed: programs ask for cores and folders without it
    import torch

SHARED_MEMORY = Path("/dev/shm")
_CGROUPS = Path("/sys/fs/cgroup")
_MEMBERSHIPS = Path("/proc/self/cgroup")


def usable_cores(cgroups: Path = _CGROUPS, memberships: Path = _MEMBERSHIPS) -> int:
    """The number of CPU cores this process may use, at least 1: its affinity, limited by the quotas of its cgroups."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = map(_quota, _groups("cpu", cgroups, memberships))
    return max(1, min([cores, *(int(quota) for quota in quotas if quota is not None)]))


def compute_on_one_core() -> None:
    """Limits torch to one thread per operation, for operations that the calling thread starts.

    Where a pool of threads uses all cores already, the threads of each operation wait for one another: loading
    photographs with two workers on two cores was 12 % slower without this limit.
    """
    import torch

    torch.get_num_threads()  # its first call in a thread initializes the thread's limit and overwrites an earlier one
    ThreadpoolController().select(user_api="openmp").limit(limits=1)


def can_compile() -> bool:
    """Whether there are a C compiler and Python's headers, which torch.compile and Triton need."""
    header = Path(sysconfig.get_path("include")) / "Python.h"
    return header.exists() and any(map(shutil.which, filter(None, (os.environ.get("CC"), "cc", "gcc", "clang"))))


def _groups(controller: str, cgroups: Path, memberships: Path) -> Iterator[Path]:
    """Folders of the cgroups that this process belongs to, with their ancestors: the limits of all of them apply.

    Covers cgroups of versions 1 and 2 as far as they are visible; a container sees its own cgroup as the root.
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
    """The CPU quota of a cgroup in cores; None where there is no limit."""
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
    """Bytes that can still be allocated on the device; for the CPU within the limits of the cgroups.

    The page cache counts as free, because the system drops it when memory is needed. On a GPU, so does the memory that
    torch has reserved and not allocated.
    """
    if device.type == "cuda":
        import torch

        unallocated = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unallocated
    available = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    free = 1024 * int(available[1]) if available else os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for group in _groups("memory", cgroups, memberships):
        for limit, used in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            with suppress(OSError, ValueError):  # no such file, or "max"
                occupied = int((group / used).read_text()) - _page_cache(group)
                free = min(free, int((group / limit).read_text()) - occupied)
    return max(0, free)


def _page_cache(group: Path) -> int:
    """Bytes of the page cache that count as a cgroup's memory; 0 where the cgroup does not report them."""
    try:
        counts = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return 0
    return sum(int(counts.get(f"total_{name}", counts.get(name, 0))) for name in ("active_file", "inactive_file"))


def free_on_disk(folder: Path) -> int:
    """Free bytes of the file system that `folder` is on, or will be on once it is created."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def cache_folder() -> Path:
    """The folder of all caches: `$SATURATE_CACHE`, else `saturate` in `$XDG_CACHE_HOME` or `~/.cache`.

    A user without a home has a private folder in the shared temporary one.

    Raises:
        InputError: when that one belongs to somebody else, or others may write to it.
    """
    if chosen := os.environ.get("SATURATE_CACHE"):
        return Path(chosen)
    if chosen := os.environ.get("XDG_CACHE_HOME"):
        return Path(chosen) / "saturate"
    try:
        return Path.home() / ".cache" / "saturate"
    except RuntimeError:  # a user without a home, as in some containers
        return _private_folder(Path(tempfile.gettempdir()) / f"saturate-{os.geteuid()}")


def _private_folder(folder: Path) -> Path:
    """The same folder, made where it is missing. Compiled code is loaded from it: nobody else may put files there."""
    with suppress(OSError):  # there already, or it cannot be made, which whoever writes to it reports
        folder.mkdir(mode=0o700)
    try:
        found = folder.lstat()
    except FileNotFoundError:
        return folder
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise InputError(
            f"{folder} cannot hold caches: it must be a folder of yours that nobody else can open (mode 0700); "
            "SATURATE_CACHE names another place"
        )
    return folder
