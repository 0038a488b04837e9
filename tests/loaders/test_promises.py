"""What every loader promises of real files: exact evaluation, files that go bad, and nothing left behind."""

import gc
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageOps

from loaders import (
    NO_LABEL,
    BadImageError,
    Batch,
    Loader,
    LoaderConfig,
    PlanSpec,
    RandomResizedCrop,
    ResizeCenterCrop,
    Source,
    build_loader,
    open_data,
)
from loaders.ops import reference
from loaders.sampling import order
from loaders.sampling import plan as plans
from tests.conftest import PROMISING, smooth_image

TRAINING = PlanSpec(RandomResizedCrop(40), 20, RandomResizedCrop(32), horizontal_flip=0.5, vertical_flip=0.5)
EVALUATION = PlanSpec(ResizeCenterCrop(40, 32))
LEVELS = {"mean": (0.0, 0.0, 0.0), "std": (1 / 255,) * 3}  # normalises to the pixel values themselves

Build = Callable[..., Loader]


@pytest.fixture(params=PROMISING)
def build(request: pytest.FixtureRequest) -> Build:
    """Builds the loader under test, 8 images to a batch unless told otherwise."""

    def built(source: Source, *, training: bool = True, **options: Any) -> Loader:
        usual = {"spec": TRAINING if training else EVALUATION, "batch_size": 8, "workers": 2, **LEVELS}
        return build_loader(source, LoaderConfig(training=training, **{**usual, **options}), loader=request.param)

    return built


@pytest.fixture
def jpegs(image_folder: Path) -> Source:
    """24 of them."""
    return open_data(str(image_folder), root=image_folder)[0]


@pytest.fixture
def odd(image_folder: Path) -> Source:
    """As many files of other formats, colour modes and orientations among them."""
    folder = image_folder / "train" / "oak"
    kinds = {"grey.jpg": "L", "cmyk.jpg": "CMYK", "plain.png": "RGB", "alpha.png": "RGBA", "grey.png": "L"}
    kinds |= {"palette.gif": "P", "plain.bmp": "RGB", "plain.webp": "RGB", "plain.tif": "RGB"}
    for number, (name, mode) in enumerate(kinds.items()):
        Image.fromarray(smooth_image(50, 80, number)).convert(mode).save(folder / name)
    for orientation in range(2, 9):
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        for suffix in ("jpg", "png"):
            path = folder / f"turned {orientation}.{suffix}"
            Image.fromarray(smooth_image(50, 80, orientation)).save(path, exif=exif)
    for name, shape in {"wide.jpg": (3, 200), "tall.jpg": (200, 2), "dot.png": (1, 1)}.items():
        Image.fromarray(smooth_image(*shape, 9)).save(folder / name)
    return open_data(str(image_folder), root=image_folder)[0]


def by_pillow(source: Source, index: int) -> np.ndarray:
    with Image.open(source.images.describe(index)) as image:
        return np.array(ImageOps.exif_transpose(image).convert("RGB"))


def test_files_of_every_kind_are_read_as_the_reference_reads_them(build: Build, odd: Source) -> None:
    """DALI's resampling is up to 4 levels away here; a wrong turn or colour mode would be 50 and more."""
    spec = PlanSpec(RandomResizedCrop(32), horizontal_flip=0.5)
    batches = list(build(odd, spec=spec, batch_size=5))
    ids = order.shuffled(np.arange(len(odd)), seed=0, epoch=0)[: 5 * len(batches)]
    images, labels = (torch.cat(column) for column in zip(*batches, strict=True))
    assert labels.tolist() == odd.labels[ids].tolist()
    plan = plans.draw(spec, seed=0, epoch=0, ids=ids, sizes=odd.sizes[ids])
    wanted = reference.execute([by_pillow(odd, index) for index in ids.tolist()], plan, **LEVELS)
    apart = (images - wanted).abs()
    assert apart.max() < 6
    assert apart.mean() < 0.3


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("count", [21, 24])
def test_an_evaluation_sees_every_file_once_at_any_world_size(
    build: Build, jpegs: Source, world_size: int, count: int
) -> None:
    seen: list[int] = []
    source = jpegs.take(count)
    source = Source(
        source.name, tuple(map(str, range(count))), np.arange(count), source.sizes, source.images, source.fingerprint
    )
    for rank in range(world_size):
        loader = build(source, training=False, batch_size=4, rank=rank, world_size=world_size)
        batches = list(loader)
        assert len(batches) == len(loader) == -(-count // (4 * world_size))
        for images, labels in batches:
            padding = labels == NO_LABEL
            assert images[padding].count_nonzero() == 0
            assert (images[~padding].amax((1, 2, 3)) > 0).all()
            seen += labels[~padding].tolist()
    assert sorted(seen) == list(range(count))


def test_a_batch_is_the_receivers_own(build: Build, jpegs: Source) -> None:
    for dtype in (torch.float32, torch.uint8):
        options = {"dtype": dtype, "spec": PlanSpec(RandomResizedCrop(32))}
        wanted = [Batch(images.clone(), labels.clone()) for images, labels in build(jpegs, **options)]
        loader, kept = build(jpegs, **options), []
        for images, labels in loader:
            kept.append(Batch(images.clone(), labels.clone()))
            images.zero_()
            labels.zero_()
        assert same(kept, wanted)
        assert same(list(loader), wanted)


def same(ours: list[Batch], theirs: list[Batch]) -> bool:
    return len(ours) == len(theirs) and all(
        torch.equal(a, b) for pair in zip(ours, theirs, strict=True) for a, b in zip(*pair, strict=True)
    )


@pytest.mark.parametrize("training", [True, False])
def test_in_inference_mode_the_same_batches_come(build: Build, odd: Source, training: bool) -> None:
    wanted = list(build(odd, training=training))
    with torch.inference_mode():
        batches = list(build(odd, training=training))
    assert same(batches, wanted)


# --- files that go bad after they were indexed -----------------------------------------------------

GOING_BAD: dict[str, Callable[[Path], object]] = {
    "vanished": Path.unlink,
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-60]),
    "no image any more": lambda path: path.write_bytes(b"<html>Not Found</html>"),
    "of another size": lambda path: Image.fromarray(smooth_image(33, 44, 0)).save(path, "JPEG"),
}
going_bad = pytest.mark.parametrize("spoil", GOING_BAD.values(), ids=GOING_BAD)
BATCH, PLACE = 1, 3
"""Of the sample that goes bad."""


