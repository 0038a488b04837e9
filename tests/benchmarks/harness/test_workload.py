"""The trainer's own step, as saturation and profiles measure it."""

from pathlib import Path

import pytest

from benchmarks.harness import workload as workload_module
from benchmarks.harness.options import DataOptions
from benchmarks.harness.workload import workload
from train.epoch_timer import EpochTimer


@pytest.mark.usefixtures("small_runs")
def test_what_was_waited_for_is_read_when_the_device_is_done(
    image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before that, a GPU's clock leaves out all that it has not come to yet."""
    order: list[str] = []
    monkeypatch.setattr(workload_module, "synchronize", lambda _: order.append("done"))

    def read(_: EpochTimer) -> float:
        order.append("read")
        return 0.5

    monkeypatch.setattr(EpochTimer, "data_wait", property(read))
    options = DataOptions(data=str(image_folder), root=image_folder, device="cpu", workers=1)
    with workload(options, "feature", size=32, batch_size=4, precision="fp32") as work:
        waits: list[float] = []
        for _ in zip(range(4), work.end_to_end(work.loader("torchvision", 8), waits), strict=False):
            pass
    assert order == ["done", "read"] * 2
    assert waits == [0.5] * 2


@pytest.mark.usefixtures("small_runs")
def test_steps_beyond_the_runs_own_are_no_error(image_folder: Path) -> None:
    options = DataOptions(data=str(image_folder), root=image_folder, device="cpu", workers=1)
    with workload(options, "feature", size=32, batch_size=4, epochs=1, precision="fp32") as work:
        total = 3 * max(work.learner.steps, 20)
        for _, (images, labels) in zip(range(total), work.ceiling(), strict=False):
            assert len(images) == len(labels) == 4
