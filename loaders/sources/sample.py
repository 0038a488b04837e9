"""The embedded sample: ten classes of photograph-like JPEGs that the project generates itself.

Each image shows three or four copies of its class's shape, in random colors, sizes and rotations, on a colored
background whose spectrum falls off like a photograph's, under luminance grain. Color carries no information about the
class (a linear probe on mean colors stays at chance); only the outline does. So a model can learn this set only where
images, labels and augmentation are correct, and nothing has to be downloaded.

    root/sample-v1-train1000-val300-seed0/{train,val}/<class>/00000.jpg

Size and entropy are those of ImageNet's photographs (500 x 375 pixels, 107 KB on average), so that decoding costs as
much as there. The difficulty of the set was tuned as well: a ResNet18 from random weights at 64 px reaches 95 % in
24 epochs of 1000 images. Shapes and backgrounds that share one range of colors gave 44 %, larger shapes that are always
brighter than a fainter background 99 %.
"""

from __future__ import annotations

import fcntl
import shutil
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
import numpy.typing as npt
import simplejpeg

from loaders.system.machine import usable_cores

VERSION = 1  # to be raised whenever the pixels change, because complete folders are never rebuilt
SPLITS = ("train", "val")
QUALITY = 93
# Sides in pixels, with means of 500 and 375: products of 2, 3 and 5 only, which saves 4 ms per image in the FFT.
LONG, SHORT = (432, 450, 480, 500, 512, 540, 576), (324, 360, 375, 384, 400, 405)
CONTRAST = 80.0  # least distance in RGB, channels from 0 to 255, between a shape and the mean color it covers

Field = npt.NDArray[np.floating]  # coordinates, distances or brightness


# --- Shapes: signed distances, negative inside, of points (u, v); the unit disk holds each shape.


def _disk(u: Field, v: Field, radius: float = 1) -> Field:
    return np.hypot(u, v) - radius


def _box(u: Field, v: Field, half_width: float, half_height: float) -> Field:
    return np.maximum(np.abs(u) - half_width, np.abs(v) - half_height)


def _star(u: Field, v: Field, points: int, depth: float) -> Field:
    """A star whose inner corners are at radius `depth`; with depth = cos(pi / points) it is a polygon."""
    half = np.pi / points
    angle = np.abs(
        (np.arctan2(v, u) + half) % (2 * half) - half
    )  # folds all points of the star onto one half of a point
    radius = np.hypot(u, v)
    x, y = radius * np.cos(angle), radius * np.sin(angle)
    dx, dy = depth * np.cos(half) - 1, depth * np.sin(half)  # the edge of this half, which starts at (1, 0)
    return np.asarray((dy * (x - 1) - dx * y) / np.hypot(dx, dy))


SHAPES: dict[str, Callable[[Field, Field], Field]] = {
    "arrow": lambda u, v: np.minimum(np.maximum(-u, 0.71 * (u + np.abs(v) - 1)), _box(u + 0.45, v, 0.5, 0.28)),
    "checker": lambda u, v: np.maximum(_disk(u, v), np.sin(9 * u) * np.sin(9 * v) / 9),
    "crescent": lambda u, v: np.maximum(_disk(u, v), -_disk(u - 0.5, v, 0.8)),
    "cross": lambda u, v: np.minimum(_box(u, v, 0.95, 0.28), _box(u, v, 0.28, 0.95)),
    "disk": _disk,
    # A square on its corner, with half a disk on each of its upper sides.
    "heart": lambda u, v: np.minimum(0.71 * (np.abs(u) + np.abs(v) - 0.7), _disk(np.abs(u) - 0.35, v - 0.35, 0.495)),
    "ring": lambda u, v: np.abs(_disk(u, v, 0.78)) - 0.22,
    "star": lambda u, v: _star(u, v, 5, 0.4),
    "stripes": lambda u, v: np.maximum(_disk(u, v), np.cos(9.4 * u) / 9.4),
    "triangle": lambda u, v: _star(u, v, 3, 0.5),
}
CLASSES: tuple[str, ...] = tuple(sorted(SHAPES))


@cache
def _area(name: str) -> float:
    """The area of a shape in the unit disk, which has the area pi."""
    axis = np.linspace(-1.1, 1.1, 256, dtype=np.float32)
    return float(np.mean(SHAPES[name](*np.meshgrid(axis, axis)) < 0) * 2.2**2)


# --- One image


def _background(rng: np.random.Generator, height: int, width: int) -> Field:
    """RGB planes `[3, height, width]` with a 1/f spectrum, strong in brightness and weaker in hue."""
    fy, fx = np.fft.fftfreq(height, 1 / height)[:, None], np.fft.rfftfreq(width, 1 / width)
    falloff = (1 / np.maximum(np.hypot(fy, fx), 1)).astype(np.float32)
    falloff[0, 0] = 0
    # Uniform amplitudes take a third of the time of normal ones, and their sum over all waves is normal anyway.
    waves = (rng.random((3, *falloff.shape, 2), np.float32) - 0.5).view(np.complex64)[..., 0]
    mix = rng.normal(0, 7, (3, 3)).astype(np.float32)
    mix[:, 0] = rng.uniform(15, 28)  # the first wave field shifts all channels together
    scale = height * width * np.sqrt(3 / np.square(falloff).sum())  # gives unit variance
    # einsum and not tensordot, whose BLAS starts threads inside each thread of the pool: 29 s instead of 14 s in all.
    planes = np.fft.irfft2(np.einsum("ck,khw->chw", mix * scale, waves * falloff), (height, width))
    return planes + rng.uniform(30, 130, (3, 1, 1)).astype(np.float32)


