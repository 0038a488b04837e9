"""A loss or weights that are no finite numbers: noticed, never saved, and explained by the evidence."""

import json
import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from loaders import Batch
from tests.conftest import host_may_not_wait
from tests.train.test_learner import batch, learner
from tests.train.test_run import arguments, rows, without_times
from train import checkpoints, loop
from train.__main__ import main
from train.batches import FeatureBatch
from train.divergence import LossCheck, NotFiniteError, explain
from train.learner import Learner, MetricAccumulator, Metrics

pytestmark = pytest.mark.usefixtures("small_runs")

CPU = torch.device("cpu")


def spoil_step(monkeypatch: pytest.MonkeyPatch, at: int, *, then: Callable[[int], None] = lambda _: None) -> list[int]:
    """From now on step number `at` trains on NaN; `then` is called after each step. The list grows with each step."""
    steps: list[int] = []
    step = Learner.step

    def spoilt(self: Learner, batch: Any, metrics: MetricAccumulator) -> None:
        steps.append(len(steps) + 1)
        step(self, batch._replace(images=batch.images * math.nan) if steps[-1] == at else batch, metrics)
        then(steps[-1])

    monkeypatch.setattr(Learner, "step", spoilt)
    return steps


def terminate_at_9(step: int) -> None:
    if step == 9:
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("saves", ["when terminated", "now and then"])
def test_a_diverged_state_is_never_saved_and_the_best_epoch_is_exported(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], saves: str
) -> None:
    """The loss becomes NaN in the second epoch; then the run is terminated, or is due to be saved."""
    assert main(arguments(image_folder, tmp_path / "whole")) == 0
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        if saves == "when terminated":
            spoil_step(patch, 8, then=terminate_at_9)  # of 6 an epoch
        else:
            patch.setattr(checkpoints, "_SECONDS_BETWEEN_SAVES_INSIDE_EPOCHS", -1e9)
            spoil_step(patch, 8)
        capsys.readouterr()
        assert main(arguments(image_folder, out)) == 2
    assert "the training loss is nan" in capsys.readouterr().err
    saved = torch.load(out / "last.pt", weights_only=True)
    assert all(tensor.isfinite().all() for tensor in saved["learner"]["model"].values())
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["epochs"], summary["best_epoch"], len(rows(out))) == (1, 1, 1)
    exported = safetensors.torch.load_file(out / "model.safetensors")
    best = torch.load(out / "best.pt", weights_only=True)
    assert all(torch.equal(best["model"][name], exported[name]) for name in exported)
    assert main(arguments(image_folder, out, "--resume")) == 0  # without NaN this time
    assert without_times(rows(out)) == without_times(rows(tmp_path / "whole"))


def test_a_loss_that_is_no_number_is_noticed_inside_an_epoch(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "_STEPS_BETWEEN_LOSS_CHECKS", 2)
    steps = spoil_step(monkeypatch, 1)
    assert main(arguments(image_folder, tmp_path / "run")) == 2
    assert steps == [1, 2]
    assert not (tmp_path / "run" / "summary.json").exists()


def test_weights_that_are_no_numbers_are_not_saved(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil_weights(self: Learner) -> bool:
        self.model.fc.bias.data[0] = math.inf
        return finite(self)

    finite = Learner.weights_are_finite
    monkeypatch.setattr(Learner, "weights_are_finite", spoil_weights)
    assert main(arguments(image_folder, tmp_path / "run")) == 2
    assert not (tmp_path / "run" / "last.pt").exists()


def test_a_run_that_was_saved_diverged_is_not_resumed(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert main(arguments(image_folder, out)) == 0
    content = torch.load(out / "last.pt", weights_only=True)
    content["learner"]["model"]["fc.bias"][0] = math.nan
    torch.save(content, out / "last.pt")
    assert main(arguments(image_folder, out, "--resume")) == 2
    assert "was saved after it diverged" in capsys.readouterr().err


def test_mean_losses_between_looks() -> None:
    metrics = MetricAccumulator(CPU)
    check = LossCheck(metrics)
    for loss_sum in (8.0, 4.0, math.inf):
        metrics.add_metrics(Metrics(loss_sum, 1, 4))
        assert check.failed() == math.isinf(loss_sum)
    assert check.mean_losses == [2.0, 1.0]


def explained(ours: Learner, last: Batch | FeatureBatch | None, *losses: float) -> str:
    error = NotFiniteError("training", math.nan)
    error.batch = last
    return explain(error, ours, losses)


def with_weights(ours: Learner, value: float) -> Learner:
    ours.model.fc.weight.data.fill_(value)
    return ours


def test_the_cause_is_told_by_the_evidence() -> None:
    ours = learner(tiny=True)
    ours.start_epoch()
    good = batch()
    bad = good._replace(images=good.images * math.nan)
    labels = torch.zeros(2, dtype=torch.int64)
    features = FeatureBatch(torch.full((2, 64), math.inf), labels)
    assert says(explained(ours, bad, 0.7), "the pixels of the last batch", "LOADER", without="--lr")
    assert says(explained(ours, features), "features of the last batch", "WEIGHTS", without="--lr")
    assert says(explained(ours, good, 0.7), "All weights are finite", "--resume", without="--lr")
    assert says(explained(with_weights(ours, 1e38), good), "too large to compute with", "smaller --lr")
    with_weights(ours, math.nan)
    assert says(explained(ours, good), "since one of the first updates", "smaller --lr")
    assert says(explained(ours, good, 0.7, 0.6, 9.0), "risen from 0.6 to 9", "smaller --lr")
    assert says(explained(ours, good, 0.7, 0.6), "had not risen", "look at the images", without="--lr")
    half = learner(tiny=True, precision="fp16")
    half.start_epoch()
    half.model.fc.weight.data.mul_(1e6)
    assert says(explained(half, good, 0.7), "in fp32 but nan in fp16", "--precision fp32", without="--lr")
    features = FeatureBatch(torch.full((2, 64), math.inf, dtype=torch.float16), labels)
    assert says(explained(half, features), "overflows in fp16", "--precision fp32", without="--lr")


def says(text: str, *parts: str, without: str = "\0") -> bool:
    return all(part in text for part in parts) and without not in text


@pytest.mark.needs_cuda
def test_the_check_does_not_wait_for_a_gpu() -> None:
    device = torch.device("cuda")
    metrics = MetricAccumulator(device)
    check = LossCheck(metrics)
    check.failed()
    torch.cuda.synchronize()
    with host_may_not_wait():
        check.failed()
    metrics.add_metrics(Metrics(math.inf, 1, 4))
    looks = 0
    while not check.failed():
        torch.cuda.synchronize()
        looks += 1
    assert looks <= 2
