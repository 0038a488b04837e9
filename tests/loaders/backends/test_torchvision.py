"""The loader `torchvision`: its pixels, its threads, and files that go bad after they were indexed."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

from loaders import (
    NO_LABEL,
    BadImageError,
    Batch,
    ColorJitter,
    Loader,
    LoaderConfig,
    PaddedRandomCrop,
    PlanSpec,
    RandomResizedCrop,
    ResizeCenterCrop,
    Source,
    build_loader,
    open_data,
)
from loaders.backends import threads, torchvision
from loaders.ops import reference
from loaders.sampling import order
from loaders.sampling import plan as plans
from loaders.sampling.plan import IMAGENET_MEAN, IMAGENET_STD, Plan
from loaders.sources import PixelArray
from tests.conftest import host_may_not_wait, smooth_image

MEAN, STD = (torch.tensor(IMAGENET_MEAN)[:, None, None], torch.tensor(IMAGENET_STD)[:, None, None])

CLASSIC = PlanSpec(
    RandomResizedCrop(256, scale=(0.8, 1.0)), rotation=15, second_crop=RandomResizedCrop(224), horizontal_flip=0.5
)
ONE_READ = {
    "random resized crop": PlanSpec(RandomResizedCrop(48), horizontal_flip=0.5),
    "centre crop": PlanSpec(ResizeCenterCrop(40, 32)),
    "padded crop": PlanSpec(PaddedRandomCrop(32, 32, 4), horizontal_flip=0.5),
    "crop mostly of padding": PlanSpec(PaddedRandomCrop(10, 12, 16), horizontal_flip=0.5, vertical_flip=0.5),
}
SPECS = ONE_READ | {
    "classic fine-tuning": CLASSIC,
    "rotation alone": PlanSpec(ResizeCenterCrop(48, 40), rotation=90),
    "colour": PlanSpec(
        RandomResizedCrop(32), color_jitter=ColorJitter((0.6, 1.4), (0.6, 1.4), (0.6, 1.4), (-0.1, 0.1))
    ),
}
EVERYTHING = PlanSpec(
    RandomResizedCrop(40),
    rotation=20,
    second_crop=RandomResizedCrop(32),
    horizontal_flip=0.5,
    vertical_flip=0.5,
    color_jitter=ColorJitter((0.6, 1.4), (0.6, 1.4), (0.6, 1.4), (-0.1, 0.1)),
)
SMALL = ONE_READ["random resized crop"]


def build(source: Source, spec: PlanSpec = SMALL, **options: Any) -> Loader:
    config = LoaderConfig(**{"spec": spec, "training": True, "batch_size": 8, "workers": 2, **options})
    return build_loader(source, config, loader="torchvision")


def numbered(count: int) -> Source:
    """Images of 32 × 40 pixels in memory, none of them black, each a class of its own."""
    pixels = np.stack([np.maximum(smooth_image(32, 40, seed), 1) for seed in range(count)])
    sizes = np.full((count, 2), (32, 40), np.int32)
    return Source("numbered", tuple(map(str, range(count))), np.arange(count), sizes, PixelArray(pixels), "f")


@pytest.fixture
def files(image_folder: Path) -> Source:
    """32 files of several formats, colour modes and shapes, one of them turned by its EXIF orientation."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    odd = {
        "turned.jpg": (smooth_image(50, 80, 1), "RGB", {"exif": exif}),
        "grey.jpg": (smooth_image(50, 80, 2), "L", {}),
        "cmyk.jpg": (smooth_image(50, 80, 3), "CMYK", {}),
        "alpha.png": (smooth_image(50, 80, 4), "RGBA", {}),
        "palette.gif": (smooth_image(50, 80, 5), "P", {}),
        "wide.jpg": (smooth_image(3, 200, 6), "RGB", {}),
        "tall.jpg": (smooth_image(200, 2, 7), "RGB", {}),
        "dot.png": (smooth_image(1, 1, 8), "RGB", {}),
    }
    for name, (pixels, mode, options) in odd.items():
        Image.fromarray(pixels).convert(mode).save(image_folder / "train" / "oak" / name, **options)
    return open_data(str(image_folder), root=image_folder)[0]


@pytest.fixture(params=["files", "pixels"])
def source(request: pytest.FixtureRequest) -> Source:
    return request.getfixturevalue("files") if request.param == "files" else numbered(32)


