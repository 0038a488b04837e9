"""The trainer's own step and loaders, prepared as a run prepares them: what saturation and profiles measure."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count, cycle, islice
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR

from benchmarks.harness.batches import BATCHES_IN_TURN
from benchmarks.harness.data import repeat_to
from benchmarks.harness.device import chosen_device, synchronize
from benchmarks.harness.loader_internals import prepare as prepare_loader
from benchmarks.harness.measure import Batches, Candidate, measure
from benchmarks.harness.options import DataOptions
from loaders import Batch, Loader, build_loader
from train.console import Reporter
from train.epoch_timer import EpochTimer
from train.learner import Learner, MetricAccumulator
from train.option_values import Mode
from train.options import Options as TrainOptions
from train.prepare import prepare
from train.process_group import ProcessGroup
from train.session import Session
from train.stopping import StopRequest


class Workload:
    """A learner as the trainer would have it, and loaders to feed it."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.learner: Learner = session.learner
        self.config = session.image_loader.config
        self.learner.start_epoch()
        # The run's own schedule ends with its last step; here there may be more of them.
        self.learner.scheduler = LambdaLR(self.learner.optimizer, lambda _: 1.0)
        self._metrics = MetricAccumulator(self.learner.device)
        self._finished: list[Batch] | None = None

    def step(self, batch: Batch) -> None:
        """Trains on a batch, as the trainer does."""
        self.learner.step(batch, self._metrics)

    def loader(self, name: str, images: int) -> Loader:
        """A loader by name, configured as the trainer's, with epochs of so many images."""
        source = repeat_to(self.session.image_loader.source, images)
        return build_loader(source.take(images), self.config, loader=name)

    def finished(self) -> list[Batch]:
        """Some batches as the trainer's loader delivers them, copies on the device."""
        if self._finished is None:
            loader = self.session.image_loader
            with loader:
                self._finished = [Batch(*(part.clone() for part in batch)) for batch in islice(loader, BATCHES_IN_TURN)]
        return self._finished

    def ceiling(self) -> Batches:
        """The step fed by finished batches that are on the device already."""
        for batch in cycle(self.finished()):
            self.step(batch)
            yield batch

    def end_to_end(self, loader: Loader, waits: list[float]) -> Batches:
        """Whole epochs of a loader, each batch through the step.

        Args:
            waits: takes each epoch's share of waiting, 0 to 1.
        """
        prepare_loader(loader)
        for epoch in count():
            loader.set_epoch(epoch)
            timer = EpochTimer(self.learner.device)
            batches, last = timer.timed(loader), len(loader)
            for done, batch in enumerate(batches, 1):
                self.step(batch)
                if done == last:
                    synchronize(self.learner.device)  # as the trainer, which reads the loss then
                    waits.append(timer.data_wait)
                yield batch


@contextmanager
def workload(
    options: DataOptions, mode: Mode, process_group: ProcessGroup | None = None, **more: Any
) -> Iterator[Workload]:
    """What `python -m train` would run with these options, from random weights unless said otherwise.

    Args:
        more: options of `python -m train`; None leaves one as it is.
    """
    given = {name: value for name, value in more.items() if value is not None}
    with TemporaryDirectory(prefix="saturate-") as folder:
        train = TrainOptions(
            mode=mode,
            data=options.data,
            root=options.root,
            device=options.device,
            workers=options.workers,
            out=Path(folder) / mode,
            **{"weights": "none", **given},
        )
        session = prepare(train, process_group or ProcessGroup(), Reporter(quiet=True), StopRequest())
        with session:
            yield Workload(session)


def quick_batches(device: torch.device) -> int | None:
    """Images per step: on a GPU the recipe's (None); on a CPU the fewest that a recipe has, as some take it seconds."""
    return None if device.type == "cuda" else 16


def measured_ceiling(options: DataOptions, mode: Mode, size: int) -> float:
    """Images/s of a mode's step fed from the device: a few short windows."""
    with workload(options, mode, size=size, batch_size=quick_batches(chosen_device(options))) as work:
        candidate = Candidate("ceiling", mode, work.ceiling)
        return median(measure([candidate], windows=3, seconds=0.5)[mode].rates)
