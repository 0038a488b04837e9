"""The loader `ffcv`: its file, and its compiled kernel against the reference."""

import importlib.util
import os
import subprocess
import sys
from contextlib import suppress
from functools import partial
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from loaders import (
    BadImageError,
    InputError,
    Loader,
    LoaderConfig,
    PaddedRandomCrop,
    PlanSpec,
    RandomResizedCrop,
    ResizeCenterCrop,
    Source,
    build_loader,
    choose_loader,
    open_data,
)
from loaders.backends import ffcv as backend
from loaders.backends.executor import Backend
from loaders.backends.ffcv import FFCVExecutor
from loaders.factory import assemble
from loaders.ops import reference
from loaders.sampling import plan as plans
from loaders.sources import PixelArray
from loaders.system.machine import cache_folder
from tests.conftest import smooth_image

SPEC = PlanSpec(RandomResizedCrop(32), horizontal_flip=0.5)
SIZES = [(int(h), int(w)) for h, w in np.random.default_rng(0).integers(2, 300, (30, 2))]
SIZES += [(1, 600), (600, 1), (2, 999), (1, 1)]


def build(source: Source, *, spec: PlanSpec = SPEC, training: bool = True, **options: Any) -> Loader:
    config = LoaderConfig(spec=spec, training=training, batch_size=4, workers=2, dtype=torch.uint8)
    return assemble(source, config, Backend("ffcv", "FFCV", partial(FFCVExecutor, **options)))


JPEG, RAW = 0, 1
"""FFCV's numbers for how an image is stored."""


def beton_of(loader: Loader) -> Any:
    """The file that a prepared loader reads."""
    from loaders.backends.ffcv_file import Beton

    loader.prepare()
    return Beton.open(loader.executor.path)


def images(loader: Any) -> torch.Tensor:
    return torch.cat([images for images, _ in loader])


@pytest.fixture
def jpegs(image_folder: Path) -> Source:
    """24 of them."""
    return open_data(str(image_folder), root=image_folder)[0]


def by_torchvision(source: Source, spec: PlanSpec = SPEC, training: bool = True) -> torch.Tensor:
    config = LoaderConfig(spec=spec, training=training, batch_size=4, workers=2, dtype=torch.uint8)
    return images(build_loader(source, config, loader="torchvision"))


def files() -> list[str]:
    """What lies in the cache's folder, lock apart."""
    return sorted(set(os.listdir(cache_folder() / "ffcv")) - {".lock"})


# --- the kernel --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def noise() -> list[np.ndarray]:
    random = np.random.default_rng(1)
    return [random.integers(0, 256, (*size, 3), np.uint8) for size in SIZES]


@pytest.mark.needs_ffcv
@pytest.mark.parametrize(
    "crop",
    [
        RandomResizedCrop(17),
        RandomResizedCrop(224),
        ResizeCenterCrop(73, 64),
        ResizeCenterCrop(40, 40),
        PaddedRandomCrop(20, 24, 5),
        PaddedRandomCrop(30, 8, 40),
    ],
    ids=str,
)
def test_it_reads_noise_of_any_size_as_the_reference_does_to_the_bit(
    crop: RandomResizedCrop | ResizeCenterCrop | PaddedRandomCrop, noise: list[np.ndarray]
) -> None:
    kernel, _ = backend._libraries()
    spec = PlanSpec(crop, horizontal_flip=0.5, vertical_flip=0.5)
    plan = plans.draw(spec, seed=0, epoch=0, ids=np.arange(len(noise)), sizes=np.array(SIZES))
    lengths = [image.size for image in noise]
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    table = np.column_stack([starts, lengths, np.full(len(noise), kernel.RAW), SIZES])
    file = np.concatenate([image.ravel() for image in noise])
    file.flags.writeable = False
    squares = np.full((len(noise), crop.size, crop.size, 3), 7, np.uint8)
    ids, room = np.arange(len(noise)), np.empty(0, np.uint8)
    kernel.read_squares(file, table, ids, plan.box, plan.resized, plan.window, plan.flip, True, room, squares)
    expected = reference.execute(noise, plan, dtype=torch.uint8).permute(0, 2, 3, 1).numpy()
    np.testing.assert_array_equal(squares, expected)