def pixels_of(source: Source, index: int) -> np.ndarray:
    """By Pillow: uint8 `[H, W, 3]`, upright."""
    if isinstance(source.images, PixelArray):
        return source.images.pixels[index]
    with Image.open(source.images.describe(index)) as image:
        return np.array(ImageOps.exif_transpose(image).convert("RGB"))


def drawn(source: Source, ids: np.ndarray, spec: PlanSpec, epoch: int = 0) -> tuple[list[np.ndarray], Plan]:
    """Images of these samples, and the plans that belong to them."""
    images = [pixels_of(source, index) for index in ids]
    sizes = np.array([image.shape[:2] for image in images])
    return images, plans.draw(spec, seed=0, epoch=epoch, ids=ids, sizes=sizes)


def levels(images: Tensor) -> np.ndarray:
    """What was normalised, as 0 to 255: `[B, S, S, 3]`."""
    return (images.float() * STD + MEAN).mul(255).permute(0, 2, 3, 1).numpy()


def same(ours: Iterable[Batch], theirs: Iterable[Batch]) -> bool:
    ours, theirs = list(ours), list(theirs)
    return len(ours) == len(theirs) and all(
        torch.equal(a, b) for pair in zip(ours, theirs, strict=True) for a, b in zip(*pair, strict=True)
    )


# --- pixels --------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_batch_is_exactly_what_the_reference_makes_of_its_plans(
    source: Source, spec: PlanSpec, dtype: torch.dtype
) -> None:
    loader = build(source, spec, dtype=dtype)
    loader.set_epoch(2)
    rows = order.shuffled(np.arange(32), seed=0, epoch=2).reshape(4, 8)
    for ids, (images, labels) in zip(rows, loader, strict=True):
        decoded, plan = drawn(source, ids, spec, epoch=2)
        wanted = reference.execute(decoded, plan, dtype=dtype)
        assert torch.equal(images, wanted)
        assert labels.tolist() == source.labels[ids].tolist()
        assert images.is_contiguous(memory_format=torch.channels_last)
        assert (images.dtype, labels.dtype) == (dtype, torch.int64)


def plainly(pixels: np.ndarray, plan: Plan, row: int) -> np.ndarray:
    """The plan's one read by Pillow, which pads with black where a crop leaves the image."""
    top, left, height, width = plan.box[row].tolist()
    y, x = plan.window[row].tolist()
    image = Image.fromarray(pixels).crop((left, top, left + width, top + height))
    image = image.resize(tuple(plan.resized[row, ::-1].tolist()), Image.Resampling.BILINEAR)
    image = image.crop((x, y, x + plan.read_size, y + plan.read_size))
    return np.asarray(image)[:: -1 if plan.flip[row, 1] else 1, :: -1 if plan.flip[row, 0] else 1].astype(float)


@pytest.mark.parametrize("spec", ONE_READ.values(), ids=ONE_READ)
def test_one_read_is_within_two_grey_levels_of_plain_pillow(source: Source, spec: PlanSpec) -> None:
    rows = order.shuffled(np.arange(32), seed=0, epoch=0).reshape(4, 8)
    for ids, (images, _) in zip(rows, build(source, spec), strict=True):
        decoded, plan = drawn(source, ids, spec)
        apart = abs(levels(images) - [plainly(pixels, plan, row) for row, pixels in enumerate(decoded)])
        assert apart.max() < 2.01
        assert apart.mean() < 0.1


def test_a_padded_crop_is_black_just_where_it_leaves_the_image() -> None:
    spec = PlanSpec(PaddedRandomCrop(32, 32, 8))
    source = numbered(32)
    [(images, labels)] = build(source, spec, batch_size=32)
    window = drawn(source, labels.numpy(), spec)[1].window
    places = np.arange(32)
    for image, (top, left) in zip(levels(images), window, strict=True):
        rows, columns = places + top, places + left
        inside = ((rows >= 0) & (rows < 32))[:, None] & ((columns >= 0) & (columns < 40))
        np.testing.assert_array_equal(image.round().max(axis=2) > 0, inside)
    assert (window < 0).any(axis=0).all()


