"""The index of image files: size, format, orientation and verdict of each, reached once and kept.

Pillow decodes every image here, and its verdict holds for every backend, so that no decoder's
leniency changes which samples a run sees.
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
from PIL import Image

from loaders.errors import cause
from loaders.sources.base import ImageFiles, Source, digest
from loaders.sources.pillow import as_rgb, orientation, require_shape
from loaders.system.files import replacing
from loaders.system.machine import cache_folder, usable_cores

Progress = Callable[[int, int], None]
"""Called with how much is done and how much there is."""

MAX_PIXELS = 89_478_485
"""More than these are a bad image, unless told otherwise: a small file can unpack to gigabytes. Pillow's own limit."""

_VERSION = 4
_FILES_AHEAD = 64  # for each thread, of the one whose verdict is waited for
_SECONDS_BETWEEN_SAVES = 30.0  # while images are decoded: what a kill may cost
_SHARE_SAVING = 0.05  # of the time, at most: the index of millions of images takes seconds to write


class Verdict(NamedTuple):
    """What Pillow says of one image file."""

    height: int
    width: int
    format: str
    mode: str
    orientation: int
    reason: str
    """Why it cannot be decoded; empty for a good one."""


@dataclass(frozen=True)
class Index:
    """What is known of N image files; see `sources.base` for the fields' meanings."""

    sizes: NDArray[np.int32]
    formats: NDArray[np.str_]
    modes: NDArray[np.str_]
    orientations: NDArray[np.uint8]
    bad: dict[int, str]
    """Why images cannot be decoded: place → reason."""
    notes: tuple[str, ...]
    """What people should know: that it cannot be kept, for one."""


def examine(path: Path, max_pixels: int = MAX_PIXELS) -> Verdict:
    """Decodes the whole image, if it has no more than `max_pixels`; whatever Pillow raises becomes the reason."""
    try:
        if path.exists() and not path.is_file():
            raise ValueError("it is no regular file")  # reading a named pipe would wait for ever
        with Image.open(path) as image:
            format, mode, (width, height) = image.format or "", image.mode, image.size
            if width * height > max_pixels:
                raise ValueError(f"its {width:,} × {height:,} pixels are more than {max_pixels:,} (--max-pixels)")
            require_shape(image)
            if mode in ("I", "F"):
                as_rgb(image)
            image.load()
            turned = orientation(image)
            width, height = image.size
    except Exception as error:  # damaged files raise nearly anything: OSError, SyntaxError, struct.error, ...
        return Verdict(0, 0, "", "", 1, str(error).replace(str(path), path.name) or type(error).__name__)
    if turned >= 5:
        width, height = height, width
    return Verdict(height, width, format, mode, turned, "")


def file_stat(root: Path, path: str) -> tuple[int, int]:
    """Size in bytes and time of change in nanoseconds; (-1, 0) for a broken link, whose verdict will say so."""
    try:
        stat = os.stat(f"{root}/{path}")
    except (OSError, ValueError):  # no path at all has a NUL in it
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
    """The index of `paths` (relative to `root`): from the cache for files whose `file_stat` has not changed since.

    It is kept under `cache_folder()`, one for each root and `max_pixels`, also while it grows. All usable cores decode
    what is new, and what was bad: permissions, the disk or another Pillow may have changed that, and no file tells.
    """
    kept = cache_folder() / "index" / f"{digest(os.fsencode(root.resolve()), str(max_pixels).encode())}.json"
    keys = [f"{path}\0{size}\0{changed}" for path, (size, changed) in zip(paths, stats, strict=True)]
    known = _load(kept)
    new = {key: root / path for key, path in zip(keys, paths, strict=True) if key not in known}
    failed = _learn(new, known, lambda: _save(kept, _to_keep(root, paths, keys, known)), max_pixels, progress)
    height, width, formats, modes, orientations, reasons = zip(*(known[key] for key in keys), strict=True)
    return Index(
        np.array([height, width], np.int32).T.copy(),
        np.array(formats, np.str_),
        np.array(modes, np.str_),
        np.array(orientations, np.uint8),
        {place: reason for place, reason in enumerate(reasons) if reason},
        (f"{root}: all is decoded again the next time, as {failed}",) if failed else (),
    )


def _learn(
    files: dict[str, Path],
    known: dict[str, Verdict],
    save: Callable[[], str | None],
    max_pixels: int,
    progress: Progress | None,
) -> str | None:
    """Adds the verdicts on `files` (key → path) to what is known; however it ends, what is good is saved.

    Returns why it cannot be.
    """
    saved, pause, news, failed = time.monotonic(), _SECONDS_BETWEEN_SAVES, False, None
    try:
        with closing(_verdicts(files.values(), max_pixels)) as verdicts:
            for done, (key, verdict) in enumerate(zip(files, verdicts, strict=True), 1):
                known[key] = verdict
                news = news or not verdict.reason
                if progress is not None:
                    progress(done, len(files))
                if news and (began := time.monotonic()) > saved + pause:
                    failed = save()
                    saved, news = time.monotonic(), False
                    pause = max(_SECONDS_BETWEEN_SAVES, (saved - began) / _SHARE_SAVING)
    finally:
        if news:
            failed = save()
    return failed


def _verdicts(files: Iterable[Path], max_pixels: int) -> Generator[Verdict, None, None]:
    """Of all files in their order. Few are under way at a time: Ctrl-C waits for these, and memory holds no more."""
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


def _to_keep(root: Path, paths: Sequence[str], keys: list[str], known: dict[str, Verdict]) -> dict[str, Verdict]:
    """What is good of these files, and of others that are still there: another CSV file may list those."""
    keeping = {key: known[key] for key in keys if key in known and not known[key].reason}
    listed = set(paths)
    for key in known.keys() - keeping.keys():
        path, size, changed = key.rsplit("\0", 2)
        if path not in listed and file_stat(root, path) == (int(size), int(changed)):
            keeping[key] = known[key]
    return keeping


def _load(kept: Path) -> dict[str, Verdict]:
    """What is known by path, size and time of change; nothing where no cache is, or a damaged one."""
    try:
        checksum, _, body = kept.read_text().partition("\n")
    except (OSError, ValueError):
        return {}
    if checksum != _checksum(body):
        return {}
    return {key: Verdict(*facts) for key, facts in json.loads(body).items()}


def _save(kept: Path, known: dict[str, Verdict]) -> str | None:
    """Returns why it cannot be written: a cache is done without then."""
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        body = json.dumps(known)
        with replacing(kept, shared=True) as part:
            part.write_text(f"{_checksum(body)}\n{body}")
    except OSError as error:
        return f"{kept} cannot be written: {cause(error)}; SATURATE_CACHE names another place"
    return None


def _checksum(body: str) -> str:
    """Differs for a damaged body and for one of another version of this module."""
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
    """A source of image files.

    Args:
        paths: relative to `root`, with forward slashes.
        labels: `[N]`, places in `classes`.
    """
    stats = [file_stat(root, path) for path in paths]
    index = index_files(root, paths, stats, max_pixels=max_pixels, progress=progress)
    facts = (f"{p}\0{length}\0{classes[k]}" for p, (length, _), k in zip(paths, stats, labels.tolist(), strict=True))
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
        ),
        digest("\n".join(facts).encode("utf-8", "surrogateescape")),
        index.bad,
        index.notes,
    )
