"""The options of `python -m train`: which there are, how they are shown."""

import dataclasses
import re
from pathlib import Path

import pytest

from train.__main__ import main
from train.options import OPTION_NAMES, Options, parse_options

OPTIONS = [
    "mode", "data", "root", "loader", "model", "weights", "recipe", "epochs", "batch_size", "lr", "size",
    "views", "train_limit", "val_limit", "max_minutes", "seed", "deterministic", "device", "precision", "compile",
    "workers", "on_bad_image", "max_pixels", "scaled_decoding", "cache_size", "out", "resume",
]  # fmt: skip


def test_no_option_comes_or_goes_unnoticed() -> None:
    """People's scripts hold these names, and no more than thirty can be kept in mind."""
    assert [field.name for field in dataclasses.fields(Options)] == OPTIONS
    assert len(OPTIONS) <= 30


def test_the_help_describes_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    help = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for name in OPTIONS[1:]:
        assert f"--{name.replace('_', '-')} " in help
    assert "{None}" not in help
    assert "feature: a new head on a frozen backbone; finetune: all weights." in help


def test_a_shell_can_complete_the_options(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--tyro-write-completion", "bash", str(tmp_path / "completion")])
    assert caught.value.code in (0, None)
    script = (tmp_path / "completion").read_text()
    assert "--on-bad-image" in script
    assert "complete -F" in script


def test_unless_given_options_are_left_to_the_recipe() -> None:
    options = parse_options(["finetune"])
    assert [options.epochs, options.batch_size, options.lr, options.size] == [None] * 4
    assert parse_options(["feature", "--lr", "0.5", "--out", "x"]).lr == 0.5


def test_fields_are_named_as_people_type_them(capsys: pytest.CaptureFixture[str]) -> None:
    """By the Makefile's variable where there is one, else by the option that the help lists."""
    with pytest.raises(SystemExit):
        main(["--help"])
    listed = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
    makefile = (Path(__file__).parents[2] / "Makefile").read_text()
    variables = set(re.findall(r"^([A-Z]+) *\?=", makefile, re.MULTILINE)) - {"ARGS"}
    assert {name for name in OPTION_NAMES.values() if not name.startswith("--")} == variables
    assert {name for name in OPTION_NAMES.values() if name.startswith("--")} <= listed
    assert set(OPTIONS) <= set(OPTION_NAMES)
    assert (OPTION_NAMES["batch_size"], OPTION_NAMES["loader"]) == ("--batch-size", "LOADER")


@pytest.mark.parametrize(
    ("arguments", "resume"),
    [
        ([], "no"),
        (["--resume"], "yes"),
        (["--resume", "--lr", "0.5"], "yes"),
        (["--resume", "auto"], "auto"),
        (["--resume=auto"], "auto"),
        (["--resume", "no"], "no"),
    ],
)
def test_resume_needs_no_value(arguments: list[str], resume: str) -> None:
    assert parse_options(["finetune", "--out", "x", *arguments]).resume == resume
    assert parse_options([*arguments, "finetune", "--out", "x"]).resume == resume
