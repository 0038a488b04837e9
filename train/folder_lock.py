"""A lock on a folder, so that no two runs write to it at the same time."""

import fcntl
import os
import socket
import weakref
from contextlib import suppress
from pathlib import Path
from typing import IO

from loaders import InputError
from loaders.errors import cause

LOCK = "run.lock"


class FolderLock:
    """A lock that this process holds on a folder until `release`, or until it ends in whatever way.

    The file `run.lock` is locked and names its holder. It is removed on release; one that a killed process leaves
    behind is not locked any more and hinders nobody.
    """

    def __init__(self, folder: Path) -> None:
        """
        Raises:
            InputError: when another process holds the lock, which is named, or when the file cannot be made.
        """
        self.problem: str | None = None
        """Why the folder could not be locked, where its file system has no locks."""
        self._path = folder / LOCK
        self._file = self._open()
        while self._lock() and not self._is_current():  # the holder before removed the file once it was opened here
            self._file.close()
            self._file = self._open()
        if self.problem is None:
            self._file.truncate(0)
            self._file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            self._file.flush()
        _held.add(self)

    def release(self) -> None:
        """Gives the folder back. Only the first call does anything."""
        if self._file.closed:
            return
        with suppress(OSError):  # the folder may have been removed
            self._path.unlink()
        self._file.close()

    def close_in_child(self) -> None:
        """Closes the file in a forked child. The lock would otherwise outlive its holder for as long as the child."""
        self._file.close()

    def _open(self) -> IO[str]:
        try:
            return self._path.open("a+")
        except OSError as error:
            raise InputError(f"OUT: {self._path} cannot be made: {cause(error)}") from error

    def _lock(self) -> bool:
        """Locks the file, and returns whether its file system can do so."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._file.seek(0)
            holder = self._file.read().strip() or "another process"
            self._file.close()
            raise InputError(
                f"OUT: {self._path.parent} is in use by a run of {holder}: choose another OUT, or end that run first"
            ) from error
        except OSError as error:  # as of some network file systems
            self.problem = cause(error)
            return False
        return True

    def _is_current(self) -> bool:
        """Whether the path still names the file that was locked."""
        try:
            return os.path.samestat(os.fstat(self._file.fileno()), self._path.stat())
        except FileNotFoundError:
            return False


_held: weakref.WeakSet[FolderLock] = weakref.WeakSet()


def _close_in_child() -> None:
    for lock in list(_held):
        lock.close_in_child()
    _held.clear()


os.register_at_fork(after_in_child=_close_in_child)
