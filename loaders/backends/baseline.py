"""`baseline`: the ordinary loader people have today, and the control for all others.

PIL, `torchvision.transforms` with its own randomness, `DataLoader` without workers. It promises what
these promise: no repeatable plans, no resume inside an epoch, one rank.
"""

from collections.abc import Generator
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from loaders.errors import InputError
from loaders.loader import Batch, Loader, LoaderConfig
from loaders.sampling.plan import PaddedRandomCrop, PlanSpec, RandomResizedCrop, ResizeCenterCrop
from loaders.sources.base import PixelArray, Source


class BaselineLoader(Loader):
    """The last batch of an epoch may be smaller, in training too."""

    name: ClassVar[str] = "baseline"
    summary: ClassVar[str] = "the ordinary loader (PIL, DataLoader without workers), to compare with"
    resumes_inside_epochs: ClassVar[bool] = False

    def __init__(self, source: Source, config: LoaderConfig) -> None:
        if config.world_size > 1:
            raise InputError("LOADER=baseline serves one GPU: choose another loader, or NGPU=1")
        if config.views:
            raise InputError("LOADER=baseline draws anew each time, so that no views come again: choose another loader")
        super().__init__(source, config)
        transform = transforms.Compose(
            [*staged_transforms(config.spec), transforms.ToTensor(), transforms.Normalize(config.mean, config.std)]
        )
        self.data_loader = DataLoader(
            PillowDataset(source, self.ids, transform), batch_size=config.batch_size, shuffle=config.training
        )

    @property
    def _last(self) -> Literal["pad"]:
        return "pad"  # that is, kept: though never padded

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["delivered"] and self._count(state["delivered"]):
            raise InputError(
                f"LOADER=baseline cannot go on inside an epoch (after {state['delivered']} of {len(self.ids)} "
                "samples): its order is not kept anywhere. Begin anew."
            )
        super().load_state_dict(state)

    def _produce(self, start: int) -> Generator[Batch, None, None]:
        if start:  # of an epoch that is over: `load_state_dict` lets no other through
            return
        for images, labels in self.data_loader:
            yield Batch(images.to(self.config.device, self.config.dtype), labels.to(self.config.device))


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
        images = self.source.images
        if isinstance(images, PixelArray):
            return Image.fromarray(images.pixels[index])
        with Image.open(images.describe(index)) as image:
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
    if isinstance(crop, RandomResizedCrop):
        return [transforms.RandomResizedCrop(crop.size, scale=crop.scale, ratio=crop.ratio)]
    if isinstance(crop, PaddedRandomCrop):
        return [transforms.Resize(crop.resize), transforms.RandomCrop(crop.size, padding=crop.padding)]
    return [transforms.Resize(crop.resize), transforms.CenterCrop(crop.size)]
