"""The index of image files: size, format, orientation and verdict of each, reached once and kept.

Pillow decodes every image here, and its verdict holds for every backend, so that no decoder's
leniency changes which samples a run sees.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from loaders.machine import cache_folder, usable_cores
from loaders.sources.base import digest

Progress = Callable[[int, int], None]
"""Called with how much is done and how much there is."""

_VERSION = "1"


class Verdict(NamedTuple):
    """What Pillow says of one image file; the fields are those of `Index`."""

    height: int
    width: int
    format: str
    mode: str
    orientation: int
    reason: str


@dataclass(frozen=True)
class Index:
    """What is known of N image files; see `sources.base` for the fields' meanings."""

    sizes: NDArray[np.int32]
    formats: NDArray[np.str_]
    modes: NDArray[np.str_]
    orientations: NDArray[np.uint8]
    reasons: NDArray[np.str_]
    """`[N]`: why the image cannot be decoded; empty for a good one."""


def examine(path: Path) -> Verdict:
    """Decodes the whole image; whatever Pillow raises becomes the reason."""
    try:
        with Image.open(path) as image:
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
            format, mode = image.format or "", image.mode
            image.load()
            width, height = image.size
    except Exception as error:  # damaged files raise nearly anything: OSError, SyntaxError, struct.error, ...
        return Verdict(0, 0, "", "", 1, str(error).replace(str(path), path.name) or type(error).__name__)
    if orientation not in range(1, 9):
        orientation = 1
    if orientation >= 5:
        width, height = height, width
    return Verdict(height, width, format, mode, orientation, "")


def file_stat(root: Path, path: str) -> tuple[int, int]:
    """Size in bytes and time of change in nanoseconds; (-1, 0) for a broken link, whose verdict will say so."""
    try:
        stat = os.stat(f"{root}/{path}")
    except OSError:
        return -1, 0
    return stat.st_size, stat.st_mtime_ns


def index_files(
    root: Path, paths: Sequence[str], stats: Sequence[tuple[int, int]], progress: Progress | None = None
) -> Index:
    """The index of `paths` (relative to `root`), from the cache where no file's `file_stat` has changed since.

    It is kept under `loaders.machine.cache_folder()`. All usable cores decode.
    """
    kept = cache_folder() / "index" / f"{digest(str(root.resolve()).encode())}.npz"
    facts = "\n".join(f"{path}\0{stat}" for path, stat in zip(paths, stats, strict=True))
    stamp = digest(_VERSION.encode(), facts.encode("utf-8", "surrogateescape"))
    if (index := _load(kept, stamp)) is not None:
        return index
    verdicts = []
    with ThreadPoolExecutor(usable_cores()) as pool:
        for verdict in pool.map(lambda path: examine(root / path), paths):
            verdicts.append(verdict)
            if progress is not None:
                progress(len(verdicts), len(paths))
    columns = list(zip(*verdicts, strict=True))
    index = Index(
        np.array(columns[:2], np.int32).T.copy(),
        np.array(columns[2], np.str_),
        np.array(columns[3], np.str_),
        np.array(columns[4], np.uint8),
        np.array(columns[5], np.str_),
    )
    _save(kept, stamp, index)
    return index


def _load(kept: Path, stamp: str) -> Index | None:
    try:
        with np.load(kept, allow_pickle=False) as file:
            return Index(**{f.name: file[f.name] for f in fields(Index)}) if str(file["stamp"]) == stamp else None
    except Exception:  # not there, or damaged: it is made again
        return None


def _save(kept: Path, stamp: str, index: Index) -> None:
    """Writes under a temporary name and renames; a cache that cannot be written is done without."""
    part = kept.with_suffix(f".{os.getpid()}.part")
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "wb") as file:
            np.savez(file, stamp=stamp, **{f.name: getattr(index, f.name) for f in fields(Index)})
        os.replace(part, kept)
    except OSError:
        part.unlink(missing_ok=True)
