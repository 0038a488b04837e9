"""What tests share that could itself be wrong where no GPU is."""

from importlib import import_module

import pytest
import torch

from tests.conftest import host_may_not_wait


@pytest.mark.skipif(not hasattr(torch._C, "_cuda_set_sync_debug_mode"), reason="torch is built without CUDA")
def test_that_the_host_may_not_wait_is_no_warning_and_ends_with_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: None)
    with host_may_not_wait():
        assert torch.cuda.get_sync_debug_mode() == 2
    assert torch.cuda.get_sync_debug_mode() == 0


def test_a_test_may_be_the_first_to_compile() -> None:
    """Without a GPU, none compiles by torch's own compiler."""
    import_module("torch._inductor.compile_fx")
