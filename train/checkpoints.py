"""Checkpoints: saving a run, resuming it, and its best model so far."""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, fields
from functools import cache
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from loaders import InputError
from loaders.system.shapes import Either, Shape
from train.batches import BatchLoader
from train.divergence import NotFiniteError, require_finite
from train.learner import Learner, Metrics
from train.options import Options
from train.recipes import Recipe
from train.run_folder import BEST, LAST, PREVIOUS, RunFolder
from train.run_state import RunState

_SECONDS_BETWEEN_SAVES = 5.0  # an epoch on cached features may take less time than saving it
_SECONDS_BETWEEN_SAVES_INSIDE_EPOCHS = 600.0  # what a kill may cost where an epoch takes hours


# Spelled out, not taken from `EpochRow`: what later versions add is not in files written before.
_ROW: Shape = {
    **dict.fromkeys(("epoch", "train_loss", "train_top1", "seconds", "images_per_second", "data_wait"), Real),
    **dict.fromkeys(("learning_rate", "val_loss", "val_top1", "val_seen"), Real),
}
_BEST: Shape = {"model": {str: Tensor}, "epoch": int, "val_top1": float, "before": Either(None, dict)}
_CHECKPOINT: Shape = {
    "learner": {"model": {str: Tensor}, "optimizer": dict, "scheduler": {"last_epoch": int}, "scaler": dict},
    "loader": dict,
    "tally": {"loss_sum": Real, "correct": int, "seen": int},
    "rows": [_ROW],
    "best": Either(None, _BEST),
    "seconds": float,
    "identity": dict,
}
"""What `last.pt` must hold for a run to go on: what the first versions wrote."""


