"""Saturation: what is lost by which differential run; limits of known GPUs; files that leave the page cache."""

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from benchmarks import saturation as saturating
from benchmarks import workload as workloads
from benchmarks.__main__ import main
from benchmarks.cold import cached_share, evict, files_of
from benchmarks.hardware import GpuWatch, peak_of, shares, work_per_image
from benchmarks.measure import Found, Window
from benchmarks.options import Where
from benchmarks.saturation import Fed, losses
from benchmarks.workload import workload
from loaders import LoaderConfig, PlanSpec, RandomResizedCrop, build_loader, open_data
from tests.loaders.test_loader import numbered
from train.epoch_timer import EpochTimer
from train.models import build_model


def windows(*rates: float, cpu: float = 0.0) -> Found:
    return Found(0, 0, [Window(round(100 * rate), 100, 100 * cpu) for rate in rates])


def test_losses_are_told_apart_turn_by_turn() -> None:
    """A machine that halves its speed in the second turn changes no share."""
    found = {
        "ceiling": windows(100, 50, 100),
        "fed by x": windows(80, 40, 80),
        "x, cold": windows(60, 30, 60),
        "x alone": windows(200, 200, 200, cpu=4.0),
    }
    told = losses(Fed("x", waits=[0.9, 0.2, 0.3, 0.25], warm="fed by x"), found)
    assert told["saturation"] == pytest.approx(0.8)
    assert told["prep_stall"] == pytest.approx(0.2)
    assert told["fetch_stall"] == pytest.approx(0.25)
    assert told["data_wait"] == 0.25  # of the last three epochs: the first was to warm up
    assert told["supply_per_core"] == pytest.approx(50)
    assert told["cores_per_gpu"] == pytest.approx(2)


def test_without_a_cold_epoch_there_is_no_fetch_stall_and_it_is_said_why() -> None:
    found = {"ceiling": windows(100), "fed by x": windows(99), "x, cold": windows(50), "x alone": windows(200, cpu=1)}
    fed = Fed("x", warm="fed by x", emptied=False)
    assert losses(fed, found)["fetch_stall"] is None
    assert "posix_fadvise" in fed.note


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
    none = {"arithmetic_share": None, "memory_share": None}
    assert shares(1000, work, torch.device("cpu"), lowered=True) == none
    with GpuWatch(torch.device("cpu")) as watch:
        pass
    assert set(watch.seen.values()) == {None}


class SilentNvml(ModuleType):
    """A driver that knows the GPU, and does not tell what it is doing."""

    NVMLError = type("NVMLError", (Exception,), {})
    nvmlInit = nvmlShutdown = staticmethod(lambda: None)  # noqa: N815
    nvmlDeviceGetHandleByUUID = staticmethod(lambda uuid: uuid)  # noqa: N815

    def nvmlDeviceGetUtilizationRates(self, handle: object) -> None:  # noqa: N802
        self.asked_for = handle
        raise self.NVMLError


def test_a_gpu_that_does_not_tell_gives_null_too(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = SilentNvml("pynvml")
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid="1-2"))
    monkeypatch.setattr(GpuWatch, "seconds_between_looks", 0.0)
    with GpuWatch(torch.device("cuda")) as watch:
        watch._thread.join()  # it has nothing more to look at
    assert nvml.asked_for == b"GPU-1-2"
    assert set(watch.seen.values()) == {None}


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


@pytest.mark.parametrize("kept", [False, True])
def test_files_leave_the_page_cache(image_folder: Path, kept: bool) -> None:
    source, _ = open_data(str(image_folder), root=image_folder)
    spec = PlanSpec(RandomResizedCrop(16))
    config = LoaderConfig(spec=spec, training=True, batch_size=4)
    with build_loader(source, config, loader="streamed" if kept else "torchvision") as loader:
        list(loader)
        files = files_of(loader.source)
        assert len(files) == (1 if kept else 24)
        if not evict(files):
            pytest.skip("this file system keeps its files in memory")
        gone = next(file for file in files if cached_share(file) < 0.5)
        gone.read_bytes()
        assert cached_share(gone) == 1
        loader.set_epoch(1)
        assert len(list(loader)) == 6
    assert files_of(numbered(4)) == []


