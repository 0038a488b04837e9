"""What the README shows works as it stands there."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.report.markdown import pages, with_tables
from loaders import choose_loader, open_data

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_loaders_in_ones_own_loop(image_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image_folder.rename(image_folder.parent / "photos")
    monkeypatch.chdir(image_folder.parent)
    (code,) = re.findall(r"```python\n(from pathlib.*?)```", README, re.DOTALL)
    assert len(code.splitlines()) <= 12
    names: dict[str, object] = {}
    exec(code, names)
    assert names["images"].shape == (8, 3, 224, 224)  # type: ignore[attr-defined]
    assert len(names["loader"]) == len(open_data("photos", root=Path())[0]) // 8  # type: ignore[arg-type]


@pytest.mark.usefixtures("small_runs")
def test_training_from_python(
    image_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = image_folder.rename(image_folder.parent / "photos")
    (photos / "val" / "oak" / "00.jpg").rename(photos.parent / "photo.jpg")
    monkeypatch.chdir(photos.parent)
    monkeypatch.setattr("train.prepare.load_weights", lambda *_: "imagenet")  # would be downloaded
    (code,) = re.findall(r"```python\n(from train import fit\n.*?)```", README, re.DOTALL)
    assert len(code.strip().splitlines()) == 5
    names: dict[str, Any] = {}
    exec(code, names)
    assert len(names["result"].rows) == 3
    assert capsys.readouterr().out.splitlines()[-1].startswith("{'")


def test_a_run_without_a_gpu_says_of_its_loader_what_is_shown(image_folder: Path) -> None:
    both = open_data(str(image_folder), root=image_folder)
    cpu = torch.device("cpu")
    choice = choose_loader("auto", both, device=cpu, epochs=20, workers=2, world_size=1, cache_size=256)
    assert f"    loader  {choice.name} ({choice.reason})\n" in README


def test_every_table_equals_the_results_it_names() -> None:
    assert README.count("<!-- table: ") >= 1
    for page in pages(ROOT):
        assert with_tables(page.read_text(), ROOT) == page.read_text()  # else: make readme-tables


def test_every_option_named_exists() -> None:
    from benchmarks.__main__ import OTHER_COMMANDS, SUITES
    from train.options import Options

    measuring = {
        name for command in (SUITES | OTHER_COMMANDS).values() for name in command.options.__dataclass_fields__
    }
    named = {flag[2:].replace("-", "_") for flag in re.findall(r"--[a-z][a-z-]+", README)} - {
        "help",
        "tyro_write_completion",
    }
    assert named <= set(Options.__dataclass_fields__) | measuring
