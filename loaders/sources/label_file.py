"""A CSV file with the path and label of each image, and optionally its split.

    path,label,split
    img/0001.jpg,ash,train
    img/0002.jpg,oak,val

Paths are absolute, or relative to the file's folder. Without a `split` column a share of every class is held out for
validation, as for folders. Columns are separated by commas, semicolons or tabs. A file with two columns needs no
header.
"""

import csv
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from loaders.errors import InputError, named
from loaders.sources.base import Source
from loaders.sources.image_folder import held_out, require_same_classes
from loaders.sources.index import MAX_PIXELS, Progress, indexed_source

_COLUMNS = {
    "path": ("path", "file", "filename", "file_name", "filepath", "image", "image_path"),
    "label": ("label", "class", "category", "target"),
    "split": ("split", "set", "subset"),
}
_SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val"}


class _Row(NamedTuple):
    line: int
    path: str
    """Relative to the file's folder."""
    label: str
    split: str
    """As written in the file; empty where there is no split column."""


def open_label_file(
    file: Path, *, max_pixels: int = MAX_PIXELS, progress: Progress | None = None
) -> tuple[Source, Source]:
    """Opens the training and validation images of a CSV file.

    Args:
        file: the CSV file; its name without the suffix becomes the name of the data set.
        max_pixels: images with more pixels count as bad.
        progress: called with the number of images examined so far and their total.

    Raises:
        InputError: when the file cannot be read or a line of it cannot be used; the message names the line.
    """
    # Without links: `..` behind a link leads elsewhere, and the relative form of an absolute path may contain `..`.
    file = file.parent.resolve() / file.name
    rows = _rows(file)
    _require_distinct(file, rows)
    classes = _sorted_classes({row.label for row in rows})
    if len(classes) < 2:
        raise InputError(f"{file}: expected two classes or more, but found {', '.join(classes) or 'no images'}")
    places = {name: place for place, name in enumerate(classes)}
    labels = np.array([places[row.label] for row in rows], np.int64)
    everything = indexed_source(
        file.stem, file.parent, [row.path for row in rows], labels, classes, max_pixels=max_pixels, progress=progress
    )
    return _split(file, everything, [row.split for row in rows])


def _split(file: Path, everything: Source, written: list[str]) -> tuple[Source, Source]:
    """Splits a source by the split column of its file, or by `held_out` where there is no such column.

    Args:
        written: the split of each image as written in the file.
    """
    if not any(written):
        return held_out(everything)
    splits = np.array([_SPLITS.get(split.lower(), "") for split in written])
    train, val = (everything.select(np.flatnonzero(splits == split)) for split in ("train", "val"))
    if not len(train) or not len(val):
        found = named(sorted(set(written)))
        raise InputError(f"{file}: its split column must have both train and val; it has {found}")
    require_same_classes(
        str(file), *([source.classes[k] for k in set(source.labels.tolist())] for source in (train, val))
    )
    others = Counter(split or "(empty)" for split in written if split.lower() not in _SPLITS)
    notes = [f"{file}: left out, being of the split {split}: {count}" for split, count in others.items()]
    return replace(train, notes=(*train.notes, *notes)), replace(val, notes=())


def _rows(file: Path) -> list[_Row]:
    try:
        with open(file, newline="", encoding="utf-8-sig") as lines:
            first = lines.readline()
            lines.seek(0)
            reader = csv.reader(lines, delimiter=max(",;\t", key=first.count))
            written = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader if any(cells)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{file} cannot be read as a CSV file of paths and labels: {error}") from error
    if not written:
        raise InputError(f"{file} is empty: expected the path and label of an image in each line")
    columns = _columns(file, written[0][1])
    if columns is None:
        columns = {"path": 0, "label": 1}
    else:
        written = written[1:]
    return [_row(file, line, cells, columns) for line, cells in written]


def _columns(file: Path, cells: list[str]) -> dict[str, int] | None:
    """The places of the columns by role (path, label, split), from a header; None where the first line is no header."""
    names = [cell.lower() for cell in cells]
    places = {
        role: next((names.index(name) for name in accepted if name in names), None)
        for role, accepted in _COLUMNS.items()
    }
    if places["path"] is not None and places["label"] is not None:
        return {role: place for role, place in places.items() if place is not None}
    if len(cells) != 2:
        raise InputError(
            f"{file}: its first line must name the columns path and label (and split, if there is one); it is {cells}"
        )
    return None


def _row(file: Path, line: int, cells: list[str], columns: dict[str, int]) -> _Row:
    try:
        path, label = cells[columns["path"]], cells[columns["label"]]
        split = cells[columns["split"]] if "split" in columns else ""
    except IndexError:
        raise InputError(f"{file}, line {line}: expected {max(columns.values()) + 1} columns, found {cells}") from None
    if not path or not label:
        raise InputError(f"{file}, line {line}: the {'path' if not path else 'label'} is missing")
    return _Row(line, _relative(os.path.dirname(file), path), label, split)


def _relative(folder: str, path: str) -> str:
    """A path written in the file, relative to `folder`. `Path` and `os.path.relpath` alone took 7 times as long."""
    absolute = os.path.normpath(os.path.join(folder, os.path.expanduser(path)))
    prefix = f"{folder}/"
    return absolute[len(prefix) :] if absolute.startswith(prefix) else os.path.relpath(absolute, folder)


def _require_distinct(file: Path, rows: list[_Row]) -> None:
    """Raises InputError where an image is listed twice, because it could be in training and in validation."""
    lines: dict[str, int] = {}
    for row in rows:
        if (earlier := lines.setdefault(row.path, row.line)) != row.line:
            raise InputError(f"{file}: {row.path} is in line {earlier} and again in line {row.line}")


def _sorted_classes(labels: set[str]) -> tuple[str, ...]:
    """The class names in order: by value where all are numbers, so that 10 follows 9; else, or where equal, by name."""
    numbers = all(label.isdecimal() for label in labels)
    return tuple(sorted(labels, key=lambda label: (int(label) if numbers else 0, label)))
