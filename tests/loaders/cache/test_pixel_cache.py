"""Kept pixels: what is kept, when it counts as complete, what interrupts a build, and how it goes on."""

import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torchvision.transforms.v2 import functional

from loaders import (
    BadImageError,
    InputError,
    Loader,
    LoaderConfig,
    PlanSpec,
    ResizeCenterCrop,
    Source,
    build_loader,
    open_data,
)
from loaders.cache import build as building
from loaders.cache import pixel_cache
from loaders.cache.build import with_pixel_cache
from loaders.cache.pixel_cache import Layout, Preprocessing, find_cache, open_cache
from loaders.sources.base import CachedPixels
from loaders.system.machine import cache_folder
from tests.conftest import smooth_image

SMALL = Preprocessing(short_side=40)


def train_of(folder: Path) -> Source:
    return open_data(str(folder), root=folder)[0]


def fail_on_bad(index: int, reason: str) -> None:
    raise AssertionError(f"image {index} is bad: {reason}")


def cached(source: Source, preprocessing: Preprocessing = SMALL, **options: object) -> CachedPixels:
    images = with_pixel_cache(source, preprocessing, **{"report": fail_on_bad, "workers": 2, **options}).images
    assert isinstance(images, CachedPixels)
    return images


def by_torchvision(path: str, short_side: int = 40) -> np.ndarray:
    """Pillow's pixels, upright, made smaller by torchvision: uint8 `[H, W, 3]`."""
    with Image.open(path) as image:
        pixels = np.array(ImageOps.exif_transpose(image).convert("RGB"))
    if min(pixels.shape[:2]) <= short_side:
        return pixels
    resized = functional.resize(torch.from_numpy(pixels).permute(2, 0, 1), [short_side], antialias=True)
    return resized.permute(1, 2, 0).numpy()


def require_right(images: CachedPixels, source: Source) -> None:
    for index in range(len(source)):
        np.testing.assert_array_equal(images.pixels_of(index), by_torchvision(source.images.describe(index)))


