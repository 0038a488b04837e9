"""One of two ranks is killed: the other one ends with an error soon, and the run resumes to the same end."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.attack.runs import FULL, Outcome, Setting
from tests.attack.warm_process import CHECKOUT

SETTING = Setting("torchvision", "finetune")
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--monitor-interval=0.2")
PROGRAM = """
import sys
from tests.attack.warm_process import make_small
make_small()
from train.__main__ import main
sys.exit(main())
"""
SECONDS = 100.0
"""Nothing here may take longer; most of it is spent on imports."""


def start(data: Path, folder: Path, *more: str) -> subprocess.Popen[bytes]:
    """`torchrun --nproc-per-node=2` of a run with small parts, in a session of its own."""
    program = folder / "program.py"
    program.write_text(PROGRAM)
    arguments = [*SETTING.arguments(data, folder / "out"), "--epochs", "12", *more]
    environment = {
        **os.environ,
        "SATURATE_CACHE": str(folder / "cache"),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(CHECKOUT),
    }
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, *TORCHRUN, str(program), *arguments],
            cwd=CHECKOUT, env=environment, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip


def ranks(torchrun: subprocess.Popen[bytes]) -> dict[int, int]:
    """Rank → process id, of torchrun's children."""
    found = {}
    for task in Path(f"/proc/{torchrun.pid}/task").glob("*/children"):
        for child in task.read_text().split():
            environment = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
            if (rank := dict(entry.partition(b"=")[::2] for entry in environment).get(b"RANK")) is not None:
                found[int(rank)] = int(child)
    return found


def must_end(torchrun: subprocess.Popen[bytes], log: Path) -> int:
    """The exit code; fails where there is none in time. Nothing of the session is left."""
    try:
        return torchrun.wait(SECONDS)
    except subprocess.TimeoutExpired:
        pytest.fail(f"two ranks did not end within {SECONDS:.0f} s\n{log.read_text()}")
    finally:
        stop(torchrun)


def stop(torchrun: subprocess.Popen[bytes]) -> None:
    for pid in [*ranks(torchrun).values(), torchrun.pid] if torchrun.poll() is None else []:
        os.kill(pid, signal.SIGKILL)
    torchrun.wait()


@pytest.mark.timeout(400)
@pytest.mark.parametrize("rank", [0, 1] if FULL else [1])
def test_a_killed_rank_ends_the_others_and_the_run_resumes(small_photos: Path, tmp_path: Path, rank: int) -> None:
    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    for folder in (undisturbed, disturbed):
        folder.mkdir()
    first, second = start(small_photos, undisturbed), start(small_photos, disturbed)
    last = disturbed / "out" / "last.pt"
    try:
        until = time.monotonic() + SECONDS
        while not last.exists() and second.poll() is None and time.monotonic() < until:
            time.sleep(0.005)
        assert last.exists(), (disturbed / "log").read_text()
        processes = ranks(second)
        os.kill(processes[rank], signal.SIGKILL)
        assert must_end(second, disturbed / "log") != 0, "the run had ended before a rank was killed"
        assert not any(Path(f"/proc/{pid}").exists() for pid in processes.values())
        assert must_end(start(small_photos, disturbed, "--resume"), disturbed / "log") == 0, (
            disturbed / "log"
        ).read_text()
        assert must_end(first, undisturbed / "log") == 0, (undisturbed / "log").read_text()
    finally:
        stop(first)
        stop(second)
    assert Outcome.of(disturbed / "out") == Outcome.of(undisturbed / "out")
