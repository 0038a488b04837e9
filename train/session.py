"""A run under way: its epochs, its state, and what it says and writes."""

import gc
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch

from loaders import InputError, Loader
from loaders.sampling.plan import IMAGENET_MEAN, IMAGENET_STD, ResizeCenterCrop
from train.clock import EpochClock
from train.console import Reporter
from train.device import device_name
from train.folder import BEST, CONFIG, LAST, RunFolder, describe_environment
from train.learner import Learner, MetricAccumulator, Metrics
from train.models import count_parameters
from train.options import Options
from train.recipes import Recipe
from train.stopping import StopRequest
from train.views import FeatureViews
from train.world import ProcessGroup

_SECONDS_BETWEEN_REMARKS = 0.5
_SECONDS_BETWEEN_SAVES = 5.0  # an epoch on kept features may be shorter than saving it
_SECONDS_AMID_EPOCH = 600.0  # until it is saved there too: what a kill may cost where epochs take hours
_STEPS_BETWEEN_QUESTIONS = 10  # to the other processes, for whose answer the host waits


class InterruptedRunError(Exception):
    """A signal asked the run to stop; where it stands has been saved."""

    def __init__(self, asked: signal.Signals) -> None:
        super().__init__(asked.name)
        self.exit_code = 128 + asked


