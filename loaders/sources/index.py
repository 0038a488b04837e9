"""The index of image files: size, format, mode and orientation of each, determined once and cached on disk.

Pillow decodes every image here. Its verdict on whether an image is readable holds for every backend, so that the
tolerance of a decoder does not change which samples a run sees.
"""

import json
import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from loaders.errors import cause
from loaders.sources.base import ImageFiles, Source, digest
from loaders.sources.guarded import most_bytes, read_file
from loaders.sources.pillow import FORMATS_FOUND, NOT_ENOUGH_MEMORY, as_rgb, open_image, orientation, require_shape
from loaders.system.files import replacing
from loaders.system.machine import cache_folder, usable_cores
from loaders.system.shapes import parse_json

Progress = Callable[[int, int], None]
"""Called with the amount of work done and the total amount."""

MAX_PIXELS = 89_478_485
"""Default limit of pixels per image, Pillow's own. A small file can decompress to gigabytes."""

_VERSION = 4
_FILES_AHEAD = 64  # per thread, beyond the file whose verdict is due next
_SECONDS_BETWEEN_SAVES = 30.0  # the most work that a killed process loses
_SHARE_SAVING = 0.05  # upper limit, of the time: the index of millions of images takes seconds to write


class Verdict(NamedTuple):
    """The result of decoding one image file with Pillow."""

    height: int
    """Pixels, after EXIF rotation; 0 where unreadable."""
    width: int
    """Pixels, after EXIF rotation; 0 where unreadable."""
    format: str
    """Pillow's name, "JPEG" for example; empty where unreadable."""
    mode: str
    """Pillow's name, "RGB" for example; empty where unreadable."""
    orientation: int
    """The EXIF orientation, 1 to 8; 1 where unreadable."""
    reason: str
    """Why the image cannot be decoded; empty for a readable one."""


_READABLE = (range(1, 1 << 31), range(1, 1 << 31), str, str, range(1, 9), "")
"""The shape of a cached verdict: only readable files are cached."""


@dataclass(frozen=True)
class Index:
    """The verdicts on N image files as columns; `Source` and `ImageFiles` describe the fields."""

    sizes: NDArray[np.int32]
    formats: NDArray[np.str_]
    modes: NDArray[np.str_]
    orientations: NDArray[np.uint8]
    bad: dict[int, str]
    """Unreadable images: place, 0 to N - 1 → reason."""
    notes: tuple[str, ...]
    """Notes for the user, that the index cannot be written for example."""


def examine(path: Path, max_pixels: int = MAX_PIXELS) -> Verdict:
    """Decodes a whole image, unless it has more than `max_pixels`. Any error becomes the reason of the verdict."""
    try:
        with open_image(read_file(str(path), at_most=most_bytes(max_pixels))) as image:
            format, mode, (width, height) = image.format or "", image.mode, image.size
            if width * height > max_pixels:
                raise ValueError(f"its {width:,} × {height:,} pixels are more than {max_pixels:,} (`max_pixels`)")
            require_shape(image)
            if mode in ("I", "F"):
                as_rgb(image)
            image.load()
            exif_orientation = orientation(image)
            width, height = image.size
    except MemoryError:
        return Verdict(0, 0, "", "", 1, NOT_ENOUGH_MEMORY)
    except Exception as error:  # damaged files raise nearly anything: OSError, SyntaxError, struct.error, ...
        return Verdict(0, 0, "", "", 1, str(error).replace(str(path), path.name) or type(error).__name__)
    if exif_orientation >= 5:
        width, height = height, width
    return Verdict(height, width, format, mode, exif_orientation, "")


def file_stat(root: Path, path: str) -> tuple[int, int]:
    """Size in bytes and modification time in nanoseconds; (-1, 0) for a broken link, which is unreadable."""
    try:
        stat = os.stat(f"{root}/{path}")
    except (OSError, ValueError):  # a ValueError for a NUL in the path
        return -1, 0
    return stat.st_size, stat.st_mtime_ns


