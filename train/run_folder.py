"""A run's folder: the files that a run leaves behind. Each is written whole or not at all."""

import itertools
import json
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import safetensors.torch
import torch
from torch import Tensor

from loaders import InputError
from loaders.errors import cause
from loaders.system.files import make_folder, preserve, write_whole
from loaders.system.format import format_bytes
from loaders.system.machine import free_on_disk
from loaders.system.shapes import Shape, has_shape
from train.curves import draw_curves
from train.folder_lock import FolderLock

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
LAST = "last.pt"
PREVIOUS = "last.previous.pt"
BEST = "best.pt"
_FILES = (CONFIG, "environment.json", "metrics.jsonl", "summary.json", LAST, PREVIOUS, BEST, WEIGHTS, "curves.png")


class RunFolder:
    """The folder of one run.

    It holds `config.json` (options, recipe, and what is needed to use the model), `environment.json`, `metrics.jsonl`
    (a line per epoch), `summary.json`, `last.pt` (to resume from), `best.pt`, `model.safetensors` and `curves.png`.
    Until the run ends, `last.previous.pt` is the `last.pt` before.
    """

    def __init__(self, path: Path, *, resume: bool) -> None:
        """Creates the folder.

        Raises:
            InputError: when it holds another run and is not resumed, holds none to resume, or cannot be created.
        """
        require_usable_out(path, resume=resume)
        self.path = path
        self._lock: FolderLock | None = None
        self._made = not path.exists()
        try:
            make_folder(path)
        except OSError as error:
            raise _cannot_be_made(path, error) from error

    @classmethod
    def claimed(cls, path: Path, *, resume: bool) -> Self:
        """The folder, created and locked: until it is closed no other run may write to it.

        Raises:
            InputError: when another run is writing to it, which is named; and as the constructor does.
        """
        folder = cls(path, resume=resume)
        folder._lock = FolderLock(path)
        try:
            require_usable_out(path, resume=resume)  # a run may have ended there in the meantime
            if folder.lock_problem is None:
                folder._remove_parts()
        except BaseException:
            folder.close()
            raise
        return folder

    @property
    def lock_problem(self) -> str | None:
        """Why a claimed folder could not be locked, where its file system has no locks."""
        return None if self._lock is None else self._lock.problem

    def close(self) -> None:
        """Lets other runs claim the folder, and removes it if it was made here and nothing was written to it."""
        if self._lock is not None:
            self._lock.release()
        if self._made:
            with suppress(OSError):  # as it is not empty
                self.path.rmdir()

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

    def preserve_last(self) -> None:
        """Leaves `last.pt` in the place of `last.previous.pt`, before the next one is saved."""
        preserve(self.path / LAST, self.path / PREVIOUS)

    def remove_previous(self) -> None:
        """Removes `last.previous.pt`, which a run that has ended does not need."""
        (self.path / PREVIOUS).unlink(missing_ok=True)

    def load(self, name: str, shape: Shape = dict) -> dict[str, Any]:
        """The checkpoint that `save` has written.

        Raises:
            InputError: when it cannot be read, or its content has not that `shape`.
        """
        try:
            _require_intact(self.path / name)
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

    def _remove_parts(self) -> None:
        """Removes files that a killed process has left unfinished."""
        for name in _FILES:
            for part in self.path.glob(f"{name}*.part"):
                part.unlink(missing_ok=True)


def make_new_folder(path: Path) -> Path:
    """Makes a folder that no other run uses, and returns its path: `path`, or where that is taken `path-2`, ...

    Raises:
        InputError: when no folder can be made there.
    """
    try:
        make_folder(path.parent)
        for name in itertools.chain([path.name], (f"{path.name}-{number}" for number in itertools.count(2))):
            with suppress(FileExistsError):
                path.with_name(name).mkdir()
                return path.with_name(name)
    except OSError as error:
        raise _cannot_be_made(path, error) from error
    raise AssertionError("numbers do not end")


def _cannot_be_made(path: Path, error: OSError) -> InputError:
    return InputError(f"OUT: {path} cannot be made: {cause(error)}")


def holds_checkpoint(path: Path) -> bool:
    """Whether `path` holds a run that can be resumed."""
    return any((path / name).is_file() for name in (LAST, PREVIOUS))


def _require_intact(path: Path) -> None:
    """Raises ValueError where a checkpoint does not have the checksums that `torch.save` has written into it.

    `torch.load` does not look at them: a flipped bit would be trained on.
    """
    with zipfile.ZipFile(path) as archive:
        if (damaged := archive.testzip()) is not None:
            raise ValueError(f"{path}: {damaged} does not have its checksum")


def require_usable_out(path: Path, *, resume: bool) -> None:
    """Raises InputError when `path` holds another run that is not resumed, or none to resume."""
    resumable = holds_checkpoint(path)
    if resume and not resumable:
        raise InputError(f"--resume: {path} holds no {LAST} to go on from")
    if not resume and (resumable or (path / WEIGHTS).exists()):
        raise InputError(f"{path} holds another run: choose another OUT, or go on with that run by --resume")


def load_samples(path: Path) -> dict[str, Tensor]:
    """The record of a run's samples in the checkpoint that lies in `path`; empty where there is none."""
    for name in (LAST, PREVIOUS):
        try:  # mapped, so that the weights beside them are not read
            content = torch.load(path / name, map_location="cpu", weights_only=True, mmap=True)
            return {split: packed.clone() for split, packed in content.get("samples", {}).items()}
        except Exception:  # `RunFolder.load` says so of a damaged file
            continue
    return {}


def require_space(path: Path, needed: int) -> None:
    """Raises InputError when the disk of `path` has not `needed` bytes free, before an epoch goes into a checkpoint."""
    free = free_on_disk(path.absolute())
    if needed > free:
        raise InputError(
            f"OUT: {path}: the checkpoints take {format_bytes(needed)}, {format_bytes(free)} are free; "
            "choose another OUT"
        )
