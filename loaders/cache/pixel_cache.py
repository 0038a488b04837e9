"""The pixel cache: every image of a source decoded once and resized, in plain NumPy files of one folder.

    pixels.npy      uint8 `[P]`: every image H × W × 3, upright RGB, one behind the other
    offsets.npy     int64 `[N + 1]`: where each image begins in `pixels`, and where the last one ends
    sizes.npy       int32 `[N, 2, 2]`: height and width as stored, and of the original; 0 where there is nothing
    labels.npy      int64 `[N]`
    manifest.json   classes, fingerprints, preprocessing, versions, bad images; written last, so that a folder
                    with it is complete

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

from loaders.errors import InputError, cause
from loaders.sampling.plan import shorter_side_to
from loaders.sources.base import CachedPixels, ImageFiles, Source, digest
from loaders.system.format import format_bytes
from loaders.system.machine import cache_folder

FORMAT = 1
MANIFEST, PROGRESS = "manifest.json", "progress.json"
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
    found = read_json(folder / MANIFEST) or read_json(folder / PROGRESS)
    theirs = found.get("root", root)
    return found.get("content") != content and theirs != root and os.path.isdir(theirs)


def open_cache(source: Source, layout: Layout) -> CachedPixels | None:
    """The cached pixels of `source`; None where there is no complete cache of the files as they are now.

    Raises:
        InputError: when there is one that cannot be mapped into memory.
    """
    manifest = read_json(layout.folder / MANIFEST)
    if manifest.get("content") != layout.content:
        return None
    try:
        pixels, mapping, offset = _mapped(layout.folder / PIXELS)
    except (FileNotFoundError, ValueError):
        return None
    except OSError as error:
        raise InputError(
            f"{layout.folder / PIXELS} cannot be mapped into memory: {cause(error)}. A limit of address space "
            f"(ulimit -v) must leave room for its {format_bytes(layout.bytes)}; SATURATE_CACHE names another place, "
            "and `loader=torchvision` caches nothing."
        ) from error
    unreadable = {int(index): reason for index, reason in manifest["gone"].items()}
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


def find_cache(source: Source, preprocessing: Preprocessing) -> CachedPixels | None:
    """The cached pixels of `source`, in its own cache or in that of a source it was selected from."""
    if (found := open_cache(source, Layout.of(source, preprocessing))) is not None:
        return found
    if source.selected_from is None:
        return None
    whole, ids = source.selected_from
    found = find_cache(whole, preprocessing)
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


def manifest_of(source: Source, layout: Layout, unreadable: dict[int, str]) -> dict[str, Any]:
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
    }


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file; an empty one where there is none, or something else."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _mapped(path: Path) -> tuple[NDArray[np.uint8], mmap.mmap, int]:
    """The flat values of a NumPy file, read-only, the mapping they lie in, and where in it."""
    with open(path, "rb") as file:
        try:
            np.lib.format.read_magic(file)
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        except OSError:
            raise
        except Exception as error:  # of a damaged header: tokenize.TokenError, for example
            raise ValueError(f"{path} has no header of a NumPy file") from error
        origin = file.tell()
        mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if dtype != np.uint8 or len(mapping) != origin + int(np.prod(shape)):
        raise ValueError(f"{path} is no flat array of uint8, or not whole")
    return np.frombuffer(mapping, np.uint8, offset=origin), mapping, origin
