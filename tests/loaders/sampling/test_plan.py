"""Plans: torchvision's distributions, boxes inside their images, and rows that depend on nothing but themselves."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from torchvision import transforms
from torchvision.transforms.v2 import functional as tv

from loaders.sampling import plan as plan_module
from loaders.sampling.philox import uniforms
from loaders.sampling.plan import (
    ColorJitter,
    PaddedRandomCrop,
    Plan,
    PlanSpec,
    RandomResizedCrop,
    ResizeCenterCrop,
    draw,
)

Boxes = NDArray[np.int64]
Size = tuple[int, int]

DRAWS = 12_000  # of torchvision's, which takes up to 70 µs for one; of ours, more
HONEST = 1e-4  # the least p-value that two samples of one distribution may show here
SPOILED = 1e-12  # the most that a spoiled sampler may show


def _draw(spec: PlanSpec, size: Size = (48, 64), count: int = 30_000, seed: int = 1, epoch: int = 0) -> Plan:
    return draw(spec, seed=seed, epoch=epoch, ids=np.arange(count), sizes=np.tile(size, (count, 1)))


def _stub(height: int, width: int) -> torch.Tensor:
    """An image that has a size and no memory."""
    return torch.empty(1, dtype=torch.uint8).expand(1, height, width)


# --- random resized crops against torchvision's ------------------------------------------------------


@cache
def _torchvision_boxes(size: Size, crop: RandomResizedCrop) -> Boxes:
    torch.manual_seed(20)
    image, scale, ratio = _stub(*size), list(crop.scale), list(crop.ratio)
    return np.array([transforms.RandomResizedCrop.get_params(image, scale, ratio) for _ in range(DRAWS)])


def _p_value(ours: NDArray[Any], theirs: NDArray[Any]) -> float:
    """That two samples come from one distribution: chi-square where there are few values, else Kolmogorov-Smirnov."""
    values, codes = np.unique(np.concatenate([ours, theirs]), return_inverse=True)
    if len(values) > 40:
        return float(stats.ks_2samp(ours, theirs, method="asymp").pvalue)
    table = np.stack([np.bincount(c, minlength=len(values)) for c in (codes[: len(ours)], codes[len(ours) :])])
    rare = table.sum(axis=0) < 20
    table = np.column_stack([table[:, ~rare], table[:, rare].sum(axis=1)])
    return float(stats.chi2_contingency(table[:, table.any(axis=0)]).pvalue)


def compare(ours: Boxes, theirs: Boxes, size: Size, crop: RandomResizedCrop) -> dict[str, float]:
    """p-values that two samples of boxes in images of one size share the distribution of each quantity."""
    # With an area beyond any image, torchvision's ten tries fail and its fallback shows.
    fallback = transforms.RandomResizedCrop.get_params(_stub(*size), [9.0, 9.0], list(crop.ratio))

    def quantities(boxes: Boxes) -> dict[str, NDArray[Any]]:
        top, left, height, width = boxes.T
        return {
            "area": height * width / (size[0] * size[1]),
            "log aspect": np.log(width / height).round(9),
            "height": height,
            "top": (top / np.maximum(size[0] - height, 1)).round(9),
            "left": (left / np.maximum(size[1] - width, 1)).round(9),
            "at the far end": (top + height == size[0]) * 2 + (left + width == size[1]),
            "fallback": (boxes == fallback).all(axis=1),
        }

    mine, other = quantities(ours), quantities(theirs)
    return {name: _p_value(mine[name], other[name]) for name in mine}


DEFAULT = RandomResizedCrop(32)
CASES: list[tuple[Size, RandomResizedCrop]] = [
    ((32, 32), DEFAULT),
    ((375, 500), DEFAULT),
    ((100, 400), DEFAULT),  # about one in ten falls back
    ((20, 2000), DEFAULT),
    ((2000, 20), DEFAULT),
    ((3, 3), DEFAULT),
    ((1, 50), DEFAULT),
    ((64, 48), RandomResizedCrop(32, scale=(0.3, 0.5), ratio=(0.5, 3.0))),
    ((40, 36), RandomResizedCrop(32, scale=(0.5, 1.2), ratio=(1.0, 1.0))),  # areas beyond the image
    ((1, 50), RandomResizedCrop(32, scale=(0.001, 0.05))),  # boxes that round to nothing
    ((20, 2000), RandomResizedCrop(32, scale=(0.001, 0.02), ratio=(0.2, 9.0))),
]


def _name(value: Any) -> str:
    return f"{value.scale} {value.ratio}" if isinstance(value, RandomResizedCrop) else "×".join(map(str, value))


@pytest.mark.parametrize(("size", "crop"), CASES, ids=_name)
def test_random_resized_crop_has_torchvisions_distribution(size: Size, crop: RandomResizedCrop) -> None:
    p_values = compare(_draw(PlanSpec(crop), size).box, _torchvision_boxes(size, crop), size, crop)
    assert min(p_values.values()) > HONEST, p_values


def test_second_crop_has_torchvisions_distribution_on_the_square() -> None:
    spec = PlanSpec(ResizeCenterCrop(64, 32), second_crop=DEFAULT)
    inner = _draw(spec, (50, 300)).inner
    assert inner is not None
    p_values = compare(inner, _torchvision_boxes((32, 32), DEFAULT), (32, 32), DEFAULT)
    assert min(p_values.values()) > HONEST, p_values


def _spoil_uniforms(row: int, spoil: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> dict[str, Any]:
    def spoiled(*arguments: Any) -> NDArray[np.float64]:
        drawn = uniforms(*arguments)
        drawn[row] = spoil(drawn[row])
        return drawn

    return {"uniforms": spoiled}


def _never_at_the_bottom(*arguments: Any) -> Boxes:
    boxes = SOUND_BOXES(*arguments)
    height = arguments[-1][:, 0]
    boxes[:, 0] -= (boxes[:, 0] > 0) & (boxes[:, 0] + boxes[:, 2] == height)
    return boxes


SOUND_BOXES = plan_module._random_resized_box
SPOILERS: dict[str, tuple[Size, dict[str, Any]]] = {
    "aspect uniform, not its logarithm": (
        (375, 500),
        _spoil_uniforms(1, lambda u: np.log((3 / 4 + (4 / 3 - 3 / 4) * u) / (3 / 4)) / np.log(16 / 9)),
    ),
    "side uniform, not the area": (
        (375, 500),
        _spoil_uniforms(0, lambda u: ((0.08**0.5 + (1 - 0.08**0.5) * u) ** 2 - 0.08) / 0.92),
    ),
    "top biased": ((375, 500), _spoil_uniforms(2, lambda u: u**1.2)),
    "left biased": ((32, 32), _spoil_uniforms(3, lambda u: u**1.2)),
    "last place never": ((32, 32), {"_random_resized_box": _never_at_the_bottom}),
    "no fallback": ((100, 400), {"CROP_TRIES": 200}),
    "seven tries": ((100, 400), {"CROP_TRIES": 7}),
    "fallback in the corner": ((20, 2000), {"_central_box": lambda _, sizes: np.tile([0, 0, 20, 27], (len(sizes), 1))}),
    "fallback whole": ((20, 2000), {"_central_box": lambda _, sizes: np.concatenate([sizes * 0, sizes], axis=1)}),
}


@pytest.mark.parametrize("name", SPOILERS)
def test_the_same_comparison_rejects_a_spoiled_sampler(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    size, replacements = SPOILERS[name]
    for attribute, value in replacements.items():
        monkeypatch.setattr(plan_module, attribute, value)
    p_values = compare(_draw(PlanSpec(DEFAULT), size).box, _torchvision_boxes(size, DEFAULT), size, DEFAULT)
    assert min(p_values.values()) < SPOILED, p_values


sides = st.integers(1, 4000)


def _ranges(low: float, high: float) -> st.SearchStrategy[tuple[float, float]]:
    return st.tuples(st.floats(low, high), st.floats(low, high)).map(lambda pair: (min(pair), max(pair)))


@given(st.lists(st.tuples(sides, sides), min_size=1, max_size=30), _ranges(1e-6, 2), _ranges(0.01, 100))
def test_every_box_lies_inside_its_image(
    sizes: list[Size], scale: tuple[float, float], ratio: tuple[float, float]
) -> None:
    crop = RandomResizedCrop(8, scale, ratio)
    frames = np.array(sizes)
    plan = draw(PlanSpec(crop, second_crop=crop), seed=0, epoch=0, ids=np.arange(len(frames)), sizes=frames)
    assert plan.inner is not None
    for boxes, (height, width) in ((plan.box, frames.T), (plan.inner, (8, 8))):
        top, left, h, w = boxes.T
        assert ((top >= 0) & (h >= 1) & (top + h <= height)).all()
        assert ((left >= 0) & (w >= 1) & (left + w <= width)).all()


# --- resize + crop against torchvision's -------------------------------------------------------------


@given(sides, sides, st.integers(1, 512))
def test_shorter_side_is_resized_to_torchvisions_size(height: int, width: int, resize: int) -> None:
    plan = _draw(PlanSpec(ResizeCenterCrop(resize, 1)), (height, width), count=1)
    resized = tv.resize(torch.empty(3, height, width, device="meta"), [resize])
    assert plan.resized.tolist() == [list(resized.shape[1:])]
    assert plan.box.tolist() == [[0, 0, height, width]]


@given(sides, sides, st.integers(1, 512), st.data())
def test_center_window_is_where_torchvision_crops(height: int, width: int, resize: int, data: st.DataObject) -> None:
    size = data.draw(st.integers(1, resize))
    plan = _draw(PlanSpec(ResizeCenterCrop(resize, size)), (height, width), count=1)
    tall, wide = plan.resized[0].tolist()
    rows = torch.arange(tall)[None, :, None].expand(1, tall, wide)
    columns = torch.arange(wide)[None, None].expand(1, tall, wide)
    assert plan.window[0].tolist() == [int(tv.center_crop(place, [size, size])[0, 0, 0]) for place in (rows, columns)]


@pytest.mark.parametrize(
    ("size", "crop"),
    [
        ((32, 32), PaddedRandomCrop(32, 32, 4)),
        ((40, 30), PaddedRandomCrop(6, 5, 1)),
        ((30, 41), PaddedRandomCrop(3, 3, 1)),
        ((30, 30), PaddedRandomCrop(4, 4, 0)),
    ],
    ids=str,
)
def test_padded_crop_has_torchvisions_distribution(size: Size, crop: PaddedRandomCrop) -> None:
    resized = tv.resize(torch.empty(3, *size, device="meta"), [crop.resize])
    padded = tv.pad(resized, [crop.padding])
    torch.manual_seed(5)
    theirs = [transforms.RandomCrop.get_params(padded, (crop.size, crop.size))[:2] for _ in range(DRAWS)]
    ours = _draw(PlanSpec(crop), size).window + crop.padding
    places = [np.asarray(sample) @ [1000, 1] for sample in (ours, theirs)]
    table = np.stack([(place[:, None] == np.unique(np.concatenate(places))).sum(axis=0) for place in places])
    assert stats.chi2_contingency(table).pvalue > HONEST
    assert set(places[0]) == set(places[1])


# --- rotation, flips, color ---------------------------------------------------------------------------


@pytest.mark.parametrize("rotation", [15.0, 180.0])
def test_angle_has_torchvisions_distribution(rotation: float) -> None:
    angle = _draw(PlanSpec(DEFAULT, rotation=rotation)).angle
    torch.manual_seed(5)
    theirs = np.array([transforms.RandomRotation.get_params([-rotation, rotation]) for _ in range(DRAWS)])
    assert angle is not None
    assert _p_value(angle, theirs) > HONEST


def test_angle_is_uniform_on_both_sides_of_zero() -> None:
    angle = _draw(PlanSpec(DEFAULT, rotation=30)).angle
    assert angle is not None
    assert stats.kstest(angle, "uniform", (-30, 60)).pvalue > 1e-3


@pytest.mark.parametrize("column", [0, 1], ids=["horizontal", "vertical"])
@pytest.mark.parametrize("probability", [0.0, 0.1, 0.5, 1.0])
def test_flips_have_their_probability(column: int, probability: float) -> None:
    other = 0.25
    horizontal, vertical = (probability, other) if column == 0 else (other, probability)
    flip = _draw(PlanSpec(DEFAULT, horizontal_flip=horizontal, vertical_flip=vertical)).flip
    flipped = flip[:, column]
    if probability in (0, 1):
        assert (flipped == bool(probability)).all()
    assert stats.binomtest(int(flipped.sum()), len(flipped), probability).pvalue > 1e-3
    assert stats.binomtest(int(flip[:, 1 - column].sum()), len(flipped), other).pvalue > 1e-3


JITTER = ColorJitter(brightness=(0.6, 1.4), contrast=(0.0, 2.0), saturation=(0.9, 1.5), hue=(-0.1, 0.3))


@pytest.mark.parametrize(("column", "name"), list(enumerate(("brightness", "contrast", "saturation", "hue"))))
def test_color_factors_are_uniform_in_their_ranges(column: int, name: str) -> None:
    color = _draw(PlanSpec(DEFAULT, color_jitter=JITTER)).color
    low, high = getattr(JITTER, name)
    assert color is not None
    assert stats.kstest(color[:, column], "uniform", (low, high - low)).pvalue > 1e-3


def test_unset_color_ranges_change_nothing() -> None:
    color = _draw(PlanSpec(DEFAULT, color_jitter=ColorJitter())).color
    assert color is not None
    assert (color == [1, 1, 1, 0]).all()


def test_every_order_of_the_four_color_steps_is_equally_likely() -> None:
    orders, times = np.unique(_draw(PlanSpec(DEFAULT, color_jitter=JITTER)).color_order, axis=0, return_counts=True)
    assert (np.sort(orders, axis=1) == range(4)).all()
    assert len(orders) == 24
    assert stats.chisquare(times).pvalue > 1e-3


FULL = PlanSpec(
    crop=RandomResizedCrop(40),
    rotation=20,
    second_crop=RandomResizedCrop(32, scale=(0.2, 0.9)),
    horizontal_flip=0.5,
    vertical_flip=0.3,
    color_jitter=JITTER,
)


def _numbers(plan: Plan) -> NDArray[np.float64]:
    """Everything random of a plan, a column each: `[B, 19]`."""
    assert plan.inner is not None
    assert plan.angle is not None
    assert plan.color is not None
    assert plan.color_order is not None
    return np.column_stack([plan.box, plan.inner, plan.angle, plan.flip, plan.color, plan.color_order])


def test_the_stages_of_a_plan_are_independent() -> None:
    numbers = _numbers(_draw(FULL))
    stages = np.repeat(np.arange(10), [4, 4, 1, 1, 1, 1, 1, 1, 1, 4])
    between = np.corrcoef(numbers.T)[stages[:, None] != stages]
    assert abs(between).max() < 5 / len(numbers) ** 0.5


@pytest.mark.parametrize(("seed", "epoch"), [(2, 0), (1, 1)], ids=["another seed", "another epoch"])
def test_another_seed_or_epoch_gives_an_independent_plan(seed: int, epoch: int) -> None:
    here, there = _numbers(_draw(FULL)), _numbers(_draw(FULL, seed=seed, epoch=epoch))
    columns = here.shape[1]
    across = np.corrcoef(here.T, there.T)[:columns, columns:]
    assert abs(across).max() < 5 / len(here) ** 0.5


# --- plans as tables ----------------------------------------------------------------------------------

SPECS = [
    FULL,
    PlanSpec(PaddedRandomCrop(32, 30, 4), horizontal_flip=0.5),
    PlanSpec(ResizeCenterCrop(40, 32), rotation=10),
]


def _assert_same(one: Plan, other: Plan) -> None:
    for field in fields(Plan):
        np.testing.assert_array_equal(getattr(one, field.name), getattr(other, field.name), field.name, strict=True)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: type(spec.crop).__name__)
@pytest.mark.parametrize("rows", [slice(3, 90, 7), np.array([60, 2, 2]), slice(0, 0)], ids=["slice", "rows", "empty"])
def test_a_samples_plan_does_not_depend_on_its_companions(spec: PlanSpec, rows: Any) -> None:
    ids = np.arange(100) * 2**33 + 5
    sizes = np.random.default_rng(0).integers(1, 300, (100, 2), np.int32)
    together = draw(spec, seed=1, epoch=2, ids=ids, sizes=sizes)[rows]
    assert len(together) == len(ids[rows])
    _assert_same(together, draw(spec, seed=1, epoch=2, ids=ids[rows], sizes=sizes[rows]))


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: type(spec.crop).__name__)
def test_sizes_of_32_bits_do_not_overflow(spec: PlanSpec) -> None:
    sizes = np.array([[60_000, 50_000], [2**31 - 1, 1]])
    narrow, wide = (draw(spec, seed=0, epoch=0, ids=np.arange(2), sizes=sizes.astype(t)) for t in (np.int32, np.int64))
    _assert_same(narrow, wide)


COLUMNS = ("box", "resized", "window", "inner", "angle", "flip", "color", "color_order")


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: type(spec.crop).__name__)
def test_no_array_of_a_plan_can_be_changed(spec: PlanSpec) -> None:
    plan = _draw(spec, count=10)
    shifted = replace(plan, window=plan.window + 1)
    for part in (plan, plan[3:7], plan[np.array([7, 1])], plan[3:7][1:], shifted):
        columns = [column for column in (getattr(part, name) for name in COLUMNS) if column is not None]
        assert len(columns) >= 4
        for column in columns:
            assert not column.flags.writeable
            with pytest.raises(ValueError, match="read-only"):
                column[0] = column[-1]


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: type(spec.crop).__name__)
def test_rows_of_a_plan_are_the_rows_of_its_columns(spec: PlanSpec) -> None:
    plan = _draw(spec, count=10)
    part = plan[np.array([7, 1])]
    assert (part.size, part.read_size) == (plan.size, plan.read_size)
    for name in COLUMNS:
        column, rows = getattr(plan, name), getattr(part, name)
        assert (column is rows is None) or rows.tolist() == [column[7].tolist(), column[1].tolist()]


def test_a_plan_is_printed_in_one_line() -> None:
    assert repr(_draw(FULL, count=64)) == "Plan(64 samples, 32 px)"
    assert repr(_draw(FULL, count=1)) == "Plan(1 sample, 32 px)"
    assert repr(_draw(FULL, count=3)[:0]) == "Plan(0 samples, 32 px)"


def test_the_text_of_a_spec_does_not_change() -> None:
    """States of loaders hold it: one that was written before must still be recognized."""
    spec = PlanSpec(ResizeCenterCrop(256, 224), second_crop=RandomResizedCrop(32), color_jitter=ColorJitter())
    assert repr(spec) == (
        "PlanSpec(crop=ResizeCenterCrop(resize=256, size=224), rotation=0.0, "
        "second_crop=RandomResizedCrop(size=32, scale=(0.08, 1.0), ratio=(0.75, 1.3333333333333333)), "
        "horizontal_flip=0.0, vertical_flip=0.0, color_jitter=ColorJitter(brightness=(1.0, 1.0), "
        "contrast=(1.0, 1.0), saturation=(1.0, 1.0), hue=(0.0, 0.0)))"
    )


@pytest.mark.parametrize(
    ("spec", "size", "read_size", "twice"),
    [
        (PlanSpec(DEFAULT), 32, 32, False),
        (PlanSpec(DEFAULT, rotation=1), 32, 32, True),
        (PlanSpec(ResizeCenterCrop(256, 224), second_crop=DEFAULT), 32, 224, True),
    ],
)
def test_a_second_read_is_planned_where_there_is_something_to_read(
    spec: PlanSpec, size: int, read_size: int, twice: bool
) -> None:
    plan = _draw(spec, count=3)
    assert (spec.size, plan.size, plan.read_size) == (size, size, read_size)
    assert (spec.reads_twice, plan.inner is not None, plan.angle is not None) == (twice,) * 3


def test_rotation_alone_reads_the_whole_square() -> None:
    inner = _draw(PlanSpec(DEFAULT, rotation=1), count=3).inner
    assert inner is not None
    assert inner.tolist() == [[0, 0, 32, 32]] * 3


def test_a_second_crop_alone_does_not_rotate() -> None:
    angle = _draw(PlanSpec(ResizeCenterCrop(64, 64), second_crop=DEFAULT), count=100).angle
    assert angle is not None
    assert not angle.any()


def test_without_color_jitter_there_are_no_factors() -> None:
    plan = _draw(PlanSpec(DEFAULT), count=3)
    assert plan.color is plan.color_order is None


# --- what is refused ----------------------------------------------------------------------------------

NAN = float("nan")


@pytest.mark.parametrize(
    ("field", "make"),
    [
        ("size", lambda: RandomResizedCrop(0)),
        ("scale", lambda: RandomResizedCrop(8, scale=(0, 1))),
        ("scale", lambda: RandomResizedCrop(8, scale=(1, 0.5))),
        ("scale", lambda: RandomResizedCrop(8, scale=(NAN, 1))),
        ("ratio", lambda: RandomResizedCrop(8, ratio=(0, 1))),
        ("ratio", lambda: RandomResizedCrop(8, ratio=(2, 1))),
        ("size", lambda: ResizeCenterCrop(32, 33)),
        ("size", lambda: ResizeCenterCrop(32, 0)),
        ("size", lambda: PaddedRandomCrop(32, 41, 4)),
        ("size", lambda: PaddedRandomCrop(32, 0, 4)),
        ("padding", lambda: PaddedRandomCrop(32, 32, -1)),
        ("resize", lambda: PaddedRandomCrop(0, 4, 4)),
        ("brightness", lambda: ColorJitter(brightness=(-0.1, 1))),
        ("contrast", lambda: ColorJitter(contrast=(1, 0.5))),
        ("saturation", lambda: ColorJitter(saturation=(NAN, NAN))),
        ("hue", lambda: ColorJitter(hue=(-0.6, 0))),
        ("hue", lambda: ColorJitter(hue=(0.2, 0.1))),
        ("rotation", lambda: PlanSpec(DEFAULT, rotation=-1)),
        ("rotation", lambda: PlanSpec(DEFAULT, rotation=181)),
        ("horizontal_flip", lambda: PlanSpec(DEFAULT, horizontal_flip=1.1)),
        ("vertical_flip", lambda: PlanSpec(DEFAULT, vertical_flip=-0.1)),
    ],
)
def test_an_impossible_spec_is_refused_by_the_fields_name(field: str, make: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=f"^{field} = .*: expected "):
        make()


def test_plan_order_and_philox_need_no_torch() -> None:
    program = """
import sys
sys.modules["torch"] = sys.modules["torchvision"] = None
import numpy as np
from loaders.sampling import cursor, order, philox, plan, splits
spec = plan.PlanSpec(plan.RandomResizedCrop(8), rotation=5, color_jitter=plan.ColorJitter())
plan.draw(spec, seed=0, epoch=0, ids=order.shuffled(np.arange(2), seed=0, epoch=0), sizes=np.full((2, 2), 9))
"""
    root = Path(plan_module.__file__).parents[2]
    result = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
