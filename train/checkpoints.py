"""Checkpoints: saving a run, resuming it, and its best model so far."""

import time
from dataclasses import asdict, fields
from typing import Any

from loaders import InputError
from train.batches import BatchLoader
from train.learner import Learner, Metrics
from train.options import Options
from train.recipes import Recipe
from train.run_folder import BEST, LAST, RunFolder
from train.run_state import RunState

_SECONDS_BETWEEN_SAVES = 5.0  # an epoch on cached features may take less time than saving it
_SECONDS_BETWEEN_SAVES_INSIDE_EPOCHS = 600.0  # what a kill may cost where an epoch takes hours


class Checkpoints:
    """Writes and reads `last.pt` and `best.pt`. Every process takes part in saving; one of them writes."""

    def __init__(
        self,
        folder: RunFolder | None,
        *,
        learner: Learner,
        train_loader: BatchLoader,
        state: RunState,
        identity: dict[str, Any],
    ) -> None:
        """
        Args:
            folder: None on processes that write nothing.
            identity: what must be the same for a run to be resumed; see `run_identity`.
        """
        self.folder = folder
        self._learner = learner
        self._train_loader = train_loader
        self._state = state
        self._identity = identity
        self._best_in_file: object = None  # the best model that best.pt holds

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
        """Saves everything that the run's future depends on, and draws its curves."""
        state = self._state
        metrics = state.metrics.result(self._learner.process_group)
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
        }
        self.folder.save(LAST, content)
        if state.best is not self._best_in_file:
            self._save_best()
        if state.rows:
            self.folder.draw_curves(state.rows)

    def resume(self, folder: RunFolder) -> None:
        """Loads the run that was saved in `folder`.

        Raises:
            InputError: when the checkpoint is damaged, or belongs to a run with other options, which are named.
        """
        content = folder.load(LAST)
        self._require_same_run(folder, content.get("identity", {}))
        state = self._state
        is_main = self._learner.process_group.is_main
        self._train_loader.load_state_dict(content["loader"])
        self._learner.load_state_dict(content["learner"])
        if is_main:  # the saved metrics are the sum over all processes
            state.metrics.add_metrics(Metrics(**content["tally"]))
            state.best = content["best"]
        state.rows = content["rows"]
        state.seconds_before = content["seconds"]
        if len(state.rows) > self._train_loader.epoch and len(self._train_loader):
            self._drop_unfinished_epoch()
        if state.best is not None:
            self._save_best()  # a kill may have come before this file was written

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
            lines = "".join(f"\n  {key} was {saved.get(key)}, is {present[key]}" for key in differing)
            lines += _advice_on_shares(saved, present) if "NGPU" in differing else ""
            raise InputError(f"--resume: {folder.path} was trained otherwise; give the options it had:{lines}")

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

    def _save_best(self) -> None:
        assert self.folder is not None
        assert self._state.best is not None
        self.folder.save(BEST, self._state.best)
        self._best_in_file = self._state.best


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


def _advice_on_shares(saved: dict[str, Any], present: dict[str, Any]) -> str:
    """The batch size with which the present processes take the same images a step on as the run before."""
    total = _images_per_step(saved)
    if total is None:
        return ""
    processes = present["NGPU"]
    if total % processes:
        return f"\nIts {total} images a step cannot be shared by {processes} GPUs: choose an NGPU that divides {total}"
    return f"\nWith NGPU={processes} its {total} images a step are --batch-size {total // processes}"