@pytest.mark.usefixtures("small_runs")
def test_the_command_measures_a_mode_against_its_ceiling(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(saturating, "available_loaders", lambda: ["torchvision", "resident", "baseline"])
    small = ["--size", "32", "--batch-size", "4", "--windows", "2", "--seconds", "0.01", "--images", "8"]
    given = ["saturation", "--mode", "feature", "--data", str(image_folder), "--device", "cpu", *small]
    assert main([*given, "--out", str(tmp_path / "out"), "--only", "torchvision"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    rows = {row["name"]: row for row in result["rows"]}
    assert "feature: fed by resident" not in rows
    fed, ceiling = rows["feature: fed by torchvision"], rows["feature: ceiling"]
    ratios = [ours / step for ours, step in zip(fed["windows"], ceiling["windows"], strict=True)]
    assert fed["saturation"] == pytest.approx(sum(ratios) / 2)
    assert (fed["saturation_low"], fed["saturation_high"]) == pytest.approx((min(ratios), max(ratios)))
    assert 0 <= fed["data_wait"] <= 1
    assert fed["prep_stall"] == max(0, 1 - fed["saturation"])
    assert (fed["fetch_stall"] is None) == ("torchvision" in result["modes"]["feature"]["notes"])
    assert rows["feature: fed by baseline"]["times_baseline"] == 1
    assert ceiling["arithmetic_share"] is None
    assert result["modes"]["feature"]["augmentation_share"] > 0


def test_the_devices_work_alone_gives_whole_batches() -> None:
    source = numbered(8)
    config = LoaderConfig(spec=PlanSpec(RandomResizedCrop(8), horizontal_flip=0.5), training=True, batch_size=4)
    loader = build_loader(source, config, loader="resident")
    ids, plan = next(loader.planned(0))
    for make in (saturating._from_images(loader, ids, plan), saturating._from_squares(loader, plan)):
        images = make()
        assert images.shape == (4, 3, 8, 8)
        assert images.dtype == torch.float32
        torch.testing.assert_close(make(), images)
        black = (0 - torch.tensor(config.mean)) / torch.tensor(config.std)
        torch.testing.assert_close(images, black[:, None, None].expand(4, 3, 8, 8))


@pytest.mark.usefixtures("small_runs")
def test_what_was_waited_for_is_asked_when_the_device_is_done(
    image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before that, a GPU's clock leaves out all that it has not come to yet."""
    order: list[str] = []
    monkeypatch.setattr(workloads, "synchronise", lambda _: order.append("done"))

    def asked(_: EpochTimer) -> float:
        order.append("asked")
        return 0.5

    monkeypatch.setattr(EpochTimer, "data_wait", property(asked))
    where = Where(data=str(image_folder), root=image_folder, device="cpu", workers=1)
    with workload(where, "feature", size=32, batch_size=4, precision="fp32") as work:
        waits: list[float] = []
        for _ in zip(range(4), work.end_to_end(work.loader("torchvision", 8), waits), strict=False):
            pass
    assert order == ["done", "asked"] * 2
    assert waits == [0.5] * 2


@pytest.mark.usefixtures("small_runs")
def test_steps_beyond_the_runs_own_are_no_error(image_folder: Path) -> None:
    where = Where(data=str(image_folder), root=image_folder, device="cpu", workers=1)
    with workload(where, "feature", size=32, batch_size=4, epochs=1, precision="fp32") as work:
        total = 3 * max(work.learner.steps, 20)
        for _, (images, labels) in zip(range(total), work.ceiling(), strict=False):
            assert len(images) == len(labels) == 4
