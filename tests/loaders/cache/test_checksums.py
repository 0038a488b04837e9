"""Pixels that are not what was written: they are noticed when a cache is opened, and while it is read."""

import json
import os
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from itertools import chain, repeat
from pathlib import Path

import numpy as np
import pytest

from loaders import InputError, Loader, LoaderConfig, PlanSpec, ResizeCenterCrop, Source, build_loader
from loaders.__main__ import main
from loaders.cache import build as building
from loaders.cache import checksums
from loaders.cache.checksums import PixelGuard, checksum, count_blocks
from loaders.cache.pixel_cache import Layout, find_cache, open_cache
from loaders.system.machine import cache_folder
from tests.loaders.cache.test_pixel_cache import SMALL, cached, require_right, train_of


@pytest.fixture
def source(image_folder: Path) -> Source:
    return train_of(image_folder)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 4 kB, of which two are verified at opening: the first and the last."""
    for module in (checksums, building):
        monkeypatch.setattr(module, "BLOCK", 4096)
    monkeypatch.setattr(checksums, "MOST_BYTES_VERIFIED_AT_OPENING", 0)
    monkeypatch.setattr(checksums, "SAMPLED_BLOCKS", 2)
    monkeypatch.setattr(checksums, "_SHARE_VERIFYING", 1.0)


def pixels_of(source: Source) -> Path:
    return Layout.of(source, SMALL).folder / "pixels.npy"


def overwrite(path: Path, place: int, data: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(place)
        file.write(data)


def zeroed(path: Path) -> None:
    overwrite(path, 4096, bytes(path.stat().st_size - 4096))


def one_bit(path: Path) -> None:
    overwrite(path, 5000, bytes([path.read_bytes()[5000] ^ 1]))


def of_the_same_time(path: Path) -> None:
    """As a disk does it that returns other bytes than were written: neither length nor time change."""
    stat = path.stat()
    one_bit(path)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.mark.parametrize("spoil", [zeroed, one_bit, of_the_same_time])
def test_wrong_bytes_of_the_right_length_are_decoded_again(source: Source, spoil: Callable[[Path], None]) -> None:
    cached(source)
    spoil(pixels_of(source))
    require_right(cached(source), source)


@pytest.mark.usefixtures("small_blocks")
def test_the_manifest_has_the_checksum_of_each_block(source: Source) -> None:
    cached(source)
    path = pixels_of(source)
    manifest = json.loads(path.with_name("manifest.json").read_text())["checksums"]
    with open(path, "rb") as file:
        blocks = [checksum(file.fileno(), block) for block in range(count_blocks(path.stat().st_size))]
    assert manifest == {"block": 4096, "crc32": blocks}
    assert len(blocks) > 10


def test_a_cache_that_was_written_without_checksums_is_still_read(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached(source)
    manifest = pixels_of(source).with_name("manifest.json")
    content = json.loads(manifest.read_text())
    del content["checksums"]
    manifest.write_text(json.dumps(content, indent=1))
    monkeypatch.setattr(building, "build_cache", None)  # it would be called
    require_right(cached(source), source)


def test_an_unchanged_cache_is_verified_once_in_a_process(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    cached(source)
    monkeypatch.setattr(checksums, "damaged_blocks", None)  # it would be called
    assert find_cache(source, SMALL) is not None


# --- large files ---------------------------------------------------------------------------------


def damage_the_middle(source: Source) -> Path:
    """Damages a block that opening does not verify."""
    cached(source)
    path = pixels_of(source)
    one_bit(path)  # in the second block
    return path


@pytest.mark.usefixtures("small_blocks")
def test_of_a_large_file_the_rest_is_verified_while_it_is_read(source: Source) -> None:
    path = damage_the_middle(source)
    images = cached(source)
    guard = PixelGuard(images)
    with guard.verifying():
        for thread in threading.enumerate():
            if thread.name == "saturate-verify":
                thread.join(60)
    with pytest.raises(InputError, match=rf"{path} is damaged: bytes 4,096 to 8,192 .*the cache is built anew"):
        guard.check()
    require_right(cached(source), source)


@pytest.mark.usefixtures("small_blocks")
def test_every_block_may_be_verified_at_opening(source: Source) -> None:
    damage_the_middle(source)
    layout = Layout.of(source, SMALL)
    assert open_cache(source, layout) is not None
    assert open_cache(source, layout, every_block=True) is None
    assert open_cache(source, layout) is None  # now that it is known
    require_right(cached(source), source)


@pytest.mark.usefixtures("small_blocks")
def test_what_is_written_to_after_it_was_verified_is_verified_in_the_next_pass(source: Source) -> None:
    cached(source)
    images = find_cache(source, SMALL, every_block=True)
    assert images is not None
    guard = PixelGuard(images)
    with guard.verifying():
        assert "saturate-verify" not in [thread.name for thread in threading.enumerate()]
    one_bit(images.path)
    for _ in range(1000):  # a pass may end before a block is verified; the next one goes on
        with guard.verifying():
            pass
        with suppress(InputError):
            guard.check()
            continue
        return
    raise AssertionError("the damage was not noticed")


@pytest.mark.usefixtures("small_blocks")
def test_what_another_process_completes_meanwhile_is_no_damage(source: Source) -> None:
    images = cached(source)
    guard = PixelGuard(images)
    one_bit(images.path)
    images.path.with_name("manifest.json").unlink()  # the first thing that it does
    with guard.verifying():
        pass
    guard.check()


@pytest.mark.usefixtures("small_blocks")
def test_a_training_loader_reports_damage_and_leaves_no_thread(source: Source) -> None:
    loader = streamed(source)
    loader.prepare()
    one_bit(pixels_of(source))
    with pytest.raises(InputError, match="is damaged"):
        deque(chain.from_iterable(repeat(loader, 200)), maxlen=0)
    assert "saturate-verify" not in [thread.name for thread in threading.enumerate()]


@pytest.mark.usefixtures("small_blocks")
def test_the_command_verifies_every_block(image_folder: Path) -> None:
    arguments = ["cache", str(image_folder), "--cache-size", "40"]
    assert main(arguments) == 0
    paths = sorted(cache_folder().glob("pixels/*/pixels.npy"))
    whole = [path.read_bytes() for path in paths]
    for path in paths:
        one_bit(path)
    assert main(arguments) == 0
    assert [path.read_bytes() for path in paths] == whole


# --- builds that end early -----------------------------------------------------------------------


@pytest.mark.usefixtures("small_blocks")
def test_after_a_power_failure_a_build_goes_on_from_the_first_block_that_is_damaged(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that acknowledged what it had not stored: the progress counts images whose pixels are zeros."""
    decoded: list[int] = []
    decode = building._Build._decoded

    def noted(build: building._Build, index: int, room: np.ndarray) -> np.ndarray:
        decoded.append(index)
        return decode(build, index, room)

    class EndedError(Exception):
        pass

    def end(done: int, _: int) -> None:
        if done >= 16:
            raise EndedError

    monkeypatch.setattr(building._Build, "_decoded", noted)
    monkeypatch.setattr(building, "_IMAGES_PER_TASK", 2)
    with pytest.raises(EndedError):
        cached(source, progress=end, workers=1)
    layout = Layout.of(source, SMALL)
    part = layout.folder / "pixels.npy.part"
    damaged = (part.stat().st_size - layout.bytes + int(layout.offsets[9])) // 4096  # the block that image 9 begins in
    overwrite(part, damaged * 4096, bytes(4096))
    decoded.clear()
    require_right(cached(source), source)
    assert min(decoded) in (8, 9)
    assert sorted(decoded) == list(range(min(decoded), 24))


