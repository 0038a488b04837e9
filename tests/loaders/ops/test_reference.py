"""The reference execution of plans: torchvision's pixels, Pillow's within a grey level, nothing a pixel off."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import permutations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as tv

from loaders.ops import reference
from loaders.ops.finish import brightness, contrast, finish, flip, hue, jitter_color, normalize, saturation, second_read
from loaders.sampling.plan import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    ColorJitter,
    PaddedRandomCrop,
    Plan,
    PlanSpec,
    RandomResizedCrop,
    ResizeCenterCrop,
    draw,
)
from tests.conftest import smooth_image

Size = tuple[int, int]
Floats = NDArray[np.float64]
PIXELS = {"mean": (0.0, 0.0, 0.0), "std": (1 / 255,) * 3}  # normalises to the pixel values themselves
JITTER = ColorJitter(brightness=(0.6, 1.4), contrast=(0.6, 1.4), saturation=(0.6, 1.4), hue=(-0.1, 0.1))
SIZES: list[Size] = [(int(h), int(w)) for h, w in np.random.default_rng(0).integers(2, 300, (60, 2))]


def _noise(size: Size, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def _smooth(size: Size, seed: int = 0) -> Tensor:
    return torch.tensor(smooth_image(*size, seed)).permute(2, 0, 1)


def _plan(spec: PlanSpec, *sizes: Size, seed: int = 0) -> Plan:
    return draw(spec, seed=seed, epoch=0, ids=np.arange(len(sizes)), sizes=np.array(sizes))


def _boxed(size: int, *boxes: tuple[int, int, int, int]) -> Plan:
    """Plans that resize these boxes to `size` × `size`."""
    plan = _plan(PlanSpec(RandomResizedCrop(size)), *[(9, 9)] * len(boxes))
    return replace(plan, box=np.array(boxes))


def _apart(one: Tensor, other: Tensor) -> Floats:
    return (one.double() - other.double()).abs().numpy()


# --- first read -------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [17, 224])
@pytest.mark.parametrize("layout", ["planar", "interleaved"])
def test_random_resized_crop_is_torchvisions_bit_for_bit(size: int, layout: str) -> None:
    plan = _plan(PlanSpec(RandomResizedCrop(size)), *SIZES)
    for row, image_size in enumerate(SIZES):
        image = _noise(image_size, row)
        given = image if layout == "planar" else image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
        expected = tv.resized_crop(image, *plan.box[row].tolist(), [size, size], antialias=True)
        assert torch.equal(reference.first_read(given, plan, row), expected)


@pytest.mark.parametrize(("resize", "size"), [(73, 64), (40, 40), (33, 32)])
def test_resize_and_centre_crop_is_torchvisions_bit_for_bit(resize: int, size: int) -> None:
    plan = _plan(PlanSpec(ResizeCenterCrop(resize, size)), *SIZES)
    transform = v2.Compose([v2.Resize(resize), v2.CenterCrop(size)])
    for row, image_size in enumerate(SIZES):
        image = _noise(image_size, row)
        assert torch.equal(reference.first_read(image, plan, row), transform(image))


@pytest.mark.parametrize(("resize", "size", "padding"), [(32, 32, 4), (20, 24, 5), (30, 8, 40)])
def test_padded_crop_is_torchvisions_bit_for_bit(resize: int, size: int, padding: int) -> None:
    plan = _plan(PlanSpec(PaddedRandomCrop(resize, size, padding)), *SIZES)
    for row, image_size in enumerate(SIZES):
        image = _noise(image_size, row)
        padded = tv.pad(tv.resize(image, [resize]), [padding])
        top, left = (plan.window[row] + padding).tolist()
        assert torch.equal(reference.first_read(image, plan, row), tv.crop(padded, top, left, size, size))


def test_first_read_is_pillows_crop_and_resize_within_one_level() -> None:
    # Measured on noise: one level at most, 0.04 on average.
    plan = _plan(PlanSpec(RandomResizedCrop(48)), *SIZES)
    apart = []
    for row, image_size in enumerate(SIZES):
        image = _noise(image_size, row)
        top, left, height, width = plan.box[row].tolist()
        part = tv.to_pil_image(image).crop((left, top, left + width, top + height))
        expected = tv.pil_to_tensor(part.resize((48, 48), Image.Resampling.BILINEAR))
        apart.append(_apart(reference.first_read(image, plan, row), expected))
    assert np.max(apart) <= 1
    assert np.mean(apart) < 0.08


@pytest.mark.parametrize("size", [(1, 600), (600, 1), (2, 999), (1, 1)], ids=str)
@pytest.mark.parametrize(
    "crop",
    [RandomResizedCrop(16), ResizeCenterCrop(20, 16), PaddedRandomCrop(16, 16, 2)],
    ids=lambda c: type(c).__name__,
)
def test_a_degenerate_image_is_read_as_torchvision_reads_it(
    size: Size, crop: RandomResizedCrop | ResizeCenterCrop | PaddedRandomCrop
) -> None:
    plan = _plan(PlanSpec(crop), size)
    image = _noise(size)
    resized = tv.resize(tv.crop(image, *plan.box[0].tolist()), plan.resized[0].tolist(), antialias=True)
    expected = tv.crop(resized, *plan.window[0].tolist(), 16, 16)  # fills with black where it leaves the image
    assert torch.equal(reference.first_read(image, plan, 0), expected)


def test_a_box_of_one_pixel_fills_the_square_with_it() -> None:
    image = _noise((30, 40))
    square = reference.first_read(image, _boxed(16, (29, 39, 1, 1)), 0)
    assert torch.equal(square, image[:, -1:, -1:].expand(3, 16, 16))


# --- second read --------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [32, 33])
@pytest.mark.parametrize("angle", [0.0, 7.3, -30.0, 90.0, 179.0])
def test_rotation_is_torchvisions_bilinear_rotation(side: int, angle: float) -> None:
    # Measured: one level in 0.03 % of the values (ties) of one case, none elsewhere.
    image = _noise((side, side))
    plan = replace(_plan(PlanSpec(RandomResizedCrop(side), rotation=1), (side, side)), angle=np.array([angle]))
    apart = _apart(second_read(image[None], plan)[0], tv.rotate(image, angle, InterpolationMode.BILINEAR))
    assert apart.max() <= 1
    assert apart.mean() < 1e-3


@pytest.mark.parametrize("size", [16, 33, 64, 100])
def test_inner_box_is_torchvisions_resized_crop_without_antialiasing(size: int) -> None:
    # Measured against float images, rounded: one level in up to 0.4 % of the values (ties). torchvision resizes
    # uint8 images in fixed point without antialiasing, a level away in up to a third of the values.
    plan = _plan(PlanSpec(ResizeCenterCrop(48, 48), second_crop=RandomResizedCrop(size)), *[(48, 48)] * 20)
    assert plan.inner is not None
    squares = torch.stack([_noise((48, 48), row) for row in range(20)])
    crops = [
        tv.resized_crop(square.float(), *box, [size, size], antialias=False).round()
        for square, box in zip(squares, plan.inner.tolist(), strict=True)
    ]
    apart = _apart(second_read(squares, plan), torch.stack(crops))
    assert apart.max() <= 1
    assert apart.mean() < 0.01


def test_two_reads_are_close_to_torchvisions_staged_transforms() -> None:
    # Measured on smooth images: mean 0.33 grey levels, 99th percentile 1, largest 54 (along the black corners).
    # On noise, of which staging keeps less: mean 6.4, 99th percentile 33.
    spec = PlanSpec(RandomResizedCrop(128), rotation=30, second_crop=RandomResizedCrop(112, scale=(0.3, 1)))
    sizes: list[Size] = [(150, 200), (200, 150), (100, 90), (400, 300)] * 4
    plan = _plan(spec, *sizes)
    assert plan.angle is not None
    assert plan.inner is not None
    images = [_smooth(size, row) for row, size in enumerate(sizes)]
    staged = []
    for image, box, angle, inner in zip(images, plan.box, plan.angle, plan.inner, strict=True):
        square = tv.resized_crop(image, *box.tolist(), [128, 128])
        turned = tv.rotate(square, float(angle), InterpolationMode.BILINEAR)
        staged.append(tv.resized_crop(turned, *inner.tolist(), [112, 112]))
    apart = _apart(reference.execute(images, plan, **PIXELS), torch.stack(staged))
    assert apart.mean() < 0.5
    assert np.percentile(apart, 99) <= 2


# --- where the pixels lie -----------------------------------------------------------------------------

FRAME = 144  # side of the test images
SLOPE = (1 + 5**0.5) / 2  # grey levels per pixel; irrational, so that rounding averages out
CELL = 8  # pixels


@dataclass(frozen=True)
class Read:
    """A read of a FRAME × FRAME image, and where in the image (pixel centres) each pixel of its result belongs."""

    run: Callable[[Tensor], Tensor]
    y: Floats
    x: Floats


def _places(start: int, length: int, size: int) -> Floats:
    return start - 0.5 + length * (np.arange(size) + 0.5) / size


def _first(box: tuple[int, int, int, int], size: int, moved: int = 0) -> Read:
    top, left, height, width = box
    plan = _boxed(size, (top, left + moved, height, width))
    y, x = np.meshgrid(_places(top, height, size), _places(left, width, size), indexing="ij")
    return Read(lambda image: reference.first_read(image, plan, 0), y, x)


def _second(inner: tuple[int, int, int, int], size: int, angle: float, moved: int = 0) -> Read:
    top, left, height, width = inner
    spec = PlanSpec(ResizeCenterCrop(FRAME, FRAME), second_crop=RandomResizedCrop(size))
    box = np.array([(top, left + moved, height, width)])
    plan = replace(_plan(spec, (FRAME, FRAME)), inner=box, angle=np.array([angle]))
    y, x = np.meshgrid(_places(top, height, size), _places(left, width, size), indexing="ij")
    # Counter-clockwise on the screen, where y points down, takes z to z · exp(-i angle); this goes back.
    middle = (FRAME - 1) / 2 * (1 + 1j)
    source = (x + 1j * y - middle) * np.exp(1j * np.deg2rad(angle)) + middle
    return Read(lambda image: second_read(image[None], plan)[0], source.imag, source.real)


READS: dict[str, Callable[[int], Read]] = {
    "first, smaller": lambda moved: _first((13, 22, 64, 96), 48, moved),
    "first, as it is": lambda moved: _first((31, 17, 96, 96), 96, moved),
    "first, larger": lambda moved: _first((40, 8, 48, 64), 150, moved),
    "second, as it is": lambda moved: _second((0, 0, FRAME, FRAME), FRAME, 0, moved),
    "second, inner box": lambda moved: _second((19, 30, 80, 96), 64, 0, moved),
    "second, rotated": lambda moved: _second((36, 28, 80, 72), 90, -33, moved),
}


def _ramp_error(read: Read, slope: float, right: float, down: float) -> Floats:
    """Grey levels by which ramps to the right and downwards, moved by so many pixels, differ from ramps unmoved."""
    places = np.arange(FRAME) - FRAME / 2
    red = np.tile(slope * (places - right) + 128, (FRAME, 1))
    green = np.tile(slope * (places - down) + 128, (FRAME, 1)).T
    result = read.run(torch.from_numpy(np.rint([red, green, 0 * red]).astype(np.uint8)))
    errors = result[:2].double().numpy() - 128 - slope * (np.stack([read.x, read.y]) - FRAME / 2)
    return errors[:, 5:-5, 5:-5].mean(axis=(1, 2))  # at the edge of a box there is less to average


def _locate_ramp(read: Read, right: float, down: float) -> tuple[float, float]:
    """How many pixels of the image a ramp moved by `right` and `down` seems to be moved."""
    # Rising and falling, as ATen's rounding of uint8 brightens by up to 0.2 grey levels: no shift, but like one.
    rising, falling = (_ramp_error(read, slope, right, down) for slope in (SLOPE, -SLOPE))
    x, y = (falling - rising) / (2 * SLOPE)
    return float(x), float(y)


def _board_waves(read: Read, right: float, down: float) -> tuple[complex, complex]:
    """Amplitudes, under a Hann window, of the two diagonal waves that make a moved checkerboard of 27 and 227."""

    def wave(offset: float) -> Floats:
        edges = (np.arange(FRAME + 1) - offset) % (2 * CELL)
        return np.diff(CELL - abs(edges - CELL))  # a square wave's mean over each pixel

    board = np.rint(127 + 100 * np.outer(wave(down), wave(right))).astype(np.uint8)
    values = read.run(torch.from_numpy(np.stack([board] * 3)))[0].double().numpy() - 127
    window = np.outer(*[np.hanning(len(values) + 2)[1:-1]] * 2)
    x, y = ((place + 0.5) * np.pi / CELL for place in (read.x, read.y))
    rising, falling = (np.average(values * np.exp(-1j * (x + sign * y)), weights=window) for sign in (1, -1))
    return complex(rising), complex(falling)


def _locate_checkerboard(read: Read, right: float, down: float) -> tuple[float, float]:
    """How many pixels of the image a checkerboard moved by `right` and `down` seems to be moved."""
    rising, falling = _board_waves(read, right, down)
    both, difference = -np.angle(-rising) * CELL / np.pi, -np.angle(falling) * CELL / np.pi
    return float(both + difference) / 2, float(both - difference) / 2


locators = pytest.mark.parametrize("locate", [_locate_ramp, _locate_checkerboard])


@locators
@pytest.mark.parametrize("name", READS)
def test_a_read_is_nowhere_shifted(name: str, locate: Callable[..., tuple[float, float]]) -> None:
    assert locate(READS[name](0), 0, 0) == pytest.approx((0, 0), abs=0.05)


@locators
@pytest.mark.parametrize("name", READS)
@pytest.mark.parametrize("moved", [(0.25, 0), (0, -0.25)], ids=str)
def test_the_same_location_detects_a_quarter_pixel(
    name: str, moved: tuple[float, float], locate: Callable[..., tuple[float, float]]
) -> None:
    assert locate(READS[name](0), *moved) == pytest.approx(moved, abs=0.05)


@locators
@pytest.mark.parametrize("name", [name for name in READS if name not in ("second, as it is", "second, rotated")])
def test_the_same_location_detects_a_box_moved_by_one_pixel(
    name: str, locate: Callable[..., tuple[float, float]]
) -> None:
    assert locate(READS[name](1), 0, 0) == pytest.approx((-1, 0), abs=0.05)


@pytest.mark.parametrize("name", READS)
def test_a_checkerboard_keeps_its_contrast(name: str) -> None:
    ideal = 100 * (4 / np.pi) ** 2 / 4  # amplitude of either wave of a board of infinitely fine pixels
    assert np.abs(_board_waves(READS[name](0), 0, 0)) / ideal == pytest.approx(1, abs=0.08)


# --- flips, colour, normalisation ---------------------------------------------------------------------


def test_each_sample_is_flipped_as_its_plan_says() -> None:
    squares = torch.stack([_noise((8, 8), row) for row in range(4)])
    plan = replace(
        _boxed(8, *[(0, 0, 8, 8)] * 4), flip=np.array([[False, False], [True, False], [False, True], [True, True]])
    )
    dimensions: list[list[int]] = [[], [2], [1], [1, 2]]
    expected = [torch.flip(square, dims) for square, dims in zip(squares, dimensions, strict=True)]
    assert torch.equal(flip(squares, plan), torch.stack(expected))


def _colourful(count: int) -> Tensor:
    """Float images of 0 to 1; also greys, pure colours, black and white, where a hue has its corner cases."""
    images = torch.stack([_noise((8, 9), row) for row in range(count)]).float() / 255
    images[:, :, 0] = images[:, :1, 0]
    corners = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 3).T
    images[:, :, 1, :8] = corners
    images[:, :, 2, :8] = corners / 2
    return images


ADJUSTMENTS = [
    (brightness, tv.adjust_brightness, (0.0, 0.4, 1.0, 1.7)),
    (contrast, tv.adjust_contrast, (0.0, 0.4, 1.0, 1.7)),
    (saturation, tv.adjust_saturation, (0.0, 0.4, 1.0, 1.7)),
    (hue, tv.adjust_hue, (-0.5, -0.13, 0.0, 0.31, 0.5)),
]


@pytest.mark.parametrize(("ours", "theirs", "factors"), ADJUSTMENTS, ids=lambda value: getattr(value, "__name__", ""))
def test_an_adjustment_is_torchvisions(
    ours: Callable[[Tensor, Tensor], Tensor], theirs: Callable[[Tensor, float], Tensor], factors: tuple[float, ...]
) -> None:
    images = _colourful(len(factors))
    expected = torch.stack([theirs(image, factor) for image, factor in zip(images, factors, strict=True)])
    assert _apart(ours(images, torch.tensor(factors)[:, None, None, None]), expected).max() < 1e-5


def _staged_colour(image: Tensor, factors: list[float], order: list[int]) -> Tensor:
    for which in order:
        image = ADJUSTMENTS[which][1](image, factors[which])
    return image


def test_colour_steps_come_in_each_samples_own_order() -> None:
    orders = list(permutations(range(4)))
    plan = _plan(PlanSpec(RandomResizedCrop(8), color_jitter=JITTER), *[(8, 8)] * len(orders))
    plan = replace(plan, color_order=np.array(orders))
    assert plan.color is not None
    images = _colourful(len(orders))
    expected = [_staged_colour(image, plan.color[row].tolist(), list(orders[row])) for row, image in enumerate(images)]
    assert _apart(jitter_color(images, plan), torch.stack(expected)).max() < 1e-5


@pytest.mark.parametrize("pixels", [torch.uint8, torch.float32])
def test_normalisation_is_torchvisions(pixels: torch.dtype) -> None:
    squares = torch.stack([_noise((8, 9), row) for row in range(3)])
    expected = tv.normalize(squares.float() / 255, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    result = normalize(squares.to(pixels), IMAGENET_MEAN, IMAGENET_STD, torch.float32)
    assert _apart(result, expected).max() < 1e-6


def test_the_stages_after_the_first_read_come_in_their_order() -> None:
    spec = PlanSpec(RandomResizedCrop(24), rotation=30, horizontal_flip=0.5, vertical_flip=0.5, color_jitter=JITTER)
    plan = _plan(spec, *[(24, 24)] * 12)
    assert plan.angle is not None
    assert plan.color is not None
    assert plan.color_order is not None
    assert len(np.unique(plan.flip, axis=0)) == 4
    squares = torch.stack([_smooth((24, 24), row) for row in range(12)])
    expected = []
    for row, square in enumerate(squares):
        image = tv.rotate(square, float(plan.angle[row]), InterpolationMode.BILINEAR)
        image = tv.horizontal_flip(image) if plan.flip[row, 0] else image
        image = tv.vertical_flip(image) if plan.flip[row, 1] else image
        image = _staged_colour(image.float() / 255, plan.color[row].tolist(), plan.color_order[row].tolist())
        expected.append(tv.normalize(image, [0.1, 0.2, 0.3], [0.5, 0.6, 0.7]))
    result = finish(squares, plan, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    apart = _apart(result, torch.stack(expected))
    assert np.percentile(apart, 99.8) < 1e-5  # the others: a tie in the rotation, one grey level
    assert apart.max() < 0.02


# --- finished batches ---------------------------------------------------------------------------------

SPECS = {
    "plain": PlanSpec(RandomResizedCrop(16)),
    "flipped": PlanSpec(ResizeCenterCrop(20, 16), horizontal_flip=0.5, vertical_flip=0.5),
    "padded": PlanSpec(PaddedRandomCrop(16, 16, 2), horizontal_flip=0.5),
    "colour": PlanSpec(RandomResizedCrop(16), color_jitter=JITTER),
    "two reads": PlanSpec(RandomResizedCrop(20), rotation=20, second_crop=RandomResizedCrop(16)),
    "everything": PlanSpec(RandomResizedCrop(20), 20, RandomResizedCrop(16), 0.5, 0.5, JITTER),
}
BATCH: list[Size] = [(16, 16), (30, 20), (1, 1), (9, 70), (20, 30)]


def _batch(name: str) -> tuple[list[Tensor], Plan]:
    return [_noise(size, row) for row, size in enumerate(BATCH)], _plan(SPECS[name], *BATCH)


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_batch_is_channels_last_of_the_wanted_dtype(name: str, dtype: torch.dtype) -> None:
    batch = reference.execute(*_batch(name), dtype=dtype)
    assert (batch.shape, batch.dtype) == ((len(BATCH), 3, 16, 16), dtype)
    assert batch.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(batch, reference.execute(*_batch(name)).to(dtype))


@pytest.mark.parametrize("name", SPECS)
def test_a_sample_does_not_depend_on_its_companions(name: str) -> None:
    images, plan = _batch(name)
    together = reference.execute(images, plan)
    alone = [reference.execute([image], plan[np.array([row])])[0] for row, image in enumerate(images)]
    assert _apart(together, torch.stack(alone)).max() < 1e-6


@pytest.mark.parametrize("name", SPECS)
def test_what_is_handed_in_is_left_as_it_was(name: str) -> None:
    images, plan = _batch(name)
    copies = [image.clone() for image in images]
    squares = torch.stack([_noise((plan.read_size, plan.read_size), row) for row in range(len(plan))])
    squares = squares.contiguous(memory_format=torch.channels_last)
    before = squares.clone()
    reference.execute(images, plan)
    finish(squares, plan).zero_()
    reference.first_read(images[0], plan, 0).zero_()
    assert all(torch.equal(image, copy) for image, copy in zip(images, copies, strict=True))
    assert torch.equal(squares, before)


def test_colour_leaves_its_input_as_it_was() -> None:
    images = _colourful(len(BATCH))
    jitter_color(images, _batch("colour")[1])
    assert torch.equal(images, _colourful(len(BATCH)))


@pytest.mark.needs_cuda
@pytest.mark.parametrize("name", [name for name, spec in SPECS.items() if spec.color_jitter is None])
def test_cuda_pixels_are_the_cpus_within_one_level(name: str) -> None:
    images, plan = _batch(name)
    cuda = reference.execute([image.cuda() for image in images], plan, **PIXELS)
    assert cuda.is_cuda
    assert cuda.is_contiguous(memory_format=torch.channels_last)
    assert _apart(cuda.cpu(), reference.execute(images, plan, **PIXELS)).max() < 1.01


@pytest.mark.needs_cuda
def test_cuda_colour_is_the_cpus() -> None:
    images, plan = _colourful(len(BATCH)), _batch("colour")[1]
    assert _apart(jitter_color(images.cuda(), plan).cpu(), jitter_color(images, plan)).max() < 1e-5
