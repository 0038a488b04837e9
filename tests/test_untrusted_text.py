"""Names of files, classes and data sets are other people's text: no program hands control characters to a terminal."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from loaders.__main__ import main as loaders_main
from train.__main__ import main

ROOT = Path(__file__).parent.parent
FILES = sorted(file for package in ("loaders", "train", "benchmarks") for file in (ROOT / package).rglob("*.py"))

NAMES = {
    "a\x1b]0;pwned\x07": "a\\x1b]0;pwned\\x07",
    "b\nerror: forged": "b\\nerror: forged",
    "c\u202egpj.exe": "c\\u202egpj.exe",
    "d\x9b31m\r": "d\\x9b31m\\r",
    "e\udce9": "e\\udce9",
    ":bug: [red]": ":bug: [red]",
}
"""Name → as it is shown."""

CONTROLS = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]")


def rename_classes(folder: Path, names: list[str]) -> None:
    for split in ("train", "val"):
        for old, new in zip(("ash", "oak"), names, strict=True):
            (folder / split / old).rename(folder / split / new)


def require_clean(text: str) -> None:
    """No control characters, and no line that a name began."""
    assert not CONTROLS.search(text), text
    assert not re.search("^(error: )?forged", text, re.MULTILINE), text


def run_program(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A program in its own process, as a shell starts it."""
    return subprocess.run(
        [sys.executable, "-m", *map(os.fsencode, arguments)], cwd=ROOT, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("program", [("train", "finetune", "--data"), ("loaders", "cache")])
def test_a_program_that_refuses_images_shows_their_names_escaped(image_folder: Path, program: tuple[str, ...]) -> None:
    folder = image_folder.rename(image_folder.with_name("b\nerror: forged"))
    for name in NAMES:
        (folder / "train" / "ash" / f"{name}.jpg").write_bytes(b"")
    done = run_program(*program, str(folder))
    assert done.returncode == 2
    require_clean(done.stdout + done.stderr)
    assert done.stderr.startswith(f"error: {len(NAMES)} of 30 images cannot be decoded:\n")
    for shown in NAMES.values():
        assert f"/train/ash/{shown}.jpg: " in done.stderr


@pytest.mark.parametrize("name", NAMES)
def test_data_that_is_not_there_is_named_escaped(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    for program, arguments in ((main, ["finetune", "--data"]), (loaders_main, ["cache"])):
        assert program([*arguments, f"nowhere/{name}"]) == 2
        error = capsys.readouterr().err
        require_clean(error)
        assert f"nowhere/{NAMES[name]}" in error
        assert error.count("\n") == 1


@pytest.mark.usefixtures("small_runs")
@pytest.mark.parametrize("name", [name for name in NAMES if "\udce9" not in name])
def test_a_run_shows_the_names_of_data_classes_and_folder_escaped(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    rename_classes(image_folder, [name, "oak"])
    folder = image_folder.rename(image_folder.with_name(name))
    (folder / "train" / name / "notes.txt").write_text("no image")
    arguments = ["feature", "--data", str(folder), "--weights", "none", "--size", "32", "--epochs", "1"]
    assert main([*arguments, "--batch-size", "8", "--out", str(tmp_path / f"run {name}")]) == 0
    output = capsys.readouterr().out
    require_clean(output)
    assert f"data    {NAMES[name]}, 24 images" in output
    assert f"run {NAMES[name]} holds the weights" in output


@pytest.mark.parametrize("name", NAMES)
def test_building_a_cache_shows_names_escaped(
    image_folder: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    rename_classes(image_folder, [name, "oak"])
    folder = image_folder.rename(image_folder.with_name(name))
    assert loaders_main(["cache", str(folder), "--cache-size", "32"]) == 0
    output = capsys.readouterr().out
    require_clean(output)
    assert f"{NAMES[name]}: 24 images to train on" in output


def test_classes_without_images_to_train_on_are_named_escaped(
    image_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (image_folder / "val" / "ash").rename(image_folder / "val" / "b\nerror: forged")
    assert main(["feature", "--data", str(image_folder)]) == 2
    error = capsys.readouterr().err
    require_clean(error)
    assert "b\\nerror: forged" in error


# --- that it stays so ----------------------------------------------------------------------------------

PRINTING = {Path("loaders/system/console.py"), Path("loaders/system/startup.py")}
"""The modules that print by themselves; `startup.py` does so before other modules can be imported."""

MESSAGES = {"InputError", "WeightsUnavailableError", "say", "warn", "print_lines", "print_error"}
"""What takes lines of a message, each as an argument."""


def called(call: ast.Call) -> str:
    """The last name of what is called."""
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_messages_are_printed_where_they_are_escaped(path: Path) -> None:
    for call in (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)):
        if called(call) == "print" and path.relative_to(ROOT) not in PRINTING:
            # A line of JSON, for programs, has no raw control characters.
            assert ast.unparse(call) == "print(as_text(record))", f"line {call.lineno}: use print_lines"
        if called(call) in MESSAGES:
            texts = [node.value for node in ast.walk(call) if isinstance(node, ast.Constant)]
            assert not any("\n" in text for text in texts if isinstance(text, str)), (
                f"line {call.lineno}: give each line of a message as an argument"
            )
