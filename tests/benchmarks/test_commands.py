"""`python -m benchmarks`: what it refuses, and how quickly it answers."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.__main__ import OTHER_COMMANDS, SUITES, main
from tests.conftest import run_where_importing_raises


def test_data_that_are_not_there_are_an_error_and_no_trace(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["loaders", "--data", "/no/such/folder"]) == 2
    assert capsys.readouterr().err.startswith("error: DATA: there is no folder or CSV file /no/such/folder")


def test_a_result_that_is_there_already_is_not_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bench.json").write_text("{}")
    for theme in SUITES:
        assert main([theme, "--out", str(tmp_path)]) == 2
        assert capsys.readouterr().err.startswith(f"error: {tmp_path} holds another result: choose another OUT")
    assert (tmp_path / "bench.json").read_text() == "{}"


@pytest.mark.parametrize("theme", ["loaders", "saturation"])
def test_only_what_is_not_there_is_refused_and_what_is_there_named(
    image_folder: Path, capsys: pytest.CaptureFixture[str], theme: str
) -> None:
    assert main([theme, "--data", str(image_folder), "--only", "torchvison", "--device", "cpu"]) == 2
    assert re.match(r"error: --only torchvison: .* there are .*torchvision", capsys.readouterr().err)


def test_a_package_that_the_interpreter_lacks_is_named() -> None:
    lacking = "import runpy, sys; sys.modules['tyro'] = None; runpy.run_module('benchmarks', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", lacking], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.split("; ")[0]) == (2, f"error: {sys.executable} has no tyro")


OPTION_MODULES = ("harness.options", "suites.options", "report.options", "gpu_check.options")


def test_options_are_parsed_without_torch() -> None:
    """Importing it takes seconds, which a mistake in an option should not wait for."""
    modules = ", ".join(f"benchmarks.{name}" for name in OPTION_MODULES)
    code = f"import sys, {modules}, benchmarks.__main__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "exit_code"),
    [
        (["--help"], 0),
        *(([name, "--help"], 0) for name in SUITES | OTHER_COMMANDS),
        (["loaders", "--no-such-option"], 2),
        (["loaders", "--windows", "0"], 2),
        (["fast"], 2),
    ],
)
def test_help_and_mistakes_are_answered_without_torch(arguments: list[str], exit_code: int) -> None:
    done = run_where_importing_raises("benchmarks", "torch", "AssertionError", *arguments)
    assert done.returncode == exit_code, done.stderr
    assert done.stdout.startswith("usage: python -m benchmarks") == (exit_code == 0)


@pytest.mark.parametrize("module", ["tyro", "benchmarks.suites.options", "benchmarks.suites.loader_rates", "torch"])
def test_an_interruption_while_importing_ends_quietly(module: str) -> None:
    done = run_where_importing_raises("benchmarks", module, "KeyboardInterrupt", "loaders")
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_a_package_that_a_suite_lacks_is_named_too() -> None:
    done = run_where_importing_raises("benchmarks", "torchvision", "ModuleNotFoundError(name='torchvision')", "loaders")
    assert (done.returncode, done.stderr.split("; ")[0]) == (2, f"error: {sys.executable} has no torchvision")
