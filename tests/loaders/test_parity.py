"""Every backend against the reference, on real data and synthetic patterns: same order, same labels, same pixels.

The last lines of a run are the matrix itself: grey levels between a backend and the reference.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from loaders import LoaderConfig, PlanSpec, RandomResizedCrop, ResizeCenterCrop, Source, build_loader, open_data
from loaders.ops import reference
from loaders.sampling import order
from loaders.sampling import plan as plans
from loaders.sources import ImageFiles, PixelArray
from loaders.sources.base import digest
from tests.conftest import PROMISING
from tests.loaders.ops.locating import FRAME, Read, locate_checkerboard, locate_ramp, positions

LEVELS = {"mean": (0.0, 0.0, 0.0), "std": (1 / 255,) * 3}  # normalizes to the pixel values themselves
COUNT, BATCH = 20, 8  # so that an evaluation's last batch is padded

PLANS = {
    "evaluation": PlanSpec(ResizeCenterCrop(256, 224)),
    "classic feature": PlanSpec(RandomResizedCrop(224), horizontal_flip=0.5),
    "classic fine-tuning": PlanSpec(
        RandomResizedCrop(256, scale=(0.8, 1.0)), rotation=15, second_crop=RandomResizedCrop(224), horizontal_flip=0.5
    ),
    "default": PlanSpec(RandomResizedCrop(224, scale=(0.25, 1.0)), horizontal_flip=0.5),
}

EXACT = (0.0, 0.0, 0.0)
BOUNDS = {
    "torchvision": EXACT,
    "resident": EXACT,
    "streamed": EXACT,
    "ffcv": EXACT,
    "dali": (0.25, 1.01, 16.0),
    "baseline": (0.2, 1.01, 2.0),
}
"""Mean, 99th percentile and largest difference there may be."""
REASONS = {
    "torchvision": "the same resampling",
    "resident": "the same arithmetic in integers",
    "streamed": "the same resampling, of pixels cached at full size",
    "ffcv": "the same arithmetic in integers, compiled; the same decoder",
    "dali": "sums in float32, rounded once; when reducing, weights from a table",
    "baseline": "Pillow's fixed-point weights, rounded otherwise",
}


@pytest.fixture(scope="module")
def matrix(request: pytest.FixtureRequest) -> Iterator[list[str]]:
    """Rows of the table, shown when all are there."""
    rows: list[str] = []
    yield rows
    capture = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        print("\n| backend | data | plan | mean | 99th percentile | largest | why |\n" + "| --- " * 7 + "|")
        print("\n".join(rows))


@pytest.fixture(
    scope="module", params=[pytest.param(d, marks=getattr(pytest.mark, f"needs_{d}")) for d in ("cifar10", "photos")]
)
def sources(request: pytest.FixtureRequest, cifar10_root: Path, photos: Path) -> tuple[Source, Source]:
    data = "cifar10" if request.param == "cifar10" else str(photos)
    train, val = open_data(data, root=cifar10_root)
    return train.take(COUNT), val.take(COUNT)


def decoded(source: Source, index: int) -> NDArray[np.uint8]:
    """By Pillow: `[H, W, 3]`, upright."""
    if isinstance(source.images, PixelArray):
        return source.images.pixels[index]
    with Image.open(source.images.describe(index)) as image:
        return np.array(ImageOps.exif_transpose(image).convert("RGB"))


@pytest.mark.parametrize("backend", PROMISING)
@pytest.mark.parametrize("name", PLANS)
def test_a_backend_delivers_what_the_reference_makes_of_the_plans(
    backend: str, name: str, sources: tuple[Source, Source], matrix: list[str]
) -> None:
    compare(backend, name, sources, matrix)


def test_the_baseline_evaluates_what_the_others_do(sources: tuple[Source, Source], matrix: list[str]) -> None:
    compare("baseline", "evaluation", sources, matrix)  # in training it draws its own crops, as it is meant to


def compare(backend: str, name: str, sources: tuple[Source, Source], matrix: list[str]) -> None:
    """Adds a row to the matrix; fails where order or labels differ, or pixels more than they may."""
    training, spec = name != "evaluation", PLANS[name]
    source = sources[0] if training else sources[1]
    # Images are cached at full size: `test_streamed.py` has what becomes of smaller ones.
    config = LoaderConfig(
        spec=spec, training=training, batch_size=BATCH, seed=5, workers=2, cache_size=10_000, **LEVELS
    )
    loader = build_loader(source, config, loader=backend)
    loader.set_epoch(3)
    ids = order.shuffled(np.arange(COUNT), seed=5, epoch=3) if training else np.arange(COUNT)
    ids = ids[: COUNT // BATCH * BATCH] if training else ids
    with loader:
        batches = list(loader)
    images, labels = (torch.cat(column)[: len(ids)] for column in zip(*batches, strict=True))
    assert labels.tolist() == source.labels[ids].tolist()
    plan = plans.draw(spec, seed=5, epoch=3, ids=ids, sizes=source.sizes[ids])
    expected = reference.execute([decoded(source, index) for index in ids.tolist()], plan, **LEVELS)
    difference = (images.round() - expected.round()).abs().numpy()
    measured = (float(difference.mean()), float(np.percentile(difference, 99)), float(difference.max()))
    values = " | ".join(f"{value:.3g}" for value in measured)
    matrix.append(f"| {backend} | {source.name} | {name} | {values} | {REASONS[backend] if any(measured) else '-'} |")
    assert all(value <= most for value, most in zip(measured, BOUNDS[backend], strict=True)), measured
    if BOUNDS[backend] == EXACT:  # before rounding, too
        assert torch.equal(images, expected)


# --- nothing is shifted ---------------------------------------------------------------------------


def as_source(image: Tensor, folder: Path, kind: str) -> Source:
    """One image of one class, in memory or in a file."""
    pixels = image.permute(1, 2, 0).numpy()
    if kind == "pixels":
        images: PixelArray | ImageFiles = PixelArray(pixels[None])
    else:
        Image.fromarray(pixels).save(folder / "image.png")
        facts = ("image.png", "PNG", "RGB", np.uint8(1), 0, (folder / "image.png").stat().st_size)
        images = ImageFiles(folder, *(np.array([fact]) for fact in facts))
    fingerprint = digest(kind.encode(), pixels.tobytes())
    return Source("one", ("only",), np.zeros(1, np.int64), np.int32([pixels.shape[:2]]), images, fingerprint)


def reading(backend: str, spec: PlanSpec, seed: int, folder: Path, kind: str) -> Read:
    """A backend's first read of a box that the seed decides on."""
    plan = plans.draw(spec, seed=seed, epoch=0, ids=np.arange(1), sizes=np.array([[FRAME, FRAME]]))
    top, left, height, width = plan.box[0].tolist()
    config = LoaderConfig(spec=spec, training=True, batch_size=1, seed=seed, workers=1, dtype=torch.uint8)
    y, x = np.meshgrid(positions(top, height, spec.size), positions(left, width, spec.size), indexing="ij")

    def run(image: Tensor) -> Tensor:
        with build_loader(as_source(image, folder, kind), config, loader=backend) as loader:
            [(images, _)] = loader
        return images[0]

    return Read(run, y, x)


@pytest.mark.parametrize("backend", PROMISING)
@pytest.mark.parametrize("kind", ["pixels", "file"])
@pytest.mark.parametrize("size", [56, 150])
@pytest.mark.parametrize("seed", [1, 2])
def test_no_backend_shifts_what_it_reads(backend: str, kind: str, size: int, seed: int, tmp_path: Path) -> None:
    spec = PlanSpec(RandomResizedCrop(size, scale=(0.3, 0.7)))
    read = reading(backend, spec, seed, tmp_path, kind)
    for locate in (locate_ramp, locate_checkerboard):
        assert locate(read, 0, 0) == pytest.approx((0, 0), abs=0.1)  # a small odd box is located within 0.06
        shifted = replace(read, x=read.x + 0.25)
        assert locate(shifted, 0, 0) == pytest.approx((0.25, 0), abs=0.1)  # so a quarter pixel is seen
