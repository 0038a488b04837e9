"""The loader: one class, assembled from a cursor, a planner, the bad images and an executor."""

from collections import deque
from collections.abc import Generator, Iterator
from contextlib import closing
from types import TracebackType
from typing import Any, NamedTuple, Self
from weakref import ReferenceType, ref

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import get_worker_info

from loaders.backends.executor import Backend, BatchRequest, ExecutedBatch, Executor
from loaders.bad_images import BadImages
from loaders.config import LoaderConfig
from loaders.errors import BadImage, InputError
from loaders.ops.transfer import sent
from loaders.sampling.cursor import Cursor
from loaders.sampling.order import PADDING
from loaders.sampling.planner import Planner
from loaders.sources.base import Source
from loaders.sources.index import Progress
from loaders.system.instrument import stage
from loaders.system.shapes import has_shape

NO_LABEL = -100
"""The label of padding in an evaluation's last batch: `cross_entropy` ignores it, and no prediction equals it."""


class Batch(NamedTuple):
    """What iterating a loader yields; `images, labels = batch` works."""

    images: Tensor
    """`[B, 3, S, S]`, channels-last, normalized, of the compute dtype (or pixels as uint8), on the device."""
    labels: Tensor
    """int64 `[B]`, on the device; `NO_LABEL` where an evaluation's last batch is padded."""


