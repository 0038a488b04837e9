"""Processes that train together: what they need of the machine."""

import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from loaders import InputError
from train.world import require_shared_memory

Usage = namedtuple("Usage", "total used free")


def test_too_little_shared_memory_for_several_gpus_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(64 << 20, 0, 64 << 20))  # a container's, as it comes
    require_shared_memory(1, tmp_path)
    require_shared_memory(4, tmp_path)
    with pytest.raises(InputError, match=rf"NGPU=8: {tmp_path} has 67 MB free.* 134 MB: .*--shm-size=1g"):
        require_shared_memory(8, tmp_path)
    monkeypatch.setenv("NCCL_SHM_DISABLE", "1")
    require_shared_memory(8, tmp_path)


def test_a_machine_without_shared_memory_is_left_to_nccl(tmp_path: Path) -> None:
    require_shared_memory(8, tmp_path / "nowhere")