@pytest.mark.needs_ffcv
@pytest.mark.parametrize(
    "spec", [SPEC, PlanSpec(PaddedRandomCrop(32, 32, 12), horizontal_flip=0.5, vertical_flip=0.5)], ids=["crop", "pad"]
)
def test_ffcvs_own_resampling_is_near_and_not_the_same(jpegs: Source, spec: PlanSpec) -> None:
    """Measured on smooth images: mean 0.9 grey levels; a box or flip that is not the plan's would be 30 and more."""
    apart = (images(build(jpegs, spec=spec, resampling="area")).float() - by_torchvision(jpegs, spec)).abs()
    assert 0.1 < apart.mean() < 3


@pytest.mark.needs_ffcv
@pytest.mark.needs_photos
def test_real_photographs_are_decoded_as_pillow_decodes_them(photos: Path) -> None:
    source = open_data(str(photos), root=photos)[0].take(64)
    loader = build(source)
    loader.prepare()
    assert (beton_of(loader).images[:, 2] == JPEG).all()  # none had to be stored as pixels
    assert torch.equal(images(loader), by_torchvision(source))


def without_huffman_tables(data: bytes) -> bytes:
    """A JPEG with its DHT segments left out: the standard's tables hold, as in a frame of a Motion JPEG."""
    shorter, at = data[:2], 2
    while data[at + 1] != 0xDA:
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if data[at + 1] != 0xC4:
            shorter += data[at:end]
        at = end
    return shorter + data[at:]


@pytest.mark.needs_ffcv
@pytest.mark.parametrize("options", [{"optimize": True}, {"progressive": True}, {}], ids=str)
def test_an_image_does_not_depend_on_the_one_before_it(image_folder: Path, options: dict[str, bool]) -> None:
    """A decoder remembers the Huffman tables of one image, and takes them for another that has none."""
    for number, path in enumerate(sorted((image_folder / "train").rglob("*.jpg"))):
        image = Image.open(path)
        if number % 2:
            image.save(path, quality=80)
            path.write_bytes(without_huffman_tables(path.read_bytes()))
        else:
            image.save(path, quality=80, **options)
    source = open_data(str(image_folder), root=image_folder)[0]
    assert not source.bad
    loader = build(source, training=False)
    assert torch.equal(images(loader), by_torchvision(source, training=False))
    assert set(beton_of(loader).images[:, 2]) == {JPEG}


# --- the file ----------------------------------------------------------------------------------------


@pytest.mark.needs_ffcv
def test_the_file_is_written_once_with_progress(jpegs: Source) -> None:
    told: list[tuple[int, int]] = []
    first = build(jpegs)
    first.prepare(lambda done, total: told.append((done, total)))
    assert told[-1] == (24, 24)
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    written = first.executor.path.stat()
    again = build(jpegs)
    again.prepare(lambda *_: pytest.fail("nothing is left to do"))
    assert torch.equal(images(again), images(first))
    assert (first.executor.path.stat().st_ino, first.executor.path.stat().st_mtime_ns) == (
        written.st_ino,
        written.st_mtime_ns,
    )
    assert files() == [first.executor.path.name]


@pytest.mark.needs_ffcv
def test_other_data_has_a_file_of_its_own(jpegs: Source) -> None:
    few = jpegs.take(8)
    assert torch.equal(images(build(few)), by_torchvision(few))
    assert torch.equal(images(build(jpegs)), by_torchvision(jpegs))
    assert len(files()) == 2


@pytest.mark.needs_ffcv
def test_an_edit_that_keeps_the_length_is_noticed_and_the_old_file_goes(image_folder: Path, jpegs: Source) -> None:
    build(jpegs).prepare()
    path = Path(jpegs.images.describe(3))
    data = bytearray(path.read_bytes())
    data[data.index(b"\xff\xdb") + 5] ^= 3  # how a JPEG's mean is quantised
    path.write_bytes(data)
    os.utime(path, ns=(0, 0))
    edited = open_data(str(image_folder), root=image_folder)[0]
    assert edited.fingerprint == jpegs.fingerprint
    assert torch.equal(images(build(edited)), by_torchvision(edited))
    assert files() == [build(edited).executor.path.name]


