"""What a loader asks of a backend, and what it gets back."""

from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from loaders.config import LoaderConfig
from loaders.sampling.plan import Plan
from loaders.sources.base import ReportUnreadable, Source
from loaders.sources.index import Progress
from loaders.system.format import format_count


@dataclass(frozen=True)
class BatchRequest:
    """A batch that an executor is asked for. Nobody changes it: ids and plans are read-only."""

    ids: NDArray[np.int64]
    """`[B]`, the samples."""
    padded: NDArray[np.bool_]
    """`[B]`: rows of an evaluation's last batch that stand for no sample. They are to be black; their ids are any."""
    plan: Plan

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return f"BatchRequest({format_count(len(self), 'sample')}, {self.plan.size} px)"

    def part(self, rows: slice) -> "BatchRequest":
        """The request for some of the rows."""
        return BatchRequest(self.ids[rows], self.padded[rows], self.plan[rows])

    def plan_with_black_padding(self) -> Plan:
        """The plan with the window of padded rows moved beyond the image, where it is black."""
        if not self.padded.any():
            return self.plan
        window = self.plan.window.copy()
        window[self.padded] = -self.plan.read_size
        return replace(self.plan, window=window)


@dataclass(frozen=True)
class ExecutedBatch:
    """The answer to a request."""

    images: Tensor
    """`[B, 3, S, S]`, channels-last, normalized, of the loader's dtype (or pixels as uint8), on its device."""
    unreadable: Mapping[int, str] = field(default_factory=dict)
    """Rows whose sample could not be read, and why. Their images are black; the loader decides what replaces them."""
    labels: Tensor | None = None
    """int64 `[B]`, on the device, where the executor chooses its samples itself (`baseline`); None elsewhere."""


class BatchExecutor(Protocol):
    """Executes plans. Batches come in the order in which they were requested."""

    def run(self, requests: Iterator[BatchRequest]) -> Generator[ExecutedBatch, None, None]:
        """Executes batches of one size, several ahead of the one that is consumed. Closing it leaves nothing behind."""

    def execute(self, request: BatchRequest) -> ExecutedBatch:
        """Executes one batch of any size now, also amid `run`: for samples that replace unreadable ones."""


class Executor(BatchExecutor, Protocol):
    """Executes plans for one source on one device."""

    @property
    def source(self) -> Source:
        """The source that is read: the one given or, once prepared, the same samples in a pixel cache."""

    def prepare(self, report: ReportUnreadable, progress: Progress | None) -> frozenset[int]:
        """Does what the first batch would have to wait for; where images are decoded beforehand, that.

        Args:
            report: called for each sample that is found unreadable.
            progress: called with how many images are done and how many there are.

        Returns:
            The samples that will never be readable; from here on they are requested for padding at most.
        """

    def files(self) -> list[Path]:
        """The files that each epoch reads once the executor is prepared; none where all pixels are in memory."""


@dataclass(frozen=True)
class Backend:
    """A way to execute plans, by name."""

    name: str
    summary: str
    """What it does, in a few words."""
    build: Callable[[Source, LoaderConfig], Executor]
    """Raises InputError where this backend cannot serve the source as configured."""
    missing: Callable[[], str | None] = lambda: None
    """What to install before it can be used on this machine; None where it can be used."""
    follows_plans: bool = True
    """Whether it executes the plans and the order it is given; `baseline` draws its own, and so cannot resume inside
    an epoch."""
