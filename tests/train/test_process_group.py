"""Processes that train together: what they need of the machine."""

import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from torch import distributed

from loaders import InputError
from train.process_group import joined_process_group, require_shared_memory

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


@pytest.mark.parametrize("use_cuda", [True, False])
def test_each_process_has_its_own_gpu_and_hosts_ask_each_other_without_it(
    monkeypatch: pytest.MonkeyPatch, use_cuda: bool
) -> None:
    given: dict[str, object] = {}
    for name, value in {"RANK": 1, "WORLD_SIZE": 2, "LOCAL_RANK": 1, "LOCAL_WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("NCCL_SHM_DISABLE", "1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: given.update(current=index))
    monkeypatch.setattr("train.process_group._unused_store", lambda *_: None)
    monkeypatch.setattr(distributed, "new_group", lambda **_: None)
    monkeypatch.setattr(distributed, "init_process_group", lambda backend, **_: given.update(backend=backend))
    monkeypatch.setattr(distributed, "destroy_process_group", lambda: None)
    monkeypatch.setattr(distributed, "all_reduce", lambda values: given.update(asked=values.device.type))
    with joined_process_group(use_cuda) as group:
        assert (group.rank, group.size) == (1, 2)
        assert group.any(True)
    expected = {"backend": "cpu:gloo,cuda:nccl", "current": 1} if use_cuda else {"backend": "gloo"}
    assert given == {**expected, "asked": "cpu"}
