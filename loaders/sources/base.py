"""What a source is: which images exist, with which labels and sizes, and how their data are reached."""

import hashlib
from dataclasses import dataclass, field, replace
from mmap import mmap
from pathlib import Path
from typing import ClassVar, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from loaders.errors import BadImage
from loaders.sampling.splits import seeded_subset


class DecodedImages(Protocol):
    """Images whose pixels can be read without decoding. An image's id is its place, 0 to N - 1."""

    def pixels_of(self, index: int) -> NDArray[np.uint8]:
        """One image as uint8 `[H, W, 3]`, a view; ValueError where it is unreadable."""

    def flat(self) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """All values as uint8 `[P]`, image by image and row by row, and `[N]`, where each image begins in them."""


class ImageStore(Protocol):
    """What a source offers of its images: either encoded files or decoded pixels, by id."""

    @property
    def encoded(self) -> "ImageFiles | None":
        """The files to decode; None where pixels can be read without."""

    @property
    def decoded(self) -> DecodedImages | None:
        """The pixels; None where files have to be decoded."""

    @property
    def sizes(self) -> NDArray[np.int32] | None:
        """`[N, 2]`: height and width of the stored pixels where these are not the image's own; else None."""

    def describe(self, index: int) -> str:
        """Names an image in a message."""

    def select(self, ids: NDArray[np.int64]) -> Self:
        """A store of only these images, in this order."""

    def files(self) -> list[Path]:
        """The files that reading images reads; none where the pixels are in memory."""


@dataclass(frozen=True)
class PixelArray:
    """Images of one size, in memory."""

    pixels: NDArray[np.uint8]
    """`[N, H, W, 3]`."""

    encoded: ClassVar[None] = None
    sizes: ClassVar[None] = None

    @property
    def decoded(self) -> DecodedImages:
        return self

    def select(self, ids: NDArray[np.int64]) -> "PixelArray":
        return PixelArray(self.pixels[ids])

    def describe(self, index: int) -> str:
        return f"image {index}"

    def files(self) -> list[Path]:
        return []

    def pixels_of(self, index: int) -> NDArray[np.uint8]:
        image: NDArray[np.uint8] = self.pixels[index]
        return image

    def flat(self) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        values = np.ascontiguousarray(self.pixels).reshape(-1)
        return values, np.arange(len(self.pixels)) * int(np.prod(self.pixels.shape[1:]))


@dataclass(frozen=True)
class ImageFiles:
    """Encoded images on disk, with what the index knows of each."""

    root: Path
    paths: NDArray[np.object_]
    """`[N]`, each a `str`: relative to `root`, with forward slashes. In an array of text, one very long name would
    make all take its length."""
    formats: NDArray[np.str_]
    """`[N]`, Pillow's name: "JPEG", "PNG", ...; empty where unreadable."""
    modes: NDArray[np.str_]
    """`[N]`, Pillow's name: "RGB", "L", "CMYK", ...; empty where unreadable."""
    orientations: NDArray[np.uint8]
    """`[N]`, the EXIF tag, 1 to 8; 1 is upright."""
    changed: NDArray[np.int64]
    """`[N]`, times of change in nanoseconds, when indexed."""
    lengths: NDArray[np.int64]
    """`[N]`, bytes of each file when indexed; -1 where there was none."""

    decoded: ClassVar[None] = None
    sizes: ClassVar[None] = None

    @property
    def encoded(self) -> "ImageFiles":
        return self

    def select(self, ids: NDArray[np.int64]) -> "ImageFiles":
        return ImageFiles(
            self.root,
            self.paths[ids],
            self.formats[ids],
            self.modes[ids],
            self.orientations[ids],
            self.changed[ids],
            self.lengths[ids],
        )

    def describe(self, index: int) -> str:
        return str(self.root / str(self.paths[index]))

    def files(self) -> list[Path]:
        return [self.root / path for path in dict.fromkeys(self.paths.tolist())]

    def read(self, index: int) -> bytes:
        """The file's bytes; OSError where it cannot be read."""
        with open(f"{self.root}/{self.paths[index]}", "rb") as file:
            return file.read()


