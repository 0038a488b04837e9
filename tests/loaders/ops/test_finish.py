"""Finishing whole batches in production: what the reference makes of each image, to the bit."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from loaders.ops import finish, reference
from loaders.sampling import plan as plans
from loaders.sampling.plan import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    ColorJitter,
    PaddedRandomCrop,
    Plan,
    PlanSpec,
    RandomResizedCrop,
    ResizeCenterCrop,
)

JITTER = ColorJitter(brightness=(0.6, 1.4), contrast=(0.6, 1.4), saturation=(0.6, 1.4), hue=(-0.1, 0.1))
SPECS = {
    "plain": PlanSpec(RandomResizedCrop(16)),
    "flipped": PlanSpec(ResizeCenterCrop(20, 16), horizontal_flip=0.5, vertical_flip=0.5),
    "padded": PlanSpec(PaddedRandomCrop(16, 16, 2), horizontal_flip=0.5),
    "color": PlanSpec(RandomResizedCrop(16), color_jitter=JITTER),
    "any color": PlanSpec(RandomResizedCrop(16), color_jitter=ColorJitter((0, 3), (0, 3), (0, 3), (-0.5, 0.5))),
    "two reads": PlanSpec(RandomResizedCrop(20), rotation=20, second_crop=RandomResizedCrop(16)),
    "enlarged": PlanSpec(RandomResizedCrop(12), rotation=180, second_crop=RandomResizedCrop(16, scale=(0.02, 1.0))),
    "everything": PlanSpec(RandomResizedCrop(20), 20, RandomResizedCrop(16), 0.5, 0.5, JITTER),
}
COUNT = 25
"""Odd, so that the last part of what is normalized at once is not full."""
PIXELS = {"mean": (0.0, 0.0, 0.0), "std": (1 / 255,) * 3}  # normalizes to the pixel values themselves


def _batch(name: str) -> tuple[list[NDArray[np.uint8]], Plan]:
    """Noise images of many sizes, and their plans."""
    random = np.random.default_rng(1)
    sizes = [(16, 16), (1, 1), (9, 70), *random.integers(2, 60, (COUNT - 3, 2)).tolist()]
    images = [random.integers(0, 256, (height, width, 3), np.uint8) for height, width in sizes]
    return images, plans.draw(SPECS[name], seed=0, epoch=0, ids=np.arange(COUNT), sizes=np.array(sizes))


def _squares(images: list[NDArray[np.uint8]], plan: Plan) -> Tensor:
    """The images after the first read, channels-last."""
    tensors = [torch.from_numpy(image).permute(2, 0, 1) for image in images]
    squares = torch.stack([reference.first_read(image, plan, row) for row, image in enumerate(tensors)])
    return squares.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_finished_batch_equals_the_references(name: str, dtype: torch.dtype) -> None:
    images, plan = _batch(name)
    batch = finish.finish(_squares(images, plan), plan, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7), dtype=dtype)
    expected = reference.execute(images, plan, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7), dtype=dtype)
    assert torch.equal(batch, expected)
    assert batch.dtype == dtype
    assert batch.is_contiguous(memory_format=torch.channels_last)


def test_by_default_it_normalizes_by_imagenets_mean_and_deviation() -> None:
    images, plan = _batch("flipped")
    expected = reference.execute(images, plan, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    assert torch.equal(finish.finish(_squares(images, plan), plan), expected)
    assert torch.equal(reference.execute(images, plan), expected)


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32], ids=str)
def test_a_result_may_be_written_into_given_memory(name: str, dtype: torch.dtype) -> None:
    images, plan = _batch(name)
    squares = _squares(images, plan)
    out = torch.empty((COUNT, 3, 16, 16), dtype=dtype).contiguous(memory_format=torch.channels_last)
    assert finish.finish(squares, plan, dtype=dtype, out=out) is out
    assert torch.equal(out, finish.finish(squares, plan, dtype=dtype))


@pytest.mark.parametrize("name", [name for name in SPECS if not SPECS[name].reads_twice])
def test_the_result_may_take_the_place_of_the_squares(name: str) -> None:
    images, plan = _batch(name)
    squares = _squares(images, plan)
    expected = finish.finish(squares, plan, dtype=torch.uint8).clone()
    assert finish.finish(squares, plan, dtype=torch.uint8, out=squares) is squares
    assert torch.equal(squares, expected)


@pytest.mark.parametrize("name", SPECS)
def test_the_squares_are_left_as_they_were(name: str) -> None:
    images, plan = _batch(name)
    squares = _squares(images, plan)
    before = squares.clone()
    finish.finish(squares, plan).zero_()
    assert torch.equal(squares, before)


@pytest.mark.parametrize("name", SPECS)
def test_a_sample_does_not_depend_on_its_companions(name: str) -> None:
    images, plan = _batch(name)
    squares = _squares(images, plan)
    together = finish.finish(squares, plan)
    alone = [finish.finish(squares[[row]], plan[np.array([row])])[0] for row in range(COUNT)]
    assert (together - torch.stack(alone)).abs().max() < 1e-6


# --- color ------------------------------------------------------------------------------------------


def _colorful(count: int) -> Tensor:
    """Float images of 0 to 1; also grays, pure colors, black and white, where a hue has its corner cases."""
    images = torch.rand((count, 3, 8, 9), generator=torch.Generator().manual_seed(0))
    images[:, :, 0] = images[:, :1, 0]
    corners = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 3).T
    images[:, :, 1, :8] = corners
    images[:, :, 2, :8] = corners / 2
    return images


@pytest.mark.parametrize(
    ("ours", "theirs", "factors"),
    [
        (finish.brightness, reference.brightness, (0.0, 0.4, 1.0, 1.7)),
        (finish.contrast, reference.contrast, (0.0, 0.4, 1.0, 1.7)),
        (finish.saturation, reference.saturation, (0.0, 0.4, 1.0, 1.7)),
        (finish.hue, reference.hue, (-0.5, -0.13, 0.0, 0.31, 0.5)),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_an_adjustment_is_the_references(
    ours: Callable[[Tensor, Tensor], Tensor], theirs: Callable[[Tensor, float], Tensor], factors: tuple[float, ...]
) -> None:
    images = _colorful(len(factors))
    expected = torch.stack([theirs(image, factor) for image, factor in zip(images, factors, strict=True)])
    assert (ours(images, torch.tensor(factors)[:, None, None, None]) - expected).abs().max() < 1e-6


def test_color_leaves_its_input_as_it_was() -> None:
    images = _colorful(COUNT)
    finish.jitter_color(images, _batch("color")[1])
    assert torch.equal(images, _colorful(COUNT))


# --- normalization ----------------------------------------------------------------------------------


@pytest.mark.parametrize("pixels", [torch.uint8, torch.float32], ids=str)
@pytest.mark.parametrize("count", [1, 2, 7])
def test_pixels_of_any_dtype_are_normalized_as_the_references(pixels: torch.dtype, count: int) -> None:
    squares = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(count, 3, 16, 16)
    squares = squares.contiguous(memory_format=torch.channels_last)
    expected = torch.stack([reference.normalize(square, IMAGENET_MEAN, IMAGENET_STD) for square in squares])
    assert torch.equal(finish.normalize(squares.to(pixels), IMAGENET_MEAN, IMAGENET_STD, torch.float32), expected)


# --- on a GPU ---------------------------------------------------------------------------------------


@pytest.mark.needs_cuda
@pytest.mark.parametrize("name", [name for name, spec in SPECS.items() if spec.color_jitter is None])
def test_a_gpus_pixels_are_the_references_within_one_level(name: str) -> None:
    images, plan = _batch(name)
    batch = finish.finish(_squares(images, plan).cuda(), plan, **PIXELS)
    assert batch.is_cuda
    assert batch.is_contiguous(memory_format=torch.channels_last)
    assert (batch.cpu() - reference.execute(images, plan, **PIXELS)).abs().max() < 1.01


@pytest.mark.needs_cuda
def test_a_gpus_colors_are_the_references() -> None:
    images, plan = _colorful(COUNT), _batch("color")[1]
    expected = torch.stack([reference.jitter_color(image, plan, row) for row, image in enumerate(images)])
    assert (finish.jitter_color(images.cuda(), plan).cpu() - expected).abs().max() < 1e-5
