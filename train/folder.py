"""A run's folder: what a run leaves behind, each file written whole or not at all."""

import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import PIL
import safetensors.torch
import torch
import torchvision
from matplotlib.figure import Figure
from torch import Tensor

from loaders import InputError
from loaders.errors import cause
from loaders.system.files import write_whole
from loaders.system.machine import usable_cores

CONFIG, WEIGHTS, LAST, BEST = "config.json", "model.safetensors", "last.pt", "best.pt"

_WITHOUT_IMPORTING = ("simplejpeg", "triton", "ffcv", "numba", "nvidia-dali-cuda120", "nvidia-dali-cuda130")
"""Distributions whose versions are told where they are installed: some take seconds to import, or change torch's
threads."""


class RunFolder:
    """`config.json` (options, recipe, and what the model needs to be used), `environment.json`, `metrics.jsonl`
    (a line per epoch), `summary.json`, `last.pt` (to resume from), `best.pt`, `model.safetensors`, `curves.png`.
    """

    def __init__(self, path: Path, *, resume: bool) -> None:
        """Makes the folder.

        Raises:
            InputError: when it holds another run and is not resumed, holds none to resume, or cannot be made.
        """
        check_out(path, resume=resume)
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"OUT: {path} cannot be made: {cause(error)}") from error

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """`content`, with what JSON has no word for as text."""
        text = json.dumps(content, indent=2, default=str) + "\n"
        write_whole(self.path / name, lambda part: part.write_text(text))

    def write_metrics(self, rows: list[dict[str, Any]]) -> None:
        """All epochs so far, a line each."""
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        write_whole(self.path / "metrics.jsonl", lambda part: part.write_text(lines))

    def save(self, name: str, content: Mapping[str, Any]) -> None:
        """A checkpoint of plain containers and tensors, which `torch.load(weights_only=True)` reads."""

        def write(part: Path) -> None:
            with part.open("wb") as file:  # given a name, torch says of a full disk "unexpected pos 704 vs 598"
                torch.save(dict(content), file)

        write_whole(self.path / name, write)

    def load(self, name: str) -> dict[str, Any]:
        """What `save` has written.

        Raises:
            InputError: when it cannot be read.
        """
        try:
            content: dict[str, Any] = torch.load(self.path / name, map_location="cpu", weights_only=True)
        except Exception as error:  # damaged files raise whatever the bytes lead to
            raise InputError(f"{self.path / name} is damaged or unreadable; begin anew with another OUT") from error
        return content

    def save_model(self, state: Mapping[str, Tensor]) -> None:
        """The weights alone, in the order of memory that others expect."""
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
        write_whole(self.path / WEIGHTS, lambda part: part.write_bytes(safetensors.torch.save(plain)))

    def draw_curves(self, rows: list[dict[str, Any]]) -> None:
        """Loss and accuracy of all epochs so far, as a picture."""
        write_whole(self.path / "curves.png", lambda part: _curves(rows).savefig(part, format="png", dpi=120))


def check_out(path: Path, *, resume: bool) -> None:
    """Raises InputError when `path` holds another run and is not resumed, or none to resume."""
    if resume and not (path / LAST).is_file():
        raise InputError(f"--resume: {path} holds no {LAST} to go on from")
    if not resume and ((path / LAST).exists() or (path / WEIGHTS).exists()):
        raise InputError(f"{path} holds another run: choose another OUT, or go on with that run by --resume")


def _curves(rows: list[dict[str, Any]]) -> Figure:
    """Loss and accuracy of training and validation over the epochs."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    epochs = [row["epoch"] for row in rows]
    for axes, quantity, title in zip(
        figure.subplots(1, 2), ("loss", "top1"), ("cross-entropy", "top-1 accuracy"), strict=True
    ):
        for split, style in (("train", "--"), ("val", "-")):
            axes.plot(epochs, [row[f"{split}_{quantity}"] for row in rows], style, marker=".", label=split)
        axes.set(xlabel="epoch", title=title)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend()
    return figure


def describe_environment() -> dict[str, Any]:
    """What the numbers of a run may depend on."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    versions = {"python": platform.python_version()} | {
        module.__name__: module.__version__ for module in (torch, torchvision, np, PIL, matplotlib)
    }
    for name in _WITHOUT_IMPORTING:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return {
        "command": _command(),
        "commit": _commit(),
        "versions": versions | {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()},
        "platform": platform.platform(),
        "processor": torch.cpu.get_capabilities().get("cpu_name", platform.processor()),
        "usable_cores": usable_cores(),
        "torch_threads": torch.get_num_threads(),
        "gpus": gpus,
    }


def _command() -> str:
    """What to type in the checkout to have it again: a module is called by its name, under torchrun by that."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    return shlex.join(["python", *launcher, *(["-m", spec.parent] if spec else sys.argv[:1]), *sys.argv[1:]])


def _commit() -> str | None:
    """The checkout's commit, with "+" where files differ from it."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + "+" * bool(changed)
