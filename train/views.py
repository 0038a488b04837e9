"""Features computed once: batches of what the frozen backbone makes of a few views of each image."""

from collections.abc import Generator, Iterator

import torch

from loaders import BadImage, Batch, InputError, Loader, LoaderConfig
from loaders.ops.transfer import sent
from loaders.sampling.order import PADDING, count_batches
from loaders.sources.base import Source
from loaders.sources.index import Progress
from loaders.system.format import format_bytes
from loaders.system.machine import free_memory
from train.learner import Learner


class FeatureViews(Loader):
    """Serves features `[B, F]` for images, in the order and with the plans that the images would have.

    Plans repeat every V epochs, so each image has V views. A view's features are computed when it is first wanted,
    for all images, and kept on the device. In exact arithmetic a run on them is the run on the images; on a CPU it
    is to the bit.

    Batches are the receiver's own.
    """

    name = "features"
    summary = "features of a few views of each image, computed once and kept on the device"

    def __init__(self, images: Loader, config: LoaderConfig, learner: Learner) -> None:
        """
        Args:
            images: finished batches of each sample exactly once (`training=False`), with the plans of `config`.
            config: the order in which features are served; with `views`.
        """
        assert config.views is not None
        assert not images.config.training
        self.images = images
        """What the features are computed of."""
        super().__init__(images.source, config)
        self._learner, self._views = learner, config.views
        width = learner.model.fc.in_features
        shape = (config.views, len(images.source), width)
        self._features = torch.zeros(shape, dtype=config.dtype, device=config.device)
        self._gone: dict[int, set[int]] = {}
        """Of each view that is filled: the samples that had gone bad by then."""

    @property
    def bad_images(self) -> list[BadImage]:
        return self.images.bad_images

    def prepare(self, progress: Progress | None = None) -> None:
        self.images.prepare(progress)

    def close(self) -> None:
        super().close()
        self.images.close()

    def fill(self) -> Iterator[tuple[int, int]]:
        """Computes what the current epoch needs and is not there yet; yields (batches done, all) after each."""
        view = self.epoch % self._views
        if view in self._gone:
            return
        self.images.set_epoch(view)
        features, total = self._features[view].zero_(), len(self.images)
        for done, (ids, batch) in enumerate(zip(self.images.rows(0), self.images, strict=True), 1):
            present = ids[ids != PADDING]  # padding comes last
            features[sent(present, features.device)] = self._learner.extract(batch.images)[: len(present)]
            yield done, total
        # Each process has filled its share; the others' are zero there, and whole numbers add up exactly.
        self._learner.world.sum(features.view(torch.int32))
        lost = torch.zeros(len(self.source), dtype=torch.int64, device=features.device)
        lost[torch.tensor(sorted(self.images.lost), dtype=torch.int64, device=features.device)] = 1
        self._gone[view] = set(self._learner.world.sum(lost).nonzero()[:, 0].tolist())

    def _produce(self, start: int) -> Generator[Batch, None, None]:
        for _ in self.fill():
            pass
        view = self.epoch % self._views
        ids = self.rows(start).copy()
        self._replace_gone(self._gone[view], ids.reshape(-1))
        places, labels = sent(self._present(ids), self.config.device), self._labels(ids)
        for row in range(len(ids)):
            yield Batch(self._features[view, places[row]], labels[row])


def count_steps(images: Loader) -> int:
    """Training batches an epoch of features of `images` will have."""
    config = images.config
    return count_batches(len(images.ids), batch_size=config.batch_size, last="drop", world_size=config.world_size)


def require_memory(sources: list[Source], views: int, learner: Learner, *, taken: int) -> None:
    """Whether the device can hold features of `views` views of the first source, and of one of each other.

    Args:
        taken: bytes of the device's memory that will be taken by other things.

    Raises:
        InputError: when the device has not as much.
    """
    each = learner.model.fc.in_features * learner.precision.dtype.itemsize
    needed = each * (views * len(sources[0]) + sum(map(len, sources[1:])))
    copies = learner.world.local_size if learner.device.type == "cpu" else 1  # ranks share a CPU's memory, no GPU's
    free = free_memory(learner.device)
    if copies * needed + taken > free:
        raise InputError(
            f"--views {views}: the features are {format_bytes(needed)}{f' × {copies} ranks' if copies > 1 else ''}"
            f"{f', the images beside them {format_bytes(taken)}' if taken else ''}, and {learner.device} has "
            f"{format_bytes(free)} free: choose fewer views"
        )
