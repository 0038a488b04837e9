"""Everything that a run consists of."""

from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from loaders import Loader
from train.batches import BatchLoader
from train.checkpoints import Checkpoints
from train.console import Reporter
from train.learner import Learner
from train.options import Options
from train.process_group import ProcessGroup
from train.recipes import Recipe
from train.run_folder import RunFolder
from train.run_state import RunState
from train.stopping import StopRequest


@dataclass(frozen=True, kw_only=True)
class Session:
    """The parts of a run, ready to train. A `with` block closes the loaders and the run's folder on exit."""

    options: Options
    recipe: Recipe
    learner: Learner
    image_loader: Loader
    """Delivers the images to train on, or to compute features from."""
    train_loader: BatchLoader
    """Delivers what is trained on: `image_loader` itself, or features of its images."""
    val_loader: BatchLoader
    process_group: ProcessGroup
    reporter: Reporter
    stop: StopRequest
    state: RunState
    checkpoints: Checkpoints
    folder: RunFolder | None
    """Claimed for this run; None on processes that write nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with ExitStack() as closing:
            if self.folder is not None:
                closing.callback(self.folder.close)
            closing.callback(self.val_loader.close)
            closing.callback(self.train_loader.close)
