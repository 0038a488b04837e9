"""What a source is: which images exist, with which labels and sizes, and how their data are reached."""

import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from loaders.errors import BadImage
from loaders.order import seeded_subset


@dataclass(frozen=True)
class PixelArray:
    """Images of one size as they are in memory."""

    pixels: NDArray[np.uint8]
    """`[N, H, W, 3]`."""

    def select(self, ids: NDArray[np.int64]) -> "PixelArray":
        return PixelArray(self.pixels[ids])

    def describe(self, index: int) -> str:
        return f"image {index}"


@dataclass(frozen=True)
class ImageFiles:
    """Encoded images on disk, with what the index knows of each."""

    root: Path
    paths: NDArray[np.str_]
    """`[N]`, relative to `root`, with forward slashes."""
    formats: NDArray[np.str_]
    """`[N]`, Pillow's name: "JPEG", "PNG", ...; empty where unreadable."""
    modes: NDArray[np.str_]
    """`[N]`, Pillow's name: "RGB", "L", "CMYK", ...; empty where unreadable."""
    orientations: NDArray[np.uint8]
    """`[N]`, the EXIF tag, 1 to 8; 1 is upright."""

    def select(self, ids: NDArray[np.int64]) -> "ImageFiles":
        return ImageFiles(self.root, self.paths[ids], self.formats[ids], self.modes[ids], self.orientations[ids])

    def describe(self, index: int) -> str:
        return str(self.root / str(self.paths[index]))

    def read(self, index: int) -> bytes:
        """The file's bytes; OSError where it cannot be read."""
        with open(f"{self.root}/{self.paths[index]}", "rb") as file:
            return file.read()


@dataclass(frozen=True)
class Source:
    """N labelled images. A sample's id is its place here, 0 to N - 1."""

    name: str
    classes: tuple[str, ...]
    labels: NDArray[np.int64]
    """`[N]`, places in `classes`."""
    sizes: NDArray[np.int32]
    """`[N, 2]`: height and width in pixels, after EXIF rotation; 0 where unreadable."""
    images: PixelArray | ImageFiles
    fingerprint: str
    """Names the content: the same on every machine that holds the same data."""
    bad: dict[int, str] = field(default_factory=dict)
    """Pillow's verdict on images it cannot decode: id → reason."""
    notes: tuple[str, ...] = ()
    """What people should know of the data: files that were passed over, for one."""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def pixel_bytes(self) -> int:
        """What all images take decoded."""
        return 3 * int(self.sizes.astype(np.int64).prod(axis=1).sum())

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
            bad={place: self.bad[i] for place, i in enumerate(ids.tolist()) if i in self.bad},
        )

    def take(self, limit: int) -> "Source":
        """`limit` samples drawn at random, always the same ones; all where there are no more than that."""
        return self if limit >= len(self) else self.select(seeded_subset(len(self), limit))


def digest(*parts: bytes) -> str:
    """A short name for content: 16 hexadecimal digits of SHA-256."""
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]
