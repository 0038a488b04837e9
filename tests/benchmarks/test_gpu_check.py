"""The check of a GPU node: order, time limits, and what is written when."""

import json
import tarfile
from pathlib import Path

import pytest
import torch

from benchmarks import gpu_check
from benchmarks.__main__ import main
from benchmarks.gpu_check import GpuCheckOptions, Part, carried_out, parts


def script(folder: Path, name: str, code: str, most: float | None = None) -> Part:
    return Part(name, ("-c", code), folder / name, most)


def test_the_most_telling_comes_first(tmp_path: Path) -> None:
    names = [part.name for part in parts(GpuCheckOptions(root=tmp_path), tmp_path)]
    assert names[:2] == ["saturation-finetune", "saturation-feature"]
    assert set(names) >= {"tests", "profile-finetune", "profile-feature", "loaders", "train-feature", "train-finetune"}


def test_cifar10_is_taken_where_it_lies(tmp_path: Path) -> None:
    assert "sample" in parts(GpuCheckOptions(root=tmp_path), tmp_path)[0].command
    (tmp_path / "cifar-10-batches-bin").mkdir()
    assert "cifar10" in parts(GpuCheckOptions(root=tmp_path), tmp_path)[0].command


def test_every_part_takes_the_options_it_is_given(tmp_path: Path) -> None:
    for part in parts(GpuCheckOptions(root=tmp_path), tmp_path):
        if part.command[1] == "benchmarks":
            with pytest.raises(SystemExit) as ended:  # by --help, after all else has been understood
                main([*part.command[2:], "--help"])
            assert ended.value.code == 0


def test_each_result_is_written_at_once_and_a_failure_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, seen = tmp_path / "out", tmp_path / "seen.json"
    look = f"import pathlib, shutil; shutil.copy({str(out / 'gpu-check.json')!r}, {str(seen)!r}); print('4 passed')"
    three = [script(out, "a", "raise SystemExit(3)"), script(out, "b", look)]
    monkeypatch.setattr(gpu_check, "parts", lambda *_: three)
    assert main(["gpu-check", "--cpu", "--out", str(out)]) == 1
    assert [part["state"] for part in json.loads(seen.read_text())["parts"]] == ["failed"]  # when b ran
    told = json.loads(capsys.readouterr().out.splitlines()[-1])["parts"]
    assert [part["state"] for part in told] == ["failed", "done"]
    assert told[1]["found"] == "4 passed"
    with tarfile.open(f"{out}.tar.gz") as archive:
        assert "out/b.log" in archive.getnames()


def test_time_that_is_over_ends_a_part_and_begins_no_other(tmp_path: Path) -> None:
    tmp_path.mkdir(exist_ok=True)
    slow = script(tmp_path, "slow", "import time; time.sleep(60)", most=0.5)
    assert carried_out(slow, None, tmp_path)["state"] == "out of time"
    assert carried_out(slow, 1.0, tmp_path)["state"] == "no time left"


def test_what_a_part_found_is_told(tmp_path: Path) -> None:
    code = (
        "import json, pathlib; f = pathlib.Path('%s'); f.mkdir(); "
        "(f / 'bench.json').write_text(json.dumps({'rows': [{'name': 'fed', 'saturation': 0.98, "
        "'images_per_second': 15000}]}))"
    ) % (tmp_path / "s")
    part = script(tmp_path, "s", code)
    assert part.command[0] == "-c"
    assert carried_out(part, None, tmp_path)["found"] == "fed: 15,000 images/s, saturation 98 %"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gpu-check"]) == 2
    assert "torch finds no GPU here" in capsys.readouterr().err
