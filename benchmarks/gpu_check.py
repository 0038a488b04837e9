"""`gpu-check`: everything worth knowing of a GPU node, the most telling first, each result written at once."""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import gpu_table
from benchmarks.gpu_table import Line, Results, machine_line, markdown
from benchmarks.options import Result, told
from benchmarks.report import BENCH, print_json
from loaders import InputError
from loaders.sources.cifar10 import BINARY_FOLDER
from loaders.system.files import write_whole
from train.environment import describe_environment
from train.models import imagenet_file
from train.option_values import Mode
from train.options import OptionalFloat, OptionalPath, OptionalStr

SUMMARY, CHECK, TABLE = "summary.json", "gpu-check.json", "table.md"
DONE = "done"
"""The state of a part that is not run again."""
MODES: tuple[Mode, ...] = ("finetune", "feature")

_LEAST_SECONDS = 20.0  # a part that has less left is not begun
_MOST_SECONDS = 1800.0  # a part that takes longer hangs
_STAYS = (".pt", ".safetensors")  # checkpoints: gigabytes, of which no figure is made
_COMPILED = "compiled"


@dataclass(frozen=True, kw_only=True)
class GpuCheckOptions:
    """On a GPU node: saturation, whole runs, the blog's loop, steps, GPU tests, profiles, loaders. No network."""

    minutes: OptionalFloat = None
    """Stop after so long; the most telling parts come first. As long as it takes, unless given."""
    root: Path = Path("data")
    """Where CIFAR-10 lies, if it is there; else the sample is drawn here."""
    weights: OptionalStr = None
    """As for training; torchvision's where they lie in its cache, else none. Rates do not depend on them."""
    cpu: bool = False
    """Go through it all without a GPU, as little of each as there can be, to see that it works."""
    out: OptionalPath = None
    """The folder; runs/gpu-check-TIME, unless given. One that is there already is gone on with."""


@dataclass(frozen=True, kw_only=True)
class Extent:
    """How much of everything is done: options of the programs."""

    epochs: int
    """Of the whole runs."""
    saturation: tuple[str, ...] = ()
    steps: tuple[str, ...] = ()
    profile: tuple[str, ...] = ()
    loaders: tuple[str, ...] = ()
    training: tuple[str, ...] = ()
    """Of all training runs."""
    ours: tuple[str, ...] = ()
    """Of those that are not the blog's."""
    feature: tuple[str, ...] = ("--views", "4")
    """Of those of ours that train a head."""
    blog: tuple[str, ...]


_CIFAR10 = Extent(epochs=20, saturation=("--seconds", "1"), blog=("--train-limit", "6400", "--val-limit", "640"))
_SAMPLE = replace(_CIFAR10, epochs=3)
_SMALL, _SHORT = ("--size", "32", "--batch-size", "4"), ("--windows", "2", "--seconds", "0.05")
_CPU = Extent(
    epochs=2,
    saturation=(*_SMALL, *_SHORT, "--images", "16"),
    steps=(*_SMALL, *_SHORT),
    profile=(*_SMALL, "--steps", "5", "--trace-steps", "2"),
    loaders=(*_SMALL, *_SHORT, "--images", "16"),
    training=_SMALL,
    ours=("--train-limit", "16", "--val-limit", "8"),
    feature=("--views", "4", "--compile", "on"),  # for all weights it takes minutes on a CPU
    blog=("--train-limit", "16", "--val-limit", "8"),
)


@dataclass(frozen=True)
class Part:
    """One program to run."""

    name: str
    command: tuple[str, ...]
    """What follows the interpreter."""
    folder: Path
    """What it writes to."""
    lines: Callable[[Results], list[Line]]
    """What its result, and those of the parts before, come to."""
    file: str | None = None
    """Of its folder: its result; None for the last line it prints."""
    most_seconds: float = _MOST_SECONDS
    """More is not worth it."""
    compiled: Path | None = None
    """Where compiled code is kept; the user's own cache, unless given."""
    empties: bool = False
    """Whether nothing may have been compiled before."""


