"""What a run's folder holds after power cuts and damage, and how the run goes on from it."""

import signal
from pathlib import Path

import pytest
import torch

from loaders import InputError
from tests.power_cut import power_cuts
from tests.train.test_run import arguments, rows, send_signal_at_step, without_times
from train import checkpoints
from train.__main__ import main
from train.console import Reporter
from train.options import parse_options
from train.prepare import prepare
from train.process_group import ProcessGroup
from train.run_folder import RunFolder
from train.run_state import EpochRow
from train.stopping import StopRequest

pytestmark = pytest.mark.usefixtures("small_runs")


def row(epoch: int) -> EpochRow:
    return {
        "epoch": epoch, "train_loss": 1.0, "train_top1": 0.5, "seconds": 1.0, "images_per_second": 1.0,
        "data_wait": 0.0, "learning_rate": 1.0, "val_loss": 1.0, "val_top1": 0.1 * epoch, "val_seen": 10,
    }  # fmt: skip


def test_a_power_cut_at_any_step_of_a_save_leaves_a_state_to_resume_from(image_folder: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    options = parse_options(arguments(image_folder, disk / "run"))
    with prepare(options, ProcessGroup(), Reporter(quiet=True), StopRequest()) as session:
        session.state.rows.append(row(1))
        session.checkpoints.record_epoch(ends=True)
        session.state.rows.append(row(2))
        for cut in power_cuts(disk):
            with cut:
                session.checkpoints.record_epoch(ends=True)
            epochs = len(RunFolder(disk / "run", resume=True).load("last.pt")["rows"])
            assert epochs in (1, 2)
            lines = rows(disk / "run")
            assert len(lines) in (1, 2)
            best = torch.load(disk / "run" / "best.pt", weights_only=True)
            assert best["epoch"] in (1, 2)
            assert cut.happened or (epochs, len(lines), best["epoch"]) == (2, 2, 2)


def test_a_power_cut_leaves_results_whole_or_absent(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    for cut in power_cuts(disk):
        with cut:
            folder = RunFolder(disk / "run", resume=False)
            folder.write_json("config.json", {"a": 1})
            folder.save("last.pt", {"a": 1})
            folder.save_model({"weights": torch.ones(9)})
            folder.write_json("summary.json", {"a": 1})
        files = {path.name: path.stat().st_size for path in disk.rglob("*.*") if path.suffix != ".part"}
        assert all(files.values())
        assert cut.happened or set(files) == {"config.json", "last.pt", "model.safetensors", "summary.json"}


@pytest.mark.parametrize("damage", ["empty", "half", "missing"])
def test_a_run_goes_on_from_the_checkpoint_before_where_the_last_one_is_damaged(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    assert main(arguments(image_folder, tmp_path / "whole")) == 0
    out = tmp_path / "parts"
    last, previous = out / "last.pt", out / "last.previous.pt"
    send_signal_at_step(monkeypatch, 9, signal.SIGTERM)  # of 6 an epoch
    assert main(arguments(image_folder, out)) == 128 + signal.SIGTERM
    whole = last.read_bytes()
    if damage == "missing":
        last.unlink()
    else:
        last.write_bytes(whole[: len(whole) // 2] if damage == "half" else b"")
    before = previous.read_bytes()
    monkeypatch.setattr(checkpoints, "_SECONDS_BETWEEN_SAVES_INSIDE_EPOCHS", 1e9)
    assert main(arguments(image_folder, out)) == 2
    assert "holds another run" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        send_signal_at_step(patch, 2, signal.SIGTERM)
        patch.setattr(RunFolder, "save", disk_is_full)
        assert main(arguments(image_folder, out, "--resume")) == 2
    assert previous.read_bytes() == before  # a damaged file has not taken its place
    capsys.readouterr()
    assert main(arguments(image_folder, out, "--resume")) == 0
    assert "last.pt is missing or damaged: going on from last.previous.pt" in capsys.readouterr().out.replace("\n", " ")
    assert without_times(rows(out)) == without_times(rows(tmp_path / "whole"))
    assert not previous.exists()


def disk_is_full(*_: object) -> None:
    raise InputError("No space left on device")


def test_a_run_whose_checkpoints_are_both_damaged_is_refused(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    send_signal_at_step(monkeypatch, 9, signal.SIGTERM)
    assert main(arguments(image_folder, out)) == 128 + signal.SIGTERM
    for name in ("last.pt", "last.previous.pt"):
        (out / name).write_bytes(b"")
    assert main(arguments(image_folder, out, "--resume")) == 2
    assert "last.pt is damaged or unreadable; begin anew with another OUT" in capsys.readouterr().err
