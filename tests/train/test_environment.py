"""The environment that is recorded with a run."""

import shlex
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from train.environment import describe_environment


@pytest.mark.parametrize("ranks", [None, "1", "2"])
def test_the_command_can_be_typed_again(monkeypatch: pytest.MonkeyPatch, ranks: str | None) -> None:
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", ModuleSpec("train.__main__", None))
    monkeypatch.setattr(sys, "argv", ["/checkout/train/__main__.py", "feature", "--data", "my photos"])
    if ranks is None:
        monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    else:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks)
    launcher = "-m torch.distributed.run --standalone --nproc-per-node=2 " if ranks == "2" else ""
    assert describe_environment()["command"] == f"python {launcher}-m train feature --data 'my photos'"


def test_the_command_of_a_module_calls_the_module(tmp_path: Path) -> None:
    """As Python itself sets it, for which a file `__main__.py` is no command."""
    (tmp_path / "program").mkdir()
    (tmp_path / "program" / "__main__.py").write_text("from train.environment import _command; print(_command())")
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-m", "program", "a b"],
        cwd=tmp_path,
        env={"PYTHONPATH": root},
        capture_output=True,
        text=True,
        check=True,
    )
    assert shlex.split(done.stdout) == ["python", "-m", "program", "a b"]


def test_versions_of_what_decodes_and_compiles_are_recorded() -> None:
    versions = describe_environment()["versions"]
    assert {"python", "torch", "torchvision", "numpy", "PIL", "simplejpeg"} <= set(versions)
