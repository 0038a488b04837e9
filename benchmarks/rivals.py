"""Other people's ways to the same batches, each driven as its own documentation has it: random resized crop and flip.

A way that needs a library of its own is a function here that imports it, and returns no arms where the library is
missing; `RIVALS` lists them. They draw their own crops and keep none of our promises; what counts is how fast they are.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from multiprocessing import get_start_method, set_start_method
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms import v2

from benchmarks.arms import CACHED, UINT8, Batches, Task, endless, lying_ready, most_workers, once, ready, repeated
from benchmarks.measure import Candidate
from benchmarks.parts import kept
from loaders.backends.dali import DaliLoader
from loaders.backends.ffcv import FFCVLoader
from loaders.ops.decode import load_pixels
from loaders.sources import ImageFiles, PixelArray, Source
from loaders.system.machine import cache_folder

# --- torchvision -----------------------------------------------------------------------------------


def torchvision_v2(task: Task) -> list[Candidate]:
    """torchvision's second generation in a DataLoader, with as many workers as cores."""
    workers = min(task.workers, most_workers(task, torch.uint8))
    name = f"torchvision v2, {workers} workers, uint8"
    return [Candidate(UINT8, name, lambda: repeated(task, TorchvisionDataset(task), workers), ready(workers))]


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


# --- FFCV ------------------------------------------------------------------------------------------

_FFCV_READY = 4  # batches: three in a queue, one in the hands of the thread that fills it


def ffcv(task: Task) -> list[Candidate]:
    """FFCV's loader; and its resampling with our plan, whose exact resampling has a row of its own."""
    if FFCVLoader.missing() is not None:
        return []
    found = [
        Candidate(UINT8, "FFCV, its own way", lambda: _ffcv(task), _FFCV_READY),
        Candidate(UINT8, "ffcv, uint8, FFCV's resampling", lambda: endless(_area(task)), lying_ready("ffcv", task)),
    ]
    if isinstance(task.source.images, ImageFiles):
        raw, same = "FFCV, its own way, raw at 256 px", "FFCV, its own way, the folder's JPEGs"
        found += [
            Candidate(UINT8, same, lambda: _ffcv(task, as_they_are=True), _FFCV_READY),
            Candidate(UINT8 + CACHED, raw, lambda: _ffcv(replace(task, source=kept(task.source))), _FFCV_READY),
        ]
    return found


def _area(task: Task) -> FFCVLoader:
    """Ours, with FFCV's resampling."""
    return FFCVLoader(task.source, task.config(torch.uint8), resampling="area")


def _our_beton(task: Task) -> Path:
    """The file that ours reads, with JPEGs as they are in the folder."""
    loader = _area(task)
    loader.prepare()
    return loader.path


class _Images:
    """What FFCV's writer reads: (Pillow image or pixels, label)."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        pixels = np.ascontiguousarray(load_pixels(self.source.images, index))
        return Image.fromarray(pixels), int(self.source.labels[index])


def _ffcv(task: Task, *, as_they_are: bool = False) -> Batches:
    """`as_they_are`: of JPEGs that are not encoded anew beforehand; their file has no labels."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ffcv.fields.decoders import IntDecoder, RandomResizedCropRGBImageDecoder
        from ffcv.loader import Loader, OrderOption
        from ffcv.transforms import RandomHorizontalFlip, Squeeze, ToTensor, ToTorchImage

        from loaders.backends.ffcv_file import FIELD

        source, places = once(task.source)
        path = _our_beton(replace(task, source=source)) if as_they_are else _beton(source, task.workers)
        loader = Loader(
            str(path),
            indices=places,
            batch_size=task.batch_size,
            num_workers=task.workers,
            order=OrderOption.RANDOM,
            drop_last=True,
            pipelines={
                # What can be compiled comes first: after what cannot, it lets the graph be built for ever.
                (FIELD if as_they_are else "image"): [
                    RandomResizedCropRGBImageDecoder((task.size, task.size)),
                    RandomHorizontalFlip(),
                    ToTensor(),
                    ToTorchImage(),
                ],
                **({} if as_they_are else {"label": [IntDecoder(), ToTensor(), Squeeze()]}),
            },
        )
    any_labels = torch.zeros(task.batch_size, dtype=torch.int64)
    while True:
        for images, *labels in loader:
            known = labels[0] if labels else any_labels
            yield images.to(task.device, non_blocking=True), known.to(task.device, non_blocking=True)


@contextmanager
def _forked_processes() -> Iterator[None]:
    """Processes are forked, as FFCV's writer expects: from Python 3.14 on the default pickles what they are given."""
    method = get_start_method(allow_none=True)
    set_start_method("fork", force=True)
    try:
        yield
    finally:
        set_start_method(method, force=True)


def _beton(source: Source, workers: int) -> Path:
    """Pixels raw, photographs as JPEGs of quality 90, as FFCV's guide for ImageNet has it."""
    from ffcv.fields import IntField, RGBImageField
    from ffcv.writer import DatasetWriter

    mode = "jpg" if isinstance(source.images, ImageFiles) else "raw"
    path = cache_folder() / "bench" / f"{source.fingerprint}-{mode}.beton"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        fields = {"image": RGBImageField(write_mode=mode, jpeg_quality=90), "label": IntField()}
        with _forked_processes():
            DatasetWriter(str(part), fields, num_workers=workers).from_indexed_dataset(_Images(source))
        part.rename(path)
    return path


# --- DALI ------------------------------------------------------------------------------------------

_DALI_READY = 4  # batches: two that its CPU part has finished, two that its GPU part has


def dali(task: Task) -> list[Candidate]:
    """DALI's pipeline, driven by its iterator for torch."""
    if DaliLoader.missing() is not None:
        return []
    return [Candidate(UINT8, "DALI, its own way", lambda: _dali(task), _DALI_READY)]


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
        yield batch[0]["images"].permute(0, 3, 1, 2), batch[0]["labels"].view(-1)


def _shuffled(task: Task) -> Iterator[tuple[list[Any], list[Any]]]:
    """Batches of pixels and labels in random order, without end."""
    assert isinstance(task.source.images, PixelArray)
    for epoch in count():
        order = np.random.default_rng(epoch).permutation(len(task.source))
        for first in range(0, len(order) - task.batch_size + 1, task.batch_size):
            ids = order[first : first + task.batch_size]
            yield list(task.source.images.pixels[ids]), list(task.source.labels[ids, None])


RIVALS: tuple[Callable[[Task], list[Candidate]], ...] = (torchvision_v2, ffcv, dali)


def rivals(task: Task) -> list[Candidate]:
    """All of them that can be had here."""
    return [arm for rival in RIVALS for arm in rival(task)]
