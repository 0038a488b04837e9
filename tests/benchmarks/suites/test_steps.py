"""The ladder of `python -m benchmarks steps`: its rungs, what they lack here, and the whole command."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.__main__ import main
from benchmarks.harness.measure import Measurement, Window
from benchmarks.suites import steps
from benchmarks.suites.options import StepsOptions
from benchmarks.suites.rows import MODE_TITLES
from benchmarks.suites.steps import Rung, ladder, stepping
from tests.conftest import exit_code
from train.precision import choose_precision

CPU = torch.device("cpu")
SMALL = StepsOptions(size=32, batch_size=2)


@pytest.fixture(autouse=True)
def _compiled_by_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiling takes half a minute a network; which networks are to be compiled is noted."""
    monkeypatch.setattr(nn.Module, "compile", lambda self, mode: setattr(self, "was_compiled", mode or "default"))


@pytest.mark.parametrize("mode", ["finetune", "feature"])
def test_each_rung_adds_to_the_one_before(mode: Any) -> None:
    whole = ladder(mode, autotune=True)
    rungs = [rung for rung in whole if not rung.beside]
    switches = ("tf32", "channels_last", "lowered", "folded", "compiled", "graph")
    on = [{name for name in switches if getattr(rung, name)} for rung in rungs]
    assert on[0] == set()
    assert all(len(after - before) == 1 and before < after for before, after in itertools.pairwise(on))
    assert ("folded" in on[-1]) is (mode == "feature")
    assert whole[: len(rungs)] == rungs
    assert [rung.augmented for rung in whole[-2:]] == ["torch", "fused"]
    assert len({rung.name for rung in whole}) == len(whole)
    assert len(ladder(mode)) == len(whole) - 1  # none autotuned


def test_what_lies_beside_the_compiled_step_is_compared_with_that() -> None:
    compiled, graph, beside = Rung("+ compile", ""), Rung("graph", ""), Rung("beside", "", beside=True)
    measured = {
        name: Measurement(0, None, [Window(images, 1.0, 0.0)] * 3)
        for name, images in (("+ compile", 10), ("graph", 20), ("beside", 15))
    }
    rungs = [compiled, graph, beside]
    assert [steps._gain(rungs, place, measured) for place in range(3)] == [None, 2.0, 1.5]


def test_pure_bf16_keeps_weights_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "choose_precision", lambda *_: choose_precision("bf16", CPU))
    step = steps._Step(Rung("pure", "", pure=True, lowered=True), "finetune", "resnet18", CPU)
    assert {parameter.dtype for parameter in step._trained.parameters()} == {torch.bfloat16}
    step(torch.randn(2, 3, 32, 32).to(step.input_dtype), torch.tensor([0, 1]))


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_pure_bf16_is_not_measured_in_another_precision(monkeypatch: pytest.MonkeyPatch, precision: Any) -> None:
    monkeypatch.setattr(steps, "choose_precision", lambda *_: choose_precision(precision, CPU))
    assert Rung("pure", "", pure=True, lowered=True).missing(CPU) == "needs bf16"


@pytest.mark.parametrize("mode", ["finetune", "feature"])
def test_every_rung_that_a_cpu_has_takes_steps(mode: Any) -> None:
    for rung in ladder(mode):
        if rung.missing(CPU) is None:
            batches = stepping(rung, mode, SMALL, CPU)
            for _ in range(2):
                images, labels = next(batches)
                assert images.shape == (2, 3, 32, 32)
                layout = torch.channels_last if rung.channels_last else torch.contiguous_format
                assert images.is_contiguous(memory_format=layout)
                assert 0 <= int(labels.min()) <= int(labels.max()) < steps.CLASSES