@pytest.mark.usefixtures("small_blocks")
def test_images_that_are_read_later_have_checksums_as_well(source: Source) -> None:
    path = Path(source.images.describe(9))
    hidden = path.rename(path.with_suffix(".hidden"))
    cached(source, report=lambda *_: None)
    hidden.rename(path)
    require_right(cached(source), source)
    checksums._verdicts.clear()
    assert open_cache(source, Layout.of(source, SMALL), every_block=True) is not None


# --- files that are cut short ---------------------------------------------------------------------


def streamed(source: Source) -> Loader:
    config = LoaderConfig(
        spec=PlanSpec(ResizeCenterCrop(40, 32)), training=False, batch_size=8, workers=2, cache_size=40
    )
    return build_loader(source, config, loader="streamed")


CUT_SHORT = """
import os, sys
from loaders import InputError
from loaders.backends import streamed
from loaders.backends.streamed import StagedExecutor
from tests.loaders.cache.test_checksums import pixels_of, streamed as loader_of, train_of

if sys.argv[2] == "staged":
    streamed.executor_of_pixels = StagedExecutor
source = train_of(sys.argv[1])
loader = loader_of(source)
assert len(list(loader)) == 3
os.truncate(pixels_of(source), 4096)
try:
    list(loader)
except InputError as error:
    print(error)
"""


@pytest.mark.parametrize("executor", ["threads", "staged"])
def test_a_cache_that_is_cut_short_between_two_passes_is_an_error(image_folder: Path, executor: str) -> None:
    """In a process of its own, as a read behind the end of a mapped file kills it by SIGBUS."""
    command = [sys.executable, "-c", CUT_SHORT, str(image_folder), executor]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[3])
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "pixels.npy was cut short while it was read: run this again, and the cache is built anew" in ended.stdout
