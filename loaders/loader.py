"""What all loaders have in common: configuration, epochs, resume points, bad images."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, ClassVar, Literal, NamedTuple, Self
from weakref import ReferenceType, ref

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from loaders.errors import BadImage, BadImageError, InputError
from loaders.ops.transfer import sent
from loaders.sampling import order, plan
from loaders.sampling.order import PADDING
from loaders.sampling.plan import IMAGENET_MEAN, IMAGENET_STD, Plan, PlanSpec
from loaders.sources.base import CachedPixels, Source
from loaders.sources.index import Progress
from loaders.system.instrument import stage

NO_LABEL = -100
"""The label of padding in an evaluation's last batch: `cross_entropy` ignores it, no prediction equals it."""

MOST_BAD = 0.01
"""Share of bad images above which even `on_bad_image="skip"` is an error: it is not an accident then."""

SAMPLES_PLANNED_AT_ONCE = 4096  # a plan costs 0.2 µs a sample so, 4.5 µs in batches of 64


class Batch(NamedTuple):
    """What iterating a loader yields; `images, labels = batch` works."""

    images: Tensor
    """`[B, 3, S, S]`, channels-last, normalised, of the compute dtype (or pixels as uint8), on the device."""
    labels: Tensor
    """int64 `[B]`, on the device; `NO_LABEL` where an evaluation's last batch is padded."""


@dataclass(frozen=True, kw_only=True)
class LoaderConfig:
    """What a loader is to do; the same for every backend."""

    spec: PlanSpec
    """Crop, flips, colour."""
    training: bool
    """Shuffled, incomplete last batch dropped; otherwise every sample exactly once, in order."""
    batch_size: int = 64
    """Images per batch and rank."""
    seed: int = 0
    """Of order and plans."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32
    """Of the images; uint8 leaves normalising to whoever receives the pixels."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    """Per channel, of pixel values scaled to 0–1."""
    rank: int = 0
    world_size: int = 1
    workers: int | None = None
    """Threads that decode and resize; all usable cores, unless given: several ranks on a machine share them."""
    on_bad_image: Literal["raise", "skip"] = "raise"
    views: int | None = None
    """Plans repeat after this many epochs, while the order of the samples does not; never, unless given."""
    scaled_decoding: bool = False
    """Decode JPEGs at n/8 of their size where the crop keeps the pixels it needs: faster, and not quite the same."""
    cache_size: int = 256
    """Where pixels are kept (`streamed`): the shorter side of the kept images; smaller ones stay as they are."""
    from_cache: bool = False
    """`resident` takes kept pixels, too, instead of decoding images as they are."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "world_size", "workers", "views", "cache_size"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise InputError(f"{name} = {value}: expected 1 or more")
        if not 0 <= self.rank < self.world_size:
            raise InputError(f"rank = {self.rank}: expected 0 to world_size - 1 = {self.world_size - 1}")


def require_good(sources: Sequence[Source], on_bad_image: Literal["raise", "skip"]) -> None:
    """Raises BadImageError where bad images may not be skipped; it names those of all sources at once.

    A loader does so for its own source, when the others' loaders may be hours of decoding away.
    """
    remedies = [_remedy(len(source.bad), len(source), on_bad_image) for source in sources]
    refused = [source for source, remedy in zip(sources, remedies, strict=True) if remedy]
    if remedy := next(filter(None, remedies), None):
        bad = [source.bad_image(index, reason) for source in refused for index, reason in source.bad.items()]
        raise BadImageError(bad, sum(map(len, refused)), remedy)


def _remedy(bad: int, total: int, on_bad_image: Literal["raise", "skip"]) -> str | None:
    """What to do about so many bad images; None where they may be skipped."""
    if not bad:
        return None
    if on_bad_image == "raise":
        return "Repair or remove them, or leave them out by --on-bad-image skip."
    if bad > max(1, MOST_BAD * total):
        return f"That is more than {MOST_BAD:.0%}, too many to skip: repair or remove them."
    return None


