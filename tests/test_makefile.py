"""What `make` makes of its variables."""

import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="there is no make here")


def told(*given: str) -> subprocess.CompletedProcess[str]:
    """What `make` would do."""
    return subprocess.run(
        ["make", "--dry-run", "PYTHON=python3", *given],
        cwd=Path(__file__).parent.parent, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("target", ["train", "bench", "profile"])
def test_any_name_of_a_folder_arrives_as_it_is(target: str) -> None:
    words = shlex.split(told(target, "DATA=Ann's own/photos", "OUT=it's here").stdout)
    assert words[words.index("--data") + 1] == "Ann's own/photos"
    assert words[words.index("--out") + 1] == "it's here"


@pytest.mark.parametrize("count", ["0", "two", "2x", ""])
def test_a_number_of_gpus_that_is_none_is_named(count: str) -> None:
    refused = told("train", f"NGPU={count}")
    assert refused.returncode == 2
    assert f"NGPU={count}: expected a number of GPUs, 1 or more" in refused.stderr


def test_more_than_one_gpu_starts_torchrun() -> None:
    assert "--nproc-per-node=12 -m train" in told("train", "NGPU=12").stdout
    assert "torch.distributed" not in told("train").stdout


def test_a_gpu_check_can_tell_how_the_gpu_was_doing() -> None:
    assert "nvml" in told("--always-make", ".venv/ready-dev").stdout
