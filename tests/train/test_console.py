"""What people see of messages that come from the packages below."""

from typing import Any

import pytest

from loaders import InputError
from train.__main__ import main
from train.console import Reporter

MESSAGE = 'choose a smaller `batch_size`, `loader="torchvision"`, `world_size=1` or `on_bad_image="skip"`; not `other`'
SHOWN = "choose a smaller --batch-size, LOADER=torchvision, NGPU=1 or --on-bad-image skip; not `other`"


def test_fields_are_printed_as_what_people_type(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = Reporter()
    reporter.say(MESSAGE)
    reporter.facts({"loader": MESSAGE, "x": "y"})
    reporter.warn(MESSAGE)
    assert capsys.readouterr().out.splitlines() == [SHOWN, f"loader  {SHOWN}", "x       y", f"warning: {SHOWN}"]


def test_an_error_names_what_people_type(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(*_: Any) -> None:
        raise InputError(MESSAGE)

    monkeypatch.setattr("train.run.prepare", refuse)
    assert main(["finetune"]) == 2
    assert capsys.readouterr().err == f"error: {SHOWN}\n"


def test_a_quiet_reporter_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = Reporter(quiet=True)
    reporter.say("a")
    reporter.warn("b")
    assert capsys.readouterr().out == ""
