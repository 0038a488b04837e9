"""The fused kernels: interpreted on a CPU, compiled where there is a GPU; always against the CPU's reference."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import triton
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from loaders import ColorJitter, PaddedRandomCrop, PlanSpec, RandomResizedCrop, ResizeCenterCrop
from loaders.backends import resident
from loaders.ops import device_batch, fused, reference
from loaders.sampling.plan import IMAGENET_MEAN, IMAGENET_STD, Plan
from tests.conftest import host_may_not_wait
from tests.loaders.backends.test_resident import build, same
from tests.loaders.backends.test_torchvision import numbered
from tests.loaders.ops.test_resample import drawn, ragged

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
JITTER = ColorJitter((0.6, 1.4), (0.6, 1.4), (0.6, 1.4), (-0.1, 0.1))
FLIPS = {"horizontal_flip": 0.5, "vertical_flip": 0.5}
ONE_READ = {
    "random resized crop": PlanSpec(RandomResizedCrop(16), **FLIPS),
    "tiny crop": PlanSpec(RandomResizedCrop(1)),
    "center crop": PlanSpec(ResizeCenterCrop(20, 17), **FLIPS),
    "padded crop": PlanSpec(PaddedRandomCrop(10, 12, 6), **FLIPS),
}

# Triton 3.6, which comes with torch 2.11, interprets with conversions that NumPy warns of, and refuses from 2.4 on.
_INTERPRETS = tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 7) or int(np.__version__.split(".")[1]) < 4
pytestmark = [
    *[pytest.mark.needs_cuda] * (DEVICE == "cuda"),  # compiled, all of them are tests of the GPU
    pytest.mark.filterwarnings("ignore:Conversion of an array with ndim:DeprecationWarning"),
    pytest.mark.skipif(DEVICE == "cpu" and not _INTERPRETS, reason="Triton 3.6 interprets nothing with NumPy 2.4"),
]

SIDES = st.integers(1, 24)  # interpreted, each tap of each row takes milliseconds
SIZES: list[tuple[int, int]] = [(9, 14), (1, 1), (3, 20)]


def actual_and_expected(
    sizes: list[tuple[int, int]], plan: Plan, dtype: torch.dtype, device: str = DEVICE
) -> tuple[Tensor, Tensor]:
    flat, starts, images = ragged(sizes)
    widths = np.array([width for _, width in sizes])
    actual = fused.batches(flat.to(device), starts, widths, plan, dtype=dtype).cpu()
    assert actual.is_contiguous(memory_format=torch.channels_last)
    return actual, reference.execute(images, plan, dtype=dtype)


def units_apart(actual: Tensor, expected: Tensor) -> Tensor:
    """How many units in the last place of their dtype two results differ by, at most."""
    # The interpreter rounds product and sum, the reference and a GPU only the sum: in float32 that is half a unit of
    # a product up to 4.5, so that it is held to units of values that large.
    bits = {torch.float32: 23, torch.bfloat16: 7, torch.float16: 10}[expected.dtype]
    least = 4.0 if expected.dtype == torch.float32 else 2.0**-12
    magnitude = expected.double().abs().clamp(min=least).log2().floor()
    return ((actual.double() - expected.double()).abs() / 2 ** (magnitude - bits)).max()


@settings(max_examples=8)
@given(
    sizes=st.lists(st.tuples(SIDES, SIDES), min_size=1, max_size=2),
    spec=st.sampled_from(sorted(ONE_READ)),
    seed=st.integers(0, 1000),
)
def test_pixels_are_the_references_to_the_bit(sizes: list[tuple[int, int]], spec: str, seed: int) -> None:
    actual, expected = actual_and_expected(sizes, drawn(ONE_READ[spec], sizes, seed), torch.uint8)
    np.testing.assert_array_equal(actual.numpy(), expected.numpy())


@pytest.mark.parametrize("size", [(1, 1), (1, 150), (150, 1), (2, 60), (64, 20)], ids=str)
@pytest.mark.parametrize(
    "crop", [RandomResizedCrop(16, scale=(1, 1)), ResizeCenterCrop(12, 9)], ids=lambda c: type(c).__name__
)
def test_extreme_shapes_too(size: tuple[int, int], crop: RandomResizedCrop | ResizeCenterCrop) -> None:
    actual, expected = actual_and_expected([size], drawn(PlanSpec(crop), [size]), torch.uint8)
    np.testing.assert_array_equal(actual.numpy(), expected.numpy())


def test_a_box_squeezed_along_one_axis_and_stretched_along_the_other() -> None:
    boxes = np.array([(0, 0, 3, 60), (19, 59, 1, 1), (2, 7, 17, 2)])
    plan = replace(drawn(PlanSpec(RandomResizedCrop(16)), [(20, 60)] * 3), box=boxes)
    actual, expected = actual_and_expected([(20, 60)] * 3, plan, torch.uint8)
    np.testing.assert_array_equal(actual.numpy(), expected.numpy())


def test_a_tile_may_lie_anywhere_in_a_larger_square() -> None:
    """More than one tile along either axis, the last ones not full."""
    sizes = [(6, 8), (12, 9)]
    plan = drawn(PlanSpec(RandomResizedCrop(90), **FLIPS), sizes)
    plan = replace(plan, flip=np.array([(True, False), (False, True)]))
    actual, expected = actual_and_expected(sizes, plan, torch.uint8)
    np.testing.assert_array_equal(actual.numpy(), expected.numpy())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("spec", ONE_READ.values(), ids=ONE_READ)
def test_normalized_they_are_one_unit_in_the_last_place_apart_at_most(spec: PlanSpec, dtype: torch.dtype) -> None:
    assert units_apart(*actual_and_expected(SIZES, drawn(spec, SIZES), dtype)) <= 1


TWICE = {
    "rotation": PlanSpec(ResizeCenterCrop(18, 16), rotation=90, **FLIPS),
    "two crops": PlanSpec(RandomResizedCrop(18), second_crop=RandomResizedCrop(16), **FLIPS),
    "both": PlanSpec(RandomResizedCrop(20), rotation=20, second_crop=RandomResizedCrop(14), **FLIPS),
}


@pytest.mark.parametrize("spec", TWICE.values(), ids=TWICE)
def test_a_second_read_is_a_gray_level_away_at_most_and_seldom(spec: PlanSpec) -> None:
    actual, expected = actual_and_expected(SIZES, drawn(spec, SIZES), torch.uint8)
    apart = (actual.int() - expected.int()).abs()
    assert apart.max() <= 1
    assert apart.float().mean() < 2e-3


@pytest.mark.parametrize("spec", TWICE.values(), ids=TWICE)
def test_what_is_read_twice_is_normalized_too(spec: PlanSpec) -> None:
    pixels, _ = actual_and_expected(SIZES, drawn(spec, SIZES), torch.uint8)
    actual, _ = actual_and_expected(SIZES, drawn(spec, SIZES), torch.bfloat16)
    normalized = [reference.normalize(square, IMAGENET_MEAN, IMAGENET_STD) for square in pixels]
    expected = torch.stack(normalized).to(torch.bfloat16)
    assert units_apart(actual, expected) <= 1


COLORED = {
    "all in any order": JITTER,
    "beyond what can be shown": ColorJitter((0, 3), (0, 3), (0, 3), (-0.5, 0.5)),
    "brightness": ColorJitter(brightness=(0.2, 1.8)),
    "contrast": ColorJitter(contrast=(0.2, 1.8)),
    "saturation": ColorJitter(saturation=(0.2, 1.8)),
    "hue": ColorJitter(hue=(-0.5, 0.5)),
}


@pytest.mark.parametrize("jitter", COLORED.values(), ids=COLORED)
@pytest.mark.parametrize("crop", [RandomResizedCrop(40), ResizeCenterCrop(12, 5)], ids=lambda c: type(c).__name__)
def test_color_is_the_references_within_a_hundredth_of_a_level(
    crop: RandomResizedCrop | ResizeCenterCrop, jitter: ColorJitter
) -> None:
    """Of one part of an image and of several, the last of which is not full."""
    plan = drawn(PlanSpec(crop, color_jitter=jitter, **FLIPS), SIZES * 2)
    actual, expected = actual_and_expected(SIZES * 2, plan, torch.float32)
    assert (actual.double() - expected.double()).abs().max() <= 0.01 / 255 / 0.224
    assert not torch.equal(expected, reference.execute(ragged(SIZES * 2)[2], replace(plan, color=None)))


@settings(max_examples=8)
@given(sizes=st.lists(st.tuples(SIDES, SIDES), min_size=1, max_size=2), seed=st.integers(0, 1000))
def test_colored_levels_are_one_away_at_most_and_seldom(sizes: list[tuple[int, int]], seed: int) -> None:
    spec = PlanSpec(RandomResizedCrop(16), rotation=20, color_jitter=JITTER, **FLIPS)
    actual, expected = actual_and_expected(sizes, drawn(spec, sizes, seed), torch.uint8)
    apart = (actual.int() - expected.int()).abs()
    assert apart.max() <= 2  # one by the second read, one by color
    assert apart.float().mean() < 0.02


def test_a_gray_image_stays_gray_whatever_its_hue_and_saturation() -> None:
    plan = drawn(PlanSpec(ResizeCenterCrop(8, 8), color_jitter=JITTER), [(8, 8)])
    flat = torch.arange(64, dtype=torch.uint8)[:, None].expand(64, 3).contiguous()
    plan = replace(plan, color=np.array([[1, 1, 1.4, 0.3]]))
    actual = fused.batches(flat.to(DEVICE), np.zeros(1, np.int64), np.array([8]), plan, dtype=torch.uint8).cpu()
    assert torch.equal(actual, torch.arange(64, dtype=torch.uint8).view(1, 1, 8, 8).expand(1, 3, 8, 8))


@pytest.mark.parametrize("training", [True, False])
def test_the_resident_loader_gives_the_same_batches_by_them(training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The evaluation's last batch is padded: black, and so normalized."""
    options = {"spec": PlanSpec(RandomResizedCrop(8), **FLIPS), "training": training, "dtype": torch.uint8}
    source = numbered(3)
    expected = list(build(source, loader="torchvision", batch_size=2, **options))
    monkeypatch.setattr(resident, "executor_of_pixels", lambda _, *given: resident.DeviceExecutor(*given))
    monkeypatch.setattr(resident, "fused_kernels", lambda _: fused)
    device = torch.device(DEVICE)
    ours = build(source, batch_size=2, device=device, **options)
    assert same([type(batch)(*(part.cpu() for part in batch)) for batch in ours], expected)