def _stamp(rng: np.random.Generator, image: Field, name: str, x: float, y: float, radius: float) -> None:
    """Draws one shape onto `image` in place, in a random color that differs from the mean color it covers."""
    reach = int(radius) + 2
    top, left = max(int(y) - reach, 0), max(int(x) - reach, 0)
    patch = image[:, top : int(y) + reach, left : int(x) + reach]
    dy = np.arange(top, top + patch.shape[1])[:, None] - y
    dx = np.arange(left, left + patch.shape[2]) - x
    turn = rng.uniform(0, 2 * np.pi)
    u = (np.cos(turn) * dx + np.sin(turn) * dy) / radius
    v = (np.cos(turn) * dy - np.sin(turn) * dx) / radius
    inside = np.clip(0.5 - radius * SHAPES[name](u.astype(np.float32), v.astype(np.float32)), 0, 1)
    under = patch.mean(axis=(1, 2))
    colors = rng.uniform(100, 255, (16, 3)).astype(np.float32)
    color = colors[np.argmax(np.square(colors - under).sum(axis=1) >= CONTRAST**2)]
    paint = (color - under)[:, None, None] - 0.7 * (patch - under[:, None, None])  # retains some of the texture
    patch += inside * paint


def render(seed: int, split: str, label: int, number: int) -> npt.NDArray[np.uint8]:
    """Draws one image, uint8 RGB `[height, width, 3]`, as a pure function of the four arguments."""
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, SPLITS.index(split), label, number))))
    size = int(rng.choice(LONG)), int(rng.choice(SHORT))
    portrait = rng.random() < 0.25
    width, height = size[::-1] if portrait else size
    image = _background(rng, height, width)
    # One shape in three or all four quarters of the frame, so that most crops contain nearly all of one.
    for cell in rng.permutation(4)[: rng.integers(3, 5)]:
        x = (cell % 2 + rng.uniform(0.35, 0.65)) * width / 2
        y = (cell // 2 + rng.uniform(0.35, 0.65)) * height / 2
        # Equal areas on average, so that the area carries no information about the class either.
        radius = rng.uniform(55, 78) * np.sqrt(1.8 / _area(CLASSES[label]))
        _stamp(rng, image, CLASSES[label], x, y, radius)
    image += rng.standard_normal((height, width), np.float32) * np.float32(rng.uniform(6, 14))
    return np.ascontiguousarray(np.clip(image, 0, 255).astype(np.uint8).transpose(1, 2, 0))


# --- The folder


def prepare_sample(
    root: Path,
    *,
    train: int = 1000,
    val: int = 300,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Returns the sample's folder under `root`, and generates its images where it does not exist.

    The folder appears under its name only when it is complete. Two processes that call this at once generate the images
    once.

    Args:
        root: the folder that holds the sample's folder.
        train, val: numbers of images, distributed evenly over the classes.
        seed: the images are a pure function of it.
        progress: called from this thread after each image, with the number of images done and their total.

    Raises:
        ValueError: when a split would leave a class empty, or `seed` is negative.
        OSError: when `root` cannot be written to.
    """
    if min(train, val) < len(CLASSES) or seed < 0:
        needs = f"a seed >= 0 and at least {len(CLASSES)} images in each split"
        raise ValueError(f"the sample needs {needs}, not seed={seed}, train={train}, val={val}")
    folder = Path(root) / f"sample-v{VERSION}-train{train}-val{val}-seed{seed}"
    if folder.is_dir():  # created only by the rename in `_build`, so it is complete
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / ".sample.lock").open("a") as lock:
        # In a file system without locks two builds may run side by side; the rename keeps that safe.
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)  # released when this process ends, in whatever way
            for leftover in folder.parent.glob(".sample-v*.part"):  # from a build that was killed
                shutil.rmtree(leftover, ignore_errors=True)
        if not folder.is_dir():  # another process may have built it while this one waited
            _build(folder, {"train": train, "val": val}, seed, progress)
    return folder


def _build(folder: Path, counts: dict[str, int], seed: int, progress: Callable[[int, int], None] | None) -> None:
    """Draws all images into a temporary folder beside `folder`, and renames it to `folder` when it is complete."""
    part = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.part")
    images = [(split, i % len(CLASSES), i // len(CLASSES)) for split, n in counts.items() for i in range(n)]
    # Threads suffice because NumPy and the encoder release the GIL: 8 s for 1300 images on two cores, no slower than
    # processes, and no process can be left behind.
    pool = ThreadPoolExecutor(usable_cores())
    try:
        for split, name in product(counts, CLASSES):
            (part / split / name).mkdir(parents=True)
        jobs = [pool.submit(_write, part, seed, *image) for image in images]
        for done, job in enumerate(as_completed(jobs), 1):
            job.result()
            if progress:
                progress(done, len(jobs))
        try:
            part.rename(folder)
        except OSError:
            if not folder.is_dir():  # otherwise another build came first, with the same bytes
                raise
    finally:
        pool.shutdown(cancel_futures=True)
        shutil.rmtree(part, ignore_errors=True)


def _write(part: Path, seed: int, split: str, label: int, number: int) -> None:
    jpeg = simplejpeg.encode_jpeg(render(seed, split, label, number), QUALITY, "RGB", "420")
    (part / split / CLASSES[label] / f"{number:05d}.jpg").write_bytes(jpeg)
