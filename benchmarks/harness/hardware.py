"""The peaks of known GPUs, the work of a step, and what the driver reports while it runs."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from statistics import mean
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.harness.poller import Poller


class Peak(NamedTuple):
    """Peaks of a GPU, by its maker's data sheet."""

    flops: float
    """Operations a second in 16-bit arithmetic by the matrix units, without sparsity; a multiply-add counts two."""
    bytes: float
    """Bytes a second of its memory."""


PEAKS: dict[str, Peak] = {
    "B200": Peak(2250e12, 8000e9),
    "GH200": Peak(989e12, 4000e9),
    "H200 NVL": Peak(835e12, 4800e9),
    "H200": Peak(989e12, 4800e9),
    "H100 NVL": Peak(835e12, 3900e9),
    "H100 PCIe": Peak(756e12, 2000e9),
    "H100": Peak(989e12, 3350e9),
    "A100-SXM4-80GB": Peak(312e12, 2039e9),
    "A100 80GB PCIe": Peak(312e12, 1935e9),
    "A100": Peak(312e12, 1555e9),
    "A30": Peak(165e12, 933e9),
    "A40": Peak(149.7e12, 696e9),
    "A10": Peak(125e12, 600e9),
    "L40S": Peak(362e12, 864e9),
    "L40": Peak(181e12, 864e9),
    "L4": Peak(121e12, 300e9),
    "V100": Peak(125e12, 900e9),
    "T4": Peak(65e12, 320e9),
    "RTX 5090": Peak(209.5e12, 1792e9),
    "RTX 4090": Peak(165.2e12, 1008e9),
    "RTX 3090": Peak(71e12, 936e9),
    "RTX A6000": Peak(154.8e12, 768e9),
}
"""The first whose name is a word of the device's counts, so that longer names come first."""


def peak_of(device_name: str) -> Peak | None:
    """None where the GPU is not known, or only a part of it (MIG) is there."""
    padded = f" {device_name} ".replace("-", " ")
    if " MIG " in padded:
        return None
    return next((peak for name, peak in PEAKS.items() if f" {name} ".replace("-", " ") in padded), None)


class Work(NamedTuple):
    """What a step must do for each image."""

    flops: float
    bytes: float
    """Bytes that must pass through memory at least: what convolutions, pooling and the head read and write once each,
    everything else fused into them."""


def work_per_image(model: nn.Module, images: Tensor, *, head_only: bool) -> Work:
    """By counting a forward pass of one batch `[B, 3, S, S]` and, where all weights are trained, the backward pass.

    The backward pass of a layer is two products of the size of its forward one: for its input, which the first layer
    needs no gradient of, and for its weights. It reads the result's gradient and, for the weights, the input once
    more; it writes the input's gradient.
    """
    values = 0
    inputs = images.to(next(model.parameters()).dtype)

    def count(layer: nn.Module, given: tuple[Tensor, ...], result: Tensor) -> None:
        nonlocal values
        into, out = given[0].numel(), result.numel()
        values += into + out
        if head_only:
            return
        values += out
        if isinstance(layer, nn.Conv2d | nn.Linear):
            values += into
        if given[0] is not inputs:
            values += into

    counted = (nn.Conv2d, nn.Linear, nn.MaxPool2d, nn.AdaptiveAvgPool2d)
    hooks = [layer.register_forward_hook(count) for layer in model.modules() if isinstance(layer, counted)]
    training = model.training
    try:
        with FlopCounterMode(display=False) as flops, torch.set_grad_enabled(not head_only):
            logits = model.eval().forward(inputs)
            if not head_only:
                torch.autograd.grad(logits.sum(), [weight for weight in model.parameters() if weight.requires_grad])
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return Work(flops.get_total_flops() / len(images), values * images.element_size() / len(images))


class Shares(NamedTuple):
    """Shares of a GPU's peaks, 0 to 1; None where they are not known."""

    arithmetic: float | None = None
    memory: float | None = None


def shares(rate: float, work: Work, device: torch.device, *, lowered: bool) -> Shares:
    """The shares of the GPU's peaks that `rate` images/s use; None where the GPU, or its peak in fp32, is not known."""
    peak = peak_of(torch.cuda.get_device_name(device)) if device.type == "cuda" and lowered else None
    return Shares() if peak is None else Shares(rate * work.flops / peak.flops, rate * work.bytes / peak.bytes)


class GpuActivity(NamedTuple):
    """What the driver reports of a GPU over some time; None where it does not."""

    utilisation: float | None = None
    """Share of the time in which anything ran, 0 to 1: the mean."""
    watts: float | None = None
    """The mean."""
    memory_bytes: float | None = None
    """The most."""


class GpuPoller(Poller):
    """Asks the driver, within a `with` block, what the GPU is doing; without NVML nothing."""

    seconds_between_polls = 0.1

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._readings: list[tuple[float, float, float]] = []

    def _run(self) -> None:
        if self.device.type != "cuda":
            return
        with _handle(self.device) as found:
            if found is None:
                return
            nvml, handle = found
            with suppress(nvml.NVMLError):  # of a part of a GPU (MIG) not everything is reported
                for _ in self._ticks():
                    self._readings.append(
                        (
                            nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100,
                            nvml.nvmlDeviceGetPowerUsage(handle) / 1000,
                            float(nvml.nvmlDeviceGetMemoryInfo(handle).used),
                        )
                    )

    @property
    def activity(self) -> GpuActivity:
        """All readings together."""
        if not self._readings:
            return GpuActivity()
        utilisation, watts, memory = zip(*self._readings, strict=True)
        return GpuActivity(mean(utilisation), mean(watts), max(memory))


@contextmanager
def _handle(device: torch.device) -> Iterator[tuple[Any, Any] | None]:
    """NVML and its handle of a device; None where nvidia-ml-py or the driver's library is missing."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # no such module; no such library
        yield None
        return
    try:
        try:
            uuid = torch.cuda.get_device_properties(device).uuid
            handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}".encode())
        except pynvml.NVMLError:  # not reported in this container
            yield None
        else:
            yield pynvml, handle
    finally:
        pynvml.nvmlShutdown()
