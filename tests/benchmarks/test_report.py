"""Results as page, picture and tables; drawn anew, kept, compared."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from benchmarks import files
from benchmarks.__main__ import main
from benchmarks.arms import BASELINE, FINISHED
from benchmarks.columns import attained, number, percent
from benchmarks.compare import compare, slower
from benchmarks.files import result_name
from benchmarks.page import page
from benchmarks.parts import PARTS
from benchmarks.readme_tables import with_tables
from benchmarks.report import Keeper
from loaders import InputError

HARMLESS = {"meta", "br", "rect", "line"}


def row(name: str, rate: float, spread: float = 0.0, **more: Any) -> dict[str, Any]:
    low, high = rate * (1 - spread), rate * (1 + spread)
    windows = {"windows": [low, rate, high]}
    return {"group": "g", "name": name, "images_per_second": rate, "low": low, "high": high} | windows | more


def result(*rows: dict[str, Any], **more: Any) -> dict[str, Any]:
    environment = {"commit": "0123456789abcdef", "processor": "a CPU", "usable_cores": 2, "gpus": []}
    options = {"data": "<b>sample</b>"}
    return {"theme": "loaders", "environment": environment, "options": options, "rows": list(rows), **more}


FULL = result(
    row("fast & <new>", 200, 0.3, noisy=True, saturation=0.98, times_baseline=2.0),
    row("slow", 100, 0.02, times_baseline=1.0),
    diagnosis={"sentence": "decoding limits: <all> cores busy."},
    stages=[{"stage": "decode", "where": "other threads", "seconds": 1.0, "microseconds_per_image": 812.0}],
    timeline=[
        {"stage": "wait", "thread": "step", "begin": 0.0, "end": 0.01},
        {"stage": "decode", "thread": "thread 1", "begin": 0.002, "end": 0.008},
    ],
)


class Balanced(HTMLParser):
    """Notes text, and tags that are not closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in HARMLESS:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in HARMLESS:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_is_one_file_and_says_it_all() -> None:
    text = page(FULL)
    parsed = Balanced()
    parsed.feed(text)
    assert not parsed.open
    assert not parsed.links
    assert not re.search(r"https?://|url\(|@import|<script", text)
    for told in ("fast & <new>", "<b>sample</b>", "decoding limits: <all> cores busy.", "98.0 %", "(noisy)", "812 µs"):
        assert told in parsed.text
    assert "prefers-color-scheme: dark" in text
    assert "width=device-width" in text
    assert text.count("<rect") == 2


def test_a_result_without_rows_has_a_page_too() -> None:
    parsed = Balanced()
    parsed.feed(page(result()))
    assert not parsed.open


def test_old_results_are_drawn_anew_from_their_json_alone(tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text(json.dumps(FULL))
    assert main(["redraw", str(tmp_path / "old.json"), "--out", str(tmp_path / "drawn")]) == 0
    assert (tmp_path / "drawn" / "report.html").read_text() == page(FULL)
    with Image.open(tmp_path / "drawn" / "bench.png") as picture:
        assert picture.width > 500


def test_what_is_no_result_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bench.json").write_text("{}")
    assert main(["redraw", str(tmp_path)]) == 2
    for content in ({"rows": []}, {"theme": "x", "rows": [None]}, {"theme": "x", "rows": [{}]}):
        (tmp_path / "bench.json").write_text(json.dumps(content))
        for command in ("redraw", "keep"):
            assert main([command, str(tmp_path)]) == 2
        assert main(["compare", str(tmp_path), str(tmp_path)]) == 2
    runs = files.RESULTS / "train-cpu-20261123.json"
    assert main(["redraw", str(runs), "--out", str(tmp_path)]) == 2
    assert main(["redraw", str(tmp_path / "none.json")]) == 2
    err = capsys.readouterr().err
    assert "holds no result: it has no rows" in err
    assert "there is no" in err
    assert f"{runs}: a row has no rate to draw" in err
    assert {file.name for file in tmp_path.iterdir()} == {"bench.json"}


def test_a_terminal_gets_what_fits_and_no_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    keep = Keeper(tmp_path)
    keep(FULL)
    keep.conclude()
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == keep.result
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "50")
    keep.conclude()
    said = capsys.readouterr().out
    assert max(map(len, said.split("\n\ndecoding")[0].splitlines()[:6])) <= 50
    assert "report.html has × baseline, saturation, too" in said
    assert "{" not in said


# --- comparing -----------------------------------------------------------------------------------


def test_rows_that_both_have_are_compared_and_noise_is_no_regression() -> None:
    old = result(row("a", 100, 0.01), row("b", 100, 0.3), row("gone", 1))
    new = result(row("new", 1), row("b", 80, 0.1), row("a", 80, 0.01))
    changes = compare(old, new)
    assert [(change.name, change.ratio) for change in changes] == [("b", 0.8), ("a", 0.8)]
    assert [change.name for change in slower(changes, 0.9)] == ["a"]
    assert slower(changes, 0.7) == []


def test_other_themes_and_nothing_in_common_are_refused() -> None:
    with pytest.raises(InputError, match="of loaders is not to be compared with one of train"):
        compare(result(row("a", 1)), result(row("a", 1)) | {"theme": "train"})
    with pytest.raises(InputError, match="no row in common"):
        compare(result(row("a", 1)), result(row("b", 1)))


