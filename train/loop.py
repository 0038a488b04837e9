"""The training loop: epochs, steps, validation, and when to stop."""

import gc
import signal
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from loaders.system.console import ProgressCallback
from train.batches import BatchLoader, TrainingBatch
from train.checkpoints import Checkpoints
from train.console import Reporter
from train.divergence import DivergedError, LossCheck, NotFiniteError, explain, require_finite
from train.epoch_timer import EpochTimer
from train.features import FeatureLoader
from train.garbage_collection import gc_disabled
from train.learner import Learner, MetricAccumulator, Metrics
from train.process_group import ProcessGroup
from train.run_state import RunState, TrainingRow
from train.stopping import InterruptedRunError, StopRequest
from train.summary import epoch_line, interruption_message, throughput_text

_SECONDS_BETWEEN_REMARKS = 0.5
_STEPS_BETWEEN_AGREEMENTS = 10  # the host waits while the processes agree
_STEPS_BETWEEN_LOSS_CHECKS = 100  # a loss that is no number is noticed after at most two of these


@dataclass(frozen=True, kw_only=True)
class TrainingLoop:
    """Trains a learner for some epochs, or for as many as the time allows."""

    learner: Learner
    train_loader: BatchLoader
    val_loader: BatchLoader
    epochs: int
    """Epochs of the whole run."""
    state: RunState
    checkpoints: Checkpoints
    stop: StopRequest
    reporter: Reporter
    process_group: ProcessGroup

    def run(self) -> None:
        """Trains the epochs that are left.

        Raises:
            InterruptedRunError: when a signal asked to stop; the run has been saved.
            DivergedError: when the loss or the weights are no finite numbers.
        """
        try:
            self._run()
        except NotFiniteError as error:
            earlier_losses = [row["train_loss"] for row in self.state.rows]
            raise DivergedError(explain(error, self.learner, earlier_losses)) from error

    def _run(self) -> None:
        with gc_disabled():
            for epoch in range(self.train_loader.epoch, self.epochs):
                if epoch < len(self.state.rows):  # a resumed run had just validated this epoch
                    continue
                self.train_loader.set_epoch(epoch)
                self._run_epoch(epoch)
                out_of_time = self.process_group.any(self.stop.out_of_time)
                self.checkpoints.record_epoch(ends=out_of_time or epoch + 1 == self.epochs)
                gc.collect()
                if out_of_time:
                    self.reporter.say(f"--max-minutes {self.stop.max_minutes:g}: stopping after epoch {epoch + 1}")
                    break

    def _run_epoch(self, epoch: int) -> None:
        """Trains and validates an epoch, and adds its row to the state."""
        title = f"epoch {epoch + 1}/{self.epochs}"
        self._compute_features(self.train_loader, title)
        trained = self._train(epoch, title)
        validated = self._validate(title)
        require_finite("validation", validated)  # the last step's update is in no training loss
        self.state.rows.append(
            {**trained, "val_loss": validated.loss, "val_top1": validated.top1, "val_seen": validated.seen}
        )
        if not self.train_loader.remaining():  # otherwise the epoch ran out of time, and resuming finishes it
            self.state.metrics = MetricAccumulator(self.learner.device)
        self.reporter.say(epoch_line(title, self.state.rows[-1]))

    def _train(self, epoch: int, title: str) -> TrainingRow:
        """Trains on the epoch's batches, or on those for which there is time."""
        timer = EpochTimer(self.learner.device)
        self.learner.start_epoch()
        with self.reporter.progress(title) as show:
            metrics = self._step_through(timer, show)
        return {
            "epoch": epoch + 1,
            "train_loss": metrics.loss,
            "train_top1": metrics.top1,
            "seconds": timer.seconds,
            "images_per_second": timer.images_per_second * self.process_group.size,
            "data_wait": timer.data_wait,
            "learning_rate": float(self.learner.scheduler.get_last_lr()[0]),
        }

    def _step_through(self, timer: EpochTimer, show: ProgressCallback) -> Metrics:
        """A step for each batch, until the epoch, the time allowed, or the run ends. Returns the epoch's metrics.

        Raises:
            NotFiniteError: when the loss or the weights are no finite numbers.
        """
        total = len(self.train_loader)
        next_remark = _SECONDS_BETWEEN_REMARKS
        loss_check = LossCheck(self.state.metrics)
        batch = None
        try:
            for done, batch in enumerate(timer.timed(self.train_loader), 1):
                self.learner.step(batch, self.state.metrics)
                if timer.seconds > next_remark:
                    next_remark = timer.seconds + _SECONDS_BETWEEN_REMARKS
                    show(done, total, throughput_text(timer.images_per_second, timer.data_wait))
                if done % _STEPS_BETWEEN_LOSS_CHECKS == 0 and self.process_group.any(loss_check.failed()):
                    require_finite("training", self.state.metrics.result(self.process_group))
                self._stop_if_signaled(done, total)
                if self._any_process(self.stop.out_of_time, done, total):
                    break
                self._save_if_due(done, total)
            metrics = self.state.metrics.result(self.process_group)
            require_finite("training", metrics)
        except NotFiniteError as error:
            error.batch, error.mean_losses = batch, loss_check.mean_losses
            raise
        return metrics

    def _compute_features(self, loader: BatchLoader, title: str) -> None:
        """Computes the features that the epoch needs, so that the epoch's own time does not include it."""
        if isinstance(loader, FeatureLoader):
            with self.reporter.progress(title) as show:
                for done, total in loader.compute():
                    show(done, total, "features")
                    self._stop_if_signaled(done, total)

    def _validate(self, title: str) -> Metrics:
        self._compute_features(self.val_loader, title)
        with self.reporter.progress(title) as show:
            metrics = self.learner.evaluate(self._validation_batches(show))
        skipped = torch.tensor(len(self.val_loader.skipped), device=self.learner.device)
        expected = len(self.val_loader.ids) - int(self.process_group.sum(skipped).item())
        assert metrics.seen == expected, f"validated {metrics.seen} images instead of {expected}"
        return metrics

    def _validation_batches(self, show: ProgressCallback) -> Iterator[TrainingBatch]:
        """The batches to validate; a signal stops the run between them."""
        total = len(self.val_loader)
        for done, batch in enumerate(self.val_loader, 1):
            yield batch
            show(done, total, "validation")
            self._stop_if_signaled(done, total)

    def _any_process(self, flag: bool, done: int, total: int) -> bool:
        """Whether `flag` is true in any process, which they agree on every few batches.

        All processes must stop at the same batch, or the others would wait for it forever.
        """
        if self.process_group.size == 1:
            return flag
        return (done == total or done % _STEPS_BETWEEN_AGREEMENTS == 0) and self.process_group.any(flag)

    def _stop_if_signaled(self, done: int, total: int) -> None:
        """Saves the run and raises InterruptedRunError if a process has received a signal."""
        if not self._any_process(self.stop.signal is not None, done, total):
            return
        received = self.stop.signal or signal.SIGTERM  # another process received it
        can_save = self.train_loader.resumes_inside_epochs or not self.train_loader.remaining()
        if can_save:
            self.checkpoints.save()
        if self.checkpoints.folder is not None:
            outcome = interruption_message(self.checkpoints.folder, self.train_loader.name, saved=can_save)
            self.reporter.say("", f"{received.name}: {outcome}")
        raise InterruptedRunError(received)

    def _save_if_due(self, done: int, total: int) -> None:
        """Saves the run now and then inside a long epoch."""
        if self.train_loader.resumes_inside_epochs and self._any_process(
            self.checkpoints.due_inside_epoch, done, total
        ):
            self.checkpoints.save()
