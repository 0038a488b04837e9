"""A CSV file with the path and label of each image; perhaps also which split it belongs to.

    path,label,split
    img/0001.jpg,ash,train
    img/0002.jpg,oak,val

Paths are relative to the file's folder, or absolute. Without a `split` column a share of every class is
held out for validation, as for folders. Separated by commas, semicolons or tabs; two columns need no header.
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
    """As it is written; empty without such a column."""


def open_label_file(
    file: Path, *, max_pixels: int = MAX_PIXELS, progress: Progress | None = None
) -> tuple[Source, Source]:
    """Training and validation images of a CSV file.

    Raises:
        InputError: when the file cannot be read or makes no sense; the message names the line.
    """
    # Without links, behind which `..` leads elsewhere: so may the way from here to an absolute path.
    file = file.parent.resolve() / file.name
    rows = _rows(file)
    _require_distinct(file, rows)
    classes = _in_order({row.label for row in rows})
    if len(classes) < 2:
        raise InputError(f"{file}: expected two classes or more, but found {', '.join(classes) or 'no images'}")
    places = {name: place for place, name in enumerate(classes)}
    labels = np.array([places[row.label] for row in rows], np.int64)
    everything = indexed_source(
        file.stem, file.parent, [row.path for row in rows], labels, classes, max_pixels=max_pixels, progress=progress
    )
    return _split(file, everything, [row.split for row in rows])


def _split(file: Path, everything: Source, written: list[str]) -> tuple[Source, Source]:
    """By the split column, or a share of every class where there is none."""
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
    """Where path, label and perhaps split stand, by a header; None where the first line is none."""
    names = [cell.lower() for cell in cells]
    found = {
        what: next((names.index(name) for name in known if name in names), None) for what, known in _COLUMNS.items()
    }
    if found["path"] is not None and found["label"] is not None:
        return {what: place for what, place in found.items() if place is not None}
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
    return _Row(line, _seen_from(os.path.dirname(file), path), label, split)


def _seen_from(folder: str, path: str) -> str:
    """A path as it is written, relative to `folder`: by `Path` and `os.path.relpath`, it took 7 times as long."""
    whole, inside = os.path.normpath(os.path.join(folder, os.path.expanduser(path))), f"{folder}/"
    return whole[len(inside) :] if whole.startswith(inside) else os.path.relpath(whole, folder)


def _require_distinct(file: Path, rows: list[_Row]) -> None:
    """One image twice could be trained on and validated with."""
    lines: dict[str, int] = {}
    for row in rows:
        if (earlier := lines.setdefault(row.path, row.line)) != row.line:
            raise InputError(f"{file}: {row.path} is in line {earlier} and again in line {row.line}")


def _in_order(labels: set[str]) -> tuple[str, ...]:
    """Numbers by their value, so that class 10 follows 9; else, and where values are equal (1, 01), by name."""
    numbers = all(label.isdecimal() for label in labels)
    return tuple(sorted(labels, key=lambda label: (int(label) if numbers else 0, label)))
