"""FFCV and DALI as their own guides have them used: random resized crop and flip, uint8 batches.

They draw their own crops and keep none of our promises; what counts is how fast they are.
"""

import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.arms import UINT8, Task
from benchmarks.measure import Arm
from loaders.backends.decode import load_pixels
from loaders.machine import cache_folder
from loaders.sources import ImageFiles, PixelArray, Source

Batches = Iterator[tuple[Tensor, Tensor]]


def rivals(task: Task) -> list[Arm]:
    """Those that are installed."""
    found = []
    if find_spec("ffcv") is not None:
        found.append(Arm(UINT8, "FFCV, its own way", lambda: _ffcv(task)))
    if find_spec("nvidia") is not None and find_spec("nvidia.dali") is not None:
        found.append(Arm(UINT8, "DALI, its own way", lambda: _dali(task)))
    return found


# --- FFCV ------------------------------------------------------------------------------------------


class _Images:
    """What FFCV's writer reads: (Pillow image or pixels, label)."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        pixels = np.ascontiguousarray(load_pixels(self.source.images, index))
        return Image.fromarray(pixels), int(self.source.labels[index])


def _ffcv(task: Task) -> Batches:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ffcv.fields.decoders import IntDecoder, RandomResizedCropRGBImageDecoder
        from ffcv.loader import Loader, OrderOption
        from ffcv.transforms import RandomHorizontalFlip, Squeeze, ToTensor, ToTorchImage

        loader = Loader(
            str(_beton(task)),
            batch_size=task.batch_size,
            num_workers=task.workers,
            order=OrderOption.RANDOM,
            drop_last=True,
            pipelines={
                # What can be compiled comes first: after what cannot, it lets the graph be built for ever.
                "image": [
                    RandomResizedCropRGBImageDecoder((task.size, task.size)),
                    RandomHorizontalFlip(),
                    ToTensor(),
                    ToTorchImage(),
                ],
                "label": [IntDecoder(), ToTensor(), Squeeze()],
            },
        )
    while True:
        for images, labels in loader:
            yield images.to(task.device, non_blocking=True), labels.to(task.device, non_blocking=True)


def _beton(task: Task) -> Path:
    """Small images raw, photographs as JPEGs of quality 90, as FFCV's guide for ImageNet has it."""
    from ffcv.fields import IntField, RGBImageField
    from ffcv.writer import DatasetWriter

    mode = "raw" if isinstance(task.source.images, PixelArray) else "jpg"
    path = cache_folder() / "bench" / f"{task.source.fingerprint}-{mode}.beton"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        fields = {"image": RGBImageField(write_mode=mode, jpeg_quality=90), "label": IntField()}
        DatasetWriter(str(part), fields, num_workers=task.workers).from_indexed_dataset(_Images(task.source))
        part.rename(path)
    return path


# --- DALI ------------------------------------------------------------------------------------------


def _dali(task: Task) -> Batches:
    from nvidia.dali import fn, pipeline_def
    from nvidia.dali.plugin.pytorch import DALIGenericIterator

    on_gpu = task.device.type == "cuda"

    @pipeline_def(  # type: ignore[untyped-decorator]
        batch_size=task.batch_size, num_threads=task.workers, device_id=torch.cuda.current_device() if on_gpu else None
    )
    def pipeline() -> Any:
        if isinstance(images := task.source.images, ImageFiles):
            # One file that it cannot decode would end the run.
            able = np.flatnonzero((images.formats == "JPEG") & (images.modes == "RGB")).tolist()
            files, known = [images.describe(index) for index in able], task.source.labels[able].tolist()
            encoded, labels = fn.readers.file(files=files, labels=known, random_shuffle=True)
            image = fn.decoders.image_random_crop(
                encoded, device="mixed" if on_gpu else "cpu", random_area=[0.08, 1.0], random_aspect_ratio=[0.75, 1.33]
            )
            image = fn.resize(image, size=[task.size, task.size], antialias=True)
        else:
            image, labels = fn.external_source(_shuffled(task), num_outputs=2, layout=["HWC", ""])
            image = image.gpu() if on_gpu else image
            image = fn.random_resized_crop(image, size=[task.size, task.size], antialias=True)
        flipped = fn.flip(image, horizontal=fn.random.coin_flip())
        return flipped, labels.gpu() if on_gpu else labels

    running = pipeline()
    running.build()
    for batch in DALIGenericIterator([running], ["images", "labels"], auto_reset=True):
        yield batch[0]["images"].permute(0, 3, 1, 2), batch[0]["labels"]


def _shuffled(task: Task) -> Iterator[tuple[list[Any], list[Any]]]:
    """Batches of pixels and labels in random order, without end."""
    assert isinstance(task.source.images, PixelArray)
    for epoch in count():
        order = np.random.default_rng(epoch).permutation(len(task.source))
        for first in range(0, len(order) - task.batch_size + 1, task.batch_size):
            ids = order[first : first + task.batch_size]
            yield list(task.source.images.pixels[ids]), list(task.source.labels[ids, None])
