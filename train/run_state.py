"""The state of a run: what changes from step to step and from epoch to epoch, apart from the learner's own."""

import time
from dataclasses import dataclass, field
from typing import TypedDict

from torch import Tensor

from train.learner import MetricAccumulator


class TrainingRow(TypedDict):
    """What is measured while an epoch trains."""

    epoch: int
    """Counted from 1."""
    train_loss: float
    train_top1: float
    """Share predicted correctly, 0 to 1."""
    seconds: float
    images_per_second: float
    """Throughput of all processes together."""
    data_wait: float
    """Share of the time spent waiting for data, 0 to 1."""
    learning_rate: float
    """At the end of the epoch."""


class EpochRow(TrainingRow):
    """A line of `metrics.jsonl`."""

    val_loss: float
    val_top1: float
    val_seen: int
    """Images that were validated."""


class BestModel(TypedDict):
    """The content of `best.pt`."""

    model: dict[str, Tensor]
    """The state dict of the model that was validated."""
    epoch: int
    val_top1: float
    before: "BestModel | None"
    """The best model before, where this one's epoch is unfinished: resuming finishes it and drops its row."""


@dataclass
class RunState:
    """The state of a run on this process."""

    metrics: MetricAccumulator
    """Loss and accuracy of the running epoch, on its training images."""
    rows: list[EpochRow] = field(default_factory=list)
    """A row for each epoch that has been validated."""
    best: BestModel | None = None
    """Only on the process that writes."""
    seconds_before: float = 0.0
    """Duration of the run before it was resumed."""
    started: float = field(default_factory=time.perf_counter)
    """When this process began the run or resumed it, by `time.perf_counter`."""
    saved_at: float = -float("inf")
    """When the run was last saved, by `time.perf_counter`; the same event on every process."""

    @property
    def seconds(self) -> float:
        """Duration of the run so far, with what came before it was resumed."""
        return self.seconds_before + time.perf_counter() - self.started

    @property
    def best_row(self) -> EpochRow:
        """The row of the epoch with the highest accuracy, the first of equals."""
        return max(self.rows, key=lambda row: row["val_top1"])
