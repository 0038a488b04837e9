"""A run's folder belongs to one run at a time."""

import errno
import fcntl
import os
import re
import signal
import socket
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest

from loaders import InputError
from train import prepare
from train.__main__ import main
from train.folder_lock import LOCK, FolderLock
from train.run_folder import RunFolder, make_new_folder

pytestmark = pytest.mark.usefixtures("small_runs")

HOLD = """
import sys, time
from pathlib import Path
from train.folder_lock import FolderLock
lock = FolderLock(Path(sys.argv[1]))
print(flush=True)
time.sleep(600)
"""


def arguments(data: Path, *more: str) -> list[str]:
    small = ["--size", "32", "--batch-size", "4", "--precision", "fp32", "--epochs", "1", "--device", "cpu"]
    return ["finetune", "--data", str(data), "--weights", "none", *small, *more]


def test_runs_that_begin_in_the_same_second_get_folders_of_their_own(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Clock(datetime):
        @classmethod
        def now(cls, _: object = None) -> "Clock":
            return cls(2026, 11, 23, 20, 48, 22)

    monkeypatch.setattr(prepare, "datetime", Clock)
    monkeypatch.chdir(tmp_path)
    for seed in ("0", "1", "2"):
        assert main(arguments(image_folder, "--seed", seed)) == 0
    name = "finetune-trees-20261123-204822"
    assert {path.name for path in Path("runs").iterdir()} == {name, f"{name}-2", f"{name}-3"}
    for seed, suffix in enumerate(("", "-2", "-3")):
        assert f'"seed": {seed},' in Path("runs", name + suffix, "config.json").read_text()


def test_a_new_folder_is_made_only_where_that_is_possible(tmp_path: Path) -> None:
    (tmp_path / "runs").touch()
    with pytest.raises(InputError, match=r"OUT: .*runs/a cannot be made: File exists"):
        make_new_folder(tmp_path / "runs" / "a")


def test_a_second_run_on_the_same_folder_is_refused_by_the_name_of_the_first(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    first = RunFolder.claimed(out, resume=False)
    assert main(arguments(image_folder, "--out", str(out))) == 2
    said = f"OUT: {out} is in use by a run of process {os.getpid()} on {socket.gethostname()}: choose another OUT"
    assert said in capsys.readouterr().err
    first.save("last.pt", {})
    assert main(arguments(image_folder, "--out", str(out), "--resume")) == 2
    assert "is in use by a run of process" in capsys.readouterr().err
    first.close()
    assert not (out / LOCK).exists()
    RunFolder.claimed(out, resume=True).close()


def test_a_lock_ends_with_its_process_however_that_ends(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(InputError, match=rf"in use by a run of process {holder.pid} on "):
            FolderLock(tmp_path)
        holder.send_signal(signal.SIGKILL)
    assert (tmp_path / LOCK).exists()
    FolderLock(tmp_path).release()


def test_a_forked_child_does_not_hold_the_lock_of_its_parent(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path)
    child = os.fork()
    if not child:
        os._exit(0 if lock._file.closed else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    with pytest.raises(InputError, match="in use"):  # the parent's is as it was
        FolderLock(tmp_path)
    lock.release()


def test_a_file_that_its_holder_removed_while_it_was_being_opened_locks_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = FolderLock(tmp_path)
    flock = fcntl.flock
    calls = []

    def released_meanwhile(*given: int) -> None:
        if not calls:
            first.release()
        calls.append(given)
        flock(*given)

    monkeypatch.setattr(fcntl, "flock", released_meanwhile)
    second = FolderLock(tmp_path)
    assert len(calls) == 2
    with pytest.raises(InputError, match="in use"):
        FolderLock(tmp_path)
    second.release()


def test_a_file_system_without_locks_is_said_once_and_the_run_goes_on(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("train.folder_lock.fcntl.flock", refuse)
    assert main(arguments(image_folder, "--out", str(tmp_path / "run"), "--loader", "torchvision")) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert len(re.findall(r"run cannot be locked \(No locks available\): see to it that no other", said)) == 1
    assert not (tmp_path / "run" / LOCK).exists()


def test_a_run_that_cannot_begin_leaves_no_folder_and_no_lock(image_folder: Path, tmp_path: Path) -> None:
    given = arguments(image_folder, "--out", str(tmp_path / "new"), "--batch-size", "1000")
    assert main(given) == 2
    assert not (tmp_path / "new").exists()
    (tmp_path / "present").mkdir()
    assert main([*given, "--out", str(tmp_path / "present")]) == 2
    assert not list((tmp_path / "present").iterdir())


def test_unfinished_files_are_named_by_their_process_and_removed_by_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts: list[str] = []
    folder = RunFolder.claimed(tmp_path, resume=False)
    monkeypatch.setattr(os, "replace", lambda part, _: parts.append(Path(part).name))
    folder.save("last.pt", {})
    monkeypatch.undo()
    folder.close()
    assert parts == [f"last.pt.{os.getpid()}.part"]
    (tmp_path / "best.pt.1234.part").touch()
    (tmp_path / "movie.part").touch()
    RunFolder.claimed(tmp_path, resume=False).close()
    assert {path.name for path in tmp_path.iterdir()} == {"movie.part"}
