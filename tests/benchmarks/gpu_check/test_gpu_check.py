"""The check of a GPU node: order, time limits, what is written when, and going on after an interruption."""

import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.gpu_check import check as check_module
from benchmarks.gpu_check import programs as programs_module
from benchmarks.gpu_check.check import lines_of, program_environment, read_results, run_program
from benchmarks.gpu_check.options import GpuCheckOptions
from benchmarks.gpu_check.programs import Program, programs
from benchmarks.gpu_check.record import Part
from benchmarks.gpu_check.table import Line, log_lines
from train.options import parse_options


def script(folder: Path, name: str, code: str, **more: Any) -> Program:
    """A program that prints; its line says what."""
    return Program(
        name, ("-c", code), folder / name, lambda results: log_lines(name, f"said by {name}", results), **more
    )


def ended(state: str) -> Part:
    return Part(name="p", state=state, seconds=1.0)


def checked(folder: Path, monkeypatch: pytest.MonkeyPatch, *planned: Program) -> int:
    monkeypatch.setattr(check_module, "programs", lambda *_: list(planned))
    return main(["gpu-check", "--cpu", "--root", str(folder), "--weights", "none", "--out", str(folder / "out")])


def test_the_most_telling_comes_first_and_what_reuses_compiled_code_after_what_makes_it(tmp_path: Path) -> None:
    planned = programs(GpuCheckOptions(root=tmp_path), tmp_path)
    names = [part.name for part in planned]
    assert names[:2] == ["saturation-finetune", "saturation-feature"]
    assert names.index("feature") < names.index("blog-finetune") < names.index("steps") < names.index("tests")
    assert set(names) >= {"profile-finetune", "profile-feature", "loaders", "blog-feature"}
    by_name = {part.name: part for part in planned}
    for mode in ("finetune", "feature"):
        three = names.index(f"{mode}-cold")
        assert names[three : three + 3] == [f"{mode}-cold", f"{mode}-warm", mode]
        cold, warm, whole = (by_name[name] for name in names[three : three + 3])
        assert [part.empties for part in (cold, warm, whole)] == [True, False, False]
        assert cold.compiled == warm.compiled == whole.compiled is not None
        assert [part for part in cold.command if part != str(cold.folder)] == [
            part for part in warm.command if part != str(warm.folder)
        ]
    assert by_name["finetune-cold"].compiled != by_name["feature-cold"].compiled


def test_cifar10_is_taken_where_it_lies(tmp_path: Path) -> None:
    assert "sample" in programs(GpuCheckOptions(root=tmp_path), tmp_path)[0].command
    (tmp_path / "cifar-10-batches-bin").mkdir()
    assert "cifar10" in programs(GpuCheckOptions(root=tmp_path), tmp_path)[0].command


def test_weights_are_torchvisions_where_they_lie_in_its_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "resnet18.pth"
    monkeypatch.setattr(programs_module, "imagenet_file", lambda _: file)
    assert programs_module.weights_here() == "none"
    file.touch()
    assert programs_module.weights_here() == "imagenet"


@pytest.mark.parametrize("cpu", [False, True])
@pytest.mark.parametrize("data", ["cifar-10-batches-bin", "nothing"])
def test_every_part_takes_the_options_it_is_given(tmp_path: Path, cpu: bool, data: str) -> None:
    (tmp_path / data).mkdir()
    for part in programs(GpuCheckOptions(root=tmp_path, cpu=cpu), tmp_path):
        if part.command[1] == "benchmarks":
            with pytest.raises(SystemExit) as ended:  # by --help, after all else has been understood
                main([*part.command[2:], "--help"])
            assert ended.value.code == 0
        if part.command[1] == "train":
            given = parse_options([*part.command[2:]])
            blog = part.name.startswith("blog-")
            assert (given.loader, given.recipe) == (("baseline", "classic") if blog else ("auto", "default"))
            assert given.views == (4 if given.mode == "feature" and not blog else None)
            if not cpu and not blog and part.name == given.mode:
                assert given.epochs == (20 if data != "nothing" else 3)


