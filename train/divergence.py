"""Noticing that a loss or weights are no finite numbers, and telling from the evidence what the cause is."""

import math
from collections.abc import Sequence

from loaders import Batch, InputError
from train.batches import FeatureBatch, TrainingBatch
from train.learner import Learner, MetricAccumulator, Metrics

_RISE = 1.5  # a mean loss so many times the lowest one before has risen, beyond what batches differ by


class NotFiniteError(Exception):
    """The loss or the weights are no finite numbers. Who catches it may know more than who raises it."""

    def __init__(self, split: str, loss: float) -> None:
        super().__init__(f"the {split} loss is {loss}")
        self.batch: TrainingBatch | None = None
        """The batch that was trained on last."""
        self.mean_losses: list[float] = []
        """Of the running epoch, in order, while they were finite."""


class DivergedError(InputError):
    """The run cannot go on, as its loss or weights are no finite numbers. The message tells the cause."""


def require_finite(split: str, metrics: Metrics) -> None:
    """Raises NotFiniteError where the loss is no finite number."""
    if not math.isfinite(metrics.loss_sum):
        raise NotFiniteError(split, metrics.loss)


class LossCheck:
    """Looks at the loss of the running epoch now and then, without waiting for the device.

    Each look takes a copy of the sums. A GPU's copy is read at the next look, when it has long arrived.
    """

    def __init__(self, metrics: MetricAccumulator) -> None:
        self.mean_losses: list[float] = []
        """Mean losses of the batches between looks, as long as they are finite."""
        self._metrics = metrics
        self._copy = metrics.host_copy()
        self._before = Metrics(0.0, 0, 0)

    def failed(self) -> bool:
        """Whether the loss is known to be no finite number."""
        latest = self._metrics.host_copy()
        copy, self._copy = (self._copy if latest.in_flight else latest), latest
        if copy.in_flight:
            return False
        now, before = copy.metrics(), self._before
        if not math.isfinite(now.loss_sum):
            return True
        if now.seen > before.seen:
            self.mean_losses.append((now.loss_sum - before.loss_sum) / (now.seen - before.seen))
        self._before = now
        return False


def explain(error: NotFiniteError, learner: Learner, earlier_losses: Sequence[float]) -> str:
    """What happened, by which evidence, and what to do about it.

    Args:
        earlier_losses: the mean training losses of the epochs before.
    """
    finding = _inputs_at_fault(learner, error.batch)
    if finding is None and learner.weights_are_finite():
        finding = _outputs_at_fault(learner, error.batch)
    return f"{error}{finding or _update_at_fault(learner, [*earlier_losses, *error.mean_losses])}"


def _inputs_at_fault(learner: Learner, batch: TrainingBatch | None) -> str | None:
    """The finding where the last batch holds values that are no finite numbers."""
    if isinstance(batch, FeatureBatch) and not bool(batch.features.isfinite().all()):
        remedy = "choose --precision fp32" if learner.precision.lowered else "choose other WEIGHTS"
        return (
            ": the features of the last batch are not all finite numbers. The frozen backbone overflows in "
            f"{learner.precision.name}: {remedy}."
        )
    if isinstance(batch, Batch) and not bool(batch.images.isfinite().all()):
        return (
            ": the pixels of the last batch are not all finite numbers. The loader is at fault, not the training: "
            "choose another LOADER."
        )
    return None


def _outputs_at_fault(learner: Learner, batch: TrainingBatch | None) -> str:
    """The finding where all weights are finite."""
    precision = learner.precision
    exact = learner.loss(batch, lowered=False) if batch is not None else math.nan
    if not math.isfinite(exact):
        remedy = ", or --precision fp32" if precision.lowered and batch is None else ""
        return f": it diverged. The weights are finite, but too large to compute with: choose a smaller --lr{remedy}."
    assert batch is not None
    loss = learner.loss(batch, lowered=True)
    if not math.isfinite(loss):
        return (
            f". All weights are finite, and the last batch's loss is {exact:.3g} in fp32 but {loss} in "
            f"{precision.name}, which has too small a range: choose --precision fp32."
        )
    return (
        f". All weights are finite, and so is the last batch's loss ({loss:.3g}): a batch before it is at fault. "
        f"--resume goes on from the last save; if it stops again, {_inspect(learner)}."
    )


def _update_at_fault(learner: Learner, losses: Sequence[float]) -> str:
    """The finding where weights are no finite numbers, and the last batch is not the reason."""
    rate = max(float(group["lr"]) for group in learner.optimizer.param_groups)
    if not losses:
        return (
            ": it diverged. The weights are no finite numbers since one of the first updates, at a learning rate of "
            f"{rate:.3g}: choose a smaller --lr."
        )
    if losses[-1] > _RISE * min(losses):
        return (
            f": it diverged. The loss had risen from {min(losses):.3g} to {losses[-1]:.3g} before, at a learning rate "
            f"of {rate:.3g}: choose a smaller --lr."
        )
    return (
        f". The weights are no finite numbers any more, and the loss had not risen before (it was {losses[-1]:.3g}): "
        "one batch or its gradient is the likely cause, and not the learning rate. --resume goes on from the last "
        f"save; if it stops at the same place, {_inspect(learner)}."
    )


def _inspect(learner: Learner) -> str:
    precision = ", or choose --precision fp32" if learner.precision.lowered else ""
    return f"look at the images of that place{precision}"
