"""The first read of whole batches in integers: what ATen makes of one image at a time, to the bit."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from loaders import PaddedRandomCrop, PlanSpec, RandomResizedCrop, ResizeCenterCrop
from loaders.ops import reference, resample
from loaders.sampling import plan as plans
from loaders.sampling.plan import Plan


def ragged(sizes: list[tuple[int, int]], seed: int = 0) -> tuple[Tensor, np.ndarray, list[np.ndarray]]:
    """Noise images one behind the other (`[P, 3]`), where each begins, and each alone (`[H, W, 3]`)."""
    numbers = np.random.default_rng(seed)
    images = [numbers.integers(0, 256, (height, width, 3), np.uint8) for height, width in sizes]
    starts = np.cumsum([0] + [height * width for height, width in sizes])[:-1]
    flat = torch.from_numpy(np.concatenate([image.reshape(-1, 3) for image in images]))
    return flat, starts, images


def check(sizes: list[tuple[int, int]], plan: Plan, device: str = "cpu") -> None:
    """All the batch at once is what the reference makes of each image on a CPU."""
    flat, starts, images = ragged(sizes)
    widths = np.array([width for _, width in sizes])
    tensors = [torch.from_numpy(image).permute(2, 0, 1) for image in images]
    expected = torch.stack([reference.first_read(image, plan, row) for row, image in enumerate(tensors)])
    actual = resample.first_reads(flat.to(device), starts, widths, plan).cpu()
    assert actual.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_array_equal(actual.numpy(), expected.numpy())


def drawn(spec: PlanSpec, sizes: list[tuple[int, int]], seed: int = 0) -> Plan:
    return plans.draw(spec, seed=seed, epoch=0, ids=np.arange(len(sizes)), sizes=np.array(sizes))


CROPS = {
    "random resized crop": RandomResizedCrop(32),
    "tiny crop": RandomResizedCrop(1),
    "center crop": ResizeCenterCrop(40, 32),
    "padded crop": PaddedRandomCrop(24, 32, 12),
}
SIDES = st.integers(1, 90)


@given(
    sizes=st.lists(st.tuples(SIDES, SIDES), min_size=1, max_size=5),
    crop=st.sampled_from(sorted(CROPS)),
    seed=st.integers(0, 1000),
)
def test_a_batch_is_what_aten_makes_of_each_image(sizes: list[tuple[int, int]], crop: str, seed: int) -> None:
    check(sizes, drawn(PlanSpec(CROPS[crop]), sizes, seed))


@pytest.mark.parametrize("size", [(1, 1), (1, 400), (400, 1), (2, 300), (700, 500), (224, 224)])
@pytest.mark.parametrize("crop", [RandomResizedCrop(224), ResizeCenterCrop(256, 224)])
def test_extreme_shapes_too(size: tuple[int, int], crop: RandomResizedCrop | ResizeCenterCrop) -> None:
    check([size], drawn(PlanSpec(crop), [size]))


def test_a_batch_too_large_for_one_go_is_read_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [(50, 60), (20, 90), (64, 64), (10, 10), (33, 44)]
    plan = drawn(PlanSpec(RandomResizedCrop(16)), sizes)
    parts: list[int] = []
    read = resample._read
    monkeypatch.setattr(resample, "_read", lambda p, part, g: parts.append(len(part)) or read(p, part, g))
    monkeypatch.setattr(resample, "_MOST_VALUES", 5000)
    check(sizes, plan)
    assert sum(parts) == 5
    assert len(parts) > 1


@pytest.mark.needs_cuda
@pytest.mark.parametrize("crop", CROPS.values(), ids=CROPS)
def test_a_gpu_reads_the_same_to_the_bit(crop: RandomResizedCrop | ResizeCenterCrop | PaddedRandomCrop) -> None:
    sizes = [(375, 500), (32, 32), (1, 7), (500, 20), (800, 600)]
    check(sizes, drawn(PlanSpec(crop), sizes), "cuda")