@dataclass
class Session:
    """A run under way."""

    options: Options
    recipe: Recipe
    learner: Learner
    train_loader: Loader
    val_loader: Loader
    folder: RunFolder | None
    """None on processes that write nothing."""
    reporter: Reporter
    stop: StopRequest
    world: ProcessGroup

    def __post_init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.tally = MetricAccumulator(self.learner.device)
        self.seconds_before = 0.0  # of earlier sittings of a resumed run
        self.started = time.perf_counter()
        self.best: dict[str, Any] | None = None  # model so far, and of which epoch; where there is a folder
        self.best_saved: dict[str, Any] | None = None
        self.saved = -float("inf")  # when the run was

    def open_folder(self) -> None:
        """Writes what is known beforehand, or takes up an interrupted run."""
        if self.options.resume:
            self._resume()
        elif self.folder is not None:
            self.folder.write_json(CONFIG, self._config())
        if not self.world.is_main:
            self.folder = None  # read, where the run is resumed
        if self.folder is not None:
            self.folder.write_json("environment.json", describe_environment())

    def train(self) -> None:
        """All epochs that are left, or as many as time allows."""
        with gc_disabled():
            self._epochs()

    def _epochs(self) -> None:
        for epoch in range(self.train_loader.epoch, self.recipe.epochs):
            if len(self.rows) > epoch:  # a resumed run that had just evaluated this one
                continue
            self.train_loader.set_epoch(epoch)
            self._epoch(epoch)
            out_of_time = self.world.any(self.stop.out_of_time)
            self._keep(ends=out_of_time or epoch + 1 == self.recipe.epochs)
            gc.collect()
            if out_of_time:
                self.reporter.say(f"--max-minutes {self.options.max_minutes:g}: stopping after epoch {epoch + 1}")
                break

    def conclude(self) -> dict[str, Any]:
        """Writes the result and says where it lies."""
        summary = self._summary(self._best())
        if self.folder is not None and self.best is not None:
            self.folder.save_model(self.best["model"])
            self.folder.write_json("summary.json", summary)
            self._tell(summary)
        return summary

    def _epoch(self, epoch: int) -> None:
        title = f"epoch {epoch + 1}/{self.recipe.epochs}"
        self._fill(self.train_loader, title)
        clock = EpochClock(self.learner.device)
        self.learner.start_epoch()
        with self.reporter.progress(title) as show:
            total, remarked = len(self.train_loader), 0.0
            for done, batch in enumerate(clock.watch(self.train_loader), 1):
                self.learner.step(batch, self.tally)
                if clock.seconds > remarked + _SECONDS_BETWEEN_REMARKS:
                    remarked = clock.seconds
                    show(done, total, _pace(clock))
                self._heed_signals(done, total)
                if self._agreed(done, total, self.stop.out_of_time):
                    break
                self._save_amid(done, total)
        trained = self.tally.result(self.world)
        _require_number("training", trained)
        row = {
            "epoch": epoch + 1,
            "train_loss": trained.loss,
            "train_top1": trained.top1,
            "seconds": clock.seconds,
            "images_per_second": clock.images_per_second * self.world.size,
            "data_wait": clock.data_wait,
            "learning_rate": self.learner.scheduler.get_last_lr()[0],
        }
        validated = self._validate(title)
        _require_number("validation", validated)  # the last step's update is in no training loss
        self.rows.append({**row, "val_loss": validated.loss, "val_top1": validated.top1, "val_seen": validated.seen})
        if not self.train_loader.remaining():  # else out of time, and the rest of the epoch may come yet
            self.tally = MetricAccumulator(self.learner.device)
        self.reporter.say(_line(title, self.rows[-1]))

    def _fill(self, loader: Loader, title: str) -> None:
        """Computes the features that are kept from here on, apart from the epoch's own time."""
        if isinstance(loader, FeatureViews):
            with self.reporter.progress(title) as show:
                for done, total in loader.fill():
                    show(done, total, "features")
                    self._heed_signals(done, total)

    def _validate(self, title: str) -> Metrics:
        def heeding() -> Iterator[Any]:
            total = len(self.val_loader)
            for done, batch in enumerate(self.val_loader, 1):
                yield batch
                show(done, total, "validation")
                self._heed_signals(done, total)

        self._fill(self.val_loader, title)
        with self.reporter.progress(title) as show:
            score = self.learner.evaluate(heeding())
        lost = torch.tensor(len(self.val_loader.lost), device=self.learner.device)
        expected = len(self.val_loader.ids) - int(self.world.sum(lost).item())
        assert score.seen == expected, f"validated {score.seen} images instead of {expected}"
        return score

    def _agreed(self, done: int, total: int, flag: bool) -> bool:
        """Whether `flag` is true for any process: all stop at the same batch, or the others would wait for ever."""
        if self.world.size == 1:
            return flag
        now = done == total or done % _STEPS_BETWEEN_QUESTIONS == 0
        return now and self.world.any(flag)

    def _heed_signals(self, done: int, total: int) -> None:
        """Saves and stops, when asked to."""
        if not self._agreed(done, total, self.stop.signal is not None):
            return
        asked = self.stop.signal or signal.SIGTERM  # that another process received
        loader = self.train_loader
        amid = loader.remaining() > 0 and not loader.resumes_inside_epochs
        if not amid:
            self._save()
        if self.folder is not None:
            told = f"LOADER={loader.name} cannot go on inside an epoch, this one is lost" if amid else "saved"
            if (self.folder.path / LAST).exists():
                told += f". To go on: the same options, OUT={self.folder.path} and ARGS=--resume"
            self.reporter.say(f"\n{asked.name}: {told}")
        raise InterruptedRunError(asked)

    def _save_amid(self, done: int, total: int) -> None:
        """Saves in a long epoch every now and then."""
        due = time.perf_counter() > max(self.saved, self.started) + _SECONDS_AMID_EPOCH
        if self.train_loader.resumes_inside_epochs and self._agreed(done, total, due):
            self._save()

    def _keep(self, *, ends: bool) -> None:
        """After each epoch: its row and, if it is the best so far, its model; all else when it `ends`, or is due."""
        if self.folder is not None:
            self.folder.write_metrics(self.rows)
            if self.rows[-1] is self._best():
                self._remember()
        if ends or self.world.any(time.perf_counter() > self.saved + _SECONDS_BETWEEN_SAVES):
            self._save()

    def _remember(self) -> None:
        """Takes the model just validated for the best."""
        model = {name: tensor.clone() for name, tensor in self.learner.evaluated.state_dict().items()}
        told = {name: self.rows[-1][name] for name in ("epoch", "val_top1")}
        # The row of an epoch that ran out of time goes when the epoch is finished: the best before it stays at hand.
        self.best = {"model": model, **told, "before": self.best if self.train_loader.remaining() else None}

    def _best(self) -> dict[str, Any]:
        """The row of the first epoch that was validated best."""
        return max(self.rows, key=lambda row: row["val_top1"])

    # --- state ----------------------------------------------------------------------------------

    def _save(self) -> None:
        """All that the run's future depends on, and what people look at. Every process takes part, one writes."""
        score = self.tally.result(self.world)
        self.saved = time.perf_counter()  # on every process, or those that do not write would always find it due
        if self.folder is None:
            return
        state = {
            "learner": self.learner.state_dict(),
            "loader": self.train_loader.state_dict(),
            "tally": asdict(score),
            "rows": self.rows,
            "best": self.best,
            "seconds": self._seconds(),
            "identity": self._identity(),
        }
        self.folder.save(LAST, state)
        if self.best is not self.best_saved:
            self._save_best()
        if self.rows:
            self.folder.draw_curves(self.rows)

    def _save_best(self) -> None:
        assert self.folder is not None
        assert self.best is not None
        self.folder.save(BEST, self.best)
        self.best_saved = self.best

    def _identity(self) -> dict[str, Any]:
        """What must be the same for a run to go on."""
        return {
            "mode": self.options.mode,
            "--views": self.options.views,
            "--model": self.options.model,
            "precision": self.learner.precision.name,
            "NGPU": self.world.size,
            "images to train on": len(self.train_loader.source),
            "steps": self.learner.steps,
            "images to validate": f"{len(self.val_loader.ids)} ({self.val_loader.source.fingerprint})",
            "--size": self.recipe.size,
            **{field.name: repr(getattr(self.recipe, field.name)) for field in fields(self.recipe)},
        }

    def _resume(self) -> None:
        assert self.folder is not None
        state = self.folder.load(LAST)
        mine, before = self._identity(), state.get("identity", {})
        if differing := [key for key in mine if before.get(key) != mine[key]]:
            told = "".join(f"\n  {key} was {before.get(key)}, is {mine[key]}" for key in differing)
            raise InputError(f"--resume: {self.folder.path} was trained otherwise; give the options it had:{told}")
        self.train_loader.load_state_dict(state["loader"])
        self.learner.load_state_dict(state["learner"])
        if self.world.is_main:  # it is the sum over all
            self.tally.add_score(Metrics(**state["tally"]))
        self.rows, self.seconds_before = state["rows"], state["seconds"]
        self.best = state["best"] if self.world.is_main else None
        if len(self.rows) > self.train_loader.epoch and len(self.train_loader):
            row = self.rows.pop()  # of an epoch that ran out of time, and is finished now
            if self.best is not None and self.best["epoch"] == row["epoch"]:
                self.best = self.best["before"]
        if self.best is not None:
            self._save_best()  # a kill may have kept it from that
        self.reporter.say(
            f"resumed after {len(self.rows)} epochs; {len(self.train_loader)} batches of epoch "
            f"{self.train_loader.epoch + 1} are left"
        )

    def _seconds(self) -> float:
        return self.seconds_before + time.perf_counter() - self.started

    # --- telling --------------------------------------------------------------------------------

    def _config(self) -> dict[str, Any]:
        evaluated = self.recipe.eval_spec.crop
        assert isinstance(evaluated, ResizeCenterCrop)  # as `load_classifier` rebuilds it
        return {
            "options": asdict(self.options),
            "recipe": asdict(self.recipe),
            "model": {
                "architecture": self.options.model,
                "num_classes": len(self.train_loader.source.classes),
                "label_names": list(self.train_loader.source.classes),
                "resize": evaluated.resize,
                "size": self.recipe.size,
                "mean": IMAGENET_MEAN,
                "std": IMAGENET_STD,
            },
        }

    def _summary(self, best: dict[str, Any]) -> dict[str, Any]:
        total, trainable = count_parameters(self.learner.model)
        seconds = sum(row["seconds"] for row in self.rows)
        return {
            "mode": self.options.mode,
            "model": self.options.model,
            "data": self.train_loader.source.name,
            "loader": (loader.images if isinstance(loader := self.train_loader, FeatureViews) else loader).name,
            "recipe": self.options.recipe,
            "views": self.options.views,
            "device": device_name(self.learner.device),
            "precision": str(self.learner.precision),
            "train_images": len(self.train_loader.ids),
            "epochs": len(self.rows),
            "best_epoch": best["epoch"],
            "seconds": self._seconds(),
            "val_top1": best["val_top1"],
            "val_loss": best["val_loss"],
            "val_seen": best["val_seen"],
            "last_val_top1": self.rows[-1]["val_top1"],
            "images_per_second": sum(r["images_per_second"] * r["seconds"] for r in self.rows) / seconds,
            "last_images_per_second": self.rows[-1]["images_per_second"],
            "data_wait": sum(r["data_wait"] * r["seconds"] for r in self.rows) / seconds,
            "parameters_total": total,
            "parameters_trainable": trainable,
            "bad_images": len(self.train_loader.bad_images) + len(self.val_loader.bad_images),
        }

    def _tell(self, summary: dict[str, Any]) -> None:
        assert self.folder is not None
        chance = 100 / len(self.train_loader.source.classes)
        self.reporter.say(
            f"\ntop-1 {summary['val_top1']:.2%} on {summary['val_seen']:,} validation images (chance {chance:.2g}%), "
            f"epoch {summary['best_epoch']} of {summary['epochs']}, in {summary['seconds']:.0f} s\n"
            f"{self.folder.path} holds the weights (model.safetensors), curves.png and all figures. To use it:\n"
            f'    from train import load_classifier\n    classify = load_classifier("{self.folder.path}")\n'
            '    classify("photo.jpg")  # {label: probability}'
        )


def _require_number(what: str, score: Metrics) -> None:
    if not score.loss_sum < float("inf"):
        raise InputError(f"the {what} loss is {score.loss}: it diverged. Choose a smaller --lr, or --precision fp32.")


@contextmanager
def gc_disabled() -> Iterator[None]:
    """Lets no collection of garbage hold up a step, for which it would go through all that torch has imported."""
    enabled = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        if enabled:
            gc.enable()


def _pace(clock: EpochClock) -> str:
    return f"{clock.images_per_second:,.0f} images/s, waiting for data {clock.data_wait:.0%}"


def _line(title: str, row: dict[str, Any]) -> str:
    return (
        f"{title}  train loss {row['train_loss']:.3f} top-1 {row['train_top1']:.1%}"
        f"  val loss {row['val_loss']:.3f} top-1 {row['val_top1']:.1%}"
        f"  {row['seconds']:.1f} s  {row['images_per_second']:,.0f} images/s  waiting for data {row['data_wait']:.0%}"
    )