def test_where_kernels_cannot_be_compiled_plain_torch_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda")
    monkeypatch.setattr(device_batch, "can_compile", lambda: True)
    assert device_batch.fused_kernels(torch.device("cpu")) is None
    assert device_batch.fused_kernels(cuda) is fused
    with monkeypatch.context() as patch:
        patch.setattr(device_batch, "can_compile", lambda: False)
        assert device_batch.fused_kernels(cuda) is None
    monkeypatch.delitem(sys.modules, "loaders.ops.fused")
    monkeypatch.delattr("loaders.ops.fused")
    monkeypatch.setitem(sys.modules, "triton", None)
    assert device_batch.fused_kernels(cuda) is None


_COMPILING = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from loaders.ops import kernels
numbers = {name: "fp32" for name in ("f0", "f1", "f2", "o0", "o1", "o2")}
finishing = {"NORMALIZES": True, "LINES": 8, "VALUES": 256}
coloring = {"NORMALIZES": True, "PARTS": 64, "SPAN": 1024}
for kernel, types, constants in (
    (kernels.weigh, "*i64 *i16 *i32 *i32 i32 i32", {"SPAN": 128}),
    (kernels.read, "*u8 *i64 *i16 *i32 *i32 *bf16 i32 i32", finishing),
    (kernels.color, "*u8 *fp32 *i32 *fp32 *bf16 i32", coloring | {"MEASURES": True}),
    (kernels.color, "*u8 *fp32 *i32 *fp32 *bf16 i32", coloring | {"MEASURES": False}),
    (kernels.turn, "*u8 *fp32 *fp32 *fp32 *i32 *bf16 i32 i32", finishing | {"LINES": 4}),
):
    names = [name for name in kernel.arg_names if name not in numbers and name not in constants]
    signature = dict(zip(names, types.split(), strict=True)) | (numbers if "NORMALIZES" in constants else {})
    signature = {name: signature.get(name, "constexpr") for name in kernel.arg_names}
    target = GPUTarget("cuda", 90, 32)
    made = compile(ASTSource(kernel, signature, constexprs=constants), target=target)
    assert "cubin" in made.asm
