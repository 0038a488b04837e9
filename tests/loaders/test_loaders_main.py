"""`python -m loaders`: what there is, and caches built beforehand."""

import sys
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

import loaders
from loaders import Source, open_data
from loaders.__main__ import main
from loaders.cache.pixel_cache import Preprocessing, find_cache
from loaders.sources import PixelArray
from loaders.system.console import shown_progress
from loaders.system.format import ProgressRate, format_duration
from loaders.system.machine import cache_folder
from tests.conftest import exit_code, run_where_importing_raises

CHECKOUT = Path(__file__).parents[2]


def test_it_lists_unless_told_otherwise(capsys: pytest.CaptureFixture[str]) -> None:
    assert main() == 0
    listed = capsys.readouterr().out
    assert "streamed" in listed
    assert main(["list"]) == 0
    assert capsys.readouterr().out == listed


def test_cache_keeps_both_splits(image_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache", str(image_folder), "--cache-size", "40"]) == 0
    train_line, val_line = capsys.readouterr().out.splitlines()
    for source in open_data(str(image_folder), root=image_folder):
        assert find_cache(source, Preprocessing(40)) is not None
        assert find_cache(source, Preprocessing(256)) is None
    assert train_line.startswith("trees: 24 images to train on, ")
    assert val_line.startswith("trees: 10 images to validate, ")


def test_a_bad_image_is_named_and_can_be_left_out(image_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = image_folder / "train" / "ash" / "07.jpg"
    path.write_bytes(path.read_bytes()[:-60])
    assert main(["cache", str(image_folder)]) == 2
    assert "ash/07.jpg" in capsys.readouterr().err
    assert main(["cache", str(image_folder), "--on-bad-image", "skip"]) == 0
    out = capsys.readouterr().out
    assert "left out: " in out
    assert "trees: 23 images to train on, " in out


def test_files_that_are_passed_over_are_told(image_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (image_folder / "train" / "ash" / "notes.txt").write_text("")
    assert main(["cache", str(image_folder)]) == 0
    assert "passed over, being no images: 1 × .txt" in capsys.readouterr().out


def test_bad_images_of_both_splits_are_named_before_any_is_kept(
    image_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split in ("train", "val"):
        (image_folder / split / "ash" / "03.jpg").write_bytes(b"")
    assert main(["cache", str(image_folder)]) == 2
    told = capsys.readouterr().err
    assert "2 of 34 images" in told
    assert all(f"{split}/ash/03.jpg" in told for split in ("train", "val"))
    assert not (cache_folder() / "pixels").exists()


def test_names_that_cannot_be_printed_are_escaped(image_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = image_folder.rename(image_folder.with_name("tr\udce9es"))  # as Python has what is no UTF-8
    assert main(["cache", str(folder)]) == 0
    assert capsys.readouterr().out.startswith("tr\\udce9es: 24 images to train on, ")


def test_a_bar_takes_any_title_as_it_is() -> None:
    console = Console(force_terminal=True, file=StringIO(), width=120)
    with shown_progress(console, "looking at {some}/[red]/[/things]") as show:
        show(1, 2, "[/b]")
    assert "looking at {some}/[red]/[/things]" in console.file.getvalue()
    assert "[/b]" in console.file.getvalue()


def test_a_folder_that_is_not_there_is_said_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache", "nowhere"]) == 2
    assert capsys.readouterr().err.startswith("error: DATA: there is no folder")


@pytest.mark.parametrize("options", [["--cache-size", "0"], ["--cahce-size", "256"]])
def test_options_that_make_no_sense_are_refused(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(main, ["cache", "nowhere", *options]) == 2
    assert options[0] in capsys.readouterr().err


def test_pixels_that_are_in_memory_need_no_cache(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels, sizes = np.zeros((4, 8, 8, 3), np.uint8), np.full((4, 2), 8, np.int32)
    source = Source("digits", ("0", "1"), np.array([0, 0, 1, 1]), sizes, PixelArray(pixels), "f")
    monkeypatch.setattr("loaders.open_data", lambda *_, **__: (source, source.take(2)))
    assert main(["cache", "cifar10", "--root", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "digits: 4 images to train on are pixels already"


def test_the_pace_counts_only_what_was_done_since(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([100.0, 102.0, 104.0])
    monkeypatch.setattr("time.monotonic", lambda: next(now))
    pace = ProgressRate("images")
    assert pace(500, 10_000) == ""  # an earlier run's
    assert pace(700, 10_000) == "100 images/s, 93 s left"
    assert pace(2500, 10_000) == "500 images/s, 15 s left"


@pytest.mark.parametrize(("seconds", "told"), [(0.2, "0 s"), (99, "99 s"), (180, "3 min"), (9000, "2.5 h")])
def test_times_are_told_as_people_do(seconds: float, told: str) -> None:
    assert format_duration(seconds) == told


# --- starting up -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "exit_code"),
    [(["--help"], 0), (["cache", "--help"], 0), (["cache", "x", "--cache-size", "0"], 2), (["fast"], 2)],
    ids=str,
)
def test_help_and_mistakes_are_answered_without_torch(arguments: list[str], exit_code: int) -> None:
    done = run_where_importing_raises("loaders", "torch", "AssertionError", *arguments)
    assert done.returncode == exit_code, done.stderr
    assert done.stdout.startswith("usage: python -m loaders") == (exit_code == 0)


@pytest.mark.parametrize("module", ["tyro", "numpy", "torch", "simplejpeg"])
def test_ctrl_c_while_modules_are_imported_ends_quietly(module: str) -> None:
    done = run_where_importing_raises("loaders", module, "KeyboardInterrupt")
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


@pytest.mark.parametrize("module", ["tyro", "torch", "torchvision"])
def test_a_missing_package_is_named_with_the_remedy(module: str) -> None:
    done = run_where_importing_raises("loaders", module, f"ModuleNotFoundError(name={module!r})")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"error: {sys.executable} has no {module}; to add it: {sys.executable} -m pip install {module}\n"
    )


def test_the_public_names_are_there_and_no_others() -> None:
    assert sorted(loaders.__all__) == sorted(set(loaders.__all__))
    for name in loaders.__all__:
        assert getattr(loaders, name) is not None
        assert name in dir(loaders)
    with pytest.raises(AttributeError, match="no attribute 'fast_loader'"):
        loaders.fast_loader  # noqa: B018
