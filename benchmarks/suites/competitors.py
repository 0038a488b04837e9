"""Other people's ways to the same batches, each driven as its own documentation has it: random resized crop and flip.

A way that needs a library of its own is a function here that imports it, and returns no candidates where the library
is missing; `COMPETITORS` lists them. They draw their own crops and make none of the promises of `loaders`; what counts
is how fast they are.
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

from benchmarks.harness.batches import endless
from benchmarks.harness.data import without_repeats
from benchmarks.harness.loader_internals import ffcv_with_own_resampling, with_cached_pixels
from benchmarks.harness.measure import Batches, Candidate
from benchmarks.suites.candidates import (
    Task,
    dataloader_batches,
    dataloader_prefetch,
    most_workers,
    prefetched_batches,
)
from benchmarks.suites.rows import CACHED, UINT8
from loaders import Source, available_loaders
from loaders.ops.decode import load_pixels
from loaders.sources.pillow import open_image
from loaders.system.machine import cache_folder

# --- torchvision -----------------------------------------------------------------------------------


def torchvision_v2(task: Task) -> list[Candidate]:
    """torchvision's second generation in a DataLoader, with as many workers as cores."""
    workers = min(task.workers, most_workers(task, torch.uint8))
    name = f"torchvision v2, {workers} workers, uint8"
    return [
        Candidate(
            UINT8,
            name,
            lambda: dataloader_batches(task, TorchvisionDataset(task), workers),
            dataloader_prefetch(workers),
        )
    ]


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
        if images.decoded is not None:
            return torch.from_numpy(images.decoded.pixels_of(index)).permute(2, 0, 1)
        assert images.encoded is not None
        if images.encoded.formats[index] == "JPEG":
            data = torch.frombuffer(bytearray(images.encoded.read(index)), dtype=torch.uint8)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # from 0.29 on it warns that it moves to another library
                decoded: Tensor = decode_jpeg(data, mode=ImageReadMode.RGB)
                return decoded
        with open_image(images.encoded.read(index)) as image:
            pixels: Tensor = v2.functional.pil_to_tensor(image.convert("RGB"))
            return pixels


# --- FFCV ------------------------------------------------------------------------------------------

_FFCV_PREFETCHED = 4  # batches: three in a queue, one in the hands of the thread that fills it


def ffcv(task: Task) -> list[Candidate]:
    """FFCV's loader; and its resampling with our plan, whose exact resampling has a row of its own."""
    if "ffcv" not in available_loaders():
        return []
    candidates = [
        Candidate(UINT8, "FFCV, its own way", lambda: _ffcv(task), _FFCV_PREFETCHED),
        Candidate(
            UINT8,
            "ffcv, uint8, FFCV's resampling",
            lambda: endless(ffcv_with_own_resampling(task.source, task.config(torch.uint8))),
            prefetched_batches("ffcv", task),
        ),
    ]
    if task.source.images.encoded is not None:
        raw, same = "FFCV, its own way, raw at 256 px", "FFCV, its own way, the folder's JPEGs"
        candidates += [
            Candidate(UINT8, same, lambda: _ffcv(task, reencode=False), _FFCV_PREFETCHED),
            Candidate(
                UINT8 + CACHED,
                raw,
                lambda: _ffcv(replace(task, source=with_cached_pixels(task.source))),
                _FFCV_PREFETCHED,
            ),
        ]
    return candidates


def _file_of_loader(task: Task) -> Path:
    """The file that the loader `ffcv` reads, with JPEGs as they are in the folder."""
    loader = ffcv_with_own_resampling(task.source, task.config(torch.uint8))
    loader.prepare()
    [file] = loader.executor.files()
    return file


class _Images:
    """What FFCV's writer reads: (Pillow image or pixels, label)."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        pixels = np.ascontiguousarray(load_pixels(self.source.images, index))
        return Image.fromarray(pixels), int(self.source.labels[index])


def _ffcv(task: Task, *, reencode: bool = True) -> Batches:
    """FFCV's own loader.

    Args:
        reencode: read the file that FFCV's own writer makes; else one with the folder's JPEGs, which has no labels.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ffcv.fields.decoders import IntDecoder, RandomResizedCropRGBImageDecoder
        from ffcv.loader import Loader, OrderOption
        from ffcv.transforms import RandomHorizontalFlip, Squeeze, ToTensor, ToTorchImage

        source, places = without_repeats(task.source)
        path = _written_by_ffcv(source, task.workers) if reencode else _file_of_loader(replace(task, source=source))
        loader = Loader(
            str(path),
            indices=places,
            batch_size=task.batch_size,
            num_workers=task.workers,
            order=OrderOption.RANDOM,
            drop_last=True,
            pipelines={
                # What can be compiled comes first: after what cannot, it lets the graph be built for ever.
                "image": [  # the name of the field in both files
                    RandomResizedCropRGBImageDecoder((task.size, task.size)),
                    RandomHorizontalFlip(),
                    ToTensor(),
                    ToTorchImage(),
                ],
                **({"label": [IntDecoder(), ToTensor(), Squeeze()]} if reencode else {}),
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


def _written_by_ffcv(source: Source, workers: int) -> Path:
    """FFCV's own file of a source: pixels raw, photographs as JPEGs of quality 90, as its guide for ImageNet has it."""
    from ffcv.fields import IntField, RGBImageField
    from ffcv.writer import DatasetWriter

    mode = "raw" if source.images.encoded is None else "jpg"
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

_DALI_PREFETCHED = 4  # batches: two that its CPU part has finished, two that its GPU part has


def dali(task: Task) -> list[Candidate]:
    """DALI's pipeline, driven by its iterator for torch."""
    if "dali" not in available_loaders():
        return []
    return [Candidate(UINT8, "DALI, its own way", lambda: _dali(task), _DALI_PREFETCHED)]


def _dali(task: Task) -> Batches:
    from nvidia.dali import fn, pipeline_def
    from nvidia.dali.plugin.pytorch import DALIGenericIterator

    on_gpu = task.device.type == "cuda"

    @pipeline_def(  # type: ignore[untyped-decorator]
        batch_size=task.batch_size, num_threads=task.workers, device_id=torch.cuda.current_device() if on_gpu else None
    )
    def pipeline() -> Any:
        if (images := task.source.images.encoded) is not None:
            # One file that it cannot decode would end the run.
            decodable = np.flatnonzero((images.formats == "JPEG") & (images.modes == "RGB")).tolist()
            files = [images.describe(index) for index in decodable]
            known = task.source.labels[decodable].tolist()
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
    pixels = task.source.images.decoded
    assert pixels is not None
    for epoch in count():
        order = np.random.default_rng(epoch).permutation(len(task.source))
        for first in range(0, len(order) - task.batch_size + 1, task.batch_size):
            ids = order[first : first + task.batch_size]
            yield [pixels.pixels_of(index) for index in ids.tolist()], list(task.source.labels[ids, None])


COMPETITORS: tuple[Callable[[Task], list[Candidate]], ...] = (torchvision_v2, ffcv, dali)


def competitor_candidates(task: Task) -> list[Candidate]:
    """All of them that are usable here."""
    return [candidate for competitor in COMPETITORS for candidate in competitor(task)]
