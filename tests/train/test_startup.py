"""What `python -m train` does before it trains: options without torch, missing modules, Ctrl-C."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    """Runs a program in the checkout, in a process of its own."""
    return subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True, check=False)


MAIN_WITHOUT_TORCH = """
import sys
from train.__main__ import main
try:
    code = main({arguments})
except SystemExit as ended:
    code = ended.code or 0
assert not {{"torch", "torchvision"}} & set(sys.modules)
sys.exit(code)
"""


@pytest.mark.parametrize(
    ("arguments", "code", "stream", "said"),
    [
        (["--help"], 0, "stdout", "--epochs"),
        (["finetune", "--epochs", "x"], 2, "stderr", "--epochs"),
        (["finetune", "--epochs", "0"], 2, "stderr", "--epochs 0"),
        (["feature", "--no-such-option"], 2, "stderr", "--no-such-option"),
        (["--tyro-print-completion", "bash"], 0, "stdout", "--on-bad-image"),
    ],
)
def test_help_mistakes_and_completion_do_not_import_torch(
    arguments: list[str], code: int, stream: str, said: str
) -> None:
    done = run_python(MAIN_WITHOUT_TORCH.format(arguments=arguments))
    assert done.returncode == code, done.stderr
    assert said in getattr(done, stream)
    assert "Traceback" not in done.stderr


def test_options_are_parsed_without_torch() -> None:
    done = run_python(
        "import sys; from train.options import parse_options; print(parse_options(['finetune', '--lr', '0.5']).lr);"
        "assert not {'torch', 'torchvision'} & set(sys.modules)"
    )
    assert (done.returncode, done.stdout) == (0, "0.5\n"), done.stderr


DISTURBED_IMPORT = """
import os, runpy, signal, sys

class Finder:
    def find_spec(self, name, *_):
        if name == {module!r}:
            {disturbance}

sys.meta_path.insert(0, Finder())
sys.argv[1:] = ["finetune", "--data", "/no/such/folder"]
runpy.run_module("train", run_name="__main__", alter_sys=True)
"""
INTERRUPT = "os.kill(os.getpid(), signal.SIGINT)"
MISSING = "raise ModuleNotFoundError('No module named ' + name, name=name)"


@pytest.mark.parametrize("module", ["tyro", "numpy", "train.options"])
def test_ctrl_c_before_the_options_are_parsed_ends_silently(module: str) -> None:
    done = run_python(DISTURBED_IMPORT.format(module=module, disturbance=INTERRUPT))
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


@pytest.mark.parametrize(
    ("module", "name"), [("torch", "SIGINT"), ("torchvision", "SIGUSR1"), ("train.loop", "SIGTERM")]
)
def test_signals_while_modules_are_imported_end_quietly(module: str, name: str) -> None:
    disturbance = f"os.kill(os.getpid(), signal.{name})"
    done = run_python(DISTURBED_IMPORT.format(module=module, disturbance=disturbance))
    assert (done.returncode, done.stdout) == (128 + getattr(signal, name), "")
    assert done.stderr == f"\n{name}: ended before the first step. Nothing was saved, and what was is untouched.\n"


@pytest.mark.parametrize("module", ["tyro", "torch", "safetensors"])
def test_a_missing_module_is_named_with_the_remedy(module: str) -> None:
    done = run_python(DISTURBED_IMPORT.format(module=module, disturbance=MISSING))
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {sys.executable} has no {module}")
    assert f"-m pip install {module}" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_python_without_any_library_names_the_first_that_is_missing() -> None:
    bare = [sys.executable, "-S", "-m", "train", "finetune"]  # without site-packages
    done = subprocess.run(bare, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "-m pip install" in done.stderr
    assert "Traceback" not in done.stderr
