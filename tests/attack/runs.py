"""Runs under attack: what is run, how it is repeated until it ends, and what must be equal afterwards."""

import hashlib
import json
import os
import shutil
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from tests.attack.warm_process import Request, WarmProcess

FULL = os.environ.get("SATURATE_ATTACK") == "full"
"""Whether the attack runs at its full size instead of the suite's."""

TIMES = ("seconds", "images_per_second", "data_wait")
"""Keys of a row that differ between two runs of the same."""


def times(suite: int, full: int) -> int:
    """How often something is tried: in the suite, and at full size."""
    return full if FULL else suite


@dataclass(frozen=True)
class Setting:
    """What is run."""

    loader: str
    mode: str
    views: int | None = None

    def __str__(self) -> str:
        return f"{self.loader}-{self.mode}" + (f"-{self.views}-views" if self.views else "")

    def arguments(self, data: Path, out: Path) -> list[str]:
        """Those of `python -m train`."""
        views = ["--views", str(self.views)] if self.views else []
        small = ["--weights", "none", "--size", "32", "--epochs", "3", "--batch-size", "8", "--cache-size", "48"]
        numbers = ["--device", "cpu", "--precision", "fp32", "--workers", "2"]
        return [
            self.mode, "--data", str(data), "--out", str(out), "--loader", self.loader, *small, *numbers, *views,
        ]  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What a run leaves behind, without what differs between two runs of the same."""

    rows: list[dict[str, Any]]
    summary: dict[str, Any]
    weights: str
    """Digest of `model.safetensors`."""
    state: str
    """Digest of the learner's state in `last.pt`: weights, optimizer, schedule, random numbers."""
    best: str
    """Digest of the weights in `best.pt`."""

    @classmethod
    def of(cls, out: Path) -> "Outcome":
        rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        summary = json.loads((out / "summary.json").read_text())
        last, best = (torch.load(out / name, weights_only=True) for name in ("last.pt", "best.pt"))
        return cls(
            [{key: value for key, value in row.items() if key not in TIMES} for row in rows],
            {key: summary[key] for key in ("val_top1", "val_loss", "epochs", "bad_images")},
            hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest(),
            _digest(last["learner"]),
            _digest(best["model"]),
        )


def _digest(value: object) -> str:
    """Of nested containers, tensors and plain values."""
    if isinstance(value, torch.Tensor):
        return hashlib.sha256(value.contiguous().numpy().tobytes()).hexdigest()
    if isinstance(value, dict):
        value = [(str(key), _digest(item)) for key, item in value.items()]
    elif isinstance(value, list | tuple):
        value = [_digest(item) for item in value]
    return hashlib.sha256(repr(value).encode()).hexdigest()


@dataclass(frozen=True)
class Reference:
    """A run that nothing disturbed."""

    folder: Path
    """With the folders `out` and `cache`."""
    outcome: Outcome
    seconds: float
    """It may have compiled something."""
    replacements: int
    """How many files it has replaced, those of its caches included."""


@dataclass
class Attack:
    """Runs settings on one set of images, in one folder."""

    process: WarmProcess
    data: Path
    folder: Path
    _references: dict[Setting, Reference] = field(default_factory=dict)

    def reference(self, setting: Setting) -> Reference:
        """The undisturbed run of a setting. It is run once."""
        if setting not in self._references:
            run = Run(self, setting, self.folder / f"reference-{setting}")
            count = run.folder / "count"
            began = time.monotonic()
            run.must_end(run.go_on(fault="count", fault_folders=[str(run.folder)], count_file=str(count)))
            seconds = time.monotonic() - began
            self._references[setting] = Reference(run.folder, Outcome.of(run.out), seconds, int(count.read_text()))
        return self._references[setting]


@dataclass
class Run:
    """A run that is begun, and gone on with after each of its ends."""

    attack: Attack
    setting: Setting
    folder: Path

    def __post_init__(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)

    @property
    def out(self) -> Path:
        return self.folder / "out"

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    @property
    def log(self) -> Path:
        return self.folder / "log"

    @property
    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def go_on(self, **options: Any) -> int:
        """Begins the run or resumes it, as a user would, and returns its exit code. `options`: fields of `Request`."""
        arguments = self.setting.arguments(self.attack.data, self.out)
        if (self.out / "last.pt").exists():
            arguments.append("--resume")
        request = Request(arguments=arguments, log=str(self.log), cache=str(self.cache))
        return self.attack.process.run(replace(request, **options))

    def must_end(self, code: int) -> None:
        """Fails, with the log, unless the exit code is 0."""
        assert code == 0, f"{self.setting}: exit code {code}\n{self.text}"

    def must_equal_reference(self) -> None:
        """Fails unless the run has led to what an undisturbed one leads to; removes its files if it has."""
        expected = self.attack.reference(self.setting).outcome
        assert Outcome.of(self.out) == expected, f"{self.setting}: {self.folder}\n{self.text}"
        shutil.rmtree(self.folder)

    def refusal(self) -> str:
        """The last line of the log, which must be a message, as a user understands it, and not a traceback."""
        lines = self.text.splitlines()
        assert "Traceback" not in self.text, self.text
        messages = [line for line in lines if line.startswith("error: ")]
        assert messages, self.text
        return messages[-1]
