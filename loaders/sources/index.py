"""The index of image files: size, format, orientation and verdict of each, reached once and kept.

Pillow decodes every image here, and its verdict holds for every backend, so that no decoder's
leniency changes which samples a run sees.
"""

import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from loaders.machine import cache_folder, usable_cores
from loaders.sources.base import digest

Progress = Callable[[int, int], None]
"""Called with how much is done and how much there is."""

_VERSION = 1


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
            format, mode = image.format or "", image.mode
            image.load()
            # Only now, as loading turns a TIFF upright, in which nothing is left to be turned then.
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
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
    """The index of `paths` (relative to `root`): from the cache for files whose `file_stat` has not changed since.

    It is kept under `loaders.machine.cache_folder()`. All usable cores decode what is new.
    """
    kept = cache_folder() / "index" / f"{digest(str(root.resolve()).encode())}.json"
    keys = [f"{path}\0{size}\0{changed}" for path, (size, changed) in zip(paths, stats, strict=True)]
    known = _load(kept)
    if unknown := [place for place, key in enumerate(keys) if key not in known]:
        with ThreadPoolExecutor(usable_cores()) as pool:
            verdicts = pool.map(lambda place: examine(root / paths[place]), unknown)
            for done, (place, verdict) in enumerate(zip(unknown, verdicts, strict=True), 1):
                known[keys[place]] = verdict
                if progress is not None:
                    progress(done, len(unknown))
        known = {key: known[key] for key in keys}
        _save(kept, known)
    height, width, formats, modes, orientations, reasons = zip(*(known[key] for key in keys), strict=True)
    return Index(
        np.array([height, width], np.int32).T.copy(),
        np.array(formats, np.str_),
        np.array(modes, np.str_),
        np.array(orientations, np.uint8),
        np.array(reasons, np.str_),
    )


def _load(kept: Path) -> dict[str, Verdict]:
    """What is known by path, size and time of change; nothing where no cache is, or a damaged one."""
    try:
        checksum, _, body = kept.read_text().partition("\n")
    except (OSError, ValueError):
        return {}
    if checksum != _checksum(body):
        return {}
    return {key: Verdict(*facts) for key, facts in json.loads(body).items()}


def _save(kept: Path, known: dict[str, Verdict]) -> None:
    """Writes under a temporary name and renames; a cache that cannot be written is done without."""
    part = kept.with_suffix(f".{os.getpid()}.part")
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        body = json.dumps(known)
        part.write_text(f"{_checksum(body)}\n{body}")
        os.replace(part, kept)
    except OSError:
        with suppress(OSError):
            part.unlink()


def _checksum(body: str) -> str:
    """Differs for a damaged body and for one of another version of this module."""
    return digest(str(_VERSION).encode(), body.encode())
