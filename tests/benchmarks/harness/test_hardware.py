"""Peaks of known GPUs, the work of a step, and a driver that reports nothing."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from benchmarks.harness.hardware import GpuActivity, GpuPoller, Shares, peak_of, shares, work_per_image
from train.models import build_model


@pytest.mark.parametrize(
    ("device", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989),
        ("NVIDIA H200 NVL", 835),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
        ("Tesla T4", 65),
    ],
)
def test_a_known_gpus_peak_is_its_own(device: str, tflops: float) -> None:
    peak = peak_of(device)
    assert peak is not None
    assert peak.flops == tflops * 1e12


def test_an_unknown_gpu_and_a_cpu_give_null() -> None:
    assert peak_of("NVIDIA GeForce MX150") is None
    assert peak_of("NVIDIA H100 80GB HBM3 MIG 1g.10gb") is None  # a seventh of it
    model, images = build_model("resnet18", 10), torch.zeros(2, 3, 32, 32)
    work = work_per_image(model, images, head_only=True)
    none = Shares(arithmetic=None, memory=None)
    assert shares(1000, work, torch.device("cpu"), lowered=True) == none
    with GpuPoller(torch.device("cpu")) as poller:
        pass
    assert poller.activity == GpuActivity(None, None, None)


class SilentNvml(ModuleType):
    """A driver that knows the GPU, and does not report what it is doing."""

    NVMLError = type("NVMLError", (Exception,), {})
    nvmlInit = nvmlShutdown = staticmethod(lambda: None)  # noqa: N815
    nvmlDeviceGetHandleByUUID = staticmethod(lambda uuid: uuid)  # noqa: N815

    def nvmlDeviceGetUtilizationRates(self, handle: object) -> None:  # noqa: N802
        self.requested = handle
        raise self.NVMLError


def test_a_gpu_that_reports_nothing_gives_null_too(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = SilentNvml("pynvml")
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid="1-2"))
    monkeypatch.setattr(GpuPoller, "seconds_between_polls", 0.0)
    with GpuPoller(torch.device("cuda")) as poller:
        poller._thread.join()  # it has nothing more to poll
    assert nvml.requested == b"GPU-1-2"
    assert poller.activity == GpuActivity(None, None, None)


def test_a_resnet18_does_what_is_published() -> None:
    """1.82 billion multiply-adds an image of 224 px (torchvision's model page says 1.81 GFLOPS, as it calls them)."""
    model = build_model("resnet18", 1000).train()
    forward = work_per_image(model, torch.zeros(1, 3, 224, 224), head_only=True)
    assert forward.flops / 2 == pytest.approx(1.81e9, rel=0.01)
    assert 4 * 4.0e6 < forward.bytes < 4 * 9.0e6  # of float32; about 2.5 million activations, written and read
    whole = work_per_image(model, torch.zeros(1, 3, 224, 224), head_only=False)
    of_first = 2 * 64 * 112 * 112 * 3 * 7 * 7  # for its input's gradient, which nobody wants
    assert whole.flops == 3 * forward.flops - of_first
    assert 2 * forward.bytes < whole.bytes < 3 * forward.bytes
    assert all(weight.grad is None for weight in model.parameters())
    assert model.training
    assert model.conv1._forward_hooks == {}
