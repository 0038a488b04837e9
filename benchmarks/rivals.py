"""Other people's ways to the same batches, each driven as its own documentation has it.

A way that needs a library of its own belongs in a function here that imports it, says nothing of plans, and returns
no arms where the library is missing; `RIVALS` lists them.
"""

import warnings
from collections.abc import Callable

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms import v2

from benchmarks.arms import UINT8, Task, ready, repeated
from benchmarks.measure import Arm
from loaders.sources import PixelArray


def torchvision_v2(task: Task) -> list[Arm]:
    """torchvision's second generation in a DataLoader, with as many workers as cores."""
    name = f"torchvision v2, {task.workers} workers, uint8"
    return [
        Arm(UINT8, name, lambda: repeated(task, TorchvisionDataset(task), task.workers), ready(task.workers)),
    ]


RIVALS: tuple[Callable[[Task], list[Arm]], ...] = (torchvision_v2,)


def rivals(task: Task) -> list[Arm]:
    """All of them that can be had here."""
    return [arm for rival in RIVALS for arm in rival(task)]


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
        if isinstance(images, PixelArray):
            return torch.from_numpy(images.pixels[index]).permute(2, 0, 1)
        if images.formats[index] == "JPEG":
            data = torch.frombuffer(bytearray(images.read(index)), dtype=torch.uint8)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # from 0.29 on that it will be another library's
                decoded: Tensor = decode_jpeg(data, mode=ImageReadMode.RGB)
                return decoded
        with Image.open(images.describe(index)) as image:
            pixels: Tensor = v2.functional.pil_to_tensor(image.convert("RGB"))
            return pixels
