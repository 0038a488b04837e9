"""`python -m benchmarks train`: which runs it makes, what it refuses beforehand, and what its rows say."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from benchmarks.__main__ import main
from benchmarks.harness.result import RunSummary
from benchmarks.harness.result_json import summary_from_json
from benchmarks.report.markdown import with_tables
from benchmarks.suites import time_to_accuracy
from benchmarks.suites.time_to_accuracy import FinishedRun, rows
from train.options import Options as TrainOptions


def summary(seconds: float, top1: float, *, loader: str = "torchvision", **more: Any) -> dict[str, Any]:
    shared = {"images_per_second": 1000 / seconds, "data_wait": 0.1, "views": None, "mode": "feature"}
    return shared | {"loader": loader, "seconds": seconds, "val_top1": top1} | more


def ended(*given: Any, **more: Any) -> RunSummary:
    return summary_from_json(summary(*given, **more))


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[TrainOptions]:
    """The options of all requested runs; none is trained."""
    requested: list[TrainOptions] = []

    def run(options: TrainOptions, _: Any) -> dict[str, Any]:
        requested.append(options)
        loader = "torchvision" if options.loader == "auto" else options.loader
        return summary(10 - len(requested), 0.5, loader=loader, views=options.views, mode=options.mode)

    monkeypatch.setattr(time_to_accuracy, "run", run)
    return requested


def test_no_run_finds_what_another_has_compiled(
    image_folder: Path, tmp_path: Path, ran: list[TrainOptions], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one would pay for all others, and that is the one they are compared with."""
    good, seen = time_to_accuracy.run, list[Path]()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/the/users/own")
    monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)

    def run(options: TrainOptions, world: Any) -> dict[str, Any]:
        seen.append(Path(os.environ["TORCHINDUCTOR_CACHE_DIR"]))
        assert Path(os.environ["TRITON_CACHE_DIR"]).is_relative_to(seen[-1])
        assert not any(seen[-1].iterdir())
        return good(options, world)

    monkeypatch.setattr(time_to_accuracy, "run", run)
    assert bench(image_folder, tmp_path / "out", "--mode", "feature") == 0
    assert len(set(seen)) == len(ran) == 2
    assert not any(folder.exists() for folder in seen)
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "/the/users/own"
    assert "TRITON_CACHE_DIR" not in os.environ


def bench(folder: Path, out: Path, *more: str) -> int:
    return main(["train", "--data", str(folder), "--out", str(out), "--device", "cpu", *more])


def test_every_mode_seed_and_loader_has_its_run(image_folder: Path, tmp_path: Path, ran: list[TrainOptions]) -> None:
    out = tmp_path / "out"
    given = ["--loaders", "baseline", "resident", "--seeds", "3", "1", "--views", "2", "--cache-size", "64"]
    assert bench(image_folder, out, *given) == 0
    assert [(run.mode, run.seed, run.loader, run.views) for run in ran] == [
        ("feature", 3, "baseline", None),
        ("feature", 3, "resident", 2),
        ("feature", 1, "baseline", None),
        ("feature", 1, "resident", 2),
        ("finetune", 3, "baseline", None),
        ("finetune", 3, "resident", None),
        ("finetune", 1, "baseline", None),
        ("finetune", 1, "resident", None),
    ]
    assert {run.cache_size for run in ran} == {64}
    assert len({run.out for run in ran}) == 8
    result = json.loads((out / "bench.json").read_text())
    assert [(run["loader_asked"], run["seed"]) for run in result["runs"]] == [(run.loader, run.seed) for run in ran]
    assert [row["name"] for row in result["rows"]] == ["baseline", "resident, 2 views kept", "baseline", "resident"]