@dataclass(frozen=True)
class CachedPixels:
    """The pixels of image files, decoded once and resized, in a memory-mapped file: see `loaders.cache`."""

    origin: ImageFiles
    """The files that were decoded."""
    path: Path
    """The file that the pixels lie in."""
    pixels: NDArray[np.uint8]
    """`[P]`, flat: each image is H × W × 3 values in a row. Read-only."""
    starts: NDArray[np.int64]
    """`[N]`: the place of each image's first value in `pixels`."""
    sizes: NDArray[np.int32]
    """`[N, 2]`: height and width as stored; 0 where there was nothing to decode."""
    mapping: mmap
    """The memory map that `pixels` lies in."""
    offset: int
    """The place of the first value of `pixels` in `mapping`."""
    unreadable: dict[int, str] = field(default_factory=dict)
    """Files that could not be decoded any more when the cache was built: id → reason."""

    encoded: ClassVar[None] = None

    @property
    def decoded(self) -> DecodedImages:
        return self

    def select(self, ids: NDArray[np.int64]) -> "CachedPixels":
        return replace(
            self,
            origin=self.origin.select(ids),
            starts=self.starts[ids],
            sizes=self.sizes[ids],
            unreadable=_selected(self.unreadable, ids),
        )

    def describe(self, index: int) -> str:
        return self.origin.describe(index)

    def files(self) -> list[Path]:
        return [self.path]

    def pixels_of(self, index: int) -> NDArray[np.uint8]:
        if index in self.unreadable:
            raise ValueError(self.unreadable[index])
        start, (height, width) = int(self.starts[index]), self.sizes[index].tolist()
        return self.pixels[start : start + 3 * height * width].reshape(height, width, 3)

    def flat(self) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        return self.pixels, self.starts


@dataclass(frozen=True)
class Source:
    """N labelled images. A sample's id is its place here, 0 to N - 1."""

    name: str
    classes: tuple[str, ...]
    labels: NDArray[np.int64]
    """`[N]`, places in `classes`."""
    sizes: NDArray[np.int32]
    """`[N, 2]`: height and width in pixels, after EXIF rotation; 0 where unreadable."""
    images: ImageStore
    fingerprint: str
    """Names the content: the same on every machine that holds the same data."""
    bad: dict[int, str] = field(default_factory=dict)
    """Pillow's verdict on images it cannot decode: id → reason."""
    notes: tuple[str, ...] = ()
    """What people should know of the data: files that were passed over, for one."""
    selected_from: "tuple[Source, NDArray[np.int64]] | None" = field(default=None, repr=False, compare=False)
    """The source that these samples were selected from, and their ids there."""

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return f"Source({self.name!r}, {len(self):,} images, {len(self.classes):,} classes)"

    @property
    def stored_sizes(self) -> NDArray[np.int32]:
        """`[N, 2]`: height and width of the pixels that are read: `sizes`, or smaller ones in a pixel cache."""
        return self.sizes if self.images.sizes is None else self.images.sizes

    @property
    def pixel_bytes(self) -> int:
        """Bytes of all images, decoded."""
        return 3 * int(self.stored_sizes.astype(np.int64).prod(axis=1).sum())

    def bad_image(self, index: int, reason: str) -> BadImage:
        return BadImage(self.images.describe(index), reason)

    def select(self, ids: NDArray[np.int64]) -> "Source":
        """A source of only these samples, in this order."""
        return replace(
            self,
            labels=self.labels[ids],
            sizes=self.sizes[ids],
            images=self.images.select(ids),
            fingerprint=digest(self.fingerprint.encode(), np.asarray(ids, "<i8").tobytes()),
            bad=_selected(self.bad, ids),
            selected_from=(self, ids),
        )

    def take(self, limit: int) -> "Source":
        """`limit` samples drawn at random, always the same ones; all where there are no more than that."""
        return self if limit >= len(self) else self.select(seeded_subset(len(self), limit))


def _selected(reasons: dict[int, str], ids: NDArray[np.int64]) -> dict[int, str]:
    """Those of `ids`, by their places there."""
    return {place: reasons[i] for place, i in enumerate(ids.tolist()) if i in reasons} if reasons else {}


def digest(*parts: bytes) -> str:
    """A short name for content: 16 hexadecimal digits of SHA-256."""
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]