@pytest.mark.parametrize("mode", ["finetune", "feature"])
def test_steps_train_what_the_mode_trains(mode: Any) -> None:
    torch.manual_seed(0)
    step = steps._Step(ladder(mode)[0], mode, "resnet18", CPU)
    before = [parameter.clone() for parameter in step._trained.parameters()]
    step(torch.randn(2, 3, 32, 32), torch.tensor([0, 1]))
    assert not any(torch.equal(a, b) for a, b in zip(before, step._trained.parameters(), strict=True))
    assert len(before) == (2 if mode == "feature" else 62)


def test_folding_changes_no_feature() -> None:
    torch.manual_seed(0)
    plain = steps._Step(Rung("plain", ""), "feature", "resnet18", CPU)
    torch.manual_seed(0)
    folded = steps._Step(Rung("folded", "", folded=True), "feature", "resnet18", CPU)
    images = torch.randn(2, 3, 64, 64)
    assert plain._backbone is not None
    assert folded._backbone is not None
    torch.testing.assert_close(folded._backbone(images), plain._backbone(images), rtol=1e-3, atol=1e-4)


def test_the_network_that_costs_is_the_one_compiled() -> None:
    for mode in MODE_TITLES:
        step = steps._Step(Rung("compiled", "", compiled=True), mode, "resnet18", CPU)
        network = step._trained if mode == "finetune" else step._backbone
        assert network is not None
        assert network.was_compiled


def test_the_command_measures_what_it_can_and_says_what_the_rest_needs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["--size", "32", "--batch-size", "2", "--windows", "2", "--seconds", "0.01", "--device", "cpu"]
    assert main(["steps", "--mode", "feature", "--out", str(tmp_path), *small]) == 0
    lines = capsys.readouterr().out.splitlines()
    result = json.loads(lines[-1])
    assert json.loads((tmp_path / "bench.json").read_text()) == result
    assert result["theme"] == "steps"
    rows = {row["name"]: row for row in result["rows"]}
    assert list(rows) == [rung.name for rung in ladder("feature")]
    assert len({frozenset(row) for row in result["rows"]}) == 1  # one shape, whether measured or not
    for name in ("+ TF32", "+ CUDA graph", "compile, fused augmentation"):
        assert (rows[name]["images_per_second"], rows[name]["missing"]) == (None, "needs a GPU")
        assert any(line.startswith(name) and "needs a GPU" in line for line in lines)
    for name in ("eager, contiguous, fp32", "+ channels-last", "+ compile", "compile, augmentation in torch"):
        assert rows[name]["low"] <= rows[name]["images_per_second"] <= rows[name]["high"]
        assert rows[name]["missing"] is None
    assert rows["eager, contiguous, fp32"]["times_baseline"] == 1


@pytest.mark.parametrize("wrong", [["--size", "16"], ["--batch-size", "0"], ["--windows", "0"], ["--seconds", "-1"]])
def test_what_makes_no_sense_is_refused(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(main, ["steps", *wrong]) == 2
    assert " ".join(wrong) in capsys.readouterr().err


@pytest.mark.needs_cuda
@pytest.mark.parametrize("mode", ["finetune", "feature"])
def test_every_rung_takes_steps_on_a_gpu(mode: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    device = torch.device("cuda")
    for rung in ladder(mode):
        batches = stepping(rung, mode, SMALL, device)
        for _ in range(3):
            images, _ = next(batches)
        assert images.device.type == "cuda"
        torch.cuda.synchronize()


@pytest.mark.needs_cuda
def test_a_recorded_step_trains_as_the_step_itself() -> None:
    device, updated = torch.device("cuda"), []
    images, labels = torch.randn(8, 3, 32, 32, device=device), torch.arange(8, device=device)
    for recorded in (False, True):
        torch.manual_seed(0)
        step = steps._Step(Rung("plain", ""), "feature", "resnet18", device)
        run = steps._recorded(step, images, labels) if recorded else step
        for _ in range(3 if recorded else 7):  # four to warm up; recording itself computes nothing
            run(images, labels)
        updated.append([parameter.clone() for parameter in step._trained.parameters()])
    for ours, theirs in zip(*updated, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)
