"""Plans: the parameters of each sample's augmentation, boxes, rotation, flips and color factors.

A plan is drawn separately from its execution, as small arrays for thousands of samples at a time. Each row is a pure
function of (seed, epoch, sample id, image height and width), so that every executor gets the same samples with the same
crops.

Geometry consists of one read or two. The *first read* takes a box of the image, resizes it (bilinear with
antialiasing) and crops a square window of the result, which is black where the window extends beyond it:

    image ─ box ─► resize ─► window S1 × S1

This covers random resized crops (the window is the whole result), resize + center crop, and padded random crops. With a
rotation or a second crop, a *second read* of that square applies both at once: output pixel → inner box → rotated about
the center of the square, bilinear.
"""

from dataclasses import dataclass, fields, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from loaders.sampling.philox import Purpose, uniforms
from loaders.system.format import format_count

Range: TypeAlias = tuple[float, float]
Ints: TypeAlias = NDArray[np.int64]
Floats: TypeAlias = NDArray[np.float64]

CROP_TRIES = 10  # as torchvision.transforms.RandomResizedCrop

IMAGENET_MEAN = (0.485, 0.456, 0.406)
"""Mean of ImageNet's red, green and blue, of pixel values scaled to 0–1: what pretrained backbones expect."""
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Standard deviation of the same."""


# --- what to draw -------------------------------------------------------------------------------


@dataclass(frozen=True)
class RandomResizedCrop:
    """A box of random area and aspect ratio, resized to `size` × `size`, with torchvision's distribution."""

    size: int
    """Side of the result in pixels."""
    scale: Range = (0.08, 1.0)
    """Range of the box's area as a share of the image's, uniform."""
    ratio: Range = (3 / 4, 4 / 3)
    """Range of the box's width ÷ height, uniform in its logarithm."""

    def __post_init__(self) -> None:
        _require(self.size >= 1, "size", self.size, "at least 1 pixel")
        _require(0 < self.scale[0] <= self.scale[1], "scale", self.scale, "two shares, 0 < low <= high")
        _require(0 < self.ratio[0] <= self.ratio[1], "ratio", self.ratio, "two ratios, 0 < low <= high")


@dataclass(frozen=True)
class ResizeCenterCrop:
    """The shorter side resized to `resize` pixels, then the central `size` × `size` pixels."""

    resize: int
    size: int

    def __post_init__(self) -> None:
        _require(1 <= self.size <= self.resize, "size", self.size, f"1 to resize = {self.resize} pixels")


@dataclass(frozen=True)
class PaddedRandomCrop:
    """The shorter side resized to `resize` pixels, `padding` black pixels all around, a random `size` × `size`."""

    resize: int
    size: int
    padding: int

    def __post_init__(self) -> None:
        _require(self.resize >= 1, "resize", self.resize, "at least 1 pixel")
        _require(self.padding >= 0, "padding", self.padding, "0 pixels or more")
        most = self.resize + 2 * self.padding
        _require(1 <= self.size <= most, "size", self.size, f"1 to resize + 2 * padding = {most} pixels")


@dataclass(frozen=True)
class ColorJitter:
    """Ranges of the color factors. The four adjustments are applied in random order."""

    brightness: Range = (1.0, 1.0)
    contrast: Range = (1.0, 1.0)
    saturation: Range = (1.0, 1.0)
    hue: Range = (0.0, 0.0)
    """Shift as a fraction of the hue circle, -0.5 to 0.5."""

    def __post_init__(self) -> None:
        for name in ("brightness", "contrast", "saturation"):
            low, high = getattr(self, name)
            _require(0 <= low <= high, name, (low, high), "two factors, 0 <= low <= high")
        _require(-0.5 <= self.hue[0] <= self.hue[1] <= 0.5, "hue", self.hue, "two shifts within -0.5 to 0.5")


