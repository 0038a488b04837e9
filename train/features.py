"""Features computed once: what the frozen backbone computes from a few views of each image."""

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from loaders import NO_LABEL, BadImage, BadImageError, InputError, Loader, LoaderConfig
from loaders.ops.transfer import sent
from loaders.sampling.cursor import Cursor
from loaders.sampling.order import PADDING, count_batches, replace_unreadable
from loaders.sources.base import Source
from loaders.sources.index import Progress
from loaders.system.format import format_bytes
from loaders.system.machine import free_memory
from train.batches import FeatureBatch
from train.learner import Learner


class FeatureCache:
    """Features of every view of every image of a source, on the device.

    A view is what one epoch's plans make of the images. Its features are computed for all images at once. Each
    process computes its share of them and holds them all.
    """

    def __init__(self, images: Loader, learner: Learner, views: int) -> None:
        """
        Args:
            images: delivers each image exactly once an epoch (`training=False`), epoch V with the plans of view V.
            learner: has a frozen backbone.
        """
        assert not images.config.training
        self._images = images
        self._learner = learner
        shape = (views, len(images.source), learner.model.fc.in_features)
        self.features = torch.zeros(shape, dtype=images.config.dtype, device=images.config.device)
        """`[V, N, F]`; zero where they have not been computed."""
        self.unreadable: dict[int, frozenset[int]] = {}
        """For each view that has been computed: the samples that had become unreadable by then."""

    def compute(self, view: int) -> Iterator[tuple[int, int]]:
        """Computes the features of a view, unless that has been done. Yields (batches done, all) after each batch."""
        if view in self.unreadable:
            return
        self._images.set_epoch(view)
        features = self.features[view].zero_()
        total = len(self._images)
        for done, (ids, batch) in enumerate(zip(self._images.cursor.batch_ids(), self._images, strict=True), 1):
            present = ids[ids != PADDING]  # padding comes last
            features[sent(present, features.device)] = self._learner.extract(batch.images)[: len(present)]
            yield done, total
        # The other processes' shares are zero here, and summed as integers the bits of all shares stay exact.
        self._learner.process_group.sum(features.view(torch.int32))
        self.unreadable[view] = self._unreadable_anywhere()

    def _unreadable_anywhere(self) -> frozenset[int]:
        """The samples that any process could not read in the present epoch of images."""
        skipped = torch.tensor(sorted(self._images.skipped), dtype=torch.int64, device=self.features.device)
        counts = torch.zeros(len(self._images.source), dtype=torch.int64, device=self.features.device)
        counts[skipped] = 1
        return frozenset(self._learner.process_group.sum(counts).nonzero()[:, 0].tolist())


