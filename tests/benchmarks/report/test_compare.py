"""Two results, row by row."""

import json
from pathlib import Path

import pytest

from benchmarks.__main__ import main
from benchmarks.harness.result_json import from_json
from benchmarks.report.compare import compare, slower
from loaders import InputError
from tests.benchmarks.report.test_page import result, row


def test_rows_that_both_have_are_compared_and_noise_is_no_regression() -> None:
    old = result(row("a", 100, 0.01), row("b", 100, 0.3), row("missing", 1))
    new = result(row("new", 1), row("b", 80, 0.1), row("a", 80, 0.01))
    changes = compare(from_json(old), from_json(new))
    assert [(change.name, change.ratio) for change in changes] == [("b", 0.8), ("a", 0.8)]
    assert [change.name for change in slower(changes, 0.9)] == ["a"]
    assert slower(changes, 0.7) == []


def test_other_themes_and_nothing_in_common_are_refused() -> None:
    with pytest.raises(InputError, match="of loaders is not to be compared with one of train"):
        compare(from_json(result(row("a", 1))), from_json(result(row("a", 1)) | {"theme": "train"}))
    with pytest.raises(InputError, match="no row in common"):
        compare(from_json(result(row("a", 1))), from_json(result(row("b", 1))))


def test_the_exit_code_reports_a_regression(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
    for name, others in (("fewer", [row("left", 1)]), ("few", [row("b", 100, windows=[100, 100])])):
        (tmp_path / f"{name}.json").write_text(json.dumps(result(row("a", 100, 0.01), *others)))
    assert main(["compare", str(tmp_path / "fewer.json"), str(new)]) == 0
    assert "not in the new one: left\n" in capsys.readouterr().out
    assert main(["compare", str(tmp_path / "fewer.json"), str(new), "--fail-below", "0.9"]) == 1
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
    assert [change.ratio for change in compare(from_json(old), from_json(new))] == [0.9]


def test_what_was_measured_otherwise_is_not_judged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = result(row("a", 100, 0.01))
    machine, settings, versions = (json.loads(json.dumps(old)) for _ in range(3))
    machine["environment"]["usable_cores"] = 16
    settings["options"]["data"] = "cifar10"
    for content, torch in ((old, "2.13"), (versions, "2.14")):
        content["environment"]["versions"] = {"torch": torch}
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
