"""What people see of messages that come from the packages below."""

from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from loaders import InputError
from loaders.system.console import shown_progress
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


def test_a_newline_begins_a_line_only_where_the_program_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = Reporter()
    reporter.say("a\nb", "c", "")
    reporter.facts({"data": "d\x1b[31m"})
    reporter.warn("e\r", "f :bug: [red]")
    assert capsys.readouterr().out.splitlines() == [
        "a\\nb", "c", "", "data  d\\x1b[31m", "warning: e\\r", "f :bug: [red]",
    ]  # fmt: skip


def test_a_bar_escapes_title_and_remark() -> None:
    console = Console(force_terminal=True, file=StringIO(), width=120)
    with shown_progress(console, "a\x1b]0;pwned\x07\n") as show:
        show(1, 2, "b\u202e")
    written = console.file.getvalue()
    assert "a\\x1b]0;pwned\\x07\\n" in written
    assert "b\\u202e" in written
    assert "\x1b]" not in written


def test_a_quiet_reporter_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = Reporter(quiet=True)
    reporter.say("a")
    reporter.warn("b")
    assert capsys.readouterr().out == ""