"""


def test_they_compile_for_an_h100_without_one() -> None:
    """What the interpreter accepts, the compiler may not."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", _COMPILING],
        cwd=Path(__file__).parents[3], env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.needs_cuda
@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16])
@pytest.mark.parametrize("crop", [RandomResizedCrop(224), ResizeCenterCrop(256, 224)], ids=lambda c: type(c).__name__)
def test_at_full_size_a_gpu_gives_the_same(crop: RandomResizedCrop | ResizeCenterCrop, dtype: torch.dtype) -> None:
    sizes = [(375, 500), (32, 32), (1, 7), (500, 20), (800, 600)] * 8
    actual, expected = actual_and_expected(sizes, drawn(PlanSpec(crop, **FLIPS), sizes), dtype, "cuda")
    if dtype == torch.uint8:
        assert torch.equal(actual, expected)
    else:
        assert units_apart(actual, expected) <= 1


@pytest.mark.needs_cuda
def test_the_host_never_waits_for_the_gpu_in_them() -> None:
    flat, starts, _ = ragged(SIZES)
    widths, on_gpu = np.array([width for _, width in SIZES]), flat.cuda()
    colored = PlanSpec(RandomResizedCrop(16), color_jitter=JITTER)
    plans = [drawn(spec, SIZES) for spec in (ONE_READ["random resized crop"], TWICE["both"], colored)]
    for plan in plans:
        fused.batches(on_gpu, starts, widths, plan)  # compiles
    with host_may_not_wait():
        for plan in plans:
            fused.batches(on_gpu, starts, widths, plan)
