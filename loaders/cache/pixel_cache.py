"""The pixel cache: every image of a source decoded once and resized, in plain NumPy files of one folder.

    pixels.npy      uint8 `[P]`: every image H × W × 3, upright RGB, one behind the other
    offsets.npy     int64 `[N + 1]`: where each image begins in `pixels`, and where the last one ends
    sizes.npy       int32 `[N, 2, 2]`: height and width as stored, and of the original; 0 where there is nothing
    labels.npy      int64 `[N]`
    manifest.json   classes, fingerprints, preprocessing, versions, bad images, checksums of `pixels.npy`; written
                    last, so that a folder with it is complete

Images keep their aspect, nothing is cropped away and none is enlarged, so that any plan can be carried
out: it is drawn for the original size, and its boxes are scaled to the stored pixels.

A cache belongs to one source: one for training, one for validation. Two copies of a set whose files have different
times have a cache each. A source that was selected from another (`Source.take`) uses that one's cache where it
exists, and builds only its own otherwise.
"""

import json
import mmap
import os
import platform
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loaders.cache.checksums import MANIFEST, Checksums, is_intact
from loaders.cache.checksums import from_json as checksums_from_json
from loaders.cache.checksums import to_json as checksums_to_json
from loaders.errors import InputError, cause
from loaders.sampling.plan import shorter_side_to
from loaders.sources.base import CachedPixels, ImageFiles, Source, digest
from loaders.system.format import format_bytes
from loaders.system.machine import cache_folder
from loaders.system.shapes import read_json

FORMAT = 1
PROGRESS = "progress.json"
PIXELS = "pixels.npy"


@dataclass(frozen=True)
class Preprocessing:
    """What is done to images before they are stored."""

    short_side: int = 256
    """Pixels of the shorter side; smaller images stay as they are."""
    scaled_decoding: bool = False
    """JPEGs decoded at n/8 of their size where that leaves enough pixels: faster, a little blurred."""

    def cached_sizes(self, sizes: NDArray[np.int32]) -> NDArray[np.int32]:
        """`[N, 2]`: height and width that images of `sizes` are stored at."""
        large = sizes.min(axis=1) > self.short_side
        cached = sizes.copy()
        cached[large] = shorter_side_to(self.short_side, sizes[large].astype(np.int64))
        return cached

    def cached_bytes(self, sizes: NDArray[np.int32]) -> int:
        """Bytes that images of `sizes` take in the cache."""
        return 3 * int(self.cached_sizes(sizes).astype(np.int64).prod(axis=1).sum())


@dataclass(frozen=True)
class Layout:
    """Which cache a source's pixels have, and what lies where in it; known before anything is decoded."""

    folder: Path
    preprocessing: Preprocessing
    sizes: NDArray[np.int32]
    """`[N, 2]`: height and width as stored."""
    offsets: NDArray[np.int64]
    """`[N + 1]`: where images begin in the flat pixels."""
    content: str
    """Names the pixels: of another content, another preprocessing or another format, it is another name."""

    @classmethod
    def of(cls, source: Source, preprocessing: Preprocessing) -> "Layout":
        """The layout for a source of image files."""
        suffix = "-scaled" if preprocessing.scaled_decoding else ""
        name = f"{source.fingerprint}-{preprocessing.short_side}{suffix}"
        sizes = preprocessing.cached_sizes(source.sizes)
        offsets = np.concatenate([[0], np.cumsum(3 * sizes.astype(np.int64).prod(axis=1))])
        # A file may be edited and keep its length, which the source's fingerprint does not see. The times are no
        # part of it, as they differ between machines that hold the same data.
        times, originals = files_of(source).changed.astype("<i8").tobytes(), source.sizes.astype("<i4").tobytes()
        content = digest(json.dumps([FORMAT, source.fingerprint, asdict(preprocessing)]).encode(), times, originals)
        folder, root = cache_folder() / "pixels" / name, root_of(source)
        own = folder.with_name(f"{name}-{digest(os.fsencode(root))}")
        if own.is_dir() or _is_of_another_copy(folder, root, content):
            folder = own
        return cls(folder, preprocessing, sizes, offsets, content)

    @property
    def bytes(self) -> int:
        """Of all pixels."""
        return int(self.offsets[-1])


def files_of(source: Source) -> ImageFiles:
    """The image files of a source that has some."""
    files = source.images.encoded
    assert files is not None
    return files


def root_of(source: Source) -> str:
    """Where the image files of a source lie."""
    return str(files_of(source).root.resolve())


def _is_of_another_copy(folder: Path, root: str, content: str) -> bool:
    """Whether a cache belongs to a copy of the set that is still there, so that none makes the other's anew.

    A cache of the same path belongs to files that were edited since, and a copy that was removed needs none: those
    are replaced.
    """
    whose = {"content": str, "root": str}
    found = read_json(folder / MANIFEST, whose) or read_json(folder / PROGRESS, whose)
    return found is not None and found["content"] != content and found["root"] != root and os.path.isdir(found["root"])