def index_files(
    root: Path,
    paths: Sequence[str],
    stats: Sequence[tuple[int, int]],
    *,
    max_pixels: int = MAX_PIXELS,
    progress: Progress | None = None,
) -> Index:
    """Indexes image files, decoding only those that have changed since they were indexed before.

    The index is cached under `cache_folder()`, in one file for each root and `max_pixels`, which is also saved while
    it is built. All usable cores decode. Unreadable files are examined again each time: permissions, the disk or
    Pillow may have changed, and nothing in the file shows that.

    Args:
        root: the folder that the paths are relative to.
        paths: N paths, with forward slashes.
        stats: the `file_stat` of each path.
        max_pixels: images with more pixels are unreadable.
        progress: called after each file that had to be decoded, with their number so far and their total.
    """
    cache_file = cache_folder() / "index" / f"{digest(os.fsencode(root.resolve()), str(max_pixels).encode())}.json"
    keys = list(map(_key, paths, stats))
    known = _without_refused(_load(cache_file, max_pixels), most_bytes(max_pixels))
    new = {key: root / path for key, path in zip(keys, paths, strict=True) if key not in known}

    def save() -> str | None:
        return _save(cache_file, _entries_to_cache(root, paths, keys, known))

    failure = _examine_all(new, known, save, max_pixels, progress)
    height, width, formats, modes, orientations, reasons = zip(*(known[key] for key in keys), strict=True)
    return Index(
        np.array([height, width], np.int32).T.copy(),
        np.array(formats, np.str_),
        np.array(modes, np.str_),
        np.array(orientations, np.uint8),
        {place: reason for place, reason in enumerate(reasons) if reason},
        (f"{root}: all is decoded again the next time, as {failure}",) if failure else (),
    )


def _examine_all(
    files: dict[str, Path],
    known: dict[str, Verdict],
    save: Callable[[], str | None],
    max_pixels: int,
    progress: Progress | None,
) -> str | None:
    """Examines `files` (key → path), adds the verdicts to `known`, and saves now and then and at the end.

    It also saves when it is interrupted. It never saves where all new verdicts are of unreadable files, because these
    are not cached.

    Returns:
        Why the last save failed; None where it succeeded.
    """
    saved = time.monotonic()
    pause = _SECONDS_BETWEEN_SAVES
    unsaved = False  # whether there are verdicts to save
    failure = None
    try:
        with closing(_verdicts(files.values(), max_pixels)) as verdicts:
            for done, (key, verdict) in enumerate(zip(files, verdicts, strict=True), 1):
                known[key] = verdict
                unsaved = unsaved or not verdict.reason
                if progress is not None:
                    progress(done, len(files))
                if unsaved and (began := time.monotonic()) > saved + pause:
                    failure = save()
                    saved = time.monotonic()
                    unsaved = False
                    pause = max(_SECONDS_BETWEEN_SAVES, (saved - began) / _SHARE_SAVING)
    finally:
        if unsaved:
            failure = save()
    return failure


def _verdicts(files: Iterable[Path], max_pixels: int) -> Generator[Verdict, None, None]:
    """Examines files in several threads and yields the verdicts in the order of the files.

    Only a few files are in flight at a time: an interrupt waits for these, and memory holds no more of them.
    """
    cores = usable_cores()
    pool = ThreadPoolExecutor(cores)
    tasks: deque[Future[Verdict]] = deque()
    try:
        for file in files:
            tasks.append(pool.submit(examine, file, max_pixels))
            if len(tasks) > cores * _FILES_AHEAD:
                yield tasks.popleft().result()
        while tasks:
            yield tasks.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _entries_to_cache(
    root: Path, paths: Sequence[str], keys: list[str], known: dict[str, Verdict]
) -> dict[str, Verdict]:
    """The entries of `known` to write: readable files of this index, and unchanged files that only another one lists.

    Several CSV files of one folder share an index file.
    """
    entries = {key: known[key] for key in keys if key in known and not known[key].reason}
    listed = set(paths)
    for key in known.keys() - entries.keys():
        path = key.rsplit("\0", 2)[0]
        if path not in listed and _key(path, file_stat(root, path)) == key:
            entries[key] = known[key]
    return entries


