"""The samples of a run: recorded in its checkpoint, so that it goes on with them when files have changed since."""

import io
import json
import os
import zlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from loaders import InputError, Source
from loaders.bad_images import MAX_BAD_SHARE, OnBadImage, require_good
from loaders.errors import named
from loaders.sources.base import ImageFiles
from train.options import Options

_MISSING = "it is missing"


@dataclass(frozen=True)
class SampleRecord:
    """The image files of a source as they were when the run began; `Source` and `ImageFiles` describe the fields."""

    limit: int | None
    """The number of images that the options asked for."""
    classes: tuple[str, ...]
    fingerprint: str
    bad: dict[int, str]
    paths: list[str]
    labels: NDArray[np.int64]
    sizes: NDArray[np.int32]
    formats: NDArray[np.str_]
    modes: NDArray[np.str_]
    orientations: NDArray[np.uint8]
    changed: NDArray[np.int64]
    lengths: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.paths)

    def facts(self, place: int) -> tuple[int, ...]:
        """The bytes of a file, its height and width."""
        return int(self.lengths[place]), *self.sizes[place].tolist()


def record_samples(options: Options, train: Source, val: Source) -> dict[str, Tensor]:
    """The records of both sources, as a checkpoint holds them."""
    packed = {"train": pack(train, options.train_limit), "val": pack(val, options.val_limit)}
    return {split: record for split, record in packed.items() if record is not None}


def with_recorded_samples(
    recorded: dict[str, Tensor], options: Options, selected: tuple[Source, Source], opened: tuple[Source, Source]
) -> tuple[Source, Source]:
    """The sources with which a run goes on; see `recorded_source`.

    Args:
        recorded: what `record_samples` has returned when the run was begun; empty in earlier versions.
        selected: what the options select now, to train on and to validate.
        opened: all that is in the data now, before a limit selects from it.
    """

    records = {split: unpack(packed) for split, packed in recorded.items()}
    known = {path for record in records.values() for path in record.paths}

    def source(split: str, now: Source, limit: int | None) -> Source:
        if split not in records or records[split].limit != limit:  # another limit is refused by its name
            return now
        return recorded_source(records[split], now, opened, known, options.on_bad_image)

    train, val = selected
    return source("train", train, options.train_limit), source("val", val, options.val_limit)


def pack(source: Source, limit: int | None) -> Tensor | None:
    """The record of a source as compressed bytes, which a checkpoint can hold; None where images are no files."""
    files = source.images.encoded
    if files is None:
        return None
    facts = {"limit": limit, "classes": source.classes, "fingerprint": source.fingerprint, "bad": source.bad}
    buffer = io.BytesIO()
    np.savez(
        buffer,
        facts=np.frombuffer(json.dumps(facts).encode(), np.uint8),
        paths=np.frombuffer(b"\0".join(map(os.fsencode, files.paths.tolist())), np.uint8),
        labels=source.labels,
        sizes=source.sizes,
        formats=files.formats,
        modes=files.modes,
        orientations=files.orientations,
        changed=files.changed,
        lengths=files.lengths,
    )
    return torch.frombuffer(bytearray(zlib.compress(buffer.getvalue(), 1)), dtype=torch.uint8)


def unpack(packed: Tensor) -> SampleRecord:
    """The record that `pack` has packed.

    Raises:
        InputError: when it is damaged.
    """
    try:
        return _unpack(packed)
    except Exception as error:  # damaged bytes raise whatever they lead to
        raise InputError(
            "--resume: the checkpoint's record of the run's samples is damaged; begin anew with another OUT"
        ) from error


def _unpack(packed: Tensor) -> SampleRecord:
    with np.load(io.BytesIO(zlib.decompress(packed.numpy().tobytes())), allow_pickle=False) as columns:
        facts = json.loads(columns["facts"].tobytes())
        return SampleRecord(
            facts["limit"],
            tuple(facts["classes"]),
            facts["fingerprint"],
            {int(place): reason for place, reason in facts["bad"].items()},
            [os.fsdecode(path) for path in columns["paths"].tobytes().split(b"\0")],
            *(columns[name] for name in ("labels", "sizes", "formats", "modes", "orientations", "changed", "lengths")),
        )