def staged(pixels: np.ndarray, plan: Plan, row: int) -> np.ndarray:
    """The classic fine-tuning plan in Pillow's stages: crop, resize, rotate, crop, resize, flip."""
    assert plan.inner is not None
    assert plan.angle is not None
    image = Image.fromarray(pixels)
    for stage, ((top, left, height, width), side) in enumerate(
        [(plan.box[row], plan.read_size), (plan.inner[row], plan.size)]
    ):
        box = (int(left), int(top), int(left + width), int(top + height))
        image = image.crop(box).resize((side, side), Image.Resampling.BILINEAR)
        if stage == 0:
            image = image.rotate(float(plan.angle[row]), Image.Resampling.BILINEAR)
    return np.asarray(ImageOps.mirror(image) if plan.flip[row, 0] else image).astype(float)


def apart_on_photos(
    photos: Path, spec: PlanSpec, by_pillow: Callable[[np.ndarray, Plan, int], np.ndarray]
) -> np.ndarray:
    """Grey levels between the loader and Pillow, over 48 photographs."""
    source = open_data(str(photos), root=photos)[0].take(48)
    decoded, plan = drawn(source, order.shuffled(np.arange(48), seed=0, epoch=0), spec)
    [(images, _)] = build(source, spec, batch_size=48)
    return abs(levels(images) - [by_pillow(pixels, plan, row) for row, pixels in enumerate(decoded)])


@pytest.mark.needs_photos
def test_one_read_of_real_photographs_is_within_a_grey_level_of_plain_pillow(photos: Path) -> None:
    """Measured: mean 0.028, 99th percentile 1, largest 1."""
    apart = apart_on_photos(photos, PlanSpec(RandomResizedCrop(224), horizontal_flip=0.5), plainly)
    assert apart.max() < 1.01
    assert apart.mean() < 0.05


@pytest.mark.needs_photos
def test_two_reads_of_real_photographs_are_close_to_pillows_three_stages(photos: Path) -> None:
    """Measured: mean 1.5, 99th percentile 12, largest 121 (at the black corners); other photographs are 82 apart."""
    apart = apart_on_photos(photos, CLASSIC, staged)
    assert apart.mean() < 2
    assert np.quantile(apart, 0.99) < 15


@pytest.mark.parametrize("workers", [1, 5])
@pytest.mark.parametrize("training", [True, False])
def test_the_number_of_workers_changes_nothing(source: Source, training: bool, workers: int) -> None:
    options = {"spec": EVERYTHING, "training": training, "batch_size": 5}
    assert same(build(source, workers=workers, **options), build(source, workers=2, **options))