@pytest.mark.needs_ffcv
def test_what_a_killed_process_left_goes(jpegs: Source) -> None:
    path = build(jpegs).executor.path
    path.parent.mkdir(parents=True)
    path.with_name(f"{path.name}.1234.part").touch()
    build(jpegs).prepare()
    assert files() == [path.name]


@pytest.mark.needs_ffcv
def test_pixels_and_jpegs_deliver_the_same(image_folder: Path, jpegs: Source) -> None:
    for path in image_folder.rglob("*.jpg"):
        Image.open(path).save(path.with_suffix(".png"))
        path.rename(path.with_suffix(".jpg.away"))
    pngs = open_data(str(image_folder), root=image_folder)[0]
    for path in image_folder.rglob("*.jpg.away"):
        path.rename(path.with_suffix(""))
    as_jpegs, as_pixels = build(jpegs), build(pngs)
    assert torch.equal(images(as_jpegs), images(as_pixels))
    assert set(beton_of(as_jpegs).images[:, 2]) == {JPEG}
    assert set(beton_of(as_pixels).images[:, 2]) == {RAW}
    stored = sorted(beton_of(as_jpegs).images[:, 1].tolist())
    assert stored == sorted(len(jpegs.images.read(index)) for index in range(24))  # as they are, not encoded anew


@pytest.mark.needs_ffcv
def test_ffcv_itself_reads_the_file() -> None:
    from ffcv.fields.rgb_image import SimpleRGBImageDecoder
    from ffcv.loader import Loader
    from ffcv.pipeline.compiler import Compiler

    pixels = np.stack([smooth_image(12, 16, seed) for seed in range(10)])
    sizes = np.full((10, 2), (12, 16), np.int32)
    source = Source("ten", ("a",), np.zeros(10, np.int64), sizes, PixelArray(pixels), "ten")
    loader = build(source)
    loader.prepare()
    Compiler.set_enabled(False)  # it would take seconds
    try:
        theirs = Loader(str(loader.executor.path), 5, num_workers=1, pipelines={"image": [SimpleRGBImageDecoder()]})
        read = np.concatenate([batch[0].copy() for batch in theirs])
    finally:
        Compiler.set_enabled(True)
    np.testing.assert_array_equal(read, pixels)