def test_the_exit_code_tells_a_regression(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, rate in (("old", 100), ("new", 50)):
        (tmp_path / f"{name}.json").write_text(json.dumps(result(row("a", rate, 0.01))))
    both = [str(tmp_path / "old.json"), str(tmp_path / "new.json")]
    assert main(["compare", *both]) == 0
    assert main(["compare", *both, "--fail-below", "0.4"]) == 0
    assert main(["compare", *both, "--fail-below", "0.9"]) == 1
    assert main(["compare", *reversed(both), "--fail-below", "0.9"]) == 0
    assert "slower than 0.9 × what it was: a (0.50 ×)" in capsys.readouterr().out


def test_what_cannot_be_judged_is_no_pass(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A loader that can no longer be used, and rows of a window or two, of which none can tell noise from change."""
    new = tmp_path / "new.json"
    new.write_text(json.dumps(result(row("a", 100, 0.01), row("b", 50, windows=[50]))))
    for name, others in (("gone", [row("left", 1)]), ("few", [row("b", 100, windows=[100, 100])])):
        (tmp_path / f"{name}.json").write_text(json.dumps(result(row("a", 100, 0.01), *others)))
    assert main(["compare", str(tmp_path / "gone.json"), str(new)]) == 0
    assert "not in the new one: left\n" in capsys.readouterr().out
    assert main(["compare", str(tmp_path / "gone.json"), str(new), "--fail-below", "0.9"]) == 1
    assert "cannot be judged: left\n" in capsys.readouterr().out
    assert main(["compare", str(tmp_path / "few.json"), str(new), "--fail-below", "0.9"]) == 1
    said = capsys.readouterr().out
    assert "cannot be judged: b\n" in said
    assert "slower" not in said


def test_the_ordinary_loader_is_found_again_with_another_number_of_workers() -> None:
    old, new = (
        result(row("tuned baseline: the same, 4 workers", 100)),
        result(row("tuned baseline: the same, 1 worker", 90)),
    )
    assert [change.ratio for change in compare(old, new)] == [0.9]


def test_what_was_measured_otherwise_is_not_judged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = result(row("a", 100, 0.01))
    machine, settings, versions = (json.loads(json.dumps(old)) for _ in range(3))
    machine["environment"]["usable_cores"] = 16
    settings["options"]["data"] = "cifar10"
    for told, torch in ((old, "2.13"), (versions, "2.14")):
        told["environment"]["versions"] = {"torch": torch}
    (tmp_path / "old.json").write_text(json.dumps(old))
    for new, said in ((machine, "usable_cores: 2 → 16"), (settings, "data: <b>sample</b> → cifar10")):
        (tmp_path / "new.json").write_text(json.dumps(new))
        both = [str(tmp_path / "old.json"), str(tmp_path / "new.json")]
        assert main(["compare", *both]) == 0
        assert f"differs: {said}\n" in capsys.readouterr().out
        assert main(["compare", *both, "--fail-below", "0.9"]) == 2
        assert said in capsys.readouterr().err
    (tmp_path / "new.json").write_text(json.dumps(versions))
    assert main(["compare", *both, "--fail-below", "0.9"]) == 0
    assert "differs: torch: 2.13 → 2.14\n" in capsys.readouterr().out


# --- keeping -------------------------------------------------------------------------------------


def test_a_kept_result_is_named_by_theme_machine_date_and_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(files, "RESULTS", tmp_path / "results")
    (tmp_path / "results").mkdir()
    kept = result(row("a", 1), date="2026-11-24") | {"options": {"data": "sample"}}
    assert result_name(kept) == "loaders-sample-cpu-20261124-0123456789.json"
    on_gpu = kept | {"environment": kept["environment"] | {"gpus": ["NVIDIA H100 80GB HBM3"]}}
    assert result_name(on_gpu) == "loaders-sample-gpu-h100-80gb-hbm3-20261124-0123456789.json"
    of_photos = on_gpu | {"options": {"data": "/data/My Photos"}}
    assert result_name(of_photos) == "loaders-my-photos-gpu-h100-80gb-hbm3-20261124-0123456789.json"
    of_one_mode = kept | {"theme": "profile", "options": {"data": "sample", "mode": "feature"}}
    assert result_name(of_one_mode) == "profile-feature-sample-cpu-20261124-0123456789.json"
    of_no_commit = kept | {"environment": kept["environment"] | {"commit": "0123456789abcdef+"}}
    assert result_name(of_no_commit) == "loaders-sample-cpu-20261124-0123456789-changed.json"
    (tmp_path / "bench.json").write_text(json.dumps(kept))
    assert main(["keep", str(tmp_path)]) == 0
    assert json.loads((tmp_path / "results" / result_name(kept)).read_text()) == kept
    assert main(["keep", str(tmp_path)]) == 2
    assert "is there already" in capsys.readouterr().err


# --- the README's tables -------------------------------------------------------------------------


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


@pytest.mark.parametrize(
    ("value", "told"), [(12345.6, "12,346"), (99.96, "100"), (12.34, "12.3"), (1.234, "1.23"), (0.0123, "0.01")]
)
def test_numbers_have_three_digits(value: float, told: str) -> None:
    assert number(value) == told


def test_no_mark_is_reached_by_rounding() -> None:
    assert [attained(share) for share in (0.96, 0.9699, 0.97, 0.99999, 1.0, 1.0123)] == [
        "96.0 %", "96.9 %", "97.0 %", "99.9 %", "100.0 %", "101.2 %",
    ]  # fmt: skip


def test_shares_are_told_in_percent() -> None:
    assert [percent(share) for share in (0, 0.004, 0.0994, 0.0996, 0.61, 1)] == [
        "0 %", "0.4 %", "9.9 %", "10 %", "61 %", "100 %",
    ]  # fmt: skip