def test_what_was_run_is_written_though_the_next_run_fails(
    image_folder: Path, tmp_path: Path, ran: list[TrainOptions], monkeypatch: pytest.MonkeyPatch
) -> None:
    good = time_to_accuracy.run

    def run(options: TrainOptions, world: Any) -> dict[str, Any]:
        if len(ran) == 1:
            raise RuntimeError("out of memory")
        return good(options, world)

    monkeypatch.setattr(time_to_accuracy, "run", run)
    with pytest.raises(RuntimeError, match="out of memory"):
        bench(image_folder, tmp_path / "out")
    assert len(json.loads((tmp_path / "out" / "bench.json").read_text())["rows"]) == 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--loaders", "baseline", "fast"], "LOADER=fast: there are auto"),
        (["--loaders", "baseline", "baseline"], "--loaders baseline baseline: expected one at least, and each once"),
        (["--seeds", "1", "1"], "--seeds 1 1: expected"),
        (["--views", "2", "--mode", "finetune"], "--views: features can be cached only"),
        (["--views", "2", "--recipe", "classic"], "--views: BatchNorm follows each batch"),
        (["--epochs", "0"], "--epochs 0: expected more than 0"),
    ],
)
def test_what_cannot_be_run_is_refused_before_the_first_run(
    wrong: list[str],
    message: str,
    image_folder: Path,
    tmp_path: Path,
    ran: list[TrainOptions],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert bench(image_folder, tmp_path / "out", *wrong) == 2
    assert message in capsys.readouterr().err
    assert not ran


def test_a_loader_that_the_data_do_not_fit_is_refused_before_the_first_run(
    image_folder: Path,
    tmp_path: Path,
    ran: list[TrainOptions],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("loaders.backends.resident.free_memory", lambda _: 1000)
    assert bench(image_folder, tmp_path / "out", "--loaders", "baseline", "resident") == 2
    assert "LOADER=resident" in capsys.readouterr().err
    assert not ran


def test_a_run_that_lies_there_is_not_written_over(
    image_folder: Path, tmp_path: Path, ran: list[TrainOptions], capsys: pytest.CaptureFixture[str]
) -> None:
    there = tmp_path / "out" / "finetune-auto-seed0"
    there.mkdir(parents=True)
    (there / "last.pt").touch()
    assert bench(image_folder, tmp_path / "out") == 2
    assert "holds another run" in capsys.readouterr().err
    assert not ran


def test_a_row_has_the_figures_of_all_seeds_of_a_loader() -> None:
    done = [
        FinishedRun("feature", "baseline", 0, ended(100, 0.70, loader="baseline")),
        FinishedRun("feature", "auto", 0, ended(10, 0.90)),
        FinishedRun("feature", "baseline", 1, ended(90, 0.72, loader="baseline")),
        FinishedRun("feature", "auto", 1, ended(30, 0.94)),
        FinishedRun("feature", "baseline", 2, ended(80, 0.74, loader="baseline")),
    ]
    first, ours = rows(done)
    assert (first.name, first.times_baseline, first.seeds) == ("baseline", 1, (0, 1, 2))
    assert (ours.name, ours.seeds) == ("auto (torchvision)", (0, 1))
    assert ours.times_baseline == pytest.approx((100 / 10 + 90 / 30) / 2)
    assert ours.val_top1 == pytest.approx(0.92)
    assert (ours.val_top1_low, ours.val_top1_high) == (0.90, 0.94)
    assert ours.minutes == pytest.approx(20 / 60)
    assert ours.low == pytest.approx(1000 / 30)
    assert ours.noisy


@pytest.mark.usefixtures("ran")
def test_rows_are_drawn_anew_and_written_to_the_readme(image_folder: Path, tmp_path: Path) -> None:
    assert bench(image_folder, tmp_path / "out", "--mode", "finetune", "--seeds", "0", "1") == 0
    assert main(["redraw", str(tmp_path / "out"), "--out", str(tmp_path / "drawn")]) == 0
    assert "auto (torchvision)" in (tmp_path / "drawn" / "report.html").read_text()
    table = with_tables("<!-- table: accuracy out/bench.json -->\n<!-- end -->", tmp_path)
    assert "| | images/s | × baseline, by time | top-1 | lowest | highest | time |\n" in table
    assert "| **finetune: whole runs** |" in table
    assert "| 50.0 % | 50.0 % | 50.0 % |" in table
