"""Results that were written earlier: drawn anew, copied, refused."""

import json
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.__main__ import main
from benchmarks.harness.result_json import from_json
from benchmarks.report import result_files
from benchmarks.report.page import page
from benchmarks.report.result_files import result_name
from tests.benchmarks.report.test_page import FULL, result, row


def test_old_results_are_drawn_anew_from_their_json_alone(tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text(json.dumps(FULL))
    assert main(["redraw", str(tmp_path / "old.json"), "--out", str(tmp_path / "drawn")]) == 0
    assert (tmp_path / "drawn" / "report.html").read_text() == page(from_json(FULL))
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
    runs = result_files.RESULTS / "train-cpu-20261123.json"
    assert main(["redraw", str(runs), "--out", str(tmp_path)]) == 2
    assert main(["redraw", str(tmp_path / "none.json")]) == 2
    err = capsys.readouterr().err
    assert "holds no result: it has no rows" in err
    assert "there is no" in err
    assert f"{runs}: a row has no rate to draw" in err
    assert {file.name for file in tmp_path.iterdir()} == {"bench.json"}


def test_a_copied_result_is_named_by_theme_machine_date_and_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(result_files, "RESULTS", tmp_path / "results")
    (tmp_path / "results").mkdir()
    content = result(row("a", 1), date="2026-11-24") | {"options": {"data": "sample"}}
    assert result_name(from_json(content)) == "loaders-sample-cpu-20261124-0123456789.json"
    on_gpu = content | {"environment": content["environment"] | {"gpus": ["NVIDIA H100 80GB HBM3"]}}
    assert result_name(from_json(on_gpu)) == "loaders-sample-gpu-h100-80gb-hbm3-20261124-0123456789.json"
    of_photos = on_gpu | {"options": {"data": "/data/My Photos"}}
    assert result_name(from_json(of_photos)) == "loaders-my-photos-gpu-h100-80gb-hbm3-20261124-0123456789.json"
    of_one_mode = content | {"theme": "profile", "options": {"data": "sample", "mode": "feature"}}
    assert result_name(from_json(of_one_mode)) == "profile-feature-sample-cpu-20261124-0123456789.json"
    of_no_commit = content | {"environment": content["environment"] | {"commit": "0123456789abcdef+"}}
    assert result_name(from_json(of_no_commit)) == "loaders-sample-cpu-20261124-0123456789-changed.json"
    (tmp_path / "bench.json").write_text(json.dumps(content))
    assert main(["keep", str(tmp_path)]) == 0
    assert json.loads((tmp_path / "results" / result_name(from_json(content))).read_text()) == content
    assert main(["keep", str(tmp_path)]) == 2
    assert "is there already" in capsys.readouterr().err
