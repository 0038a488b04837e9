"""What is measured: the ordinary loader, its usual improvements, and every loader of ours that can be used here."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms import v2

from benchmarks.measure import Arm
from loaders import LoaderConfig, PlanSpec, RandomResizedCrop, Source, available_loaders, build_loader
from loaders.backends.baseline import PillowDataset, staged_transforms
from loaders.device.reference import IMAGENET_MEAN, IMAGENET_STD
from loaders.loader import Loader
from loaders.sources import ImageFiles, PixelArray

UINT8 = "uint8 batches, normalising left to the device"
FINISHED = "finished batches"
BASELINE = "baseline: PIL, DataLoader, no workers"

Batches = Iterator[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Task:
    """What all arms are given: random resized crop and flip."""

    source: Source
    size: int
    batch_size: int
    device: torch.device
    dtype: torch.dtype
    """Of finished batches."""
    workers: int

    @property
    def spec(self) -> PlanSpec:
        return PlanSpec(RandomResizedCrop(self.size), horizontal_flip=0.5)


def long_epochs(source: Source, images: int) -> Source:
    """The good images of `source`, repeated until there are so many: short epochs would measure their beginnings."""
    good = np.setdiff1d(np.arange(len(source)), list(source.bad))
    return source.select(np.resize(good, max(images, len(good))))


def ours(task: Task) -> list[Arm]:
    """Every loader that can be used here, but for the baseline, with uint8 and with finished batches."""

    def arm(group: str, title: str, name: str, dtype: torch.dtype, *, scaled: bool = False) -> Arm:
        return Arm(group, title, lambda: _endless(_loader(task, name, dtype, scaled=scaled)))

    found = []
    for name in available_loaders():
        if name != "baseline":
            found += [arm(UINT8, f"{name}, uint8", name, torch.uint8), arm(FINISHED, name, name, task.dtype)]
    if not isinstance(task.source.images, PixelArray):
        found.append(arm(UINT8, "torchvision, uint8, scaled decoding", "torchvision", torch.uint8, scaled=True))
    return found


def ordinary(task: Task) -> list[Arm]:
    """The loader people have today, and what they do about it."""
    few = task.workers
    return [
        Arm(FINISHED, BASELINE, lambda: _endless(_loader(task, "baseline", torch.float32))),
        Arm(FINISHED, f"the same, {few} workers", lambda: _repeated(task, _pillow(task, finished=True), few)),
        Arm(UINT8, "PIL, no workers, uint8", lambda: _repeated(task, _pillow(task, finished=False), 0)),
        Arm(UINT8, f"torchvision v2, {few} workers, uint8", lambda: _repeated(task, TorchvisionDataset(task), few)),
    ]


def _loader(task: Task, name: str, dtype: torch.dtype, *, scaled: bool = False) -> Loader:
    config = LoaderConfig(
        spec=task.spec,
        training=True,
        batch_size=task.batch_size,
        device=task.device,
        dtype=dtype,
        workers=task.workers,
        scaled_decoding=scaled,
    )
    return build_loader(task.source, config, loader=name)


def _endless(loader: Loader) -> Batches:
    loader.prepare()
    for epoch in count():
        loader.set_epoch(epoch)
        yield from loader


def _pillow(task: Task, *, finished: bool) -> Dataset[Any]:
    ending = [transforms.ToTensor(), transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
    staged = [*staged_transforms(task.spec), *(ending if finished else [transforms.PILToTensor()])]
    return PillowDataset(task.source, np.arange(len(task.source)), transforms.Compose(staged))


def _repeated(task: Task, dataset: Dataset[Any], workers: int) -> Batches:
    loader = DataLoader(
        dataset,
        batch_size=task.batch_size,
        shuffle=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        drop_last=True,
        pin_memory=task.device.type == "cuda",
    )
    while True:
        for images, labels in loader:
            yield images.to(task.device, non_blocking=True), labels.to(task.device, non_blocking=True)


class TorchvisionDataset(Dataset[tuple[Tensor, int]]):
    """torchvision's second generation, on uint8 tensors from beginning to end."""

    def __init__(self, task: Task) -> None:
        self.source = task.source
        self.transform = v2.Compose([v2.RandomResizedCrop(task.size, antialias=True), v2.RandomHorizontalFlip()])

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image: Tensor = self.transform(self._image(index))
        return image, int(self.source.labels[index])

    def _image(self, index: int) -> Tensor:
        images = self.source.images
        if not isinstance(images, ImageFiles):
            return torch.from_numpy(images.pixels_of(index)).permute(2, 0, 1)
        if images.formats[index] == "JPEG":
            data = torch.frombuffer(bytearray(images.read(index)), dtype=torch.uint8)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # from 0.29 on that it will be another library's
                decoded: Tensor = decode_jpeg(data, mode=ImageReadMode.RGB)
                return decoded
        with Image.open(images.describe(index)) as image:
            pixels: Tensor = v2.functional.pil_to_tensor(image.convert("RGB"))
            return pixels
