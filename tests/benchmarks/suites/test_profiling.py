"""The profile command and the runs to accuracy, on a few images."""

import gzip
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.__main__ import main
from benchmarks.harness.batches import endless
from benchmarks.harness.options import DataOptions
from benchmarks.harness.workload import workload
from benchmarks.suites.profiling import record_steps
from loaders import Batch
from tests.conftest import exit_code

pytestmark = pytest.mark.usefixtures("small_runs")


def small(image_folder: Path, out: Path) -> list[str]:
    where = ["--data", str(image_folder), "--root", str(image_folder), "--out", str(out), "--workers", "1"]
    return [*where, "--device", "cpu", "--size", "32", "--batch-size", "4", "--weights", "none"]


def last_line(capsys: pytest.CaptureFixture[str]) -> tuple[str, dict[str, Any]]:
    said = capsys.readouterr().out
    result: dict[str, Any] = json.loads(said.splitlines()[-1])
    return said, result


@pytest.mark.parametrize("mode", ["feature", "finetune"])
def test_a_profile_has_stages_timeline_trace_and_one_sentence(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], mode: str
) -> None:
    out = tmp_path / "out"
    assert main(["profile", mode, *small(image_folder, out), "--steps", "6", "--trace-steps", "2"]) == 0
    said, result = last_line(capsys)
    assert result["diagnosis"]["sentence"] in said
    assert "nsys profile --trace=cuda,nvtx,osrt,cudnn,cublas --capture-range=cudaProfilerApi" in said
    stages = [row["stage"] for row in result["stages"]]
    assert {"read", "decode", "resize", "augment", "forward", "backward", "optimizer", "wait"} <= set(stages)
    assert {span["thread"] for span in result["timeline"]} >= {"step"}
    assert all(0 <= span["begin"] <= span["end"] for span in result["timeline"])
    assert result["measured"]["images"] in (20, 24)  # a step less where they are slow
    (row,) = result["rows"]
    assert row["low"] <= row["images_per_second"] <= row["high"]
    with gzip.open(out / "trace-rank0.json.gz") as file:
        events = json.load(file)["traceEvents"]
    named = [event.get("name") for event in events]
    assert {"forward", "backward", "optimizer"} <= set(named)
    assert sorted(path.name for path in out.iterdir()) == [
        "bench.json", "bench.png", "report.html", "trace-rank0.json.gz",
    ]  # fmt: skip
    assert json.loads((out / "bench.json").read_text()) == result


def test_a_profile_on_a_cpu_says_nothing_of_a_gpu_that_is_not_there(image_folder: Path, tmp_path: Path) -> None:
    given = ["profile", "feature", *small(image_folder, tmp_path), "--steps", "5", "--trace-steps", "1"]
    done = subprocess.run([sys.executable, "-m", "benchmarks", *given], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not [line for line in done.stderr.splitlines() if "Profiler" in line or "gpuGetDeviceCount" in line]


def test_too_few_steps_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(main, ["profile", "feature", "--steps", "2"]) == 2
    assert "--steps 2: expected 5 or more" in capsys.readouterr().err


@pytest.mark.parametrize("theme", [["profile", "feature"], ["train"], ["steps"]])
def test_an_option_that_a_theme_has_no_use_for_is_refused(theme: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(main, [*theme, "--only", "torchvision"]) == 2
    assert "--only" in capsys.readouterr().err


@pytest.mark.parametrize("steps", [5, 11, 14, 40])
def test_the_fifths_of_the_steps_are_all_of_them(
    image_folder: Path, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    """Else the whole could be slower than each, as with a last step that takes long, and no bar could be drawn."""
    options = DataOptions(data=str(image_folder), root=image_folder, device="cpu", workers=1)
    with workload(options, "feature", size=32, batch_size=4, precision="fp32") as work:
        taken = 0

        def step(_: Batch) -> None:
            nonlocal taken
            taken += 1
            time.sleep(0.05 * (taken == steps))

        monkeypatch.setattr(work, "step", step)
        recorded = record_steps(work, endless(work.session.image_loader), steps)
    assert len(recorded.rates) == 5
    assert min(recorded.rates) <= recorded.images / recorded.seconds <= max(recorded.rates)