@pytest.mark.needs_ffcv
def test_a_file_that_went_bad_leaves_nothing_half_written(jpegs: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    os.unlink(jpegs.images.describe(20))
    monkeypatch.setattr(SharedMemory, "__init__", None)  # it would be called
    with pytest.raises(BadImageError, match="it was good when indexed"):
        build(jpegs).prepare()
    assert files() == []


LIST_CHILDREN = """
import os, sys
from pathlib import Path
from tests.loaders.backends.test_ffcv import build, files, images, open_data

assert len(images(build(open_data(sys.argv[1], root=sys.argv[1])[0]))) == 24
assert len(files()) == 1
for task in Path("/proc/self/task").iterdir():
    print(end=(task / "children").read_text())
"""


@pytest.mark.needs_ffcv
def test_writing_leaves_no_process_behind(image_folder: Path) -> None:
    """Shared memory starts Python's resource tracker, which stays as long as the process."""
    command = [sys.executable, "-c", LIST_CHILDREN, str(image_folder)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[3])
    assert (ended.returncode, ended.stdout) == (0, ""), ended.stderr


@pytest.mark.needs_ffcv
def test_a_damaged_file_is_written_anew(jpegs: Source) -> None:
    """Whatever the numbers in its header and its tables say, nothing is read that is not in the file."""
    loader = build(jpegs)
    expected, path = images(loader), loader.executor.path
    whole = path.read_bytes()
    table = beton_of(loader).images
    head = len(whole) - len(jpegs) * 24  # where the allocation table begins
    mutated = [whole[:length] for length in (0, 1, 100, 4096, head, len(whole) - 1)]
    for place in [*range(0, 40, 2), *range(head, len(whole), 24)]:
        mutated += [whole[:place] + byte * 8 + whole[place + 8 :] for byte in (b"\xff", b"\x7f", b"\0")]
    for content in mutated:
        path.write_bytes(content)
        opened = build(jpegs)
        with suppress(InputError):  # a JPEG that is shorter in the table is named when it is read
            opened.prepare()
            beton = opened.executor._prepared.reader._beton
            assert len(beton.images) == len(table)
            assert (beton.images[:, 0] + beton.images[:, 1]).max() <= len(beton.data)
    path.write_bytes(b"")
    assert torch.equal(images(build(jpegs)), expected)


CUT_SHORT = """
import os, sys
from loaders import InputError
from tests.loaders.backends.test_ffcv import build, images, open_data

loader = build(open_data(sys.argv[1], root=sys.argv[1])[0])
images(loader)
os.truncate(loader.executor.path, 4096)
try:
    images(loader)
except InputError as error:
    print(error)
"""


@pytest.mark.needs_ffcv
def test_a_file_that_is_cut_short_between_two_passes_is_an_error(image_folder: Path) -> None:
    """In a process of its own, as a read behind the end of a mapped file kills it by SIGBUS."""
    command = [sys.executable, "-c", CUT_SHORT, str(image_folder)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[3])
    assert ended.returncode == 0, ended.stderr
    assert ".beton was cut short while it was read: run this again, and it is written anew" in ended.stdout


@pytest.mark.needs_ffcv
def test_a_file_with_a_gap_that_the_index_does_not_know_is_written_anew(image_folder: Path, jpegs: Source) -> None:
    config = LoaderConfig(spec=SPEC, training=True, batch_size=4, on_bad_image="skip")
    path = Path(jpegs.images.describe(20))
    away = path.rename(image_folder / "away.jpg")
    patchy = build_loader(jpegs, config, loader="ffcv")
    patchy.prepare()
    assert len(patchy.bad_images) == 1
    away.rename(path)
    whole = build_loader(jpegs, config, loader="ffcv")
    whole.prepare()
    assert whole.bad_images == []
    assert torch.equal(images(build(jpegs)), by_torchvision(jpegs))


@pytest.mark.needs_ffcv
def test_a_damaged_file_is_named_with_the_remedy(jpegs: Source) -> None:
    loader = build(jpegs)
    loader.prepare()
    with open(loader.executor.path, "r+b") as file:
        for start, length in beton_of(loader).images[:, :2].tolist():
            file.seek(start)
            file.write(bytes(length))
    with pytest.raises(InputError, match=rf"cannot be decoded from {loader.executor.path}: remove that file"):
        list(loader)


@pytest.mark.needs_ffcv
@pytest.mark.parametrize("content", [b"", b"no beton", bytes(5000)], ids=len)
def test_what_is_no_beton_under_its_name_is_written_anew(jpegs: Source, content: bytes) -> None:
    path = build(jpegs).executor.path
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    assert torch.equal(images(build(jpegs)), by_torchvision(jpegs))


@pytest.mark.needs_ffcv
def test_a_cache_that_cannot_be_written_is_named_with_the_remedy(
    jpegs: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("SATURATE_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match=r"ffcv.*: .* cannot be written .*SATURATE_CACHE"):
        build(jpegs).prepare()


@pytest.mark.needs_ffcv
def test_an_image_larger_than_a_page_finds_room(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "large" / name).mkdir(parents=True)
        for number in range(5):
            Image.fromarray(smooth_image(900, 1100, number)).save(tmp_path / "large" / name / f"{number}.png")
    source = open_data(str(tmp_path / "large"), root=tmp_path)[0]
    assert torch.equal(images(build(source)), by_torchvision(source))


# --- the library ---------------------------------------------------------------------------------------


def test_without_ffcv_it_is_said_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "find_spec", lambda name: None if name == "ffcv" else importlib.util.find_spec(name))
    with pytest.raises(InputError, match=r"`loader=ffcv` cannot be used here: .*make setup-ffcv$"):
        choose_loader("ffcv", [], device=torch.device("cpu"))


@pytest.mark.needs_ffcv
def test_importing_ffcv_leaves_torchs_threads_alone() -> None:
    program = (
        "import torch; torch.set_num_threads(3); from loaders.backends.ffcv import _libraries; _libraries(); "
        "print(torch.get_num_threads())"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "3"
