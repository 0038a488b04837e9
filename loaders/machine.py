"""What this process may use of the machine it runs on."""

import os
import tempfile
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def usable_cores(cgroup: Path = _CGROUP) -> int:
    """CPU cores this process may use: its affinity, and no more than its cgroup's quota, at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cgroup_quota(cgroup)
    return cores if quota is None else max(1, min(cores, int(quota)))


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