class FeatureLoader:
    """Delivers features of images, in the order and with the plans that the images would have.

    Plans repeat every V epochs, so each image has V views. In exact arithmetic a run on the features is the run on
    the images; on a CPU both are equal bit for bit. A batch stays valid for as long as its receiver holds it.
    """

    name: ClassVar[str] = "features"
    resumes_inside_epochs: ClassVar[bool] = True

    def __init__(self, images: Loader, config: LoaderConfig, learner: Learner) -> None:
        """
        Args:
            images: what the features are computed from; see `FeatureCache`.
            config: the order in which features are delivered, and the number of views.
        """
        assert config.views is not None
        self.images = images
        self.source = images.source
        self.config = config
        self.ids = images.ids
        self.cache = FeatureCache(images, learner, config.views)
        self.skipped: frozenset[int] = frozenset()
        """The samples that this process had to leave out of the last evaluation, as they became unreadable."""
        self._views = config.views
        self._cursor = Cursor(
            images.ids.copy(),
            batch_size=config.batch_size,
            shuffle=config.training,
            last="drop" if config.training else "pad",
            seed=config.seed,
            rank=config.rank,
            world_size=config.world_size,
        )

    @property
    def bad_images(self) -> list[BadImage]:
        """The images that cannot be decoded."""
        return self.images.bad_images

    @property
    def epoch(self) -> int:
        return self._cursor.epoch

    def __len__(self) -> int:
        """Batches of the next iteration: the whole epoch, or what is left of it after `load_state_dict`."""
        return len(self._cursor)

    def remaining(self) -> int:
        """Batches of the current epoch that have not been delivered."""
        return self._cursor.remaining

    def set_epoch(self, epoch: int) -> None:
        """Moves to the beginning of another epoch; naming the current epoch changes nothing."""
        self._cursor.set_epoch(epoch)

    def prepare(self, progress: Progress | None = None) -> None:
        """Prepares the images; the features are computed by `compute`."""
        self.images.prepare(progress)

    def close(self) -> None:
        self.images.close()

    def compute(self) -> Iterator[tuple[int, int]]:
        """Computes the features of the current epoch, unless they are cached. Yields (batches done, all)."""
        yield from self.cache.compute(self._view)

    def __iter__(self) -> Iterator[FeatureBatch]:
        for _ in self.compute():
            pass
        ids = self._readable(self._cursor.batch_ids(self._cursor.begin()))
        present = np.where(ids == PADDING, self.ids[0], ids)
        rows = sent(present, self.config.device)
        labels = sent(np.where(ids == PADDING, NO_LABEL, self.source.labels[present]), self.config.device)
        features = self.cache.features[self._view]
        for batch_rows, batch_labels in zip(rows, labels, strict=True):
            self._cursor.advance()
            yield FeatureBatch(features[batch_rows], batch_labels)

    def state_dict(self) -> dict[str, Any]:
        """The position in the epoch and the identity of the data and plans, as the images' loader states them."""
        position = {"epoch": self.epoch, "delivered": self._cursor.delivered}
        return {**self.images.state_dict(), "training": self.config.training, **position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Moves to the position in `state`.

        Raises:
            InputError: when the state has other data, another seed or other plans; the message names the difference.
        """
        if state.get("training") != self.config.training:
            raise InputError(
                f"this state belongs to another run: training was {state.get('training')}, is {self.config.training}"
            )
        # The images' loader compares the rest; its own position does not matter, as each view is computed whole.
        self.images.load_state_dict({**state, "training": self.images.config.training, "epoch": 0, "delivered": 0})
        self._cursor.seek(state.get("epoch", -1), state.get("delivered", -1))

    @property
    def _view(self) -> int:
        return self.epoch % self._views

    def _readable(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """`ids` without the unreadable samples: replaced in training, left out of an evaluation."""
        unreadable = self.cache.unreadable[self._view]
        if not self.config.training:
            self.skipped = unreadable.intersection(ids.ravel().tolist())
        sequence = self._cursor.sequence if self.config.training else None
        readable = replace_unreadable(ids.ravel(), unreadable, sequence).reshape(ids.shape)
        if self.config.training and (readable == PADDING).any():
            raise BadImageError(self.bad_images, len(self.source), "None is left to take their place.")
        return readable


def count_training_batches(images: Loader) -> int:
    """Batches that a training epoch of features of `images` has.

    Raises:
        InputError: when there are fewer images than one batch takes.
    """
    config = images.config
    count = count_batches(len(images.ids), batch_size=config.batch_size, last="drop", world_size=config.world_size)
    if not count:
        raise InputError(
            f"{images.source.name}: {len(images.ids)} images are fewer than one batch of "
            f"{config.batch_size} × {config.world_size}: choose a smaller --batch-size"
        )
    return count


def require_feature_memory(sources: list[Source], views: int, learner: Learner, *, reserved: int) -> None:
    """Checks that the device can hold features of `views` views of the first source, and of one view of each other.

    Args:
        reserved: bytes of the device's memory that other things will need.

    Raises:
        InputError: when the device has less free memory.
    """
    bytes_per_image = learner.model.fc.in_features * learner.precision.dtype.itemsize
    needed = bytes_per_image * (views * len(sources[0]) + sum(map(len, sources[1:])))
    # The processes of a machine share its memory; each has a GPU of its own.
    copies = learner.process_group.local_size if learner.device.type == "cpu" else 1
    free = free_memory(learner.device)
    if copies * needed + reserved > free:
        times = f" × {copies} ranks" if copies > 1 else ""
        beside = f", the images beside them {format_bytes(reserved)}" if reserved else ""
        raise InputError(
            f"--views {views}: the features are {format_bytes(needed)}{times}{beside}, and {learner.device} has "
            f"{format_bytes(free)} free: choose fewer views"
        )
