"""`gpu-check`: everything worth knowing of a GPU node, the most telling first, each result written at once."""

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks.columns import number, percent
from benchmarks.options import OptionalFloat, OptionalPath
from benchmarks.report import BENCH
from loaders import InputError
from loaders.sources.cifar10 import BINARY_FOLDER
from train.folder import describe_environment

SUMMARY = "summary.json"
_LEAST_SECONDS = 20.0  # a part that has less left is not begun


@dataclass(frozen=True, kw_only=True)
class GpuCheckOptions:
    """On a GPU node: GPU tests, saturation, loaders, both modes, profiles; one folder to bring home. No network."""

    minutes: OptionalFloat = None
    """Stop after so long; the most telling parts come first. As long as it takes, unless given."""
    root: Path = Path("data")
    """Where CIFAR-10 lies, if it is there; else the sample is drawn here."""
    weights: str = "none"
    """As for training; rates do not depend on them."""
    cpu: bool = False
    """Go through it all without a GPU, to see that it works."""
    out: OptionalPath = None
    """The folder; runs/gpu-check-TIME, unless given."""


@dataclass(frozen=True)
class Part:
    """One program to run."""

    name: str
    command: tuple[str, ...]
    """What follows the interpreter."""
    folder: Path
    """What it writes to."""
    most_seconds: float | None = None
    """More is not worth it."""


def parts(options: GpuCheckOptions, folder: Path) -> list[Part]:
    """Saturation of both modes first, as that is the question; what takes longest last."""
    data = "cifar10" if _has_cifar10(options.root) else "sample"
    where = ("--data", data, "--root", str(options.root), "--device", "cpu" if options.cpu else "cuda")

    def bench(name: str, theme: str, *more: str) -> Part:
        out = folder / name
        return Part(name, ("-m", "benchmarks", theme, *more, *where, "--out", str(out)), out)

    def train(mode: str) -> Part:
        out = folder / f"train-{mode}"
        epochs = ("--epochs", "3") if data == "cifar10" else ()
        command = ("-m", "train", mode, *where, "--weights", options.weights, "--out", str(out), *epochs)
        return Part(f"train-{mode}", command, out)

    gpu_tests = ("-m", "pytest", "-q", "-m", "needs_cuda", "-p", "no:cacheprovider")
    return [
        bench("saturation-finetune", "saturation", "--mode", "finetune", "--seconds", "1"),
        bench("saturation-feature", "saturation", "--mode", "feature", "--seconds", "1"),
        Part("tests", gpu_tests, folder / "tests", 600),
        bench("profile-finetune", "profile", "finetune"),
        bench("profile-feature", "profile", "feature"),
        bench("loaders", "loaders"),
        train("feature"),
        train("finetune"),
    ]


def run_gpu_check(options: GpuCheckOptions) -> int:
    """1 where a part failed; a part that time did not suffice for is no failure."""
    if not options.cpu and not torch.cuda.is_available():
        raise InputError("gpu-check: torch finds no GPU here; --cpu goes through it all without one")
    folder = options.out or Path("runs") / f"gpu-check-{datetime.now():%Y%m%d-%H%M%S}"
    folder.mkdir(parents=True, exist_ok=True)
    deadline = None if options.minutes is None else time.monotonic() + 60 * options.minutes
    done: list[dict[str, Any]] = []
    for part in parts(options, folder):
        left = None if deadline is None else deadline - time.monotonic()
        done.append(carried_out(part, left, folder))
        _write(folder, done)
        print(line(done[-1]), flush=True)
    print("\n" + "\n".join(map(line, done)))
    archive = shutil.make_archive(str(folder), "gztar", folder.parent, folder.name)
    print(f"\nto bring home: {folder} (or {archive})")
    print(json.dumps({"theme": "gpu-check", "parts": done}, default=str))
    return 1 if any(part["state"] == "failed" for part in done) else 0


def carried_out(part: Part, left: float | None, folder: Path) -> dict[str, Any]:
    """Runs a part, no longer than is left; what it printed goes to `NAME.log`."""
    told: dict[str, Any] = {"name": part.name, "state": "no time left", "seconds": 0.0, "found": ""}
    if left is not None and left < _LEAST_SECONDS:
        return told
    limits = [limit for limit in (left, part.most_seconds) if limit is not None]
    began = time.monotonic()
    with open(folder / f"{part.name}.log", "w") as log:
        try:
            ended = subprocess.run(
                [sys.executable, *part.command],
                stdout=log,
                stderr=subprocess.STDOUT,
                timeout=min(limits, default=None),
                env=os.environ | ({"FAIL_WITHOUT_CUDA": "1"} if torch.cuda.is_available() else {}),
            )
            told["state"] = "done" if ended.returncode == 0 else "failed"
        except subprocess.TimeoutExpired:
            told["state"] = "out of time"
    return told | {"seconds": time.monotonic() - began, "found": found(part, folder)}


def found(part: Part, folder: Path) -> str:
    """The most telling figure of what a part has written so far."""
    try:
        if (part.folder / SUMMARY).exists():
            summary = json.loads((part.folder / SUMMARY).read_text())
            return (
                f"top-1 {summary['val_top1']:.1%} in {summary['seconds']:.0f} s, "
                f"{summary['images_per_second']:,.0f} images/s, waiting {percent(summary['data_wait'])}"
            )
        if (part.folder / BENCH).exists():
            return _figure(json.loads((part.folder / BENCH).read_text()))
        lines = (folder / f"{part.name}.log").read_text().strip().splitlines()
        return lines[-1] if lines else ""
    except (OSError, ValueError, KeyError) as error:
        return f"what it wrote cannot be read: {error}"


def _figure(result: dict[str, Any]) -> str:
    if "diagnosis" in result:
        return str(result["diagnosis"]["sentence"])
    saturated = [row for row in result["rows"] if row.get("saturation") is not None]
    if saturated:
        best = max(saturated, key=lambda row: float(row["saturation"]))
        rate = f"{number(best['images_per_second'])} images/s"
        return f"{best['name']}: {rate}, saturation {percent(best['saturation'])}"
    best = max(result["rows"], key=lambda row: row.get("times_baseline") or 0)
    return f"{best['name']}: {number(best['images_per_second'])} images/s, {best['times_baseline']:.1f} × baseline"


def line(part: dict[str, Any]) -> str:
    return f"{part['name']:20} {part['state']:12} {part['seconds']:6.0f} s  {part['found']}".rstrip()


def _write(folder: Path, done: list[dict[str, Any]]) -> None:
    told = {"theme": "gpu-check", "environment": describe_environment(), "parts": done}
    (folder / "gpu-check.json").write_text(json.dumps(told, indent=1, default=str) + "\n")


def _has_cifar10(root: Path) -> bool:
    return any((root / name).is_dir() for name in (BINARY_FOLDER, "cifar-10-batches-py"))