def _without_refused(verdicts: dict[str, Verdict], at_most: int) -> dict[str, Verdict]:
    """Leaves out files of formats that are not opened and files of more than `at_most` bytes, to be examined again.

    Earlier versions called them good.
    """
    try:
        return {
            key: verdict
            for key, verdict in verdicts.items()
            if verdict.format in FORMATS_FOUND and int(key.rsplit("\0", 2)[1]) <= at_most
        }
    except (IndexError, ValueError):  # a key that no version has written
        return {}


def _key(path: str, stat: tuple[int, int]) -> str:
    """Names the content of a file: another size or another time of change is another content."""
    size, changed = stat
    return f"{path}\0{size}\0{changed}"


def _load(cache_file: Path, max_pixels: int = MAX_PIXELS) -> dict[str, Verdict]:
    """The cached verdicts by path, size and modification time; none where the file is missing or damaged."""
    try:
        checksum, _, body = cache_file.read_text().partition("\n") if cache_file.is_file() else ("", "", "")
        if checksum != _checksum(body):
            return {}
        entries = parse_json(body, {str: _READABLE})
    except (OSError, ValueError):
        return {}
    verdicts = {key: Verdict(*values) for key, values in entries.items()}
    largest = max((verdict.height * verdict.width for verdict in verdicts.values()), default=0)
    return verdicts if largest <= max_pixels else {}


def _save(cache_file: Path, entries: dict[str, Verdict]) -> str | None:
    """Writes the cached verdicts. Returns why that failed, because an index works without a cache; None on success."""
    try:
        cache_file.parent.mkdir(parents=True, exist_ok=True)
        body = json.dumps(entries)
        with replacing(cache_file, shared=True) as part:
            part.write_text(f"{_checksum(body)}\n{body}")
    except OSError as error:
        return f"{cache_file} cannot be written: {cause(error)}; SATURATE_CACHE names another place"
    return None


def _checksum(body: str) -> str:
    """The checksum of a body in this version's format: that of a damaged body, or of another version, differs."""
    return digest(str(_VERSION).encode(), body.encode())


def indexed_source(
    name: str,
    root: Path,
    paths: Sequence[str],
    labels: NDArray[np.int64],
    classes: tuple[str, ...],
    *,
    max_pixels: int = MAX_PIXELS,
    progress: Progress | None = None,
) -> Source:
    """Indexes image files and makes a source of them.

    Args:
        name: the name of the data set.
        root: the folder that the paths are relative to.
        paths: N paths, with forward slashes.
        labels: int64 `[N]`, places in `classes`.
        classes: the names of the classes.
        max_pixels: images with more pixels are unreadable.
        progress: called after each file that had to be decoded, with their number so far and their total.
    """
    stats = [file_stat(root, path) for path in paths]
    index = index_files(root, paths, stats, max_pixels=max_pixels, progress=progress)
    content = (
        f"{path}\0{size}\0{classes[label]}"
        for path, (size, _), label in zip(paths, stats, labels.tolist(), strict=True)
    )
    return Source(
        name,
        classes,
        labels,
        index.sizes,
        ImageFiles(
            root,
            np.array(paths, np.object_),
            index.formats,
            index.modes,
            index.orientations,
            np.array([changed for _, changed in stats], np.int64),
            np.array([size for size, _ in stats], np.int64),
        ),
        digest("\n".join(content).encode("utf-8", "surrogateescape")),
        index.bad,
        index.notes,
    )
