"""JSON of results: what is read is written again, key by key."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.harness.result import MEASURED_KEYS, Demand, Result, Row
from benchmarks.harness.result_json import as_text, from_json, read_result, row_from_json, to_json, write_record
from benchmarks.report.result_files import RESULTS
from loaders import InputError

FILES = sorted(RESULTS.glob("*.json"))


def test_there_are_results_to_read() -> None:
    assert len(FILES) >= 14


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_committed_result_is_written_again_as_it_was(file: Path, tmp_path: Path) -> None:
    result = read_result(file)
    assert as_text(result) == json.dumps(json.loads(file.read_text()))  # the same keys in the same order
    assert from_json(json.loads(as_text(result))) == result
    write_record(result, tmp_path / "bench.json")
    assert read_result(tmp_path) == result


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_committed_result_has_typed_figures(file: Path) -> None:
    """Not only a copy of what was read: the figures stand in the fields that renderers read."""
    content, result = json.loads(file.read_text()), read_result(file)
    assert result.theme == content["theme"]
    assert [row.name for row in result.rows] == [row["name"] for row in content["rows"]]
    for row, raw in zip(result.rows, content["rows"], strict=True):
        assert row.images_per_second == raw.get("images_per_second")
        assert list(row.windows) == raw.get("windows", [])
        assert row.saturation == raw.get("saturation")
        if "images_per_second" in raw:
            assert not row.others  # of a run that was entered by hand, there are other keys
        if "summary" in raw:
            assert row.summary is not None
            assert row.summary.val_top1 == raw["summary"]["val_top1"]
    if "environment" in content:
        assert result.environment is not None
        assert result.environment.usable_cores == content["environment"]["usable_cores"]
    if "diagnosis" in content:
        assert result.diagnosis is not None
        assert result.diagnosis.sentence == content["diagnosis"]["sentence"]
    if "demand" in content:
        assert result.demand is not None
        assert result.demand.images_per_second == content["demand"]["images_per_second"]


def test_null_and_absence_are_distinguished() -> None:
    with_null, without = row_from_json({"name": "a", "fetch_stall": None}), row_from_json({"name": "a"})
    assert with_null.fetch_stall is without.fetch_stall is None
    assert to_json(with_null) == {"name": "a", "fetch_stall": None}
    assert to_json(without) == {"name": "a"}


def test_keys_come_first_in_their_order_and_other_figures_follow() -> None:
    row = Row(keys=MEASURED_KEYS, group="g", name="n", images_per_second=2.0, windows=(1.0, 3.0), times_tuned=4.0)
    content = to_json(row)
    assert tuple(content) == (*MEASURED_KEYS, "times_tuned")
    assert content["windows"] == [1.0, 3.0]
    assert content["memory_bytes"] is None
    assert content["noisy"] is False
    again = to_json(replace(row, cores_per_gpu=None, keys=(*row.keys, "cores_per_gpu")))
    assert tuple(again) == (*MEASURED_KEYS, "cores_per_gpu", "times_tuned")


def test_a_result_without_more_has_theme_and_nothing_that_was_not_measured() -> None:
    result = Result(theme="loaders", demand=Demand(images_per_second=10.0, origin="here"))
    assert to_json(result) == {"theme": "loaders", "demand": {"images_per_second": 10.0, "origin": "here"}}


def test_keys_of_a_later_version_are_passed_on() -> None:
    content = {"theme": "loaders", "later": {"a": [1]}, "rows": [{"name": "a", "new": 2.5, "low": 1}], "last": None}
    result = from_json(content)
    assert to_json(result) == content
    assert list(to_json(result)) == list(content)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([], "it has no rows"),
        ({"theme": "x", "rows": {}}, "it has no rows"),
        ({"rows": []}, "it has no theme"),
        ({"theme": "x", "rows": [{"group": "g"}]}, "a row no name"),
        ({"theme": "x", "rows": [], "demand": {}}, "it has no images_per_second and no origin"),
    ],
)
def test_what_is_no_result_is_refused(content: Any, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        from_json(content)