class Checkpoints:
    """Writes and reads `last.pt` and `best.pt`. Every process takes part in saving; one of them writes.

    While the run lasts, the `last.pt` before stays as `last.previous.pt`: some disks lose what they said was written.
    """

    def __init__(
        self,
        folder: RunFolder | None,
        *,
        learner: Learner,
        train_loader: BatchLoader,
        state: RunState,
        identity: dict[str, Any],
        samples: Callable[[], dict[str, Tensor]] = dict,
    ) -> None:
        """
        Args:
            folder: None on processes that write nothing.
            identity: what must be the same for a run to be resumed; see `run_identity`.
            samples: called for the record of the run's samples when it is saved first; see `train.samples`.
        """
        self.folder = folder
        self._learner = learner
        self._train_loader = train_loader
        self._state = state
        self._identity = identity
        self._samples = cache(samples)
        self._best_in_file: object = None  # the best model that best.pt holds
        self._last_is_readable = True  # otherwise it must not replace the one before

    @property
    def due_inside_epoch(self) -> bool:
        """Whether the running epoch has lasted so long that it should be saved before its end."""
        last = max(self._state.saved_at, self._state.started)
        return time.perf_counter() > last + _SECONDS_BETWEEN_SAVES_INSIDE_EPOCHS

    def record_epoch(self, *, ends: bool) -> None:
        """Writes the row of the epoch that was validated last, and saves the run if that is due or the run `ends`."""
        state = self._state
        if self.folder is not None:
            self.folder.write_metrics(state.rows)
            if state.rows[-1] is state.best_row:
                self._take_best()
        due = time.perf_counter() > state.saved_at + _SECONDS_BETWEEN_SAVES
        if ends or self._learner.process_group.any(due):
            self.save()

    def save(self) -> None:
        """Saves everything that the run's future depends on, and draws its curves.

        Raises:
            NotFiniteError: when the loss or the weights are no finite numbers. What was saved before stays.
        """
        state = self._state
        metrics = state.metrics.result(self._learner.process_group)
        require_finite("training", metrics)
        if self._learner.process_group.any(not self._learner.weights_are_finite()):
            raise NotFiniteError("training", metrics.loss)
        state.saved_at = time.perf_counter()  # on every process, or saving would always be due on those not writing
        if self.folder is None:
            return
        content = {
            "learner": self._learner.state_dict(),
            "loader": self._train_loader.state_dict(),
            "tally": asdict(metrics),  # the name that files have had from the beginning
            "rows": state.rows,
            "best": state.best,
            "seconds": state.seconds,
            "identity": self._identity,
            "samples": self._samples(),
        }
        if self._last_is_readable:
            self.folder.preserve_last()
        self.folder.save(LAST, content)
        self._last_is_readable = True
        self.save_best()
        if state.rows:
            self.folder.draw_curves(state.rows)

    def save_best(self) -> None:
        """Writes `best.pt`, unless it holds the best model already."""
        best = self._state.best
        if self.folder is not None and best is not None and best is not self._best_in_file:
            self.folder.save(BEST, best)
            self._best_in_file = best

    def resume(self, folder: RunFolder) -> list[str]:
        """Loads the run that was saved in `folder`. Returns what people should know of it.

        Raises:
            InputError: when the checkpoint is damaged, or belongs to a run with other options, which are named.
        """
        content, notes = self._load(folder)
        state = self._state
        is_main = self._learner.process_group.is_main
        try:
            self._require_same_run(folder, content["identity"])
            self._train_loader.load_state_dict(content["loader"])
            self._learner.load_state_dict(content["learner"])
            metrics = Metrics(*(content["tally"][field.name] for field in fields(Metrics)))
            if is_main:  # the saved metrics are the sum over all processes
                state.metrics.add_metrics(metrics)
        except (InputError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # torch raises nearly anything about a state that is not of this model
            raise folder.damaged(LAST) from error
        if is_main:
            state.best = content["best"]
        self._require_finite_state(folder, metrics)
        state.rows = content["rows"]
        state.seconds_before = content["seconds"]
        if len(state.rows) > self._train_loader.epoch and len(self._train_loader):
            self._drop_unfinished_epoch()
        self.save_best()  # a kill may have come before this file was written
        return notes

    def _load(self, folder: RunFolder) -> tuple[dict[str, Any], list[str]]:
        """The content of `last.pt`, or of the one before where a process cannot read it; and notes on that."""
        content, failure = None, None
        try:
            content = folder.load(LAST, _CHECKPOINT)  # whole: what it lacks would come out an epoch later
        except InputError as error:
            failure = error
        # All processes must go on from the same one.
        self._last_is_readable = not self._learner.process_group.any(failure is not None)
        if content is not None and self._last_is_readable:
            return content, []
        try:
            content = folder.load(PREVIOUS, _CHECKPOINT)
        except InputError:
            raise failure or InputError(f"another process cannot read {folder.path / LAST}") from None
        return content, [f"{folder.path / LAST} is missing or damaged: going on from {PREVIOUS}, saved before it"]

    def _require_finite_state(self, folder: RunFolder, metrics: Metrics) -> None:
        """Raises InputError where what was loaded has diverged: earlier versions saved that, too."""
        if not math.isfinite(metrics.loss_sum) or not self._learner.weights_are_finite():
            raise InputError(
                f"--resume: {folder.path} was saved after it diverged: its loss or weights are no finite numbers. "
                f"Begin anew with another OUT; WEIGHTS={folder.path / BEST} starts from its best epoch, if it has one"
            )

    def _drop_unfinished_epoch(self) -> None:
        """Drops the row of an epoch that ran out of time, and its model if that was the best."""
        row = self._state.rows.pop()
        best = self._state.best
        if best is not None and best["epoch"] == row["epoch"]:
            self._state.best = best["before"]

    def _require_same_run(self, folder: RunFolder, saved: dict[str, Any]) -> None:
        present = self._identity
        differing = [key for key in present if saved.get(key) != present[key]]
        if _images_per_step(saved) == _images_per_step(present):  # however many processes share them
            differing = [key for key in differing if key not in _SHARES]
        if differing:
            lines = [f"  {key} was {saved.get(key)}, is {present[key]}" for key in differing]
            lines += _advice_on_shares(saved, present) if "NGPU" in differing else []
            raise InputError(f"--resume: {folder.path} was trained otherwise; give the options it had:", *lines)

    def _take_best(self) -> None:
        """Takes the model that was just validated as the best."""
        state = self._state
        row = state.rows[-1]
        unfinished = self._train_loader.remaining() > 0
        state.best = {
            "model": {name: tensor.clone() for name, tensor in self._learner.evaluated.state_dict().items()},
            "epoch": row["epoch"],
            "val_top1": row["val_top1"],
            "before": state.best if unfinished else None,
        }


def run_identity(
    options: Options, recipe: Recipe, learner: Learner, train_loader: BatchLoader, val_loader: BatchLoader
) -> dict[str, Any]:
    """What must be the same for a run to be resumed. Keys are what people know the values by."""
    return {
        "mode": options.mode,
        "--views": options.views,
        "--model": options.model,
        "precision": learner.precision.name,
        "NGPU": learner.process_group.size,
        "images to train on": len(train_loader.source),
        "steps": learner.steps,
        "images to validate": f"{len(val_loader.ids)} ({val_loader.source.fingerprint})",
        "--size": recipe.size,
        **{field.name: repr(getattr(recipe, field.name)) for field in fields(recipe)},
    }


_SHARES = ("NGPU", "batch_size")
"""Keys of an identity: the processes, and the images per step of each."""


def _images_per_step(identity: dict[str, Any]) -> int | None:
    """The images that all processes together take a step on; None where the identity does not say so."""
    processes, share = (str(identity.get(key)) for key in _SHARES)
    return int(processes) * int(share) if processes.isdecimal() and share.isdecimal() else None


def _advice_on_shares(saved: dict[str, Any], present: dict[str, Any]) -> list[str]:
    """The batch size with which the present processes take as many images a step as the run before; a line, or none."""
    total = _images_per_step(saved)
    if total is None:
        return []
    processes = present["NGPU"]
    if total % processes:
        return [f"Its {total} images a step cannot be shared by {processes} GPUs: choose an NGPU that divides {total}"]
    return [f"With NGPU={processes} its {total} images a step are --batch-size {total // processes}"]
