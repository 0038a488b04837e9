"""A folder with one folder of images per class, as `torchvision.datasets.ImageFolder` reads it."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from loaders.errors import InputError
from loaders.order import stratified_split
from loaders.sources.base import ImageFiles, Source, digest
from loaders.sources.index import Progress, file_stat, index_files

EXTENSIONS = (".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
VAL_SHARE = 0.2
"""Share of each class held out for validation where the folder has no `val/`."""


def open_image_folder(
    root: Path, *, name: str | None = None, progress: Progress | None = None
) -> tuple[Source, Source]:
    """Training and validation images of a folder.

    It holds either `train/` and `val/`, each with a folder per class, or the class folders themselves,
    of which `VAL_SHARE` of every class is then held out, always the same images.

    Raises:
        InputError: when the folder is missing, empty, or its classes make no sense; the message says which.
    """
    if not root.is_dir():
        raise InputError(f"DATA: there is no folder {root} (nor a data set of that name: sample, cifar10)")
    name = name or root.resolve().name
    if not _holds_classes(root / "train"):
        everything = _open(root, "", name, progress)
        train, val = stratified_split(everything.labels, val_share=VAL_SHARE)
        return everything.select(train), everything.select(val)
    if not _holds_classes(root / "val"):
        raise InputError(f"{root} has train/ but no val/: give the validation folder this name (a link will do)")
    train_source, val_source = (_open(root, split, name, progress) for split in ("train", "val"))
    in_train, in_val = set(train_source.classes), set(val_source.classes)
    if in_train != in_val:
        raise InputError(
            f"{root}: the classes of train/ and val/ differ: "
            f"only in train/: {sorted(in_train - in_val)}, only in val/: {sorted(in_val - in_train)}"
        )
    return train_source, val_source


def _holds_classes(folder: Path) -> bool:
    """Whether it is a folder of folders: a class may be called train, too, and holds images."""
    if not folder.is_dir():
        return False
    entries = [entry for entry in os.scandir(folder) if not entry.name.startswith(".")]
    return any(e.is_dir() for e in entries) and not any(e.name.lower().endswith(EXTENSIONS) for e in entries)


def _open(root: Path, split: str, name: str, progress: Progress | None) -> Source:
    """All images below one folder of class folders; their paths are relative to it."""
    folder = root / split
    classes = tuple(sorted(e.name for e in os.scandir(folder) if e.is_dir() and not e.name.startswith(".")))
    per_class = [[f"{c}/{p}" for p in sorted(_image_paths(folder / c))] for c in classes]
    if empty := [c for c, found in zip(classes, per_class, strict=True) if not found]:
        raise InputError(f"{folder}: no images in the class folder(s) {', '.join(empty)} ({' '.join(EXTENSIONS)})")
    if len(classes) < 2:
        found = f"only one, {classes[0]}" if classes else "none"
        raise InputError(f"{folder}: expected a folder of images per class, two classes or more, but found {found}")
    paths = [path for found in per_class for path in found]
    labels = np.repeat(np.arange(len(classes)), [len(found) for found in per_class])
    stats = [file_stat(folder, path) for path in paths]
    index = index_files(folder, paths, stats, progress)
    facts = "\n".join(f"{path}\0{length}" for path, (length, _) in zip(paths, stats, strict=True))
    return Source(
        name,
        classes,
        labels,
        index.sizes,
        ImageFiles(folder, np.array(paths, np.str_), index.formats, index.modes, index.orientations),
        digest(facts.encode("utf-8", "surrogateescape")),
        {int(i): str(index.reasons[i]) for i in np.flatnonzero(index.reasons != "")},
    )


def _image_paths(folder: Path) -> Iterator[str]:
    """Image files below `folder`, relative to it; hidden files and folders are passed over."""
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [f for f in folders if not f.startswith(".")]
        below = os.path.relpath(parent, folder)
        for file in files:
            if file.lower().endswith(EXTENSIONS) and not file.startswith("."):
                yield file if below == "." else f"{below}/{file}".replace(os.sep, "/")
