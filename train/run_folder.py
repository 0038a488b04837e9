"""A run's folder: the files that a run leaves behind. Each is written whole or not at all."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from loaders import InputError
from loaders.errors import cause
from loaders.system.files import write_whole
from loaders.system.format import format_bytes
from loaders.system.machine import free_on_disk
from loaders.system.shapes import Shape, has_shape
from train.curves import draw_curves

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
LAST = "last.pt"
BEST = "best.pt"


class RunFolder:
    """The folder of one run.

    It holds `config.json` (options, recipe, and what is needed to use the model), `environment.json`, `metrics.jsonl`
    (a line per epoch), `summary.json`, `last.pt` (to resume from), `best.pt`, `model.safetensors` and `curves.png`.
    """

    def __init__(self, path: Path, *, resume: bool) -> None:
        """Creates the folder.

        Raises:
            InputError: when it holds another run and is not resumed, holds none to resume, or cannot be created.
        """
        require_usable_out(path, resume=resume)
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"OUT: {path} cannot be made: {cause(error)}") from error

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Writes `content`; values that JSON cannot represent become text."""
        text = json.dumps(content, indent=2, default=str) + "\n"
        write_whole(self.path / name, lambda part: part.write_text(text))

    def write_metrics(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Writes `metrics.jsonl`: a line for each epoch so far."""
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        write_whole(self.path / "metrics.jsonl", lambda part: part.write_text(lines))

    def save(self, name: str, content: Mapping[str, Any]) -> None:
        """Writes a checkpoint of plain containers and tensors, which `torch.load(weights_only=True)` reads."""

        def write(part: Path) -> None:
            with part.open("wb") as file:  # given a path, torch reports a full disk as "unexpected pos 704 vs 598"
                torch.save(dict(content), file)

        write_whole(self.path / name, write)

    def load(self, name: str, shape: Shape = dict) -> dict[str, Any]:
        """The checkpoint that `save` has written.

        Raises:
            InputError: when it cannot be read, or its content has not that `shape`.
        """
        try:
            content: dict[str, Any] = torch.load(self.path / name, map_location="cpu", weights_only=True)
        except Exception as error:  # damaged files raise whatever the bytes lead to
            raise self.damaged(name) from error
        if not has_shape(content, shape):
            raise self.damaged(name)
        return content

    def damaged(self, name: str) -> InputError:
        """The error to raise for a file that cannot be used."""
        return InputError(f"{self.path / name} is damaged or unreadable; begin anew with another OUT")

    def save_model(self, state: Mapping[str, Tensor]) -> None:
        """Writes `model.safetensors`: the weights alone, contiguous in memory as other programs expect them."""
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
        write_whole(self.path / WEIGHTS, lambda part: part.write_bytes(safetensors.torch.save(plain)))

    def draw_curves(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Writes `curves.png`: loss and accuracy of all epochs so far."""
        write_whole(self.path / "curves.png", lambda part: draw_curves(rows).savefig(part, format="png", dpi=120))


def require_usable_out(path: Path, *, resume: bool) -> None:
    """Raises InputError when `path` holds another run that is not resumed, or none to resume."""
    if resume and not (path / LAST).is_file():
        raise InputError(f"--resume: {path} holds no {LAST} to go on from")
    if not resume and ((path / LAST).exists() or (path / WEIGHTS).exists()):
        raise InputError(f"{path} holds another run: choose another OUT, or go on with that run by --resume")


def require_space(path: Path, needed: int) -> None:
    """Raises InputError when the disk of `path` has not `needed` bytes free, before an epoch goes into a checkpoint."""
    free = free_on_disk(path.absolute())
    if needed > free:
        raise InputError(
            f"OUT: {path}: the checkpoints take {format_bytes(needed)}, {format_bytes(free)} are free; "
            "choose another OUT"
        )
