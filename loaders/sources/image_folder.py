"""A folder with one folder of images per class, as `torchvision.datasets.ImageFolder` reads it."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np

from loaders.errors import InputError, named
from loaders.sampling.splits import stratified_split
from loaders.sources.base import Source
from loaders.sources.index import MAX_PIXELS, Progress, indexed_source

EXTENSIONS = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".avif", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm",
)  # fmt: skip
VAL_SHARE = 0.2
"""Share of each class that is held out for validation where the data has no split of its own."""

_LITTER = ("__MACOSX",)  # folders that unpacked archives leave behind; hidden folders are ignored as well


def open_image_folder(
    root: Path, *, name: str | None = None, max_pixels: int = MAX_PIXELS, progress: Progress | None = None
) -> tuple[Source, Source]:
    """Opens the training and validation images of a folder.

    The folder holds either `train/` and `val/`, each with a folder per class, or the class folders themselves. Then
    `VAL_SHARE` of every class is held out for validation, always the same images.

    Args:
        root: the folder.
        name: the name of the data set; by default that of the folder.
        max_pixels: images with more pixels count as bad.
        progress: called with the number of images examined so far and their total.

    Raises:
        InputError: when there is no validation folder, a class without images, fewer than two classes, or when the
            classes of training and validation differ.
        OSError: when a folder cannot be read.
    """
    name = name or root.resolve().name
    if not _is_split(root):
        return held_out(_open(root, name, max_pixels, progress))
    if not _holds_classes(root / "val"):
        raise InputError(
            f"{root} has train/ but no val/: give the validation folder this name (a link will do), "
            f'or have a fifth held out by `data="{root / "train"}"`'
        )
    train, val = (_open(root / split, name, max_pixels, progress) for split in ("train", "val"))
    require_same_classes(str(root), train.classes, val.classes)
    return train, val


def held_out(everything: Source) -> tuple[Source, Source]:
    """Splits a source: all but `VAL_SHARE` of every class for training, and `VAL_SHARE` for validation."""
    train, val = stratified_split(everything.labels, val_share=VAL_SHARE)
    return everything.select(train), replace(everything.select(val), notes=())


def require_same_classes(where: str, in_train: Iterable[str], in_val: Iterable[str]) -> None:
    """Raises InputError where the classes differ. The message starts with `where` and names those of one split only."""
    train, val = set(in_train), set(in_val)
    if train != val:
        differences = ", ".join(
            f"only in {split}: [{named(map(repr, sorted(only)))}]"
            for split, only in (("train", train - val), ("val", val - train))
        )
        raise InputError(f"{where}: the classes of train and val differ: {differences}")


def _folders(folder: Path) -> list[str]:
    return sorted(e.name for e in os.scandir(folder) if e.is_dir() and not _is_litter(e.name))


def _is_litter(name: str) -> bool:
    return name.startswith(".") or name in _LITTER


def _is_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS) and not name.startswith(".")


def _holds_classes(folder: Path) -> bool:
    return folder.is_dir() and bool(_folders(folder))


def _is_split(root: Path) -> bool:
    """Whether `train/` is a split with class folders, and not a class of that name, which holds images itself."""
    train, val = root / "train", root / "val"
    return _holds_classes(train) and (_holds_classes(val) or not any(_is_image(e.name) for e in os.scandir(train)))


def _open(folder: Path, name: str, max_pixels: int, progress: Progress | None) -> Source:
    """Opens the images of one folder of class folders. Their paths are relative to it."""
    classes = tuple(_folders(folder))
    files = [sorted(_files(folder / c)) for c in classes]
    beside = [e.name for e in os.scandir(folder) if e.is_file()]
    per_class = [[f"{c}/{file}" for file in found if _is_image(file)] for c, found in zip(classes, files, strict=True)]
    if len(classes) < 2:
        found = f"only one, {classes[0]}" if classes else "none"
        raise InputError(f"{folder}: expected a folder of images per class, two classes or more, but found {found}")
    if empty := [c for c, found in zip(classes, per_class, strict=True) if not found]:
        raise InputError(f"{folder}: no images in the class folder(s) {named(empty)} ({' '.join(EXTENSIONS)})")
    labels = np.repeat(np.arange(len(classes)), [len(found) for found in per_class])
    paths = [path for found in per_class for path in found]
    source = indexed_source(name, folder, paths, labels, classes, max_pixels=max_pixels, progress=progress)
    notes = _notes(folder, [file for found in files for file in found], beside)
    return replace(source, notes=(*source.notes, *notes))


def _files(folder: Path) -> Iterator[str]:
    """Yields the paths of all files below `folder`, relative to it, without hidden ones and leftovers of archives."""
    for parent, folders, files in os.walk(folder, followlinks=True, onerror=_fail):
        folders[:] = [f for f in folders if not _is_litter(f) and not _leads_back(os.path.join(parent, f))]
        below = os.path.relpath(parent, folder)
        for file in files:
            if not file.startswith("."):
                yield file if below == "." else f"{below}/{file}".replace(os.sep, "/")


def _leads_back(path: str) -> bool:
    """Whether `path` is a link to one of the folders it lies in, which would be walked without end."""
    if not os.path.islink(path):
        return False
    target = os.path.realpath(path)
    return any(Path(os.path.realpath(above)).is_relative_to(target) for above in Path(path).parents)


def _fail(error: OSError) -> None:
    raise error


def _notes(folder: Path, files: list[str], beside: list[str]) -> Iterator[str]:
    """Notes about the files that are ignored, because some of them may have been meant as images."""
    others = Counter(PurePosixPath(file).suffix.lower() or "no extension" for file in files if not _is_image(file))
    if others:
        counts = ", ".join(f"{count} × {suffix}" for suffix, count in others.most_common(5))
        yield f"{folder}: passed over, being no images: {counts}"
    if loose := sum(map(_is_image, beside)):
        yield f"{folder}: passed over, as they lie beside the class folders and have no label ({loose})"
