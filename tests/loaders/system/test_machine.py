"""Cores, memory and folders that this process may use."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from loaders.errors import InputError
from loaders.system.machine import cache_folder, free_memory, usable_cores

V1_QUOTA, V1_PERIOD = "cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"


def write(folder: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 8),
        ({"cpu.max": "max 100000\n"}, 8),
        ({"cpu.max": "300000 100000\n"}, 3),
        ({"cpu.max": "250000 100000\n"}, 2),
        ({"cpu.max": "20000 100000\n"}, 1),
        ({"cpu.max": "6400000 100000\n"}, 8),
        ({"cpu.max": "150000 50000\n"}, 3),
        ({"cpu.max": "not a quota\n"}, 8),
        ({"cpu.max": "100000 0\n"}, 8),
        ({V1_QUOTA: "-1\n", V1_PERIOD: "100000\n"}, 8),
        ({V1_QUOTA: "400000\n", V1_PERIOD: "100000\n"}, 4),
        ({V1_QUOTA: "50000\n", V1_PERIOD: "100000\n"}, 1),
        ({V1_QUOTA: "400000\n"}, 8),
        ({V1_QUOTA: "400000\n", V1_PERIOD: "0\n"}, 8),
        ({"cpu.max": "200000 100000\n", V1_QUOTA: "400000\n", V1_PERIOD: "100000\n"}, 2),
    ],
)
def test_cores_are_those_of_the_affinity_within_the_cgroups_quota(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], cores: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    write(tmp_path, files)
    assert usable_cores(tmp_path, tmp_path / "none") == cores


@pytest.mark.parametrize(
    ("memberships", "files", "cores"),
    [
        ("0::/slurm/job_7\n", {"slurm/job_7/cpu.max": "300000 100000\n"}, 3),
        ("0::/slurm/job_7\n", {"slurm/job_7/cpu.max": "max 100000\n", "slurm/cpu.max": "200000 100000\n"}, 2),
        ("0::/slurm/job_7\n", {"slurm/job_8/cpu.max": "100000 100000\n"}, 8),
        ("0::/\n", {"cpu.max": "500000 100000\n"}, 5),
        ("no group\n", {"cpu.max": "500000 100000\n"}, 5),
        (
            "4:memory:/a\n3:cpu,cpuacct:/job\n0::/\n",
            {"cpu/job/cpu.cfs_quota_us": "400000\n", "cpu/job/cpu.cfs_period_us": "100000\n"},
            4,
        ),
    ],
)
def test_the_limits_of_a_processs_own_cgroups_and_of_their_ancestors_apply(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memberships: str, files: dict[str, str], cores: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    write(tmp_path, files | {"own": memberships})
    assert usable_cores(tmp_path, tmp_path / "own") == cores


@pytest.mark.parametrize(
    ("memberships", "files", "free"),
    [
        ("0::/\n", {"memory.max": "5000\n", "memory.current": "2000\n", "memory.stat": "anon 1500\n"}, 3000),
        ("0::/\n", {"memory.max": "5000\n", "memory.current": "2000\n"}, 3000),
        (
            "0::/job\n",
            {
                "job/memory.max": "5000\n",
                "job/memory.current": "4900\n",
                "job/memory.stat": "anon 900\ninactive_file 1000\nactive_file 3000\n",
            },
            4100,
        ),
        (
            "8:pids:/\n4:memory:/job\n",
            {
                "memory/job/memory.limit_in_bytes": "7000\n",
                "memory/job/memory.usage_in_bytes": "7000\n",
                "memory/job/memory.stat": "inactive_file 1\ntotal_inactive_file 500\ntotal_active_file 1500\n",
            },
            2000,
        ),
        ("0::/\n", {"memory.max": "10\n", "memory.current": "20\n", "memory.stat": "anon 20\n"}, 0),
    ],
)
def test_free_memory_is_what_the_cgroups_leave_and_the_page_cache_counts_as_free(
    tmp_path: Path, memberships: str, files: dict[str, str], free: int
) -> None:
    write(tmp_path, files | {"own": memberships})
    assert free_memory(torch.device("cpu"), tmp_path, tmp_path / "own") == free


def test_without_a_cgroup_limit_the_systems_available_memory_counts(tmp_path: Path) -> None:
    write(tmp_path, {"memory.max": "max\n", "memory.current": "2000\n", "memory.stat": "anon 1\n"})
    assert free_memory(torch.device("cpu"), tmp_path, tmp_path / "none") > 1 << 20


def test_gpu_memory_that_torch_has_reserved_and_not_allocated_counts_as_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a second run in the same process would count the memory of the first one as occupied."""
    for name, value in {"mem_get_info": (10, 80), "memory_reserved": 60, "memory_allocated": 25}.items():
        monkeypatch.setattr(torch.cuda, name, lambda _, value=value: value)
    assert free_memory(torch.device("cuda")) == 45


def test_affinity_counts_not_the_machines_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 17, 40})
    assert usable_cores(tmp_path, tmp_path / "none") == 3


@pytest.mark.parametrize(("counted", "cores"), [(6, 6), (None, 1)])
def test_without_affinity_the_machines_cores_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counted: int | None, cores: int
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: counted)
    assert usable_cores(tmp_path, tmp_path / "none") == cores


@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        ({"SATURATE_CACHE": "/mine", "XDG_CACHE_HOME": "/xdg", "HOME": "/home/me"}, "/mine"),
        ({"XDG_CACHE_HOME": "/xdg", "HOME": "/home/me"}, "/xdg/saturate"),
        ({"HOME": "/home/me"}, "/home/me/.cache/saturate"),
        ({"SATURATE_CACHE": "", "XDG_CACHE_HOME": "", "HOME": "/home/me"}, "/home/me/.cache/saturate"),
    ],
)
def test_the_first_variable_that_is_set_names_the_cache_folder(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], folder: str
) -> None:
    for name in ("SATURATE_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cache_folder() == Path(folder)


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder of a user without a home, in a shared temporary folder that is empty."""

    def fail() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("SATURATE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", fail)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path / f"saturate-{os.geteuid()}"


def test_a_user_without_a_home_has_a_private_cache_folder(homeless: Path) -> None:
    """The name `saturate` in the shared temporary folder could be anybody's, and compiled code is loaded from there."""
    assert cache_folder() == cache_folder() == homeless
    assert homeless.stat().st_mode & 0o777 == 0o700
    assert homeless.stat().st_uid == os.geteuid()


def linked(folder: Path) -> None:
    folder.with_name("elsewhere").mkdir(mode=0o700)
    folder.symlink_to("elsewhere")


def opened_to_others(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o755)


@pytest.mark.parametrize("prepare", [opened_to_others, linked, lambda folder: folder.write_text("")])
def test_a_folder_that_others_may_have_filled_is_refused(homeless: Path, prepare: Callable[[Path], object]) -> None:
    prepare(homeless)
    with pytest.raises(InputError, match=r"saturate-\d+ cannot hold caches: .*mode 0700.*SATURATE_CACHE names another"):
        cache_folder()


def test_somebody_elses_folder_is_refused(homeless: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    me = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: me + 1)
    homeless.with_name(f"saturate-{me + 1}").mkdir(mode=0o700)  # made by us, in the name of another user
    with pytest.raises(InputError, match="it must be a folder of yours"):
        cache_folder()


def test_where_nothing_can_be_made_the_folder_is_still_named(homeless: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(homeless.parent / "missing"))
    assert cache_folder() == homeless.parent / "missing" / homeless.name
