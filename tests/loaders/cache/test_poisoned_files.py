"""Files of caches that parse and have the wrong shape: they are made again, with the right pixels."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loaders import InputError, Source
from loaders.cache.pixel_cache import Layout
from loaders.sources.index import _checksum
from loaders.system.machine import cache_folder
from tests.loaders.cache.test_pixel_cache import SMALL, cached, require_right, train_of

DEEP = "[" * 100_000
ANYTHING = ["[]", '""', "null", "1", "{}", "true", "[[]]", "NaN", "1e999", "9" * 400, '{"content": {}}', DEEP, "{" * 9]
WRONG_VALUES: list[Any] = [
    None,
    [],
    [1],
    {},
    "",
    "x",
    1.5,
    -1,
    True,
    10**30,
    float("nan"),
    {"x": "y"},
    {"-1": ""},
    {"99": ""},
]


def variants(content: dict[str, Any]) -> Iterator[str]:
    """The JSON of an object as text that is something else, and with each of its values missing or wrong."""
    yield from ANYTHING
    for key in content.keys() & {"content", "root", "gone", "done", "images"}:
        yield json.dumps({name: value for name, value in content.items() if name != key})
        for wrong in WRONG_VALUES:
            yield json.dumps(content | {key: wrong})


def require_rebuilt(folder: Path, poisoned: str) -> None:
    """Opens the images, and requires the right pixels, or an error that is for the user."""
    try:
        source = train_of(folder)
        images = cached(source)
    except InputError as error:
        raise AssertionError(f"{poisoned:.200} is refused: {error}") from error
    require_right(images, source)


@pytest.fixture
def source(image_folder: Path) -> Source:
    for path in image_folder.rglob("*.jpg"):
        if int(path.stem) > 1:
            path.unlink()
    return train_of(image_folder)


def test_a_manifest_of_any_shape_gives_the_right_pixels(source: Source, image_folder: Path) -> None:
    cached(source)
    manifest = Layout.of(source, SMALL).folder / "manifest.json"
    for text in variants(json.loads(manifest.read_text())):
        manifest.write_text(text)
        require_rebuilt(image_folder, text)


def test_a_progress_of_any_shape_gives_the_right_pixels(source: Source, image_folder: Path) -> None:
    layout = Layout.of(source, SMALL)
    cached(source)
    progress = {"content": layout.content, "root": "/none", "images": 4, "done": 2, "gone": {"1": "torn"}}
    for text in variants(progress):
        (layout.folder / "manifest.json").unlink()
        (layout.folder / "progress.json").write_text(text)
        require_rebuilt(image_folder, text)


def test_a_progress_beside_pixels_of_another_length_is_not_believed(source: Source, image_folder: Path) -> None:
    layout = Layout.of(source, SMALL)
    cached(source)
    (layout.folder / "manifest.json").unlink()
    state = {"content": layout.content, "root": "", "images": 4, "done": 4, "gone": {}}
    (layout.folder / "progress.json").write_text(json.dumps(state))
    np.save(layout.folder / "pixels.npy", np.zeros(layout.bytes - 9, np.uint8))
    require_rebuilt(image_folder, "shorter pixels")


def set_each(place: int, value: object) -> Callable[[dict[str, list[Any]]], None]:
    def change(entries: dict[str, list[Any]]) -> None:
        for entry in entries.values():
            entry[place] = value

    return change


def index_variants(entries: dict[str, list[Any]]) -> Iterator[object]:
    for wrong in WRONG_VALUES:
        yield dict.fromkeys(entries, wrong)
        yield from (
            {key: [*entry[:place], wrong, *entry[place + 1 :]] for key, entry in entries.items()} for place in (0, 1, 4)
        )
    yield {key: entry[:3] for key, entry in entries.items()}
    yield {key: [*entry, 1] for key, entry in entries.items()}
    yield {key: [10**9, 10**9, *entry[2:]] for key, entry in entries.items()}
    yield {key: [*entry[:2], None, {}, *entry[4:]] for key, entry in entries.items()}
    yield {key.replace("\0", ""): entry for key, entry in entries.items()}
    yield entries | {"elsewhere.jpg\0x\0y": next(iter(entries.values()))}


def test_an_index_of_any_shape_gives_the_right_pixels(source: Source, image_folder: Path) -> None:
    cached(source)
    indexes = list((cache_folder() / "index").glob("*.json"))  # of training and of validation images
    poisoned = [
        [*ANYTHING, *map(json.dumps, index_variants(json.loads(index.read_text().partition("\n")[2])))]
        for index in indexes
    ]
    for bodies in zip(*poisoned, strict=True):
        for index, body in zip(indexes, bodies, strict=True):
            index.write_text(f"{_checksum(body)}\n{body}")
        require_rebuilt(image_folder, bodies[0])


def no_regular_file(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def endless(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def header_of(text: str) -> Callable[[Path], object]:
    header = text.encode("latin1")
    return lambda path: path.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)


@pytest.mark.parametrize("name", ["manifest.json", "pixels.npy", "index"])
@pytest.mark.parametrize(
    "poison",
    [
        no_regular_file,
        endless,
        header_of("(" * 60_000),
        header_of("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }"),
        header_of("{'descr': '|u1', 'fortran_order': False, 'shape': (1, -1), }"),
        header_of("{'descr': '|u1', 'fortran_order': False, 'shape': (" + "9" * 30 + ",), }"),
        lambda path: path.write_bytes(b""),
    ],
)
def test_what_is_no_such_file_is_made_again(
    source: Source, image_folder: Path, name: str, poison: Callable[[Path], object]
) -> None:
    cached(source)
    for path in cache_folder().glob("index/*.json" if name == "index" else f"pixels/*/{name}"):
        poison(path)
    require_rebuilt(image_folder, name)
