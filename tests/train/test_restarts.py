"""Processes that train together: one that is killed, and one that stops answering."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]

# What torchrun starts: `python -m train` with a tiny model, disturbed as the test wants.
PROGRAM = """
import os, signal, sys, threading
from datetime import timedelta

import torch
import train.prepare, train.process_group
from matplotlib.figure import Figure
from tests.conftest import TinyResNet
from train.__main__ import main
from train.learner import Learner

torch.set_num_threads(1)
train.process_group._PATIENCE_IN_STEPS = timedelta(minutes={minutes})
train.prepare.build_model = lambda _, classes: TinyResNet(classes)
train.run_folder.draw_curves = lambda _: Figure(figsize=(1, 1))
step, steps = Learner.step, 0

def disturbed(self, *given):
    global steps
    steps += 1
    if steps == 5 and os.environ["RANK"] == "{rank}":  # of 3 an epoch
        {disturbance}
    step(self, *given)

Learner.step = disturbed
threading.Thread(target=threading.Event().wait, daemon=True).start()  # beside the main thread
sys.exit(main())
"""


def launch(
    tmp_path: Path, data: Path, disturbance: str, *torchrun: str, rank: int = 1, minutes: float = 10
) -> subprocess.CompletedProcess[str]:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.format(disturbance=disturbance, rank=rank, minutes=minutes))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *torchrun]
    return subprocess.run(
        [
            *launcher, "--monitor-interval=0.1", str(program), "finetune", "--data", str(data),
            "--out", str(tmp_path / "run"), "--resume", "auto", "--weights", "none", "--size", "32",
            "--batch-size", "4", "--precision", "fp32", "--epochs", "3", "--device", "cpu", "--loader", "torchvision",
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(CHECKOUT)},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


KILLED_ONCE = 'os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" and os.kill(os.getpid(), signal.SIGKILL)'


@pytest.mark.parametrize("rank", [0, 1])
def test_torchrun_restarts_a_run_one_of_whose_processes_was_killed(
    image_folder: Path, tmp_path: Path, rank: int
) -> None:
    done = launch(tmp_path, image_folder, KILLED_ONCE, "--max-restarts=1", rank=rank)
    assert done.returncode == 0, done.stderr
    assert "resumed after 1 epochs" in done.stdout
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [(row["epoch"], row["val_seen"]) for row in rows] == [(1, 10), (2, 10), (3, 10)]


def test_a_process_that_stops_answering_is_noticed_and_every_thread_is_shown(
    image_folder: Path, tmp_path: Path
) -> None:
    stopped = "signal.signal(signal.SIGTERM, signal.SIG_DFL), signal.pause()"
    done = launch(tmp_path, image_folder, stopped, minutes=0.05)
    assert done.returncode == 1
    assert "rank 0: another process has not answered for 0.05 minutes" in done.stderr
    assert "Thread 0x" in done.stderr