def test_each_result_is_written_at_once_and_a_failure_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, seen = tmp_path / "out", tmp_path / "seen.json"
    look = f"import pathlib, shutil; shutil.copy({str(out / 'gpu-check.json')!r}, {str(seen)!r}); print('4 passed')"
    assert (
        checked(tmp_path, monkeypatch, script(out, "a", "raise SystemExit('no memory')"), script(out, "b", look)) == 1
    )
    assert [part["state"] for part in json.loads(seen.read_text())["parts"]] == ["failed"]  # when b ran
    printed = capsys.readouterr().out
    check = json.loads(printed.splitlines()[-1])
    assert [part["state"] for part in check["parts"]] == ["failed", "done"]
    assert [tuple(line.values()) for line in check["table"][1:]] == [
        ("said by a", "no memory", ""),
        ("a", "–", "failed: no memory"),
        ("said by b", "4 passed", ""),
    ]
    assert (out / "table.md").read_text() in printed
    with tarfile.open(f"{out}.tar.gz") as archive:
        assert {"out/b.log", "out/gpu-check.json", "out/table.md"} <= set(archive.getnames())


def test_of_an_error_that_ends_with_advice_the_line_that_names_it_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    error = r"RuntimeError('CUDA error: out of memory\nCompile with `TORCH_USE_CUDA_DSA`')"
    assert checked(tmp_path, monkeypatch, script(out, "a", f"print('begun', flush=True); raise {error}")) == 1
    assert "| failed: RuntimeError: CUDA error: out of memory |" in (out / "table.md").read_text()


def test_a_second_sitting_does_what_the_first_did_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, runs = tmp_path / "out", tmp_path / "runs"
    note = f"open({str(runs)!r}, 'a').write('%s'); print('fine')"
    good, other = script(out, "a", note % "a"), script(out, "c", note % "c")
    assert checked(tmp_path, monkeypatch, good, script(out, "b", note % "b" + "; raise SystemExit(1)"), other) == 1
    assert checked(tmp_path, monkeypatch, good, script(out, "b", note % "B"), other) == 0
    assert runs.read_text() == "abcB"
    check = json.loads((out / "gpu-check.json").read_text())
    assert [part["name"] for part in check["parts"]] == ["a", "b", "c"]
    assert [line["what"] for line in check["table"]] == ["machine", "said by a", "said by b", "said by c"]


def test_what_is_done_stays_known_while_a_second_sitting_is_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    last = script(out, "b", "print('fine')")
    assert checked(tmp_path, monkeypatch, script(out, "a", "raise SystemExit(1)"), last) == 1

    def interrupted(*_: Any, **__: Any) -> Part:
        raise KeyboardInterrupt

    monkeypatch.setattr(check_module, "run_program", interrupted)
    assert checked(tmp_path, monkeypatch, script(out, "a", "print('fine')"), last) == 130
    states = {part["name"]: part["state"] for part in json.loads((out / "gpu-check.json").read_text())["parts"]}
    assert states == {"a": "failed", "b": "done"}


def test_a_full_disk_takes_nothing_away_that_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert checked(tmp_path, monkeypatch, script(out, "a", "print('fine')")) == 0
    before = (out / "gpu-check.json").read_text()
    (out / f"gpu-check.json.{os.getpid()}.part").symlink_to("/dev/full")
    assert checked(tmp_path, monkeypatch, script(out, "a", "print('fine')")) == 2
    assert "gpu-check.json cannot be written: No space left" in capsys.readouterr().err
    assert (out / "gpu-check.json").read_text() == before


def test_another_checks_folder_is_not_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    part = script(tmp_path / "out", "a", "print('fine')")
    assert checked(tmp_path, monkeypatch, part) == 0
    (tmp_path / "cifar-10-batches-bin").mkdir()
    assert checked(tmp_path, monkeypatch, part) == 2
    assert "holds a check with data sample instead of cifar10: choose another OUT" in capsys.readouterr().err