def recorded_source(
    record: SampleRecord, source: Source, opened: Sequence[Source], known: Collection[str], on_bad_image: OnBadImage
) -> Source:
    """The source that the run was begun with, read from the files as they are now.

    Samples and their ids, and with them order and plans, stay as they were recorded. Images that have become
    unreadable are found out when they are read, as in a run that was not interrupted. Files that were added are
    ignored. Where nothing has changed it is `source`.

    Args:
        source: what the options select now.
        opened: all that is in the data now, before a limit selects from it.
        known: the paths of all samples of the run.

    Raises:
        BadImageError: when images have become unreadable that may not be skipped.
        InputError: when labels or content have changed, or it is another data set.
    """
    files = source.images.encoded
    if files is None or (record.fingerprint, record.bad.keys()) == (source.fingerprint, source.bad.keys()):
        return source
    present = _by_path(files, opened)
    missing = {place: _MISSING for place, path in enumerate(record.paths) if path not in present}
    if len(missing) > max(1, MAX_BAD_SHARE * len(record)):
        raise InputError(
            f"--resume: {len(missing):,} of the {len(record):,} images that the run was begun with are missing: "
            f"{_named(record, missing)}. Give the DATA that it had, or begin anew with another OUT"
        )
    found = [_Found(place, *present[path]) for place, path in enumerate(record.paths) if path in present]
    _require_same_images(record, found)
    unreadable = missing | {it.place: it.bad for it in found if it.bad and it.place not in record.bad}
    repaired = [it.place for it in found if not it.bad and it.place in record.bad]
    # What a limit had left out is not recorded.
    added = sum(path not in known for path in present) if record.limit is None else 0
    begun_with = replace(
        source,
        classes=record.classes,
        labels=record.labels,
        sizes=record.sizes,
        images=ImageFiles(
            files.root,
            np.array(record.paths, np.object_),
            record.formats,
            record.modes,
            record.orientations,
            record.changed,
            record.lengths,
        ),
        fingerprint=record.fingerprint,
        bad=record.bad,
        selected_from=None,
        notes=(*source.notes, *_notes(record, unreadable, repaired, added)),
    )
    require_good([replace(begun_with, bad=record.bad | unreadable)], on_bad_image)
    return begun_with


@dataclass(frozen=True)
class _Found:
    """A recorded image that is there now."""

    place: int
    """In the record."""
    source: Source
    index: int
    """In the source."""

    @property
    def bad(self) -> str | None:
        """Why it cannot be decoded now."""
        return self.source.bad.get(self.index)

    @property
    def label(self) -> str:
        return self.source.classes[int(self.source.labels[self.index])]

    @property
    def files(self) -> ImageFiles:
        files = self.source.images.encoded
        assert files is not None
        return files

    @property
    def facts(self) -> tuple[int, ...]:
        """Another content shows in them: the file's bytes, height and width."""
        return int(self.files.lengths[self.index]), *self.source.sizes[self.index].tolist()


def _by_path(files: ImageFiles, opened: Sequence[Source]) -> dict[str, tuple[Source, int]]:
    """The images below one root by their paths. A split by share may have moved them to the other source."""
    return {
        path: (source, index)
        for source in opened
        if (own := source.images.encoded) is not None and own.root == files.root
        for index, path in enumerate(own.paths.tolist())
    }


def _require_same_images(record: SampleRecord, found: list[_Found]) -> None:
    """Raises InputError where an image has another label than recorded, or other pixels for certain."""
    relabeled = [it.place for it in found if it.label != record.classes[int(record.labels[it.place])]]
    if relabeled:
        raise InputError(
            f"--resume: {len(relabeled):,} images have other labels than when the run began: "
            f"{_named(record, relabeled)}. Give them their labels back, or begin anew with another OUT"
        )
    good = [it for it in found if not it.bad and it.place not in record.bad]
    edited = [it.place for it in good if it.facts != record.facts(it.place)]
    if edited:
        raise InputError(
            f"--resume: {len(edited):,} images are not those that the run began with, but of another size: "
            f"{_named(record, edited)}. Put them back, or begin anew with another OUT"
        )


def _notes(record: SampleRecord, unreadable: dict[int, str], repaired: list[int], added: int) -> Iterator[str]:
    """What has changed since the run began, and what becomes of it."""
    if unreadable:
        listed = named(f"{record.paths[place]} ({reason})" for place, reason in unreadable.items())
        yield f"since the run began, images have become unreadable; they are skipped ({len(unreadable):,}): {listed}"
    if repaired:
        yield f"bad images when the run began, still left out: {_named(record, repaired)}"
    if added:
        yield f"since the run began, images have been added; it goes on without them ({added:,})"


def _named(record: SampleRecord, places: Iterable[int]) -> str:
    return named(record.paths[place] for place in places)
