"""`gpu-check`: everything worth knowing of a GPU node, the most telling first, each result written at once."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_check.options import GpuCheckOptions
from benchmarks.gpu_check.programs import COMPILED, Program, data_here, programs, weights_here
from benchmarks.gpu_check.record import CHECK_KEYS, PART_KEYS, Check, Part, read_check
from benchmarks.gpu_check.table import Line, Results, machine_line, markdown
from benchmarks.harness.options import describe_options
from benchmarks.harness.result_json import environment_from_json, read_json, to_json, write_record
from benchmarks.report.writer import print_json
from loaders import InputError
from loaders.system.console import open_console, print_lines
from loaders.system.files import write_whole
from train.environment import describe_environment

CHECK, TABLE = "gpu-check.json", "table.md"
DONE = "done"
"""The state of a program that is not run again."""

_LEAST_SECONDS = 20.0  # a program that has less left is not begun
_NOT_ARCHIVED = (".pt", ".safetensors")  # checkpoints: gigabytes, of which no figure is made


def run_gpu_check(options: GpuCheckOptions) -> int:
    """Runs all programs; 1 where one failed. One that time did not suffice for is no failure.

    Raises:
        InputError: when there is no GPU, or the folder holds a check of something else.
    """
    if not options.cpu and not torch.cuda.is_available():
        raise InputError("gpu-check: torch finds no GPU here; --cpu goes through it all without one")
    folder = options.out or Path("runs") / f"gpu-check-{datetime.now():%Y%m%d-%H%M%S}"
    folder = folder.expanduser().resolve()
    folder.mkdir(parents=True, exist_ok=True)
    check = Check(
        keys=CHECK_KEYS,
        environment=environment_from_json(describe_environment()),
        options=describe_options(options, weights=options.weights or weights_here(), data=data_here(options.root)),
    )
    ended = {part.name: part for part in earlier_parts(folder, check)}
    deadline = None if options.minutes is None else time.monotonic() + 60 * options.minutes
    planned = programs(options, folder)
    console = open_console()
    for program in planned:
        if program.name not in ended or ended[program.name].state != DONE:
            left = None if deadline is None else deadline - time.monotonic()
            part = run_program(program, left, folder, cpu=options.cpu)
            ended[program.name] = replace(part, commit=check.environment.commit)
        results = read_results(planned, folder)
        lines = {each.name: lines_of(each, ended[each.name], results, folder) for each in planned if each.name in ended}
        check = replace(check, parts=tuple(ended[name] for name in lines))
        table = [machine_line(check), *(line for its_lines in lines.values() for line in its_lines)]
        check = replace(check, table=tuple(line._asdict() for line in table))
        write_record(check, folder / CHECK)
        write_whole(folder / TABLE, partial(Path.write_text, data=markdown(table)))
        print_lines(console, f"{program.name}: {ended[program.name].state}, {ended[program.name].seconds:.0f} s")
        for what, figure, note in lines[program.name]:
            print_lines(console, f"    {what}: {figure}  ({note})")
    lines_written = (folder / TABLE).read_text().split("\n")
    print_lines(console, "", *lines_written)
    print_lines(console, f"to bring home: {archive(folder)} (without checkpoints; all of it: {folder})")
    print_json(check)
    return 1 if any(part.state == "failed" for part in check.parts) else 0


def earlier_parts(folder: Path, check: Check) -> tuple[Part, ...]:
    """The parts of a check that was begun in this folder.

    Raises:
        InputError: when that one was of something else than `check`.
    """
    file = folder / CHECK
    if not file.exists():
        return ()
    earlier = read_check(file)
    before, now = to_json(earlier), to_json(check)
    compared = [("options", name) for name in ("root", "data", "weights", "cpu")]
    compared += [("environment", name) for name in ("gpus", "processor", "usable_cores", "versions")]
    for kind, name in compared:
        its, mine = before[kind][name], now[kind][name]
        if its != mine:
            raise InputError(f"{folder} holds a check with {name} {its} instead of {mine}: choose another OUT")
    return earlier.parts


def run_program(program: Program, left: float | None, folder: Path, *, cpu: bool = False) -> Part:
    """Runs a program, no longer than is left; what it prints goes to `NAME.log`.

    Args:
        left: seconds; None for no limit but the program's own.
        folder: of the log.
        cpu: whether it runs without a GPU.
    """
    if left is not None and left < _LEAST_SECONDS:
        return Part(keys=PART_KEYS, name=program.name, state="no time left", seconds=0.0)
    shutil.rmtree(program.folder, ignore_errors=True)  # what was interrupted before
    if program.compiled is not None and program.empties:
        shutil.rmtree(program.compiled, ignore_errors=True)
    began = time.monotonic()
    with open(folder / f"{program.name}.log", "w") as log:
        try:
            process = subprocess.run(
                [sys.executable, *program.command],
                stdout=log,
                stderr=subprocess.STDOUT,
                timeout=program.most_seconds if left is None else min(left, program.most_seconds),
                env=os.environ | program_environment(program, cpu=cpu),
            )
            state = DONE if process.returncode == 0 else "failed"
        except subprocess.TimeoutExpired:
            state = "out of time"
    return Part(keys=PART_KEYS, name=program.name, state=state, seconds=time.monotonic() - began)


def program_environment(program: Program, *, cpu: bool) -> dict[str, str]:
    """Variables that a program is run with, beside those that are set."""
    variables = {"FAIL_WITHOUT_CUDA": "1"} if torch.cuda.is_available() else {}
    if cpu:  # nothing is measured then, and threads that wait for each other take many times as long
        variables["OMP_NUM_THREADS"] = "1"
    if program.compiled is not None:
        variables |= {
            "TORCHINDUCTOR_CACHE_DIR": str(program.compiled),
            "TRITON_CACHE_DIR": str(program.compiled / "triton"),
        }
    return variables


def read_results(planned: Sequence[Program], folder: Path) -> Results:
    """What the programs have written so far; of one that is to print something only, its last line."""
    results: dict[str, Any] = {}
    for program in planned:
        with suppress(OSError, ValueError):  # not there yet
            if program.file is not None:
                results[program.name] = read_json(program.folder / program.file)
            elif last := _last_line(folder / f"{program.name}.log"):
                results[program.name] = last
    return results


def lines_of(program: Program, part: Part, results: Results, folder: Path) -> list[Line]:
    """A program's lines of the table, as far as it has come; one that says so where it has not come to its end."""
    lines = []
    try:
        lines = program.lines(results) if program.name in results else []
    except (KeyError, TypeError, ValueError, IndexError, ZeroDivisionError) as error:
        lines = [Line(program.name, "–", f"what it wrote says nothing: {error!r}")]
    if part.state == DONE and not lines:
        lines.append(Line(program.name, "–", "it ended well, and wrote no result"))
    if part.state != DONE:
        reason = f": {_reason(folder / f'{program.name}.log')}" if part.state == "failed" else ""
        lines.append(Line(program.name, "–", part.state + reason))
    return lines


def archive(folder: Path) -> Path:
    """Writes FOLDER.tar.gz, without checkpoints and compiled code."""

    def included(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
        path = Path(entry.name)
        return None if path.suffix in _NOT_ARCHIVED or path.parts[1:2] == (COMPILED,) else entry

    file = folder.with_name(f"{folder.name}.tar.gz")
    with tarfile.open(file, "w:gz") as tar:
        tar.add(folder, folder.name, filter=included)
    return file


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else ""


def _reason(log: Path) -> str:
    """Of a traceback the line that names the error, as CUDA's and the compiler's end with advice; or the last."""
    _, traceback, said = log.read_text(errors="replace").rpartition("Traceback (most recent call last):\n")
    named = re.search(r"^\S.*", said, re.MULTILINE) if traceback else None  # all else of it is indented
    return named[0] if named else _last_line(log)
