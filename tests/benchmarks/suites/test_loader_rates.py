"""`python -m benchmarks loaders`: comparisons, and the whole command on a few images."""

import json
from pathlib import Path

import pytest

from benchmarks.__main__ import main
from benchmarks.harness.result import Row
from benchmarks.suites import loader_rates
from benchmarks.suites.candidates import ordinary_candidates
from benchmarks.suites.rows import (
    BASELINE,
    CACHED,
    FINISHED,
    PARTS,
    TUNED,
    UINT8,
    UINT8_BASELINE,
    UINT8_TUNED,
    compare_with_ordinary,
)
from tests.benchmarks.suites.test_candidates import task
from tests.loaders.test_loader import numbered


def test_each_is_compared_with_the_ordinary_loader_that_hands_over_the_same() -> None:
    """To leave normalising to the device is less work: that is no merit of a loader's."""

    def row(group: str, name: str, *rates: float) -> Row:
        return Row(group=group, name=name, windows=rates)

    rows = compare_with_ordinary(
        [
            row(FINISHED, BASELINE, 100, 50, 100),
            row(UINT8, UINT8_BASELINE, 200, 100, 200),
            row(FINISHED, f"{TUNED}4 workers", 400, 200, 400),
            row(FINISHED, "ours", 800, 400, 800),
            row(UINT8 + CACHED, "ours, uint8", 1600, 800, 1600),
            row(PARTS, "copy only", 1e6, 1e6, 1e6),
        ]
    )
    assert [row.times_baseline for row in rows] == [1, 1, 4, 8, 8, None]
    assert [row.times_tuned for row in rows] == [0.25, None, 1, 2, None, None]
    (tuned,) = [
        candidate.name
        for candidate in ordinary_candidates(task(numbered(4)), 3)
        if candidate.name.startswith(UINT8_TUNED)
    ]
    again = compare_with_ordinary([*rows, row(UINT8, tuned, 400, 200, 400)])
    assert [row.times_tuned for row in again] == [0.25, 0.5, 1, 2, 4, None, 1]


def test_the_command_prints_a_table_and_ends_with_the_json_it_writes(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["--size", "32", "--images", "64", "--batch-size", "4", "--windows", "2", "--seconds", "0.05"]
    given = ["loaders", "--data", str(image_folder), "--out", str(tmp_path / "out"), "--workers", "1", *small]
    assert main([*given, "--only", "torchvision", "--demand", "1000"]) == 0
    lines = capsys.readouterr().out.splitlines()
    result = json.loads(lines[-1])
    assert json.loads((tmp_path / "out" / "bench.json").read_text()) == result
    assert {"theme", "environment", "options", "rows"} <= set(result)
    names = [row["name"] for row in result["rows"]]
    assert BASELINE in names
    assert {"torchvision", "torchvision, uint8", "torchvision, uint8, scaled decoding"} < set(names)
    assert "resident" not in names
    tuned = max(result["tuning"], key=result["tuning"].__getitem__)
    assert any(name.startswith("tuned baseline") and f" {tuned} worker" in name for name in names)
    for row in result["rows"]:
        assert row["low"] <= row["images_per_second"] <= row["high"]
        assert row["cores_per_gpu"] == pytest.approx(row["cpu_seconds_per_1000"])  # of 1,000 images/s
        assert any(row["name"] in line for line in lines[:-1])
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"bench.json", "report.html", "bench.png"}


def test_loaders_of_images_too_small_to_train_on_are_measured_all_the_same(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loader_rates, "tune", lambda *_: (1, {1: 1.0}))
    small = ["--size", "16", "--images", "16", "--batch-size", "4", "--windows", "2", "--seconds", "0.01"]
    given = ["loaders", "--data", str(image_folder), "--out", str(tmp_path / "out"), "--workers", "1", *small]
    assert main([*given, "--only", BASELINE]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert len(result["rows"]) == 2
    assert "--size 16: a ResNet needs 32 pixels or more" in result["notes"][-1]