@dataclass(frozen=True)
class PlanSpec:
    """The augmentation that plans are drawn for: crop, rotation, second crop, flips, color jitter, in this order."""

    crop: RandomResizedCrop | ResizeCenterCrop | PaddedRandomCrop
    rotation: float = 0.0
    """Largest angle in degrees; the angle is uniform on -rotation to rotation."""
    second_crop: RandomResizedCrop | None = None
    """A crop of the result of the first one."""
    horizontal_flip: float = 0.0
    """Probability, 0 to 1."""
    vertical_flip: float = 0.0
    """Probability, 0 to 1."""
    color_jitter: ColorJitter | None = None

    def __post_init__(self) -> None:
        _require(0 <= self.rotation <= 180, "rotation", self.rotation, "0 to 180 degrees")
        for name in ("horizontal_flip", "vertical_flip"):
            _require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "a probability, 0 to 1")

    @property
    def size(self) -> int:
        """Side of the finished image in pixels."""
        return (self.second_crop or self.crop).size

    @property
    def reads_twice(self) -> bool:
        """Whether there is a second read, see the module's documentation."""
        return self.rotation > 0 or self.second_crop is not None


# --- what was drawn -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """The plans of B samples, immutable: the arrays passed in become read-only.

    Fields are `None` where the spec has no such stage. Boxes are (top, left, height, width).
    """

    size: int
    """Side of the finished image in pixels."""
    read_size: int
    """Side of the first read's window in pixels; equals `size` where there is no second read."""
    box: Ints
    """`[B, 4]`: box of the first read in the image (after EXIF rotation), pixels."""
    resized: Ints
    """`[B, 2]`: height and width that the box is resized to, pixels."""
    window: Ints
    """`[B, 2]`: top and left of the window in the resized box, pixels. What is outside the box is black."""
    inner: Ints | None
    """`[B, 4]`: box of the second read in the window, pixels."""
    angle: Floats | None
    """`[B]`: rotation in degrees, counter-clockwise."""
    flip: NDArray[np.bool_]
    """`[B, 2]`: whether to flip horizontally and vertically."""
    color: Floats | None
    """`[B, 4]`: factors of brightness, contrast and saturation, and the hue's shift as a fraction of its circle."""
    color_order: Ints | None
    """`[B, 4]`: the order of the four adjustments, as columns of `color`."""

    def __post_init__(self) -> None:
        for column in self._columns().values():
            column.flags.writeable = False

    def __len__(self) -> int:
        return len(self.box)

    def __getitem__(self, rows: slice | NDArray[np.int64]) -> "Plan":
        """The plans of the samples in `rows`, in this order."""
        return replace(self, **{name: column[rows] for name, column in self._columns().items()})

    def _columns(self) -> dict[str, Any]:
        """The arrays by the name of their fields; none for stages that the spec does not have."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, np.ndarray)}

    @property
    def ends_with_first_read(self) -> bool:
        """Whether nothing but flips and normalization follows the first read: uint8 pixels are final after it."""
        return self.inner is None and self.color is None

    def __repr__(self) -> str:
        return f"Plan({format_count(len(self), 'sample')}, {self.size} px)"


def draw(spec: PlanSpec, *, seed: int, epoch: int, ids: NDArray[np.int64], sizes: NDArray[np.int32] | Ints) -> Plan:
    """Draws the plans of B samples.

    Args:
        spec: the augmentation.
        seed: any integer; its lowest 64 bits count.
        epoch: 0 to 2**32 - 1.
        ids: int64 `[B]`, sample ids, >= 0.
        sizes: `[B, 2]`, height and width of each image in pixels, after EXIF rotation.
    """
    box, resized, window = _first_read(spec.crop, seed, epoch, ids, sizes.astype(np.int64))
    inner = angle = color = color_order = None
    u_angle, u_horizontal, u_vertical, _ = uniforms(seed, epoch, Purpose.ROTATION_AND_FLIP, ids)
    if spec.reads_twice:
        square = np.full((len(ids), 2), spec.crop.size, np.int64)
        inner = _whole(square)
        if spec.second_crop is not None:
            inner = _random_resized_box(spec.second_crop, seed, epoch, Purpose.SECOND_CROP, ids, square)
        angle = (2 * u_angle - 1) * spec.rotation
    if spec.color_jitter is not None:
        jitter = spec.color_jitter
        low, high = np.array([jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue]).T
        color = low + (high - low) * uniforms(seed, epoch, Purpose.COLOR, ids).T
        color_order = np.argsort(uniforms(seed, epoch, Purpose.COLOR_ORDER, ids).T, axis=1, kind="stable")
    flip = np.stack([u_horizontal < spec.horizontal_flip, u_vertical < spec.vertical_flip], axis=1)
    return Plan(spec.size, spec.crop.size, box, resized, window, inner, angle, flip, color, color_order)


def _first_read(
    crop: RandomResizedCrop | ResizeCenterCrop | PaddedRandomCrop, seed: int, epoch: int, ids: Ints, sizes: Ints
) -> tuple[Ints, Ints, Ints]:
    """The fields `box`, `resized` and `window` of `Plan`."""
    if isinstance(crop, RandomResizedCrop):
        box = _random_resized_box(crop, seed, epoch, Purpose.CROP, ids, sizes)
        return box, np.full_like(sizes, crop.size), np.zeros_like(sizes)
    resized = shorter_side_to(crop.resize, sizes)
    if isinstance(crop, ResizeCenterCrop):
        return _whole(sizes), resized, np.rint((resized - crop.size) / 2).astype(np.int64)
    positions = resized + 2 * crop.padding - crop.size + 1  # how many there are for the window
    u_top_left = uniforms(seed, epoch, Purpose.CROP, ids)[:2].T
    return _whole(sizes), resized, (u_top_left * positions).astype(np.int64) - crop.padding


def _random_resized_box(
    crop: RandomResizedCrop, seed: int, epoch: int, purpose: Purpose, ids: Ints, sizes: Ints
) -> Ints:
    """The algorithm of torchvision's `RandomResizedCrop.get_params` for many images: ten tries, then the fallback."""
    box = _central_box(crop.ratio, sizes)
    log_ratio = np.log(crop.ratio)
    pending = np.arange(len(ids))  # the rows whose box has not been found yet
    for attempt in range(CROP_TRIES):
        u_area, u_ratio, u_top, u_left = uniforms(seed, epoch, purpose, ids[pending], attempt)
        height, width = sizes[pending].T
        area = height * width * (crop.scale[0] + (crop.scale[1] - crop.scale[0]) * u_area)
        ratio = np.exp(log_ratio[0] + (log_ratio[1] - log_ratio[0]) * u_ratio)
        w = np.rint(np.sqrt(area * ratio)).astype(np.int64)
        h = np.rint(np.sqrt(area / ratio)).astype(np.int64)
        fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
        top = (u_top * (height - h + 1)).astype(np.int64)
        left = (u_left * (width - w + 1)).astype(np.int64)
        box[pending[fits]] = np.stack([top, left, h, w], axis=1)[fits]
        pending = pending[~fits]
        if not len(pending):
            break
    return box


