"""Files that are written whole or not at all: whoever looks for one finds it as it was before, or finished."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from loaders.errors import InputError, cause


@contextmanager
def replacing(path: Path, *, shared: bool = False, durable: bool = False) -> Iterator[Path]:
    """A name beside `path` to write to. What lies there takes the place of `path` when the block ends, and goes where
    it fails.

    Args:
        shared: other processes may write `path` at the same time, each to a name of its own.
        durable: it is whole even after a power cut.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}.part" if shared else f"{path.name}.part")
    try:
        yield part
        if durable:
            _to_disk(part)
        os.replace(part, path)
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise
    if durable:
        _to_disk(path.parent)  # the new name, too


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Has `write` write to a name beside `path`, in a folder that is made where it is missing, and puts it there.

    Raises:
        InputError: when it cannot be written; the message says why.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as part:
            write(part)
    except (OSError, RuntimeError) as error:  # torch.save may hide the former in the latter
        met = error.__context__ if isinstance(error.__context__, OSError) else error
        raise InputError(f"{path} cannot be written: {cause(met)}") from error


def _to_disk(path: Path) -> None:
    """Waits until a file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
