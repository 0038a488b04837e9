"""Saturation: what is lost by which differential run; limits of known GPUs; files that leave the page cache."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.harness.loader_internals import augment_images, augment_squares
from benchmarks.harness.measure import Measurement, Window
from benchmarks.harness.result import Row
from benchmarks.suites import saturation
from benchmarks.suites.saturation import FedLoader, with_losses
from loaders import LoaderConfig, PlanSpec, RandomResizedCrop, build_loader
from tests.loaders.test_loader import numbered


def windows(*rates: float, cpu: float = 0.0) -> Measurement:
    return Measurement(0, 0, [Window(round(100 * rate), 100, 100 * cpu) for rate in rates])


def test_losses_are_separated_turn_by_turn() -> None:
    """A machine that halves its speed in the second turn changes no share."""
    measured = {
        "ceiling": windows(100, 50, 100),
        "fed by x": windows(80, 40, 80),
        "x, cold": windows(60, 30, 60),
        "x alone": windows(200, 200, 200, cpu=4.0),
    }
    row = with_losses(Row(name="x"), FedLoader("x", waits=[0.9, 0.2, 0.3, 0.25], warm="fed by x"), measured)
    assert row.saturation == pytest.approx(0.8)
    assert row.prep_stall == pytest.approx(0.2)
    assert row.fetch_stall == pytest.approx(0.25)
    assert row.data_wait == 0.25  # of the last three epochs: the first was to warm up
    assert row.supply_per_core == pytest.approx(50)
    assert row.cores_per_gpu == pytest.approx(2)


def test_without_a_cold_epoch_there_is_no_fetch_stall_and_it_is_said_why() -> None:
    measured = {
        "ceiling": windows(100),
        "fed by x": windows(99),
        "x, cold": windows(50),
        "x alone": windows(200, cpu=1),
    }
    fed = FedLoader("x", warm="fed by x", emptied=False)
    assert with_losses(Row(name="x"), fed, measured).fetch_stall is None
    assert "posix_fadvise" in fed.note


@pytest.mark.usefixtures("small_runs")
def test_the_command_measures_a_mode_against_its_ceiling(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(saturation, "available_loaders", lambda: ["torchvision", "resident", "baseline"])
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
    request = next(loader.requests())
    for augment in (augment_images(loader, request), augment_squares(loader, request)):
        images = augment()
        assert images.shape == (4, 3, 8, 8)
        assert images.dtype == torch.float32
        torch.testing.assert_close(augment(), images)
        black = (0 - torch.tensor(config.mean)) / torch.tensor(config.std)
        torch.testing.assert_close(images, black[:, None, None].expand(4, 3, 8, 8))