class Loader:
    """Batches of one source on one device; iterate it once per epoch. `build_loader` assembles it.

        for epoch in range(epochs):
            loader.set_epoch(epoch)
            for images, labels in loader:
                ...

    `state_dict()` may be taken at any batch, also inside the loop; a loader with that state loaded goes
    on with the next batch. Leaving the loop early, an exception or Ctrl-C leaves nothing behind;
    `close()`, or a `with` block, ends an iteration that is still referenced elsewhere.

    Batches belong to the receiver: their memory is reused only when nobody refers to it any more.

    Raises:
        BadImageError: when images cannot be decoded and the configuration does not skip them.
        InputError: when there are fewer samples than one batch takes; when a worker of torch's DataLoader iterates it.
    """

    def __init__(
        self,
        source: Source,
        config: LoaderConfig,
        *,
        backend: Backend,
        cursor: Cursor,
        planner: Planner,
        bad_images: BadImages,
        executor: Executor,
    ) -> None:
        self.config = config
        self.backend, self.cursor, self.planner, self.executor = backend, cursor, planner, executor
        self._bad_images = bad_images
        self._labels, self._fingerprint = source.labels, source.fingerprint
        self._is_prepared = False
        # Weak, so that breaking out of a loop ends the iteration at once: nobody else refers to it then.
        self._running: ReferenceType[Generator[Batch, None, None]] | None = None

    def __repr__(self) -> str:
        kind = "training" if self.config.training else "evaluation"
        return f"Loader({self.name!r}, {self.source!r}, {kind}, {len(self)} batches of {self.config.batch_size})"

    @property
    def name(self) -> str:
        """The backend's name."""
        return self.backend.name

    @property
    def source(self) -> Source:
        """The source that is read: the one given or, once prepared, the same samples in a pixel cache."""
        return self.executor.source

    @property
    def ids(self) -> NDArray[np.int64]:
        """int64 `[N]`: the samples of every epoch, all but those that the index calls bad."""
        return self.cursor.ids

    @property
    def bad_images(self) -> list[BadImage]:
        """The images that cannot be decoded: those the index names, and those that failed since."""
        return self._bad_images.listed()

    @property
    def skipped(self) -> set[int]:
        """Samples that the current evaluation leaves out, because they became unreadable after they were indexed."""
        return self._bad_images.skipped

    @property
    def resumes_inside_epochs(self) -> bool:
        """Whether it can go on from a state that was taken inside an epoch."""
        return self.backend.follows_plans

    def __len__(self) -> int:
        """Batches that iterating yields now: all of the epoch, or what is left of it after `load_state_dict`."""
        return len(self.cursor)

    def remaining(self) -> int:
        """Batches of the current epoch that have not been delivered yet."""
        return self.cursor.remaining

    def __iter__(self) -> Iterator[Batch]:
        if (worker := get_worker_info()) is not None:
            raise InputError(
                f"a loader that is iterated by the {worker.num_workers} workers of torch's DataLoader delivers every "
                "image from each of them: iterate it directly, or with num_workers=0; it has threads of its own"
            )
        self.close()
        iteration = self._iterate()
        self._running = ref(iteration)
        return iteration

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the current iteration, if there is one, and frees what it holds."""
        if self._running is not None and (iteration := self._running()) is not None:
            iteration.close()
        self._running = None

    def prepare(self, progress: Progress | None = None) -> None:
        """Does now what the first batch would have to wait for: where images are decoded beforehand, that.

        Args:
            progress: called with how many images are done and how many there are.
        """
        if not self._is_prepared:
            with torch.inference_mode(False):
                self._bad_images.never_readable = self.executor.prepare(self._bad_images.report, progress)
            self._is_prepared = True

    # --- epochs and resume points ----------------------------------------------------------------

    @property
    def epoch(self) -> int:
        return self.cursor.epoch

    def set_epoch(self, epoch: int) -> None:
        """Chooses order and plans of the next iteration; naming the current epoch changes nothing."""
        if epoch != self.cursor.epoch:
            self.close()  # its plans would change under it
            self.cursor.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """The position of the loader: a small dict of plain values, counting the batches delivered."""
        return {**self._identity(), "epoch": self.cursor.epoch, "delivered": self.cursor.delivered}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from `state`; world size, batch size, workers and backend may differ.

        Raises:
            InputError: when the state is of other data, another seed or other plans, naming which; or when it was
                taken inside an epoch, and the backend cannot resume there.
        """
        mine = self._identity()
        if differing := [key for key in mine if state.get(key) != mine[key]]:
            differences = "; ".join(f"{key} was {state.get(key)}, is {mine[key]}" for key in differing)
            raise InputError(f"this state belongs to another run: {differences}")
        epoch, delivered = state.get("epoch", -1), state.get("delivered", -1)
        if not self.resumes_inside_epochs and has_shape(delivered, range(1, len(self.ids))):
            raise InputError(
                f'`loader="{self.name}"` cannot go on inside an epoch (after {delivered} of {len(self.ids)} '
                "samples): its order is recorded nowhere. Begin anew."
            )
        self.close()
        self.cursor.seek(epoch, delivered)

    def _identity(self) -> dict[str, Any]:
        """What must agree for a state to mean the same samples and plans here."""
        views = f", {self.config.views} views" if self.config.views else ""
        return {
            "data": self._fingerprint,
            "samples": len(self.ids),
            "seed": self.config.seed,
            "training": self.config.training,
            "plan": repr(self.config.spec) + views,
        }

    # --- batches ---------------------------------------------------------------------------------

    def requests(self, start: int = 0) -> Iterator[BatchRequest]:
        """What the executor is asked for after the first `start` samples of the current epoch (over all ranks)."""
        with stage("plan"):
            batch_ids = self._bad_images.replace(self.cursor.batch_ids(start), self._sequence)
            padded = batch_ids == PADDING
            present = np.where(padded, self.ids[0], batch_ids)
            present.flags.writeable = padded.flags.writeable = False
            plans = self.planner.batches(present, self.epoch, self.source.images.sizes)
        for ids, padding in zip(present, padded, strict=True):
            with stage("plan"):
                plan = next(plans)
            yield BatchRequest(ids, padding, plan)

    def _iterate(self) -> Generator[Batch, None, None]:
        self.prepare()
        self._bad_images.skipped.clear()
        requests = self.requests(self.cursor.begin())
        in_flight: deque[BatchRequest] = deque()

        def requested() -> Iterator[BatchRequest]:
            for request in requests:
                in_flight.append(request)
                yield request

        with closing(self.executor.run(requested())) as batches:
            while True:
                # Even where the receiver iterates in inference mode: threads that share these tensors are not in it.
                with torch.inference_mode(False):
                    executed = next(batches, None)
                    if executed is None:
                        return
                    batch = self._complete(executed, in_flight)
                self.cursor.advance()
                yield batch

    def _complete(self, executed: ExecutedBatch, in_flight: deque[BatchRequest]) -> Batch:
        """The batch as it is delivered, with other samples in the place of unreadable ones."""
        if executed.labels is not None:
            return Batch(executed.images, executed.labels)
        request = in_flight.popleft()
        ids = np.where(request.padded, PADDING, request.ids)
        if executed.unreadable:
            self._replace_unreadable(ids, executed)
        labels = np.where(ids == PADDING, NO_LABEL, self._labels[np.maximum(ids, 0)])
        return Batch(executed.images, sent(labels, self.config.device))

    def _replace_unreadable(self, ids: NDArray[np.int64], executed: ExecutedBatch) -> None:
        """Executes samples that replace unreadable ones, into their rows; changes `ids` accordingly.

        In an evaluation nothing replaces them, so that no sample counts twice.
        """
        unreadable, failed = executed.unreadable, set[int]()
        while unreadable:
            for row, reason in unreadable.items():
                self._bad_images.report(int(ids[row]), reason)
                failed.add(int(ids[row]))
            rows = np.array(list(unreadable))
            ids[rows] = self._bad_images.replace(ids[rows], self._sequence, failed)
            if not self.config.training:
                return
            plan = self.planner.draw(ids[rows], self.epoch, self.source.images.sizes)
            again = self.executor.execute(BatchRequest(ids[rows], np.zeros(len(rows), np.bool_), plan))
            executed.images[sent(rows, self.config.device)] = again.images
            unreadable = {int(rows[row]): reason for row, reason in again.unreadable.items()}

    @property
    def _sequence(self) -> NDArray[np.int64] | None:
        """The order in which samples replace unreadable ones; None in an evaluation, where none does."""
        return self.cursor.sequence if self.config.training else None