class Loader(ABC):
    """Batches of one source on one device; iterate it once per epoch.

        for epoch in range(epochs):
            loader.set_epoch(epoch)
            for images, labels in loader:
                ...

    `state_dict()` may be taken at any batch, inside the loop too; a loader with that state loaded goes
    on with the next batch. Leaving the loop early, an exception or Ctrl-C leaves nothing behind;
    `close()`, or a `with` block, ends an iteration that somebody still holds.

    Raises:
        BadImageError: when images cannot be decoded and the configuration does not skip them.
        InputError: when there are fewer samples than one batch takes.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    """What it does, in a few words."""
    resumes_inside_epochs: ClassVar[bool] = True
    """Whether it can go on from a state that was taken amid an epoch."""

    @classmethod
    def missing(cls) -> str | None:
        """What to do so that this loader can be used on this machine; None where it can."""
        return None

    def __init__(self, source: Source, config: LoaderConfig) -> None:
        self.source = source
        self.config = config
        self._bad = dict(source.bad)
        self.lost: set[int] = set()
        """Samples that the current evaluation had to leave out, as they went bad after they were indexed."""
        self.ids = self._good_ids()
        self._epoch = 0
        self._shuffled: tuple[int, NDArray[np.int64]] | None = None  # the order drawn last, and of which epoch
        self._start = 0  # samples of the epoch that an earlier run has delivered, over all ranks
        self._delivered = 0
        # Weak, so that breaking out of a loop ends the iteration at once, as nobody else holds it then.
        self._running: ReferenceType[Generator[Batch, None, None]] | None = None
        if not len(self.ids):
            raise InputError(f"{source.name}: no images are left to {'train' if config.training else 'evaluate'} on")
        if not self._count(0):
            raise InputError(
                f"{source.name}: {len(self.ids)} images are fewer than one batch of "
                f"{config.batch_size} × {config.world_size}: choose a smaller --batch-size"
            )

    def __len__(self) -> int:
        """Batches that iterating yields now: all of the epoch, or what is left of it after `load_state_dict`."""
        return self._count(self._start)

    def remaining(self) -> int:
        """Batches of the current epoch that have not been delivered yet."""
        return self._count(self._delivered)

    def __iter__(self) -> Iterator[Batch]:
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
        """Ends the current iteration, if any, and frees what it holds."""
        if self._running is not None and (iteration := self._running()) is not None:
            iteration.close()
        self._running = None

    def prepare(self, progress: Progress | None = None) -> None:  # noqa: B027 - most have nothing to prepare
        """Does now what the first batch would have to wait for: where images are decoded beforehand, that.

        Args:
            progress: called with how many images are done and how many there are.
        """

    def set_epoch(self, epoch: int) -> None:
        """Chooses order and plans of the next iteration; the epoch it is in already changes nothing."""
        if epoch != self._epoch:
            self.close()  # its plans would change under it
            self._epoch, self._start, self._delivered = epoch, 0, 0

    @property
    def epoch(self) -> int:
        return self._epoch

    def state_dict(self) -> dict[str, Any]:
        """Where the loader stands: a small dict of plain values, counting the batches delivered."""
        return {**self._identity(), "epoch": self._epoch, "delivered": self._delivered}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from `state`; world size, batch size, workers and backend may differ.

        Raises:
            InputError: when the state is of other data, another seed or other plans, naming which.
        """
        mine = self._identity()
        if differing := [key for key in mine if state.get(key) != mine[key]]:
            told = "; ".join(f"{key} was {state.get(key)}, is {mine[key]}" for key in differing)
            raise InputError(f"this state belongs to another run: {told}")
        self.close()
        self._epoch, self._start = state["epoch"], state["delivered"]
        self._delivered = self._start

    @abstractmethod
    def _produce(self, start: int) -> Generator[Batch, None, None]:
        """The batches of the current epoch after its first `start` samples (over all ranks)."""

    def _iterate(self) -> Generator[Batch, None, None]:
        start, self._start = self._start, 0
        self._delivered = start
        self.lost.clear()
        with closing(self._produce(start)) as produced:
            for batch in produced:
                delivered = self._delivered + self.config.batch_size * self.config.world_size
                # What training drops at the end counts as delivered with the last batch: the epoch is over.
                self._delivered = delivered if delivered < len(self.ids) and self._count(delivered) else len(self.ids)
                yield batch

    def sequence(self) -> NDArray[np.int64]:
        """The ids of the current epoch in order, over all ranks."""
        if not self.config.training:
            return self.ids
        if (drawn := self._shuffled) is None or drawn[0] != self._epoch:
            drawn = self._epoch, order.shuffled(self.ids, seed=self.config.seed, epoch=self._epoch)
            self._shuffled = drawn
        return drawn[1]

    @stage("plan")
    def rows(self, start: int) -> NDArray[np.int64]:
        """This rank's batches of the current epoch from `start` on, as ids: see `order.batches`."""
        config = self.config
        return order.batches(
            self.sequence(),
            batch_size=config.batch_size,
            last=self._last,
            rank=config.rank,
            world_size=config.world_size,
            start=start,
        )

    def planned(self, start: int) -> Iterator[tuple[NDArray[np.int64], Plan]]:
        """Each row of `rows(start)` with its plan, drawn for thousands of samples at a time. Both may be changed."""
        ids = self.rows(start)
        rows_at_once = max(1, SAMPLES_PLANNED_AT_ONCE // self.config.batch_size)
        for first in range(0, len(ids), rows_at_once):
            chunk = ids[first : first + rows_at_once].copy()
            drawn = self.draw(chunk.ravel())
            for place, row in enumerate(chunk):
                at = place * self.config.batch_size
                yield row, drawn[at : at + self.config.batch_size]

    @stage("plan")
    def draw(self, ids: NDArray[np.int64]) -> Plan:
        """The plans of these samples in the current epoch."""
        ids = np.maximum(ids, self.ids[0])  # padding is planned like any sample, and left black
        sizes, epoch = self.source.sizes[ids], self._epoch % (self.config.views or self._epoch + 1)
        drawn = plan.draw(self.config.spec, seed=self.config.seed, epoch=epoch, ids=ids, sizes=sizes)
        if isinstance(images := self.source.images, CachedPixels):  # the same part of the picture, of fewer pixels
            drawn = replace(drawn, box=plan.scale_boxes(drawn.box, sizes, images.sizes[ids]))
        return drawn

    @property
    def _last(self) -> Literal["drop", "pad"]:
        """What becomes of an incomplete last batch."""
        return "drop" if self.config.training else "pad"

    def _count(self, start: int) -> int:
        config = self.config
        return order.count_batches(
            len(self.ids), batch_size=config.batch_size, last=self._last, world_size=config.world_size, start=start
        )

    def _identity(self) -> dict[str, Any]:
        """What must agree for a state to mean the same samples and plans here."""
        return {
            "data": self.source.fingerprint,
            "samples": len(self.ids),
            "seed": self.config.seed,
            "training": self.config.training,
            "plan": repr(self.config.spec) + (f", {self.config.views} views" if self.config.views else ""),
        }

    def _good_ids(self) -> NDArray[np.int64]:
        """All samples but those that Pillow cannot decode."""
        self._judge_bad_images()
        return np.setdiff1d(np.arange(len(self.source)), np.array(list(self.source.bad), np.int64))

    @property
    def bad_images(self) -> list[BadImage]:
        """The images that cannot be decoded: by the index, and those that failed since."""
        return [self.source.bad_image(index, reason) for index, reason in list(self._bad.items())]

    def _substitutes(self, wanted: int) -> Iterator[int]:
        """Who may take the place of a sample that has gone bad: those that follow it in the epoch's order."""
        sequence = self.sequence()
        here = int(np.flatnonzero(sequence == wanted)[0])
        for place in range(here + 1, here + len(sequence)):  # nearly always the first will do
            yield int(sequence[place % len(sequence)])

    def _replace_gone(self, gone: Collection[int], ids: NDArray[np.int64], plan: Plan | None = None) -> None:
        """Puts others in the place of samples that have gone bad; in an evaluation none, so that none counts twice."""
        for place in np.flatnonzero(np.isin(ids, list(gone))).tolist() if gone else ():
            wanted = int(ids[place])
            if not self.config.training:
                self.lost.add(wanted)
                ids[place] = PADDING
                continue
            ids[place] = next((i for i in self._substitutes(wanted) if i not in gone), PADDING)
            if ids[place] == PADDING:
                raise BadImageError(self.bad_images, len(self.source), "None is left to take their place.")
            if plan is not None:
                plan.overwrite(place, self.draw(ids[place : place + 1]))

    def _blacken(self, ids: NDArray[np.int64], plan: Plan) -> None:
        """Moves the window of what stands for no sample beyond the image, where it is black."""
        plan.window[ids == PADDING] = -plan.read_size

    def _known_labels(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """The samples' labels, of the shape of `ids`; `NO_LABEL` where no sample is."""
        return np.where(ids == PADDING, NO_LABEL, self.source.labels[self._present(ids)])

    def _labels(self, ids: NDArray[np.int64]) -> Tensor:
        """The same on the device."""
        return sent(self._known_labels(ids), self.config.device)

    def _present(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """The same ids, with any good sample in the place of padding."""
        return np.where(ids == PADDING, self.ids[0], ids)

    def _report_bad(self, index: int, reason: str) -> None:
        """Takes note of an image that was good when indexed; BadImageError where that ends the run."""
        self._bad[index] = f"{reason} (it was good when indexed)"
        self._judge_bad_images()

    def _judge_bad_images(self) -> None:
        if remedy := _remedy(len(self._bad), len(self.source), self.config.on_bad_image):
            raise BadImageError(self.bad_images, len(self.source), remedy)
