"""What a suite prints at its end."""

import json
from pathlib import Path

import pytest

from benchmarks.harness.result_json import from_json, to_json
from benchmarks.report.writer import ResultWriter
from tests.benchmarks.report.test_page import FULL


def test_a_terminal_gets_what_fits_and_no_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write = ResultWriter(tmp_path)
    write(from_json(FULL))
    write.conclude()
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == to_json(write.result)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "50")
    write.conclude()
    said = capsys.readouterr().out
    assert max(map(len, said.split("\n\ndecoding")[0].splitlines()[:6])) <= 50
    assert "report.html has × baseline, saturation, too" in said
    assert "{" not in said
