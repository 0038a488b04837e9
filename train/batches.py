"""What the training loop needs of a loader, whether it delivers images or features."""

from collections.abc import Collection, Iterator
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from loaders import BadImage, Batch, LoaderConfig, Source
from loaders.sources.index import Progress


class FeatureBatch(NamedTuple):
    """A batch of features, which the frozen backbone has computed from images."""

    features: Tensor
    """`[B, F]`, of the compute dtype, on the device."""
    labels: Tensor
    """int64 `[B]`, on the device; `NO_LABEL` where an evaluation's last batch is padded."""


TrainingBatch: TypeAlias = Batch | FeatureBatch
"""What a learner trains on."""


class BatchLoader(Protocol):
    """Batches of one source, epoch after epoch: a `loaders.Loader` of images, or a `FeatureLoader`."""

    @property
    def name(self) -> str: ...

    @property
    def source(self) -> Source: ...

    @property
    def config(self) -> LoaderConfig: ...

    @property
    def ids(self) -> NDArray[np.int64]:
        """int64 `[N]`, the samples that every epoch goes through."""

    @property
    def bad_images(self) -> list[BadImage]:
        """The images that cannot be decoded."""

    @property
    def skipped(self) -> Collection[int]:
        """The samples that this process had to leave out of the last evaluation, as they became unreadable."""

    @property
    def epoch(self) -> int: ...

    @property
    def resumes_inside_epochs(self) -> bool:
        """Whether a state that was taken inside an epoch can be loaded."""

    def __len__(self) -> int:
        """Batches of the next iteration."""

    def __iter__(self) -> Iterator[TrainingBatch]: ...

    def remaining(self) -> int:
        """Batches of the current epoch that have not been delivered."""

    def prepare(self, progress: Progress | None = None) -> None:
        """Does the work that the first batch would have to wait for."""

    def set_epoch(self, epoch: int) -> None: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...

    def close(self) -> None: ...
