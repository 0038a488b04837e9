"""`baseline`: the ordinary loader people have today, and the control for all others.

PIL, `torchvision.transforms` with its own randomness, `DataLoader` without workers. It promises what
these promise: no repeatable plans, no resume inside an epoch, one rank.
"""

from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from loaders.backends.executor import Backend, BatchRequest, ExecutedBatch
from loaders.config import LoaderConfig
from loaders.errors import InputError
from loaders.sampling.plan import PaddedRandomCrop, PlanSpec, RandomResizedCrop, ResizeCenterCrop
from loaders.sources.base import ReportUnreadable, Source
from loaders.sources.index import Progress
from loaders.sources.pillow import open_image


class BaselineExecutor:
    """Runs a `DataLoader`, which draws its own order and crops: what it is asked for only says that an epoch begins.

    The last batch of an epoch may be smaller, in training too.
    """

    def __init__(self, source: Source, config: LoaderConfig) -> None:
        if config.world_size > 1:
            raise InputError('`loader="baseline"` serves one GPU: choose another loader, or `world_size=1`')
        if config.views:
            raise InputError(
                '`loader="baseline"` draws anew each time, so that no views come again: choose another loader'
            )
        self.source = source
        self._device, self._dtype = config.device, config.dtype
        transform = transforms.Compose(
            [*staged_transforms(config.spec), transforms.ToTensor(), transforms.Normalize(config.mean, config.std)]
        )
        good = np.setdiff1d(np.arange(len(source)), list(source.bad))
        self.data_loader = DataLoader(
            PillowDataset(source, good, transform), batch_size=config.batch_size, shuffle=config.training
        )

    def prepare(self, report: ReportUnreadable, progress: Progress | None) -> frozenset[int]:  # noqa: ARG002
        return frozenset()

    def files(self) -> list[Path]:
        return self.source.images.files()

    def run(self, requests: Iterator[BatchRequest]) -> Generator[ExecutedBatch, None, None]:
        if next(requests, None) is None:  # of an epoch that is over
            return
        for images, labels in self.data_loader:
            yield ExecutedBatch(images.to(self._device, self._dtype), labels=labels.to(self._device))

    def execute(self, request: BatchRequest) -> ExecutedBatch:
        raise NotImplementedError("the baseline reports no unreadable samples: its errors end the iteration")


class PillowDataset(Dataset[tuple[Tensor, int]]):
    """A source as `torchvision.datasets` would serve it: one Pillow image at a time, transformed."""

    def __init__(self, source: Source, ids: NDArray[np.int64], transform: transforms.Compose) -> None:
        self.source, self.ids, self.transform = source, ids, transform

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, place: int) -> tuple[Tensor, int]:
        index = int(self.ids[place])
        image: Tensor = self.transform(self._image(index))
        return image, int(self.source.labels[index])

    def _image(self, index: int) -> Image.Image:
        decoded = self.source.images.decoded
        if decoded is not None:
            return Image.fromarray(decoded.pixels_of(index))
        files = self.source.images.encoded
        assert files is not None
        height, width = self.source.sizes[index].tolist()
        with open_image(files.read(index), (height, width)) as image:
            return image.convert("RGB")


def staged_transforms(spec: PlanSpec) -> list[Any]:
    """torchvision's transforms, one after the other, that draw what `spec` describes."""
    staged = _crop(spec.crop)
    if spec.rotation:
        staged.append(transforms.RandomRotation(spec.rotation))
    if spec.second_crop is not None:
        staged += _crop(spec.second_crop)
    if spec.horizontal_flip:
        staged.append(transforms.RandomHorizontalFlip(spec.horizontal_flip))
    if spec.vertical_flip:
        staged.append(transforms.RandomVerticalFlip(spec.vertical_flip))
    if (jitter := spec.color_jitter) is not None:
        staged.append(transforms.ColorJitter(jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue))
    return staged


def _crop(crop: RandomResizedCrop | ResizeCenterCrop | PaddedRandomCrop) -> list[Any]:
    match crop:
        case RandomResizedCrop():
            return [transforms.RandomResizedCrop(crop.size, scale=crop.scale, ratio=crop.ratio)]
        case PaddedRandomCrop():
            return [transforms.Resize(crop.resize), transforms.RandomCrop(crop.size, padding=crop.padding)]
        case ResizeCenterCrop():
            return [transforms.Resize(crop.resize), transforms.CenterCrop(crop.size)]


BACKEND = Backend(
    "baseline",
    "the ordinary loader (PIL, DataLoader without workers), to compare with",
    BaselineExecutor,
    follows_plans=False,
)