def parts(options: GpuCheckOptions, folder: Path) -> list[Part]:
    """Saturation of both modes first, as that is the question, then what a user would see; what explains it last."""
    data = data_here(options.root)
    extent = _CPU if options.cpu else _CIFAR10 if data == "cifar10" else _SAMPLE
    weights = options.weights or weights_here()
    device = ("--device", "cpu" if options.cpu else "cuda")
    where = ("--data", data, "--root", str(options.root), *device)

    def bench(name: str, lines: Callable[[Results], list[Line]], *command: str) -> Part:
        out = folder / name
        return Part(name, ("-m", "benchmarks", *command, "--out", str(out)), out, lines, BENCH)

    def train(name: str, mode: Mode, lines: Callable[[Results], list[Line]], *more: str) -> Part:
        out = folder / name
        given = (*where, "--weights", weights, "--out", str(out), *extent.training, *more)
        return Part(name, ("-m", "train", mode, *given), out, lines, SUMMARY)

    def saturation(mode: Mode) -> Part:
        name = f"saturation-{mode}"
        lines = partial(gpu_table.saturation_lines, name, mode)
        return bench(name, lines, "saturation", "--mode", mode, *where, *extent.saturation)

    def whole(mode: Mode) -> Iterable[Part]:
        """An epoch with an empty compile cache, the same again, then all epochs."""
        more = (*extent.ours, *(extent.feature if mode == "feature" else ()))
        one, all = ("--epochs", "1"), ("--epochs", str(extent.epochs))
        kept = folder / _COMPILED / mode
        cold = train(f"{mode}-cold", mode, partial(gpu_table.cold_lines, mode), *more, *one)
        warm = train(f"{mode}-warm", mode, partial(gpu_table.warm_lines, mode), *more, *one)
        full = train(mode, mode, partial(gpu_table.run_lines, mode, weights), *more, *all)
        yield replace(cold, compiled=kept, empties=True)
        yield replace(warm, compiled=kept)
        yield replace(full, compiled=kept)

    def blog(mode: Mode) -> Part:
        """The loop this project started from: no autocast, nothing compiled; its rate needs no whole run.

        But a second epoch: by the first, its start would be counted once for each epoch it is extrapolated to.
        """
        loop = ("--loader", "baseline", "--recipe", "classic", "--precision", "fp32", "--compile", "off")
        lines = partial(gpu_table.blog_lines, mode)
        return train(f"blog-{mode}", mode, lines, *loop, "--epochs", "2", *extent.blog)

    def profile(mode: Mode) -> Part:
        lines = partial(gpu_table.profile_lines, mode)
        return bench(f"profile-{mode}", lines, "profile", mode, *where, *extent.profile)

    # By name, each as it begins: of tests that are cut off, nothing else is left.
    gpu_tests = ("-m", "pytest", "-v", "-m", "needs_cuda", "-p", "no:cacheprovider")
    log = partial(gpu_table.log_lines, "tests", "GPU tests")
    return [
        *map(saturation, MODES),
        *(part for mode in MODES for part in whole(mode)),
        *map(blog, MODES),
        bench("steps", gpu_table.steps_lines, "steps", *device, *extent.steps),
        Part("tests", gpu_tests, folder / "tests", log, most_seconds=600),
        *map(profile, MODES),
        bench("loaders", gpu_table.loaders_lines, "loaders", *where, *extent.loaders),
    ]


def run_gpu_check(options: GpuCheckOptions) -> int:
    """1 where a part failed; a part that time did not suffice for is no failure.

    Raises:
        InputError: when there is no GPU, or the folder holds a check of something else.
    """
    if not options.cpu and not torch.cuda.is_available():
        raise InputError("gpu-check: torch finds no GPU here; --cpu goes through it all without one")
    folder = options.out or Path("runs") / f"gpu-check-{datetime.now():%Y%m%d-%H%M%S}"
    folder = folder.expanduser().resolve()
    folder.mkdir(parents=True, exist_ok=True)
    check: Result = {
        "theme": "gpu-check",
        "environment": describe_environment(),
        "options": told(options, weights=options.weights or weights_here(), data=data_here(options.root)),
        "parts": [],
        "table": [],
    }
    ended = {part["name"]: part for part in earlier(folder, check)}
    deadline = None if options.minutes is None else time.monotonic() + 60 * options.minutes
    planned = parts(options, folder)
    for part in planned:
        if ended.get(part.name, {}).get("state") != DONE:
            left = None if deadline is None else deadline - time.monotonic()
            ended[part.name] = carried_out(part, left, folder, cpu=options.cpu)
            ended[part.name]["commit"] = check["environment"]["commit"]
        results = read_results(planned, folder)
        lines = {each.name: found(each, ended[each.name], results, folder) for each in planned if each.name in ended}
        check["parts"] = [ended[name] for name in lines]
        check["table"] = [line._asdict() for its in ([machine_line(check)], *lines.values()) for line in its]
        _write(folder, check)
        print(f"{part.name}: {ended[part.name]['state']}, {ended[part.name]['seconds']:.0f} s")
        print(*(f"    {what}: {figure}  ({note})" for what, figure, note in lines[part.name]), sep="\n", flush=True)
    print(f"\n{(folder / TABLE).read_text()}")
    print(f"to bring home: {archived(folder)} (without checkpoints; all of it: {folder})")
    print_json(check)
    return 1 if any(part["state"] == "failed" for part in check["parts"]) else 0