def victim(source: Source, training: bool) -> Path:
    sequence = order.shuffled(np.arange(24), seed=0, epoch=0) if training else np.arange(24)
    return Path(source.images.describe(sequence[8 * BATCH + PLACE]))


@going_bad
@pytest.mark.parametrize("training", [True, False])
def test_a_file_gone_bad_is_named(build: Build, jpegs: Source, spoil: Callable[[Path], object], training: bool) -> None:
    path = victim(jpegs, training)
    spoil(path)
    with pytest.raises(BadImageError, match=rf"{path}: .*\(it was good when indexed\)") as caught:
        list(build(jpegs, training=training))
    assert [bad.path for bad in caught.value.bad] == [str(path)]


@going_bad
def test_in_training_a_good_sample_takes_the_place_of_a_file_gone_bad(
    build: Build, jpegs: Source, spoil: Callable[[Path], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean = list(build(jpegs))
    monkeypatch.setenv("SATURATE_CACHE", str(tmp_path / "another cache"))  # nothing kept from before
    path = victim(jpegs, training=True)
    spoil(path)
    loader = build(jpegs, on_bad_image="skip")
    batches = list(loader)
    image, label = batches[BATCH].images[PLACE].clone(), batches[BATCH].labels[PLACE].clone()
    bad = clean[BATCH].images[PLACE].clone()
    batches[BATCH].images[PLACE], batches[BATCH].labels[PLACE] = bad, clean[BATCH].labels[PLACE]
    assert same(batches, clean)  # but for that sample
    assert not torch.equal(image, bad)
    near = [
        (float((row - image).abs().max()), int(its))
        for images, labels in clean
        for row, its in zip(images, labels, strict=True)
    ]
    # DALI's substitutes come from another decoder's resampling: near, not equal.
    assert min(near)[0] < 6
    assert min(near)[1] == int(label)
    assert [bad.path for bad in loader.bad_images] == [str(path)]


@going_bad
def test_in_an_evaluation_nothing_takes_the_place_of_a_file_gone_bad(
    build: Build, jpegs: Source, spoil: Callable[[Path], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = list(build(jpegs, training=False))
    monkeypatch.setenv("SATURATE_CACHE", str(tmp_path / "another cache"))
    path = victim(jpegs, training=False)
    spoil(path)
    loader = build(jpegs, training=False, on_bad_image="skip")
    wanted[BATCH].images[PLACE] = 0
    wanted[BATCH].labels[PLACE] = NO_LABEL
    assert same(list(loader), wanted)
    assert loader.skipped == {8 * BATCH + PLACE}
    assert [bad.path for bad in loader.bad_images] == [str(path)]


@pytest.mark.parametrize("training", [True, False])
def test_a_file_gone_bad_is_counted_once_however_many_epochs_meet_it(
    build: Build, jpegs: Source, training: bool
) -> None:
    victim(jpegs, training).unlink()
    loader = build(jpegs, training=training, on_bad_image="skip")
    for epoch in range(4):
        loader.set_epoch(epoch)
        assert len(list(loader)) == 3
    assert len(loader.bad_images) == 1


# --- nothing is left behind ------------------------------------------------------------------------


def held() -> tuple[int, int, int]:
    """Threads (of the system), open files and pieces of shared memory; of this process, as others test beside it."""
    gc.collect()
    threads, files = (len(os.listdir(f"/proc/self/{folder}")) for folder in ("task", "fd"))
    return threads, files, Path("/proc/self/maps").read_text().count("/dev/shm/")


def comes_back_to(before: tuple[int, int, int]) -> bool:
    """Whether no more than that is held, be it after a moment: a thread joined may take one to be gone."""
    for _ in range(50):
        if all(now <= then for now, then in zip(held(), before, strict=True)):
            return True
        time.sleep(0.1)
    return False


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="no /proc/self to count in")
def test_fifty_early_breaks_leave_no_thread_file_or_memory(build: Build, jpegs: Source) -> None:
    loader = build(jpegs, spec=PlanSpec(RandomResizedCrop(224)), batch_size=4)  # 2.4 MB a batch

    def leave_early() -> None:
        for _ in loader:
            break

    for _ in range(5):
        leave_early()
    before, memory = held(), resident_bytes()
    for _ in range(50):
        leave_early()
    assert comes_back_to(before)
    assert resident_bytes() - memory < 50e6  # a batch kept each time would be 120 MB


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="no /proc/self to count in")
def test_loaders_thrown_away_leave_no_thread_or_file(build: Build, jpegs: Source) -> None:
    for _ in range(2):
        next(iter(build(jpegs)))
    before = held()
    for _ in range(10):
        next(iter(build(jpegs)))
    assert comes_back_to(before)