@pytest.mark.parametrize("at_once", [1, 10, 17])
def test_how_many_plans_are_drawn_at_once_changes_nothing(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    wanted = list(build(numbered(32), EVERYTHING, batch_size=5))
    monkeypatch.setattr("loaders.sampling.planner.SAMPLES_DRAWN_AT_ONCE", at_once)
    assert same(build(numbered(32), EVERYTHING, batch_size=5), wanted)


def test_it_normalises_by_the_configured_mean_and_deviation() -> None:
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    [(ours, _), *_] = build(numbered(8), mean=mean, std=std)
    [(usual, _), *_] = build(numbered(8))
    wanted = (usual * STD + MEAN - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    torch.testing.assert_close(ours, wanted, atol=1e-5, rtol=0)


def test_pixels_that_must_not_be_written_to_serve_as_well() -> None:
    """A memory-mapped file, for one."""
    source, wanted = numbered(16), list(build(numbered(16)))
    assert isinstance(source.images, PixelArray)
    source.images.pixels.flags.writeable = False
    assert same(build(source), wanted)


@pytest.mark.needs_photos
@pytest.mark.parametrize(("size", "changed"), [(224, False), (112, True)])
def test_scaled_decoding_of_real_photographs_stays_within_its_tolerance(photos: Path, size: int, changed: bool) -> None:
    """Most crops of 224 px need all the pixels these photographs have; at 112 px a quarter of them will do."""
    source, _ = open_data(str(photos), root=photos)
    spec = PlanSpec(ResizeCenterCrop(size * 8 // 7, size))
    options = {"training": False, "dtype": torch.uint8, "on_bad_image": "skip"}
    source = source.take(64)
    whole, scaled = (build(source, spec, scaled_decoding=on, **options) for on in (False, True))
    pairs = zip(whole, scaled, strict=True)
    apart = torch.cat([(a.int() - b.int()).abs().flatten() for (a, _), (b, _) in pairs]).numpy()
    assert (apart.mean() > 1) == changed
    assert apart.mean() < 4
    assert np.percentile(apart, 99) < 32


# --- which samples come --------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [0, 299])
def test_padding_may_stand_beside_an_image_of_unknown_size(bad: int) -> None:
    source = numbered(300)
    source.sizes[bad] = 0
    source.bad[bad] = "it is broken"
    loader = build(source, ONE_READ["centre crop"], training=False, batch_size=32, on_bad_image="skip")
    labels = torch.cat([row for _, row in loader]).tolist()
    assert labels == [label for label in range(300) if label != bad] + [NO_LABEL] * 21


@pytest.mark.parametrize(("count", "batches"), [(32, 4), (33, 4), (39, 4), (40, 5)])
def test_training_drops_an_incomplete_last_batch(count: int, batches: int) -> None:
    loader = build(numbered(count))
    delivered = [labels.tolist() for _, labels in loader]
    assert len(loader) == len(delivered) == batches
    assert delivered == order.shuffled(np.arange(count), seed=0, epoch=0)[: 8 * batches].reshape(-1, 8).tolist()


# --- how far ahead -------------------------------------------------------------------------------


def test_only_a_few_batches_are_made_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[int] = []

    def counted(images: PixelArray, index: int, **_: object) -> np.ndarray:
        loaded.append(index)
        return load(images, index)

    load = torchvision.load_pixels
    monkeypatch.setattr(torchvision, "load_pixels", counted)
    with build(numbered(160)) as loader:
        batches = iter(loader)
        for taken in range(1, 4):
            next(batches)
            deadline = time.monotonic() + 60
            while len(loaded) <= 8 * taken and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(0.1)  # in which the threads would do more than they are to do
            assert 8 * taken < len(loaded) <= 8 * (taken + threads.AHEAD)


# --- nothing is left behind ----------------------------------------------------------------------


def take_one_and_break(loader: Loader) -> None:
    for _ in loader:
        break


def fail_in_the_loop(loader: Loader) -> None:
    def loop() -> None:
        for _ in loader:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        loop()


def take_one_and_close(loader: Loader) -> None:
    batches = iter(loader)
    next(batches)
    loader.close()
    assert list(batches) == []


def take_one_in_a_with_block(loader: Loader) -> None:
    with loader:
        batches = iter(loader)
        next(batches)
    assert list(batches) == []


def take_one_and_set_the_epoch(loader: Loader) -> None:
    batches = iter(loader)
    next(batches)
    loader.set_epoch(loader.epoch + 1)
    assert list(batches) == []


def take_one_and_drop_the_loader(loader: Loader) -> None:
    next(iter(build(loader.source)))


def take_all(loader: Loader) -> None:
    for _ in loader:
        pass


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="no /proc/self/fd to count open files in")
@pytest.mark.parametrize(
    "leave",
    [
        take_one_and_break,
        fail_in_the_loop,
        take_one_and_close,
        take_one_in_a_with_block,
        take_one_and_set_the_epoch,
        take_one_and_drop_the_loader,
        take_all,
    ],
)
def test_fifty_times_leave_no_thread_and_no_file_open(files: Source, leave: Callable[[Loader], None]) -> None:
    loader = build(files, batch_size=4)
    take_all(loader)  # what torch itself sets up on first use
    threads, open_files = set(threading.enumerate()), len(os.listdir("/proc/self/fd"))
    for _ in range(50):
        leave(loader)
    assert set(threading.enumerate()) <= threads
    assert len(os.listdir("/proc/self/fd")) <= open_files


class MishapError(Exception):
    """Nothing that anybody expects."""


def test_an_exception_in_a_thread_arrives_in_the_loop_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(images: PixelArray, index: int, **_: object) -> np.ndarray:
        if index == fatal:
            raise MishapError(f"at {index}")
        return load(images, index)

    load, fatal = torchvision.load_pixels, order.shuffled(np.arange(40), seed=0, epoch=0)[19]
    monkeypatch.setattr(torchvision, "load_pixels", fail)
    before = set(threading.enumerate())
    batches = iter(build(numbered(40)))
    next(batches)
    next(batches)
    with pytest.raises(MishapError, match=f"at {fatal}"):
        next(batches)
    assert set(threading.enumerate()) <= before


def test_ctrl_c_while_waiting_for_a_batch_ends_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    def press_ctrl_c(images: PixelArray, index: int, **_: object) -> np.ndarray:
        if not pressed.is_set():
            pressed.set()
            time.sleep(0.2)  # by then the loop waits
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        return load(images, index)

    load, pressed = torchvision.load_pixels, threading.Event()
    monkeypatch.setattr(torchvision, "load_pixels", press_ctrl_c)
    before = set(threading.enumerate())
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell's background jobs
    try:
        with pytest.raises(KeyboardInterrupt):
            take_all(build(numbered(40)))
    finally:
        signal.signal(signal.SIGINT, handler)
    assert set(threading.enumerate()) <= before


# --- samples that go bad after they were indexed: more is in test_promises.py ----------------------


def unreadable(monkeypatch: pytest.MonkeyPatch, broken: Iterable[int]) -> None:
    """Lets these samples of a source in memory fail to load."""
    failing, load = set(broken), torchvision.load_pixels

    def read(images: PixelArray, index: int, **_: object) -> np.ndarray:
        if index in failing:
            raise OSError("Input/output error")
        return load(images, index)

    monkeypatch.setattr(torchvision, "load_pixels", read)


def test_a_substitute_gone_bad_has_a_substitute_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two neighbours in the order, of 250: within the one percent that may be bad."""
    sequence = order.shuffled(np.arange(250), seed=0, epoch=0)
    unreadable(monkeypatch, sequence[100:102])
    loader = build(numbered(250), batch_size=10, on_bad_image="skip")
    delivered = [label for _, labels in loader for label in labels.tolist()]
    expected = sequence.tolist()
    assert not {*delivered} & {*expected[100:102]}
    assert delivered[:100] + delivered[102:] == expected[:100] + expected[102:]
    assert {bad.path for bad in loader.bad_images} == {f"image {index}" for index in expected[100:102]}


def test_where_nothing_is_left_to_substitute_it_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[int] = []

    def read(_: PixelArray, index: int, **__: object) -> np.ndarray:
        tries.append(index)
        raise MishapError("tried for ever") if len(tries) > 50 else OSError("Input/output error")

    monkeypatch.setattr(torchvision, "load_pixels", read)
    with pytest.raises(BadImageError):
        list(build(numbered(1), batch_size=1, on_bad_image="skip"))


@pytest.mark.parametrize("training", [True, False])
def test_more_than_one_percent_gone_bad_is_an_error(monkeypatch: pytest.MonkeyPatch, training: bool) -> None:
    unreadable(monkeypatch, range(3))
    loader = build(numbered(250), training=training, batch_size=10, on_bad_image="skip")
    with pytest.raises(BadImageError, match=r"3 of 250 images .*\n(.*\n)*That is more than 1%"):
        list(loader)


def test_images_known_to_be_bad_and_gone_bad_count_together(image_folder: Path) -> None:
    oak = image_folder / "train" / "oak"
    (oak / "11.jpg").write_bytes(b"")
    source = open_data(str(image_folder), root=image_folder)[0]
    (oak / "10.jpg").unlink()
    with pytest.raises(BadImageError, match=r"2 of 24 images .*\n(.*\n)*That is more than 1%") as caught:
        list(build(source, training=False, on_bad_image="skip"))
    assert sorted(Path(bad.path).name for bad in caught.value.bad) == ["10.jpg", "11.jpg"]


@pytest.mark.needs_cuda
def test_on_a_gpu_batches_are_those_of_the_cpu() -> None:
    source = numbered(40)
    gpu = torch.device("cuda")
    batches = zip(build(source), build(source, device=gpu), strict=True)
    for (images, labels), (sent, sent_labels) in batches:
        assert (sent.device.type, sent_labels.device.type) == ("cuda", "cuda")
        assert torch.equal(labels, sent_labels.cpu())
        torch.testing.assert_close(images, sent.cpu(), rtol=1e-3, atol=1e-3)


@pytest.mark.needs_cuda
def test_the_host_never_waits_for_the_gpu() -> None:
    loader = build(numbered(40), device=torch.device("cuda"))
    list(loader)  # constants are sent once, with the first batch
    loader.set_epoch(1)
    with host_may_not_wait():
        list(loader)