def open_cache(source: Source, layout: Layout, *, every_block: bool = False) -> CachedPixels | None:
    """The cached pixels of `source`; None where there is no complete and undamaged cache of the files as they are now.

    Args:
        every_block: verifies all pixels of a large cache, too, and not a sample of its blocks.

    Raises:
        InputError: when there is one that cannot be mapped into memory.
    """
    manifest = read_json(layout.folder / MANIFEST, {"content": layout.content, "gone": {str: str}})
    if manifest is None:
        return None
    try:
        unreadable = unreadable_from_json(manifest["gone"], len(source))
        pixels, mapping, offset = _mapped(layout.folder / PIXELS, layout.bytes)
        checksums = checksums_from_json(manifest, len(mapping))
        if not is_intact(layout.folder / PIXELS, checksums, every_block=every_block):
            return None
    except (FileNotFoundError, ValueError):
        return None
    except OSError as error:
        raise InputError(
            f"{layout.folder / PIXELS} cannot be mapped into memory: {cause(error)}. A limit of address space "
            f"(ulimit -v) must leave room for its {format_bytes(layout.bytes)}; SATURATE_CACHE names another place, "
            "and `loader=torchvision` caches nothing."
        ) from error
    return CachedPixels(
        files_of(source),
        layout.folder / PIXELS,
        pixels,
        layout.offsets[:-1],
        layout.sizes,
        mapping,
        offset,
        unreadable,
    )


def find_cache(source: Source, preprocessing: Preprocessing, *, every_block: bool = False) -> CachedPixels | None:
    """The cached pixels of `source`, in its own cache or in that of a source it was selected from. See `open_cache`."""
    if (found := open_cache(source, Layout.of(source, preprocessing), every_block=every_block)) is not None:
        return found
    if source.selected_from is None:
        return None
    whole, ids = source.selected_from
    found = find_cache(whole, preprocessing, every_block=every_block)
    return None if found is None else found.select(ids)


def read_ahead(cached: CachedPixels, ids: NDArray[np.int64]) -> None:
    """Lets the system read these images from the disk, if it has to, and does not wait for them.

    Cold, from the disk, images of 261 kB came at 0.7 to 0.95 GB/s this way, and at 0.25 without. Pages that are in
    memory already come a tenth slower.
    """
    begins = cached.offset + cached.starts[ids]
    pages = begins // mmap.PAGESIZE * mmap.PAGESIZE
    lengths = begins + 3 * cached.sizes[ids].astype(np.int64).prod(axis=1) - pages
    for page, length in zip(pages.tolist(), lengths.tolist(), strict=True):
        cached.mapping.madvise(mmap.MADV_WILLNEED, page, length)


def expect_random_reads(cached: CachedPixels) -> None:
    """For a set larger than memory: nothing is read that was not asked for by `read_ahead`.

    Without that, pages would come one by one: 0.05 GB/s.
    """
    cached.mapping.madvise(mmap.MADV_RANDOM)


def manifest_of(source: Source, layout: Layout, unreadable: dict[int, str], checksums: Checksums) -> dict[str, Any]:
    """What `manifest.json` says."""
    return {
        "format": FORMAT,
        "name": source.name,
        "content": layout.content,
        "fingerprint": source.fingerprint,
        "root": root_of(source),
        "images": len(source),
        "bytes": layout.bytes,
        "classes": list(source.classes),
        "preprocessing": asdict(layout.preprocessing),
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("torch", "numpy", "pillow", "simplejpeg")},
        "bad": [asdict(source.bad_image(index, reason)) for index, reason in source.bad.items()],
        "gone": {str(index): reason for index, reason in unreadable.items()},
        "checksums": checksums_to_json(checksums),
    }


def unreadable_from_json(reasons: dict[str, str], count: int) -> dict[int, str]:
    """Unreadable samples of a source of `count`: id → reason.

    Raises:
        ValueError: when a key is no id.
    """
    unreadable = {int(index): reason for index, reason in reasons.items()}
    if not all(0 <= index < count for index in unreadable):
        raise ValueError("an unreadable sample is not in the source")
    return unreadable


def first_pixel(path: Path, count: int) -> int:
    """The place of the first of `count` uint8 values in a NumPy file.

    Raises:
        ValueError: when it is no such file, or not all of one.
    """
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is no regular file")  # opening a named pipe would block
    with open(path, "rb") as file:
        try:
            np.lib.format.read_magic(file)
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        except OSError:
            raise
        except Exception as error:  # a parser of Python's literals raises nearly anything: tokenize.TokenError, ...
            raise ValueError(f"{path} has a damaged header") from error
        if dtype != np.uint8 or shape != (count,) or os.fstat(file.fileno()).st_size != file.tell() + count:
            raise ValueError(f"{path} is no flat array of {count} uint8, or not whole")
        return file.tell()


def _mapped(path: Path, count: int) -> tuple[NDArray[np.uint8], mmap.mmap, int]:
    """The flat values of a NumPy file, read-only, the mapping they lie in, and where in it. See `first_pixel`."""
    origin = first_pixel(path, count)
    with open(path, "rb") as file:
        mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if len(mapping) != origin + count:
        raise ValueError(f"{path} has changed")
    return np.frombuffer(mapping, np.uint8, offset=origin), mapping, origin