def test_another_machine_does_not_continue_a_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    part = script(tmp_path / "out", "a", "print('fine')")
    assert checked(tmp_path, monkeypatch, part) == 0
    here = check_module.describe_environment()
    monkeypatch.setattr(check_module, "describe_environment", lambda: here | {"usable_cores": 1000})
    assert checked(tmp_path, monkeypatch, part) == 2
    assert "holds a check with usable_cores" in capsys.readouterr().err


def test_a_part_that_wrote_nothing_is_not_passed_over(tmp_path: Path) -> None:
    program = Program("p", (), tmp_path / "p", lambda _: [], "bench.json")
    (line,) = lines_of(program, ended("done"), {}, tmp_path)
    assert line == Line("p", "–", "it ended well, and wrote no result")


def test_checkpoints_and_compiled_code_stay_where_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    for name in ("finetune/last.pt", "finetune/model.safetensors", "finetune/summary.json", "compiled/feature/code.so"):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).touch()
    assert checked(tmp_path, monkeypatch, script(out, "a", "print('fine')")) == 0
    with tarfile.open(f"{out}.tar.gz") as archive:
        names = archive.getnames()
    assert "out/finetune/summary.json" in names
    assert not [name for name in names if name.endswith((".pt", ".safetensors")) or "compiled" in name]


def test_a_part_begins_with_an_empty_folder_and_where_requested_without_compiled_code(tmp_path: Path) -> None:
    compiled = tmp_path / "compiled"
    for name in ("p", "compiled"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "old").touch()
    look = "import os, pathlib; print(pathlib.Path(os.environ['TORCHINDUCTOR_CACHE_DIR']).exists())"
    for empties, there in ((False, "True"), (True, "False")):
        part = script(tmp_path, "p", look, compiled=compiled, empties=empties)
        assert run_program(part, None, tmp_path).state == "done"
        assert read_results([part], tmp_path) == {"p": there}
        assert not part.folder.exists()


def test_triton_keeps_its_code_beside_the_compilers(tmp_path: Path) -> None:
    given = program_environment(script(tmp_path, "p", "", compiled=tmp_path / "c"), cpu=False)
    assert Path(given["TRITON_CACHE_DIR"]).is_relative_to(given["TORCHINDUCTOR_CACHE_DIR"])
    assert "TORCHINDUCTOR_CACHE_DIR" not in program_environment(script(tmp_path, "p", ""), cpu=False)


def test_time_that_is_over_ends_a_part_and_begins_no_other(tmp_path: Path) -> None:
    slow = script(tmp_path, "slow", "import time; time.sleep(60)", most_seconds=0.5)
    assert run_program(slow, None, tmp_path).state == "out of time"
    assert run_program(slow, 1.0, tmp_path).state == "no time left"


def test_what_cannot_be_understood_is_said_and_a_part_cut_short_too(tmp_path: Path) -> None:
    def lines(results: Any) -> list[Line]:
        return [Line("rate", results["p"]["rate"], "")]

    part = Program("p", (), tmp_path / "p", lines, "bench.json")
    part.folder.mkdir()
    (part.folder / "bench.json").write_text('{"other": 1}')
    results = read_results([part], tmp_path)
    assert lines_of(part, ended("done"), results, tmp_path) == [
        Line("p", "–", "what it wrote says nothing: KeyError('rate')")
    ]
    (part.folder / "bench.json").write_text('{"rate": "7"}')
    results = read_results([part], tmp_path)
    assert lines_of(part, ended("out of time"), results, tmp_path) == [
        Line("rate", "7", ""),
        Line("p", "–", "out of time"),
    ]
    (part.folder / "bench.json").write_text("{")
    assert read_results([part], tmp_path) == {}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gpu-check"]) == 2
    assert "torch finds no GPU here" in capsys.readouterr().err