@pytest.fixture
def source(image_folder: Path) -> Source:
    """24 JPEGs whose shorter side is 57 to 75 pixels, but for two: 20 × 90, and a turned one."""
    ash = image_folder / "train" / "ash"
    Image.fromarray(smooth_image(20, 90, 5)).save(ash / "03.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(smooth_image(60, 110, 6)).save(ash / "04.jpg", exif=exif)
    return train_of(image_folder)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The ids of the images that are decoded for a cache, as it goes on."""
    ids: list[int] = []
    decode = building._Build._decoded

    def counted(build: building._Build, index: int, room: np.ndarray) -> np.ndarray:
        ids.append(index)
        return decode(build, index, room)

    monkeypatch.setattr(building._Build, "_decoded", counted)
    return ids


# --- what is kept --------------------------------------------------------------------------------


def test_images_are_kept_whole_at_the_short_side_and_none_is_enlarged(source: Source) -> None:
    images = cached(source)
    require_right(images, source)
    assert images.sizes[3].tolist() == [20, 90]
    assert images.sizes[4].tolist() == [73, 40]
    assert set(images.sizes.min(axis=1).tolist()) == {20, 40}
    assert not images.pixels.flags.writeable


def test_the_folder_holds_plain_numpy_files_and_a_manifest(source: Source) -> None:
    cached(source)
    folder = Layout.of(source, SMALL).folder
    assert folder.parent == Path(os.environ["SATURATE_CACHE"]) / "pixels"
    assert {path.name for path in folder.iterdir()} - {"lock"} == {
        "pixels.npy", "offsets.npy", "sizes.npy", "labels.npy", "manifest.json",
    }  # fmt: skip
    pixels, offsets, sizes, labels = (np.load(folder / f"{n}.npy") for n in ("pixels", "offsets", "sizes", "labels"))
    manifest = json.loads((folder / "manifest.json").read_text())
    for index in range(24):
        height, width = sizes[index, 0]
        image = pixels[offsets[index] : offsets[index + 1]].reshape(height, width, 3)
        np.testing.assert_array_equal(image, by_torchvision(source.images.describe(index)))
    np.testing.assert_array_equal(sizes[:, 1], source.sizes)
    np.testing.assert_array_equal(labels, source.labels)
    assert manifest["classes"] == ["ash", "oak"]
    assert manifest["fingerprint"] == source.fingerprint
    assert manifest["preprocessing"] == {"short_side": 40, "scaled_decoding": False}
    assert manifest["versions"]["torch"] == version("torch")
    assert manifest["bad"] == []


def test_the_source_stays_the_same_but_for_where_its_pixels_are(source: Source) -> None:
    served = with_pixel_cache(source, SMALL, report=fail_on_bad)
    assert served.fingerprint == source.fingerprint
    np.testing.assert_array_equal(served.sizes, source.sizes)
    assert served.images.describe(3) == source.images.describe(3)
    assert served.pixel_bytes == Layout.of(source, SMALL).bytes < source.pixel_bytes


def test_what_is_kept_is_not_decoded_again(source: Source, decoded: list[int]) -> None:
    cached(source)
    assert sorted(decoded) == list(range(24))
    require_right(cached(source), source)
    assert len(decoded) == 24


def test_another_size_is_another_cache(source: Source) -> None:
    small, large = cached(source), cached(source, Preprocessing(short_side=56))
    assert small.sizes[0].min() == 40
    assert large.sizes[0].min() == 56
    assert find_cache(source, SMALL) is not None


def test_scaled_decoding_is_close_and_is_another_cache(tmp_path: Path) -> None:
    for name in ("ash", "oak"):
        for number in range(3):
            (tmp_path / name).mkdir(exist_ok=True)
            Image.fromarray(smooth_image(240, 320, number)).save(tmp_path / name / f"{number}.jpg", quality=95)
    source = train_of(tmp_path)
    exact, scaled = cached(source), cached(source, Preprocessing(40, scaled_decoding=True))
    np.testing.assert_array_equal(exact.sizes, scaled.sizes)
    apart = abs(exact.pixels.astype(int) - scaled.pixels)
    assert 0 < apart.mean() < 3


# --- whose cache ---------------------------------------------------------------------------------


def test_of_a_set_that_is_kept_a_part_is_not_decoded_again(source: Source, decoded: list[int]) -> None:
    cached(source)
    part = source.take(7)
    images = cached(part)
    assert len(decoded) == 24
    for index in range(7):
        np.testing.assert_array_equal(images.pixels_of(index), by_torchvision(part.images.describe(index)))


def test_for_a_part_the_whole_set_is_not_decoded(source: Source, decoded: list[int]) -> None:
    part = source.take(7)
    require_right(cached(part), part)
    assert len(decoded) == 7


# --- when it counts as complete -------------------------------------------------------------------


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


SPOILT: dict[str, Callable[[Path], object]] = {
    "no manifest": lambda folder: (folder / "manifest.json").unlink(),
    "half a manifest": lambda folder: truncate(folder / "manifest.json"),
    "another manifest": lambda folder: (folder / "manifest.json").write_text("[]"),
    "no pixels": lambda folder: (folder / "pixels.npy").unlink(),
    "not all pixels": lambda folder: truncate(folder / "pixels.npy"),
    "no array": lambda folder: (folder / "pixels.npy").write_bytes(b"not an array"),
}


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT)
def test_a_cache_that_is_not_whole_is_made_again(source: Source, spoil: Callable[[Path], object]) -> None:
    cached(source)
    layout = Layout.of(source, SMALL)
    assert open_cache(source, layout) is not None
    spoil(layout.folder)
    assert open_cache(source, layout) is None
    require_right(cached(source), source)


def test_an_edit_that_keeps_the_length_is_noticed(source: Source, image_folder: Path) -> None:
    before = cached(source)
    path = Path(source.images.describe(0))
    length = path.stat().st_size
    Image.fromarray(smooth_image(*source.sizes[0], 77)).save(path, quality=40)
    path.write_bytes(path.read_bytes().ljust(length, b"\0"))
    edited = train_of(image_folder)
    assert edited.fingerprint == source.fingerprint
    after = cached(edited)
    require_right(after, edited)
    assert not np.array_equal(after.pixels_of(0), before.pixels_of(0))  # who has the old one open keeps it


def test_another_file_is_another_set(source: Source, image_folder: Path) -> None:
    cached(source)
    Image.fromarray(smooth_image(50, 60, 9)).save(image_folder / "train" / "oak" / "new.jpg")
    grown = train_of(image_folder)
    assert find_cache(grown, SMALL) is None
    require_right(cached(grown), grown)


# --- interrupted builds --------------------------------------------------------------------------


class MishapError(Exception):
    """Nothing that anybody expects."""


def test_a_build_goes_on_where_it_was_interrupted(
    source: Source, decoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building, "_IMAGES_PER_TASK", 2)

    def interrupt(done: int, total: int) -> None:
        assert total == 24
        if done >= 10:
            raise MishapError

    with pytest.raises(MishapError):
        cached(source, progress=interrupt, workers=1)
    assert find_cache(source, SMALL) is None
    decoded.clear()
    told: list[tuple[int, int]] = []
    require_right(cached(source, progress=lambda done, total: told.append((done, total))), source)
    assert sorted(decoded) == list(range(10, 24))
    assert told == [(done, 24) for done in range(12, 26, 2)]


STOPPING_BUILD = """
import sys, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from loaders import open_data
from loaders.cache import build as building
from loaders.cache.pixel_cache import Preprocessing

building._SECONDS_BETWEEN_SAVES, building._IMAGES_PER_TASK, building._TASKS_PER_WORKER = 0, 1, 2
decode = building._Build._decoded

class OneByOne(ThreadPoolExecutor):
    def submit(self, *given):
        task = super().submit(*given)
        task.exception()  # waits for it
        return task

def until_the_sixteenth(build, index, room):
    if index == 15:
        print("15", flush=True)
        time.sleep(600)  # it is killed here
    return decode(build, index, room)

building.ThreadPoolExecutor, building._Build._decoded = OneByOne, until_the_sixteenth
source = open_data(sys.argv[1], root=Path("."))[0]
building.with_pixel_cache(source, Preprocessing(40), report=print, workers=1)
"""


def test_a_build_that_was_killed_goes_on(source: Source, image_folder: Path, decoded: list[int]) -> None:
    command = [sys.executable, "-c", STOPPING_BUILD, str(image_folder)]
    root = Path(building.__file__).parents[2]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) as build:
        assert build.stdout is not None
        assert build.stdout.readline() == "15\n"
        build.send_signal(signal.SIGKILL)
    assert build.returncode == -signal.SIGKILL
    assert find_cache(source, SMALL) is None
    require_right(cached(source), source)
    assert sorted(decoded) == list(range(14, 24))  # 13 was counted last


def test_killed_before_its_last_step_nothing_is_decoded_again(
    source: Source, decoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise MishapError

    with monkeypatch.context() as patch:
        patch.setattr(building, "manifest_of", killed)
        with pytest.raises(MishapError):
            cached(source)
    assert find_cache(source, SMALL) is None
    require_right(cached(source), source)
    assert len(decoded) == 24


def test_a_file_edited_between_two_attempts_is_decoded_again(
    source: Source, image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building, "_IMAGES_PER_TASK", 2)

    def interrupt(done: int, _: int) -> None:
        if done >= 10:
            raise MishapError

    with pytest.raises(MishapError):
        cached(source, progress=interrupt)
    path = Path(source.images.describe(0))
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1_000_000_000))
    Image.fromarray(smooth_image(*source.sizes[0], 77)).save(path)
    edited = train_of(image_folder)
    require_right(cached(edited), edited)


def test_a_second_builder_waits_for_the_first_and_uses_what_it_made(source: Source, decoded: list[int]) -> None:
    folder = Layout.of(source, SMALL).folder
    folder.mkdir(parents=True)
    (folder / "progress.json").write_text('{"done": 5, "images": 24}')
    told: list[tuple[int, int]] = []
    with open(folder / "lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        second = threading.Thread(target=cached, args=(source,), kwargs={"progress": lambda *done: told.append(done)})
        second.start()
        deadline = time.monotonic() + 60
        while not told and time.monotonic() < deadline:
            time.sleep(0.01)
        assert told[0] == (5, 24)  # how far the first has come
        assert decoded == []
    second.join(60)
    assert sorted(decoded) == list(range(24))
    assert told[-1] == (24, 24)


def test_two_builders_at_once_decode_each_image_once(source: Source, decoded: list[int]) -> None:
    builders = [threading.Thread(target=cached, args=(source,)) for _ in range(3)]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join(60)
    assert sorted(decoded) == list(range(24))
    require_right(cached(source), source)


def test_what_was_built_is_opened_before_another_copy_of_the_set_may_take_its_place(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def alone(folder: Path, _: object) -> Iterator[None]:
        yield
        (folder / "manifest.json").unlink()  # the first thing that another process does when it gets the lock

    monkeypatch.setattr(building, "_alone", alone)
    require_right(cached(source), source)


def another_copy(image_folder: Path) -> Source:
    """The same files elsewhere, of other times."""
    copy = shutil.copytree(image_folder, image_folder.with_name("copy"))
    for path in copy.rglob("*.jpg"):
        os.utime(path, (1, 1))
    return train_of(copy)


def test_copies_of_a_set_do_not_make_each_others_cache_anew(
    source: Source, image_folder: Path, decoded: list[int]
) -> None:
    copy = another_copy(image_folder)
    assert copy.fingerprint == source.fingerprint
    for opened in (source, copy, source, copy):
        require_right(cached(opened), opened)
    assert len(decoded) == 2 * 24


def test_a_copy_of_the_same_times_uses_the_same_cache(source: Source, image_folder: Path, decoded: list[int]) -> None:
    cached(source)
    cached(train_of(shutil.copytree(image_folder, image_folder.with_name("copy"))))
    assert len(decoded) == 24


def test_the_cache_of_a_copy_that_is_gone_is_replaced(source: Source, image_folder: Path) -> None:
    copy = another_copy(image_folder)
    cached(copy)
    shutil.rmtree(image_folder.with_name("copy"))
    cached(source)
    assert len(list((cache_folder() / "pixels").iterdir())) == 1


# --- the disk ------------------------------------------------------------------------------------


def test_without_room_nothing_is_begun(source: Source, decoded: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "free_on_disk", lambda _: 50_000)
    with pytest.raises(InputError, match=r"\d+ kB are wanted, 50 kB are free.*--cache-size.*SATURATE_CACHE"):
        cached(source)
    assert decoded == []
    assert not list(Layout.of(source, SMALL).folder.glob("*.npy*"))


def test_a_disk_that_fills_up_is_told_and_the_build_goes_on_later(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = building._write_at

    def full(file: int, data: memoryview, place: int) -> None:
        if place > 60_000:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(file, data, place)

    monkeypatch.setattr(building, "_write_at", full)
    with pytest.raises(InputError, match=r"are wanted, .* are free"):
        cached(source)
    monkeypatch.setattr(building, "_write_at", write)
    require_right(cached(source), source)


def test_a_file_system_without_locks_is_told(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(building.fcntl, "flock", refuse)
    with pytest.raises(InputError, match=r"files cannot be locked there \(No locks available\); SATURATE_CACHE"):
        cached(source)


def test_pixels_that_cannot_be_mapped_are_told_and_stay(
    source: Source, decoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    with monkeypatch.context() as patch:
        patch.setattr(pixel_cache.mmap, "mmap", refuse)
        with pytest.raises(InputError, match=r"cannot be mapped into memory: Cannot allocate memory\..*ulimit -v"):
            cached(source)
    require_right(cached(source), source)
    assert len(decoded) == 24


def test_a_folder_that_cannot_be_made_is_told(source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SATURATE_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match=r"no pixels can be kept in .*file/pixels.*: Not a directory; SATURATE_CACHE"):
        cached(source)


# --- bad images ----------------------------------------------------------------------------------


def streamed(source: Source, on_bad_image: str = "raise") -> Loader:
    config = LoaderConfig(
        spec=PlanSpec(ResizeCenterCrop(40, 32)),
        training=False,
        batch_size=8,
        workers=2,
        on_bad_image=on_bad_image,
        cache_size=40,
    )
    return build_loader(source, config, loader="streamed")


def test_what_pillow_cannot_decode_takes_no_room_and_is_in_the_manifest(image_folder: Path) -> None:
    (image_folder / "train" / "ash" / "07.jpg").write_bytes(b"<html>Not Found</html>")
    source = train_of(image_folder)
    layout = Layout.of(source, SMALL)
    images = cached(source)
    assert images.sizes[7].tolist() == [0, 0]
    [bad] = json.loads((layout.folder / "manifest.json").read_text())["bad"]
    assert bad["path"].endswith("ash/07.jpg")
    assert "cannot identify" in bad["reason"]
    np.testing.assert_array_equal(images.pixels_of(8), by_torchvision(source.images.describe(8)))


def test_a_file_gone_bad_before_it_is_kept_is_named(source: Source) -> None:
    path = Path(source.images.describe(9))
    path.unlink()
    with pytest.raises(BadImageError, match=rf"{path}: No such file or directory \(it was good when indexed\)"):
        streamed(source).prepare()
    assert find_cache(source, SMALL) is None


def test_a_file_gone_bad_is_left_out_and_tried_again_the_next_time(source: Source, decoded: list[int]) -> None:
    path = Path(source.images.describe(9))
    hidden = path.rename(path.with_suffix(".hidden"))
    loader = streamed(source, "skip")
    labels = torch.cat([row for _, row in loader]).tolist()
    assert len([label for label in labels if label >= 0]) == 23
    assert [bad.path for bad in loader.bad_images] == [str(path)]
    assert loader.skipped == {9}
    hidden.rename(path)
    decoded.clear()
    loader = streamed(source, "skip")
    loader.prepare()
    assert decoded == [9]
    assert loader.bad_images == []
    require_right(cached(source), source)


def test_a_part_of_a_set_knows_what_the_whole_lacks(source: Source) -> None:
    Path(source.images.describe(9)).unlink()
    streamed(source, "skip").prepare()
    part = source.select(np.array([3, 9, 4]))
    with pytest.raises(BadImageError, match="1 of 3 images"):
        streamed(part.select(np.arange(3))).prepare()
