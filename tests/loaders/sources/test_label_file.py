"""CSV files of paths and labels: the accepted forms, and the errors for files that cannot be used."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from loaders import InputError, Source, open_data
from loaders.ops.decode import load_pixels
from loaders.sources import index
from loaders.system.machine import cache_folder
from tests.conftest import smooth_image

NAMES = [f"img/{label}{number}.png" for label in ("ash", "oak") for number in range(5)]


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Writes a CSV file into a folder that holds the images of `NAMES`, no two of them alike."""
    (tmp_path / "img").mkdir()
    for seed, name in enumerate(NAMES):
        Image.fromarray(smooth_image(6, 8, seed)).save(tmp_path / name)

    def written(text: str, name: str = "labels.csv", encoding: str = "utf-8") -> Path:
        (tmp_path / name).write_text(text, encoding=encoding)
        return tmp_path / name

    return written


def rows(separator: str = ",", *, split: bool = False) -> str:
    """A line per image, the last of each class for validation."""
    cells = [[name, name[4:7], *(["val" if name[7] == "4" else "train"] * split)] for name in NAMES]
    return "\n".join(separator.join(row) for row in cells) + "\n"


def opened(file: Path) -> tuple[Source, Source]:
    return open_data(str(file), root=file.parent)


def content(source: Source) -> set[tuple[str, bytes]]:
    """Label and pixels of each image."""
    labels = [source.classes[label] for label in source.labels]
    return {(label, load_pixels(source.images, i).tobytes()) for i, label in enumerate(labels)}


def expected(*last: int) -> set[tuple[str, bytes]]:
    """The same by Pillow, for the images with these last digits."""
    chosen = [(seed, name) for seed, name in enumerate(NAMES) if int(name[7]) in last]
    return {(name[4:7], smooth_image(6, 8, seed).tobytes()) for seed, name in chosen}


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("names", ["path{}label{}split", "Filename{}CLASS{}Subset"])
def test_the_split_column_decides(write: Callable[..., Path], separator: str, names: str) -> None:
    train, val = opened(write(names.format(separator, separator) + "\n" + rows(separator, split=True)))
    assert train.classes == val.classes == ("ash", "oak")
    assert content(train) == expected(0, 1, 2, 3)
    assert content(val) == expected(4)
    assert train.name == "labels"


@pytest.mark.parametrize("header", ["", "path,label\n"])
def test_without_a_split_a_fifth_of_every_class_is_held_out(write: Callable[..., Path], header: str) -> None:
    train, val = opened(write(header + rows()))
    assert content(train) | content(val) == expected(0, 1, 2, 3, 4)
    assert np.bincount(val.labels).tolist() == [1, 1]
    assert np.bincount(train.labels).tolist() == [4, 4]