def earlier(folder: Path, check: Result) -> list[dict[str, Any]]:
    """The parts of a check that was begun in this folder.

    Raises:
        InputError: when that one was of something else than `check`.
    """
    file = folder / CHECK
    if not file.exists():
        return []
    before = json.loads(file.read_text())
    same = [("options", name) for name in ("root", "data", "weights", "cpu")]
    same += [("environment", name) for name in ("gpus", "processor", "usable_cores", "versions")]
    for kind, name in same:
        if (mine := check[kind][name]) != (its := before[kind][name]):
            raise InputError(f"{folder} holds a check with {name} {its} instead of {mine}: choose another OUT")
    ended: list[dict[str, Any]] = before["parts"]
    return ended


def carried_out(part: Part, left: float | None, folder: Path, *, cpu: bool = False) -> dict[str, Any]:
    """Runs a part, no longer than is left; what it printed goes to `NAME.log`."""
    ended: dict[str, Any] = {"name": part.name, "state": "no time left", "seconds": 0.0}
    if left is not None and left < _LEAST_SECONDS:
        return ended
    shutil.rmtree(part.folder, ignore_errors=True)  # what was interrupted before
    if part.compiled is not None and part.empties:
        shutil.rmtree(part.compiled, ignore_errors=True)
    began = time.monotonic()
    with open(folder / f"{part.name}.log", "w") as log:
        try:
            process = subprocess.run(
                [sys.executable, *part.command],
                stdout=log,
                stderr=subprocess.STDOUT,
                timeout=part.most_seconds if left is None else min(left, part.most_seconds),
                env=os.environ | environment(part, cpu=cpu),
            )
            ended["state"] = DONE if process.returncode == 0 else "failed"
        except subprocess.TimeoutExpired:
            ended["state"] = "out of time"
    return ended | {"seconds": time.monotonic() - began}


def environment(part: Part, *, cpu: bool) -> dict[str, str]:
    """Variables that a part is run with, beside those that are set."""
    given = {"FAIL_WITHOUT_CUDA": "1"} if torch.cuda.is_available() else {}
    if cpu:  # nothing is measured then, and threads that wait for each other take many times as long
        given["OMP_NUM_THREADS"] = "1"
    if part.compiled is not None:
        given |= {"TORCHINDUCTOR_CACHE_DIR": str(part.compiled), "TRITON_CACHE_DIR": str(part.compiled / "triton")}
    return given


def read_results(planned: list[Part], folder: Path) -> Results:
    """What the parts have written so far; of one that is to print something only, its last line."""
    results: dict[str, Any] = {}
    for part in planned:
        with suppress(OSError, ValueError):  # not there yet
            if part.file is not None:
                results[part.name] = json.loads((part.folder / part.file).read_text())
            elif said := _last_line(folder / f"{part.name}.log"):
                results[part.name] = said
    return results


def found(part: Part, ended: dict[str, Any], results: Results, folder: Path) -> list[Line]:
    """A part's lines of the table, as far as it has come; one that says so where it has not come to its end."""
    lines = []
    try:
        lines = part.lines(results) if part.name in results else []
    except (KeyError, TypeError, ValueError, IndexError, ZeroDivisionError) as error:
        lines = [Line(part.name, "–", f"what it wrote says nothing: {error!r}")]
    if ended["state"] == DONE and not lines:
        lines.append(Line(part.name, "–", "it ended well, and wrote no result"))
    if ended["state"] != DONE:
        said = f": {_reason(folder / f'{part.name}.log')}" if ended["state"] == "failed" else ""
        lines.append(Line(part.name, "–", ended["state"] + said))
    return lines


def archived(folder: Path) -> Path:
    """FOLDER.tar.gz, without checkpoints and compiled code."""

    def wanted(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
        path = Path(entry.name)
        return None if path.suffix in _STAYS or path.parts[1:2] == (_COMPILED,) else entry

    archive = folder.with_name(f"{folder.name}.tar.gz")
    with tarfile.open(archive, "w:gz") as file:
        file.add(folder, folder.name, filter=wanted)
    return archive


def weights_here() -> str:
    """torchvision's weights where they lie in its cache: a GPU node may have no network."""
    return "imagenet" if imagenet_file("resnet18").exists() else "none"


def data_here(root: Path) -> str:
    """CIFAR-10 where it lies under `root`, else the sample."""
    folders = (BINARY_FOLDER, "cifar-10-batches-py")
    return "cifar10" if any((root / name).is_dir() for name in folders) else "sample"


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else ""


def _reason(log: Path) -> str:
    """Of a traceback the line that names the error, as CUDA's and the compiler's end with advice; or the last."""
    _, traceback, said = log.read_text(errors="replace").rpartition("Traceback (most recent call last):\n")
    named = re.search(r"^\S.*", said, re.MULTILINE) if traceback else None  # all else of it is indented
    return named[0] if named else _last_line(log)


def _write(folder: Path, check: Result) -> None:
    write_whole(folder / CHECK, lambda part: part.write_text(json.dumps(check, indent=1, default=str) + "\n"))
    write_whole(folder / TABLE, lambda part: part.write_text(markdown([Line(**line) for line in check["table"]])))