def _central_box(ratio: Range, sizes: Ints) -> Ints:
    """The largest central box whose aspect ratio is within `ratio`, which is torchvision's fallback."""
    height, width = sizes.T
    # A side of a very long image can round to 0 pixels, with which torchvision fails; here it is at least 1.
    w = np.clip(np.rint(height * max(ratio)).astype(np.int64), 1, width)
    h = np.clip(np.rint(width / min(ratio)).astype(np.int64), 1, height)
    return np.stack([(height - h) // 2, (width - w) // 2, h, w], axis=1)


def shorter_side_to(length: int, sizes: Ints) -> Ints:
    """Height and width after torchvision's `Resize(length)`, `[B, 2]`; the longer side is rounded down."""
    shorter, longer = sizes.min(axis=1), sizes.max(axis=1)
    stretched = (length * longer / shorter).astype(np.int64)
    portrait = sizes[:, 0] > sizes[:, 1]
    return np.stack([np.where(portrait, stretched, length), np.where(portrait, length, stretched)], axis=1)


def scale_boxes(boxes: Ints, sizes: NDArray[np.integer[Any]], new_sizes: NDArray[np.integer[Any]]) -> Ints:
    """Scales boxes to resized images: in whole pixels, each side at least one pixel long.

    Args:
        boxes: `[B, 4]`, boxes in images of `sizes`.
        sizes: `[B, 2]`, height and width of the original images.
        new_sizes: `[B, 2]`, height and width of the resized images.
    """
    ratio = new_sizes / sizes
    first = np.minimum(np.rint(boxes[:, :2] * ratio).astype(np.int64), new_sizes - 1)
    last = np.rint((boxes[:, :2] + boxes[:, 2:]) * ratio).astype(np.int64)
    return np.concatenate([first, np.maximum(last - first, 1)], axis=1)


def _whole(sizes: Ints) -> Ints:
    """Boxes that cover whole images."""
    return np.concatenate([np.zeros_like(sizes), sizes], axis=1)


def _require(condition: bool, name: str, value: object, expected: str) -> None:
    if not condition:
        raise ValueError(f"{name} = {value}: expected {expected}")
