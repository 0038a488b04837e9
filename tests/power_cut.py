"""A simulated power cut: what a folder holds afterwards, when only what was synced is on the disk.

File systems may bring names to the disk before the content of the files, or not bring them at all. Both are simulated:
`names="all"` is a journal that was written just before the power went, `names="synced"` one that was not.
"""

import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self
from unittest.mock import patch

Names = Literal["synced", "all"]
"""The names that are on the disk when the power goes: those in synced folders, or all."""

Files = dict[Path, bytes | None]
"""Files and their content; None for a folder, which comes before what it holds."""

_STEPS = ("fsync", "replace", "rename", "link", "unlink", "mkdir")


class PowerCutError(BaseException):
    """The power has gone."""


class PowerCut:
    """A power cut before one of the steps that bring files to the disk, or after the last of them.

    with PowerCut(folder, step=3, names="all"):
        save(folder)
    assert is_intact(folder)  # it holds what was on the disk
    """

    def __init__(self, root: Path, step: int, names: Names) -> None:
        """What `root` holds now counts as synced.

        Args:
            root: the folder on the simulated disk.
            step: the number of the call of `os.fsync`, `os.replace` and so on before which the power goes, from 0.
            names: see `Names`.
        """
        self.happened = False
        """Whether there were so many steps that the power went between them."""
        self._root, self._step, self._names = root, step, names
        self._contents: dict[int, bytes] = {}  # inode of a file → its content on the disk
        self._entries: dict[int, dict[str, int]] = {}  # inode of a folder → names on the disk and their inodes
        self._open: list[int] = []  # descriptors, so that no inode of a removed file is given to another one
        for path in (root, *root.rglob("*")):
            self._sync(path)

    def __enter__(self) -> Self:
        self._patches = ExitStack()
        for name in _STEPS:
            self._patches.enter_context(patch.object(os, name, self._counted(getattr(os, name), name)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self._patches.close()
        if not self.happened:
            self._take()
        write_files(self._root, self._image)
        for descriptor in self._open:
            os.close(descriptor)
        return isinstance(error, PowerCutError)

    def _counted(self, call: Callable[..., Any], name: str) -> Callable[..., Any]:
        """`call`, before which the power may go. `os.fsync` brings its file or folder to the disk."""

        def step(*given: Any, **named: Any) -> Any:
            if not self.happened and self._step == 0:
                self.happened = True
                self._take()
            if self.happened:  # what a program does from now on reaches no disk
                raise PowerCutError
            self._step -= 1
            result = call(*given, **named)
            if name == "fsync":
                self._sync_descriptor(given[0])
            return result

        return step

    def _sync_descriptor(self, descriptor: int) -> None:
        inode = os.fstat(descriptor).st_ino
        for path in (self._root, *self._root.rglob("*")):
            if path.stat().st_ino == inode:
                self._sync(path)

    def _sync(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDONLY)
        self._open.append(descriptor)
        found = os.fstat(descriptor)
        if stat.S_ISDIR(found.st_mode):
            self._entries[found.st_ino] = {entry.name: entry.inode() for entry in os.scandir(path)}
        else:
            self._contents[found.st_ino] = path.read_bytes()

    def _take(self) -> None:
        """Notes what is on the disk now."""
        self._image: Files = {}
        self._folders = {path.stat().st_ino for path in self._root.rglob("*") if path.is_dir()}
        self._take_folder(self._root, self._root.stat().st_ino)

    def _take_folder(self, folder: Path, inode: int) -> None:
        entries = self._entries.get(inode, {})
        if self._names == "all":
            entries = {entry.name: entry.inode() for entry in os.scandir(folder)}
        for name, entry_inode in entries.items():
            path = folder / name
            is_folder = entry_inode in self._folders or entry_inode in self._entries
            self._image[path] = None if is_folder else self._contents.get(entry_inode, b"")
            if is_folder:
                self._take_folder(path, entry_inode)


def power_cuts(root: Path) -> Iterator[PowerCut]:
    """A power cut at every step of what the body of the loop does, for both kinds of `Names`.

    Each body begins with what the folder holds now. The last body of each kind does all steps before the power goes.
    """
    before = read_files(root)
    for names in ("synced", "all"):
        for step in count():
            write_files(root, before)
            cut = PowerCut(root, step, names)
            yield cut
            if not cut.happened:
                break


def read_files(root: Path) -> Files:
    """All files and folders in `root`."""
    return {path: None if path.is_dir() else path.read_bytes() for path in sorted(root.rglob("*"))}


def write_files(root: Path, files: Files) -> None:
    """Leaves only `files` in `root`."""
    shutil.rmtree(root)
    root.mkdir()
    for path, content in files.items():
        if content is None:
            path.mkdir()
        else:
            path.write_bytes(content)
