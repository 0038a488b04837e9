"""Tables of README and docs, written from the results they name."""

import json
from pathlib import Path

import pytest

from benchmarks.report.markdown import with_tables
from benchmarks.suites.rows import BASELINE, FINISHED, PARTS
from loaders import InputError
from tests.benchmarks.report.test_page import FULL, result, row


def test_a_table_is_written_from_the_result_it_names(tmp_path: Path) -> None:
    slow, fast = row(BASELINE, 100, 0.02, group=FINISHED), FULL["rows"][0] | {"group": FINISHED}
    (tmp_path / "r.json").write_text(json.dumps(result(fast, slow)))
    text = "before\n<!-- table: loaders r.json -->\nold\n<!-- end -->\nafter\n"
    written = with_tables(text, tmp_path)
    assert written.startswith("before\n<!-- table: loaders r.json -->\n| | images/s | low | high | × baseline |\n")
    lines = f"| {BASELINE} | 100 | 98.0 | 102 | 1.00 × |\n| fast & <new> (noisy) | 200 | 140 | 260 | 2.00 × |\n"
    assert f"{lines}<!-- end -->\nafter\n" in written
    assert with_tables(written, tmp_path) == written


def test_a_short_table_leaves_the_parts_out(tmp_path: Path) -> None:
    part = FULL["rows"][0] | {"group": PARTS, "name": "decode only"}
    (tmp_path / "r.json").write_text(json.dumps(FULL | {"rows": [*FULL["rows"], part]}))
    whole, short = (
        with_tables(f"<!-- table: {kind} r.json -->\n<!-- end -->", tmp_path)
        for kind in ("loaders", "loaders-in-short")
    )
    assert "decode only" in whole
    assert "decode only" not in short
    assert "| slow | 100 |\n" in short


def test_a_table_of_runs_keeps_the_readmes_words(tmp_path: Path) -> None:
    summary = {"val_top1": 0.9466, "last_val_top1": 0.9, "seconds": 98.4, "images_per_second": 243.2, "data_wait": 0.03}
    (tmp_path / "r.json").write_text(json.dumps(result({"name": "the sample", "summary": summary})))
    line = "| the sample | `make train` | 1 % | 2 % | 3 s | 4 | 5 % |\n"
    head = "| | command | a | b | c | d | e |\n| - | - | - | - | - | - | - |\n"
    text = f"<!-- table: runs r.json -->\n{head}{line}<!-- end -->"
    assert "| the sample | `make train` | 94.7 % | 90.0 % | 98 s | 243 | 3 % |\n" in with_tables(text, tmp_path)
    with pytest.raises(InputError, match="a table of 2 runs, and 1"):
        with_tables(text.replace(line, 2 * line), tmp_path)


def test_a_table_of_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no table steps"):
        with_tables("<!-- table: steps r.json -->\n<!-- end -->", tmp_path)