def test_files_of_one_folder_share_their_cached_verdicts(
    write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[str] = []
    examine = index.examine
    monkeypatch.setattr(index, "examine", lambda path, *rest: (decoded.append(path.name), examine(path, *rest))[1])
    lines = rows().splitlines()
    first, second = write("\n".join(lines[::2]), "a.csv"), write("\n".join(lines[1::2]), "b.csv")
    for file in (first, second, first, second, write(rows(), "both.csv")):
        opened(file)
    assert len(decoded) == len(NAMES)


def test_verdicts_on_removed_or_changed_files_are_dropped(write: Callable[..., Path], tmp_path: Path) -> None:
    opened(write(rows()))
    [cache_file] = (cache_folder() / "index").iterdir()
    (tmp_path / NAMES[0]).unlink()
    Image.fromarray(smooth_image(6, 8, 77)).save(tmp_path / NAMES[1])
    (tmp_path / "new.png").write_bytes((tmp_path / NAMES[2]).read_bytes())
    opened(write("new.png,ash\n" + "\n".join(rows().splitlines()[6:]), "other.csv"))
    assert {key.split("\0")[0] for key in index._load(cache_file, index.MAX_PIXELS)} == {"new.png", *NAMES[2:]}


def test_columns_may_stand_in_any_order_among_others(write: Callable[..., Path]) -> None:
    lines = [f"{i},{line.split(',')[1]},{line.split(',')[0]}" for i, line in enumerate(rows().splitlines())]
    train, val = opened(write("id,label,path\n" + "\n".join(lines)))
    assert content(train) | content(val) == expected(0, 1, 2, 3, 4)


def test_absolute_paths_blank_lines_spaces_and_a_byte_order_mark_do_no_harm(write: Callable[..., Path]) -> None:
    file = write("")
    text = "path , label\n\n" + "\n\n".join(f" {file.parent}/{name} , {name[4:7]}" for name in NAMES)
    train, val = opened(write(text, encoding="utf-8-sig"))
    assert content(train) | content(val) == expected(0, 1, 2, 3, 4)


def test_absolute_paths_are_found_from_behind_a_link(write: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "deep" / "down").mkdir(parents=True)
    file = write("".join(f"{tmp_path}/{name},{name[4:7]}\n" for name in NAMES), "deep/down/labels.csv")
    (tmp_path / "near").symlink_to(file.parent)
    train, val = opened(tmp_path / "near" / "labels.csv")
    assert content(train) | content(val) == expected(0, 1, 2, 3, 4)


def test_classes_that_are_numbers_are_in_the_order_of_their_values(write: Callable[..., Path]) -> None:
    train, _ = opened(write("".join(f"{name},{[9, 10, 100][i % 3]}\n" for i, name in enumerate(NAMES))))
    assert train.classes == ("9", "10", "100")


def test_classes_that_are_the_same_number_are_always_in_the_same_order(write: Callable[..., Path]) -> None:
    labels = [f"{'0' * zeros}1" for zeros in range(4, -1, -1)]
    train, _ = opened(write("".join(f"{name},{labels[i % 5]}\n" for i, name in enumerate(NAMES))))
    assert train.classes == tuple(labels)


def test_another_label_makes_another_fingerprint(write: Callable[..., Path]) -> None:
    before = opened(write(rows()))[0].fingerprint
    assert opened(write(rows()))[0].fingerprint == before
    assert opened(write(rows().replace("ash0.png,ash", "ash0.png,oak")))[0].fingerprint != before


def test_rows_of_a_third_split_are_left_out_and_counted(write: Callable[..., Path]) -> None:
    file = write("path,label,split\n" + rows(split=True).replace("ash1.png,ash,train", "ash1.png,ash,test"))
    train, val = opened(file)
    assert (len(train), len(val)) == (7, 2)
    assert train.notes == (f"{file}: left out, being of the split test: 1",)


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("img/missing.png", r"\[Errno 2\] No such file or directory: 'missing\.png'"),
        ("~nobody-of-that-name.png", r"\[Errno 2\] No such file or directory: '~nobody-of-that-name\.png'"),
        ("img/\0.png", "embedded null byte|open: embedded null character in path"),  # before Python 3.13, and since
    ],
)
def test_an_image_that_is_not_there_is_bad_like_any_other(write: Callable[..., Path], path: str, reason: str) -> None:
    train, val = opened(write(rows() + f"{path},oak\n"))
    [found] = [found for source in (train, val) for found in source.bad.values()]
    assert re.fullmatch(reason, found)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        ("path,label\n", "two classes or more, but found no images"),
        ("img/ash0.png,ash\nimg/ash1.png,ash\n", "two classes or more, but found ash"),
        (rows() + "img/new.png\n", r"line 11: expected 2 columns, found \['img/new.png'\]"),
        (rows() + ",oak\n", "line 11: the path is missing"),
        (rows() + "img/new.png,\n", "line 11: the label is missing"),
        (rows() + "img/ash3.png,oak\n", "img/ash3.png is in line 4 and again in line 11"),
        (rows() + "img/../img/ash3.png,ash\n", "img/ash3.png is in line 4 and again in line 11"),
        ("a,b,c\n" + rows(split=True), r"must name the columns path and label .*\['a', 'b', 'c'\]"),
        ("path,label,split\n" + rows(split=True).replace("val", "test"), "both train and val; it has test, train"),
        ("path,label,split\n" + rows(split=True) + "x.png,elm,val\n", r"only in train: \[\], only in val: \['elm'\]"),
    ],
)
def test_a_file_that_makes_no_sense_is_refused_by_naming_what(write: Callable[..., Path], text: str, said: str) -> None:
    file = write(text)
    with pytest.raises(InputError, match=said) as caught:
        opened(file)
    assert str(caught.value).startswith(str(file))


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "photos.zip").write_bytes(b"PK\x03\x04\xff\xfe\x00")
    with pytest.raises(InputError, match=r"photos.zip cannot be read as a CSV file of paths and labels"):
        opened(tmp_path / "photos.zip")
