"""Atomic writing: a reader finds a file either as it was before, or complete."""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from loaders.errors import InputError, cause


@contextmanager
def replacing(path: Path, *, shared: bool = False, durable: bool = False) -> Iterator[Path]:
    """Yields a temporary path beside `path` to write to, and renames it to `path` when the block ends.

    When the block fails, the temporary file is removed and `path` stays as it was.

    Args:
        path: the file to create or replace.
        shared: gives each process its own temporary name, so that several may write `path` at the same time.
        durable: waits until the file is on the disk, so that it is complete even after a power failure.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}.part" if shared else f"{path.name}.part")
    try:
        yield part
        if durable:
            _flush(part)
        os.replace(part, path)
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise
    if durable:
        _flush(path.parent)  # the new name is in the folder


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Writes a file atomically and durably, and creates its folder where that is missing.

    This is how results are written: once it returns, they are on the disk, and a power failure at any time leaves the
    file as it was before, or complete.

    Args:
        path: the file to create or replace.
        write: called with the temporary path to write to.

    Raises:
        InputError: when the file cannot be written; the message says why.
    """
    try:
        make_folder(path.parent)
        with replacing(path, shared=True, durable=True) as part:
            write(part)
    except (OSError, RuntimeError) as error:  # torch.save may raise a RuntimeError while it handles an OSError
        first = error.__context__ if isinstance(error.__context__, OSError) else error
        raise InputError(f"{path} cannot be written: {cause(first)}") from error


def make_folder(path: Path) -> None:
    """Creates a folder, and those above it, durably; OSError where that fails."""
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
        _flush(path.parent)


def preserve(path: Path, previous: Path) -> None:
    """Leaves the present file at `path`, if there is one, at `previous` when `path` is replaced.

    Where the file system has no hard links, the file is renamed: `path` is missing until it is written again.

    Raises:
        InputError: when that fails; the message says why.
    """
    if not path.exists() or (previous.exists() and previous.samefile(path)):
        return
    try:
        with replacing(previous, durable=True) as part:
            part.unlink(missing_ok=True)
            try:
                os.link(path, part)
            except OSError:
                os.replace(path, part)
    except OSError as error:
        raise InputError(f"{previous} cannot be written: {cause(error)}") from error


def _flush(path: Path) -> None:
    """Waits until the content of a file, or the names in a folder, are on the disk."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        # Some network file systems cannot sync a folder, and some folders may be written to but not read.
        if not path.is_dir() or error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EACCES):
            raise
