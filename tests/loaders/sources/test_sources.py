"""Image folders: which images there are, what the index holds of each, and the errors for unusable folders."""

import hashlib
import json
import os
import re
import shutil
import warnings
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps
from torchvision.datasets import ImageFolder

from loaders import InputError, open_data
from loaders.ops.decode import load_pixels
from loaders.sources import ImageFiles, PixelArray, Source, index
from tests.conftest import smooth_image


def put(path: Path, seed: int = 0, size: tuple[int, int] = (20, 30), mode: str = "RGB", **options: object) -> Path:
    """Saves an image there, in the format of the name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(smooth_image(*size, seed)).convert(mode).save(path, **options)
    return path


def open_both(root: Path) -> tuple[Source, Source]:
    return open_data(str(root), root=root)


def paths(source: Source) -> list[str]:
    assert isinstance(source.images, ImageFiles)
    return source.images.paths.tolist()


def every_path(root: Path) -> list[str]:
    return [path for source in open_both(root) for path in paths(source)]


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    """A folder per class, no train/ and val/: 10 and 20 images of 20 × 30 pixels."""
    for name, count in (("ash", 10), ("oak", 20)):
        for number in range(count):
            put(tmp_path / "flat" / name / f"{number:02}.png", number)
    return tmp_path / "flat"


@pytest.fixture
def examined(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that the index decodes, in order."""
    names: list[str] = []

    def counted(path: Path, *rest: int) -> index.Verdict:
        names.append(path.name)
        return examine(path, *rest)

    examine = index.examine
    monkeypatch.setattr(index, "examine", counted)
    return names


# --- which images there are ----------------------------------------------------------------------


def test_train_and_val_are_read_as_torchvision_reads_them(image_folder: Path) -> None:
    for source, split, count in zip(open_both(image_folder), ("train", "val"), (24, 10), strict=True):
        theirs = ImageFolder(str(image_folder / split))
        assert len(source) == len(theirs) == count
        assert list(source.classes) == theirs.classes == ["ash", "oak"]
        assert [(source.images.describe(i), int(source.labels[i])) for i in range(len(source))] == theirs.samples


def test_classes_are_sorted_and_labels_follow_them(tmp_path: Path) -> None:
    names = ["b", "Zebra", "10", "9", "a b", "é"]
    for seed, name in enumerate(names):
        put(tmp_path / name / "1.png", seed)
        put(tmp_path / name / "2.png", seed)
    for source in open_both(tmp_path):
        assert source.classes == tuple(sorted(names)) == tuple(ImageFolder(str(tmp_path)).classes)
        assert [path.split("/")[0] for path in paths(source)] == [source.classes[label] for label in source.labels]


def test_nested_folders_belong_to_their_class(flat: Path) -> None:
    put(flat / "ash" / "young" / "in spring" / "deep.jpg")
    train, val = open_both(flat)
    every = dict(zip(paths(train) + paths(val), [*train.labels, *val.labels], strict=True))
    assert every["ash/young/in spring/deep.jpg"] == 0
    assert len(every) == 31


def test_linked_folders_and_files_count(flat: Path, tmp_path: Path) -> None:
    (flat / "oak" / "linked").symlink_to(put(tmp_path / "elsewhere" / "1.png").parent)
    (flat / "oak" / "linked.png").symlink_to(tmp_path / "elsewhere" / "1.png")
    assert {"oak/linked/1.png", "oak/linked.png"} <= set(every_path(flat))


@pytest.mark.parametrize("way", [["ash"], [""], ["elsewhere", "ash"]])
def test_a_link_back_is_not_followed(flat: Path, tmp_path: Path, way: list[str]) -> None:
    expected = every_path(flat)
    (tmp_path / "elsewhere").mkdir()
    place = flat / "ash"
    for target in way:
        to = tmp_path / target if target == "elsewhere" else flat / target
        (place / "link").symlink_to(to)
        place = to
    assert every_path(flat) == expected


@pytest.mark.parametrize(
    "stray",
    ["ash/.hidden.png", "ash/.thumbnails/1.png", ".cache/1.png", "top.png", "ash/notes.txt", "ash/png", "oak/a.json"],
)
def test_hidden_things_and_files_that_are_no_images_are_passed_over(flat: Path, stray: str) -> None:
    (flat / stray).parent.mkdir(exist_ok=True)
    shutil.copy(flat / "ash" / "00.png", flat / stray)
    train, val = open_both(flat)
    assert train.classes == ("ash", "oak")
    assert len(train) + len(val) == 30


def test_extensions_count_in_capitals_too(flat: Path) -> None:
    put(flat / "ash" / "CAMERA.JPG")
    assert "ash/CAMERA.JPG" in every_path(flat)


@pytest.mark.parametrize("name", ["Bäume im März.png".encode(), b"latin-1 \xe9.png", b"new\nline.png"])
def test_a_file_may_have_any_name(flat: Path, name: bytes) -> None:
    shutil.copy(flat / "ash" / "00.png", os.fsencode(flat / "ash") + b"/" + name)
    for _ in ("made", "from the cache"):
        source = next(s for s in open_both(flat) if f"ash/{os.fsdecode(name)}" in paths(s))
        place = paths(source).index(f"ash/{os.fsdecode(name)}")
        np.testing.assert_array_equal(load_pixels(source.images, place), smooth_image(20, 30, 0))
        assert not source.bad


def test_the_folder_may_have_any_name(flat: Path) -> None:
    other = flat.rename(os.fsdecode(os.fsencode(flat) + b" \xe9"))
    assert len(every_path(other)) == 30


# --- the split -----------------------------------------------------------------------------------


def test_without_val_a_fifth_of_every_class_is_held_out(flat: Path) -> None:
    train, val = open_both(flat)
    assert np.bincount(train.labels).tolist() == [8, 16]
    assert np.bincount(val.labels).tolist() == [2, 4]
    assert sorted(paths(train) + paths(val)) == [str(p.relative_to(flat)) for p in sorted(flat.glob("*/*.png"))]


def test_the_split_is_always_the_same(flat: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(flat, tmp_path / "copy")
    assert (
        [paths(s) for s in open_both(flat)]
        == [paths(s) for s in open_both(flat)]
        == [paths(s) for s in open_both(copy)]
    )


def test_the_split_does_not_simply_take_the_last_of_each_class(flat: Path) -> None:
    _, val = open_both(flat)
    held_out = [path for path in paths(val) if path.startswith("oak")]
    assert held_out not in ([f"oak/{n:02}.png" for n in range(16, 20)], [f"oak/{n:02}.png" for n in range(4)])


# --- what the index holds of each ----------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff"])
def test_sizes_are_those_after_exif_rotation(flat: Path, suffix: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    path = put(flat / "train" / "ash" / f"turned.{suffix}", exif=exif)
    for split, name in (("train", "oak"), ("val", "ash"), ("val", "oak")):
        put(flat / split / name / "1.png")
    train, _ = open_both(flat)
    with Image.open(path) as image:
        width, height = ImageOps.exif_transpose(image).size
    assert train.sizes.tolist() == [[height, width], [20, 30]]


@pytest.mark.parametrize("tag", [0, 9, 77])
def test_an_impossible_orientation_is_upright(flat: Path, tag: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = tag
    put(flat / "ash" / "odd.jpg", exif=exif)
    train, val = open_both(flat)
    assert set(train.images.orientations) | set(val.images.orientations) == {1}
    assert {tuple(size) for source in (train, val) for size in source.sizes.tolist()} == {(20, 30)}


def test_broken_metadata_does_not_make_an_image_bad(flat: Path) -> None:
    path = put(flat / "ash" / "broken-exif.jpg", exif=b"Exif\0\0neither II nor MM")
    source = next(source for source in open_both(flat) if "ash/broken-exif.jpg" in paths(source))
    place = paths(source).index("ash/broken-exif.jpg")
    assert not source.bad
    with Image.open(path) as image:
        np.testing.assert_array_equal(load_pixels(source.images, place), np.asarray(image.convert("RGB")))


FORMATS = {
    "gif": ("a.gif", "RGB", {}),
    "gif, one color transparent": ("a.gif", "P", {"transparency": 3}),
    "animated gif": ("a.gif", "RGB", {"save_all": True, "append_images": [Image.new("RGB", (30, 20))]}),
    "png palette": ("a.png", "P", {}),
    "png palette, one color transparent": ("a.png", "P", {"transparency": 3}),
    "png palette, alpha per color": ("a.png", "P", {"transparency": bytes(range(256))}),
    "png alpha": ("a.png", "RGBA", {}),
    "png gray": ("a.png", "L", {}),
    "png gray alpha": ("a.png", "LA", {}),
    "png gray, one level transparent": ("a.png", "L", {"transparency": 120}),
    "png one color transparent": ("a.png", "RGB", {"transparency": (120, 130, 140)}),
    "png black and white": ("a.png", "1", {}),
    "png black and white, white transparent": ("a.png", "1", {"transparency": 255}),
    "png 16 bits": ("a.png", "I;16", {}),
    "png 16 bits, one level transparent": ("a.png", "I;16", {"transparency": 30000}),
    "jpeg gray": ("a.jpg", "L", {}),
    "jpeg CMYK": ("a.jpg", "CMYK", {}),
    "webp": ("a.webp", "RGB", {}),
    "webp alpha": ("a.webp", "RGBA", {}),
    "bmp": ("a.bmp", "RGB", {}),
    "tiff": ("a.tif", "RGB", {}),
    "tiff CMYK": ("a.tiff", "CMYK", {}),
    "tiff deflated": ("a.tiff", "RGB", {"compression": "tiff_adobe_deflate"}),
    "tiff float": ("a.tif", "F", {}),
    "ppm": ("a.ppm", "RGB", {}),
    "pgm": ("a.pgm", "L", {}),
    "pgm 16 bits": ("a.pgm", "I;16", {}),
}


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_is_read_as_pillow_converts_it_to_rgb(tmp_path: Path, kind: str) -> None:
    name, mode, options = FORMATS[kind]
    image = Image.fromarray(smooth_image(20, 30, 5))
    image = (
        Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
        if mode == "I;16"
        else image.convert(mode)
    )
    for split in ("train", "val"):
        put(tmp_path / split / "other" / "1.png")
        (tmp_path / split / "this").mkdir()
        image.save(tmp_path / split / "this" / name, **options)
    source, _ = open_both(tmp_path)
    assert not source.bad
    assert source.sizes[1].tolist() == [20, 30]
    with Image.open(tmp_path / "train" / "this" / name) as stored, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns that a palette's alpha is dropped, as it should be here
        if mode == "I;16":  # of which `convert` would cut off what is beyond 255, nearly all
            stored = Image.fromarray((np.asarray(stored) >> 8).astype(np.uint8))
        expected = np.asarray(stored.convert("RGB"))
    np.testing.assert_array_equal(load_pixels(source.images, 1), expected)


def jpeg(seed: int) -> bytes:
    buffer = BytesIO()
    Image.fromarray(smooth_image(60, 90, seed)).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (jpeg(0)[:-60], "truncated"),
        (b"", "cannot identify image file"),
        (b"Not Found: the page you asked for", "cannot identify image file"),
        (None, "No such file"),
    ],
    ids=["truncated", "empty", "text", "broken link"],
)
def test_a_bad_image_has_its_reason_and_the_others_are_as_before(
    image_folder: Path, content: bytes | None, reason: str
) -> None:
    before, _ = open_both(image_folder)
    place = paths(before).index("ash/07.jpg")
    bad = image_folder / "train" / "ash" / "07.jpg"
    bad.unlink()
    if content is None:
        bad.symlink_to(image_folder / "missing.jpg")
    else:
        bad.write_bytes(content)
    for _ in ("made", "from the cache"):
        after, val = open_both(image_folder)
        assert list(after.bad) == [place]
        assert reason in after.bad[place]
        assert after.bad_image(place, after.bad[place]).path == str(bad)
        assert not val.bad
        assert paths(after) == paths(before)
        others = np.arange(len(after)) != place
        np.testing.assert_array_equal(after.sizes[others], before.sizes[others])
        np.testing.assert_array_equal(after.images.formats[others], "JPEG")


# --- the index is cached -------------------------------------------------------------------------


def test_a_folder_that_was_opened_before_is_not_decoded_again(image_folder: Path, examined: list[str]) -> None:
    first = open_both(image_folder)
    assert len(examined) == 34
    second = open_both(image_folder)
    assert len(examined) == 34
    for a, b in zip(first, second, strict=True):
        for column in ("formats", "modes", "orientations", "paths"):
            np.testing.assert_array_equal(getattr(a.images, column), getattr(b.images, column))
        np.testing.assert_array_equal(a.sizes, b.sizes)
        assert a.fingerprint == b.fingerprint


def test_a_file_of_another_size_is_decoded_anew(image_folder: Path, examined: list[str]) -> None:
    open_both(image_folder)
    examined.clear()
    put(image_folder / "val" / "oak" / "03.jpg", size=(33, 44))
    _, val = open_both(image_folder)
    assert examined == ["03.jpg"]  # and no other
    assert val.sizes[paths(val).index("oak/03.jpg")].tolist() == [33, 44]


def test_a_file_rewritten_at_the_same_length_is_decoded_anew(image_folder: Path) -> None:
    open_both(image_folder)
    path = image_folder / "val" / "oak" / "03.jpg"
    before = path.stat()
    path.write_bytes(bytes(before.st_size))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    _, val = open_both(image_folder)
    assert [paths(val)[place] for place in val.bad] == ["oak/03.jpg"]


def test_added_and_removed_files_are_noticed(image_folder: Path) -> None:
    open_both(image_folder)
    (image_folder / "val" / "oak" / "00.jpg").unlink()
    put(image_folder / "val" / "oak" / "new.jpg", size=(33, 44))
    _, val = open_both(image_folder)
    assert len(val) == 10
    assert "oak/00.jpg" not in paths(val)
    assert val.sizes[paths(val).index("oak/new.jpg")].tolist() == [33, 44]


def test_a_bad_verdict_is_reached_anew_as_permissions_may_have_changed(
    image_folder: Path, monkeypatch: pytest.MonkeyPatch, examined: list[str]
) -> None:
    def refuse(path: str, **options: int) -> bytes:  # what permissions do to anybody but root
        if path.endswith("03.jpg"):
            raise PermissionError(13, "Permission denied", path)
        return read(path, **options)

    read = index.read_file
    monkeypatch.setattr(index, "read_file", refuse)
    assert [len(source.bad) for source in open_both(image_folder)] == [2, 2]
    monkeypatch.setattr(index, "read_file", read)
    examined.clear()
    assert [len(source.bad) for source in open_both(image_folder)] == [0, 0]
    assert examined == ["03.jpg"] * 4


def cached(kind: str = "*.json") -> list[Path]:
    return sorted(Path(os.environ["SATURATE_CACHE"]).rglob(kind))


@pytest.mark.parametrize("keep", [0.0, 0.5, 0.98])
def test_a_damaged_cache_is_made_again(image_folder: Path, examined: list[str], keep: float) -> None:
    before = open_both(image_folder)
    for path in cached():
        path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    examined.clear()
    after = open_both(image_folder)
    assert len(examined) == 34
    for a, b in zip(before, after, strict=True):
        np.testing.assert_array_equal(a.sizes, b.sizes)
    open_both(image_folder)
    assert len(examined) == 34


def test_a_cache_whose_bytes_changed_is_made_again(image_folder: Path, examined: list[str]) -> None:
    open_both(image_folder)
    for path in cached():
        data = bytearray(path.read_bytes())
        at = data.index(b'"JPEG"') - 3  # in a number: still valid JSON, and wrong
        data[at] ^= 1
        path.write_bytes(data)
    examined.clear()
    open_both(image_folder)
    assert len(examined) == 34


def test_an_index_in_the_format_of_earlier_versions_is_used(flat: Path, examined: list[str]) -> None:
    """Written here without the module: a checksum of version and body, and facts by path, size and time."""
    facts = {}
    for path in flat.glob("*/*.png"):
        stat = path.stat()
        facts[f"{path.relative_to(flat)}\0{stat.st_size}\0{stat.st_mtime_ns}"] = [7, 9, "PNG", "RGB", 1, ""]
    body = json.dumps(facts)
    checksum = hashlib.sha256(b"4\0" + body.encode()).hexdigest()[:16]
    name = hashlib.sha256(os.fsencode(flat.resolve()) + b"\x0089478485").hexdigest()[:16]
    cache_file = Path(os.environ["SATURATE_CACHE"]) / "index" / f"{name}.json"
    cache_file.parent.mkdir(parents=True)
    cache_file.write_text(f"{checksum}\n{body}")
    train, val = open_both(flat)
    assert not examined
    assert {tuple(size) for source in (train, val) for size in source.sizes.tolist()} == {(7, 9)}


@pytest.mark.parametrize("obstacle", ["the cache is a file", "its folder is a file", "a folder in the index's place"])
def test_a_cache_that_cannot_be_written_is_done_without(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, obstacle: str
) -> None:
    expected, _ = open_both(image_folder)
    written = cached()
    cache = tmp_path / "other cache"
    monkeypatch.setenv("SATURATE_CACHE", str(cache))
    if obstacle == "the cache is a file":
        cache.write_text("")
    elif obstacle == "its folder is a file":
        cache.mkdir()
        (cache / "index").write_text("")
    else:
        for path in written:
            (cache / "index" / path.name).mkdir(parents=True)
    train, _ = open_both(image_folder)
    np.testing.assert_array_equal(train.sizes, expected.sizes)
    assert expected.notes == ()
    assert re.search(r"train: all is decoded again .* cannot be written: .*; SATURATE_CACHE names", *train.notes)


def test_nothing_but_the_index_is_left_in_the_cache(image_folder: Path) -> None:
    open_both(image_folder)
    assert len(cached("*.json")) == 2
    assert [path for path in cached("*") if path.is_file()] == cached("*.json")


def test_progress_is_reported_image_by_image(flat: Path) -> None:
    reports: list[tuple[int, int]] = []
    open_data(str(flat), root=flat, progress=lambda done, total: reports.append((done, total)))
    assert reports == [(done, 30) for done in range(1, 31)]


@pytest.mark.parametrize("stopped", [KeyboardInterrupt, MemoryError])
def test_an_index_that_was_interrupted_goes_on_where_it_was(
    flat: Path, examined: list[str], monkeypatch: pytest.MonkeyPatch, stopped: type[BaseException]
) -> None:
    monkeypatch.setattr(index, "usable_cores", lambda: 1)
    monkeypatch.setattr(index, "_FILES_AHEAD", 3)

    def stop(done: int, _: int) -> None:
        if done == 10:
            raise stopped

    with pytest.raises(stopped):
        open_data(str(flat), root=flat, progress=stop)
    assert 10 <= len(examined) <= 10 + 3 + 1  # it did not wait for the rest
    examined.clear()
    open_both(flat)
    assert len(examined) == 20


def test_an_index_is_saved_while_it_grows(flat: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "_SECONDS_BETWEEN_SAVES", -1.0)
    monkeypatch.setattr(index, "_SHARE_SAVING", float("inf"))
    saved: list[int] = []

    def count_saved(*_: int) -> None:
        saved.append(sum(len(index._load(file, index.MAX_PIXELS)) for file in cached("*.json")))

    open_data(str(flat), root=flat, progress=count_saved)
    assert saved == list(range(30))  # a kill now and here would lose one


def test_a_save_that_was_interrupted_leaves_nothing_behind(flat: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(index.os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        open_both(flat)
    assert [path for path in cached("*") if path.is_file()] == []


def test_one_long_name_does_not_cost_the_others_its_length(flat: Path) -> None:
    put(flat / "oak" / ("x" * 100) / ("y" * 100) / "1.png")
    for source in open_both(flat):
        assert isinstance(source.images, ImageFiles)
        assert source.images.paths.nbytes <= 8 * len(source)


# --- fingerprints, selections --------------------------------------------------------------------


def test_a_copy_elsewhere_has_the_same_fingerprints(image_folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(image_folder, tmp_path / "elsewhere" / "copy")
    for path in copy.rglob("*.jpg"):
        os.utime(path, (1_000_000_000, 1_000_000_000))
    ours, theirs = open_both(image_folder), open_both(copy)
    assert [source.fingerprint for source in ours] == [source.fingerprint for source in theirs]
    assert len({source.fingerprint for source in ours}) == 2


@pytest.mark.parametrize("change", ["added", "removed", "renamed", "of another length", "in another class"])
def test_other_files_have_another_fingerprint(image_folder: Path, change: str) -> None:
    before, val_before = open_both(image_folder)
    ash = image_folder / "train" / "ash"
    if change == "added":
        put(ash / "new.jpg")
    elif change == "removed":
        (ash / "00.jpg").unlink()
    elif change == "renamed":
        (ash / "00.jpg").rename(ash / "000.jpg")
    elif change == "of another length":
        with open(ash / "00.jpg", "ab") as file:
            file.write(b"\0")
    else:
        (ash / "00.jpg").rename(image_folder / "train" / "oak" / "99.jpg")
    after, val_after = open_both(image_folder)
    assert after.fingerprint != before.fingerprint
    assert val_after.fingerprint == val_before.fingerprint


def test_a_selection_has_these_samples_in_this_order(image_folder: Path) -> None:
    (image_folder / "train" / "ash" / "05.jpg").write_bytes(b"")
    whole, _ = open_both(image_folder)
    ids = np.array([20, 5, 3])
    part = whole.select(ids)
    assert len(part) == 3
    assert paths(part) == [paths(whole)[i] for i in ids]
    assert part.labels.tolist() == [1, 0, 0]
    assert part.sizes.tolist() == [whole.sizes[i].tolist() for i in ids]
    assert part.bad == {1: whole.bad[5]}
    assert part.classes == whole.classes
    np.testing.assert_array_equal(load_pixels(part.images, 2), load_pixels(whole.images, 3))


def test_selections_differ_in_their_fingerprints(image_folder: Path) -> None:
    whole, _ = open_both(image_folder)
    chosen = [np.arange(24), np.array([1, 2]), np.array([2, 1]), np.array([1, 3])]
    assert len({whole.fingerprint, *(whole.select(ids).fingerprint for ids in chosen)}) == 5
    assert whole.select(chosen[1]).fingerprint == whole.select(chosen[1]).fingerprint


def test_a_selection_of_pixels_has_these_pixels() -> None:
    pixels = np.arange(5 * 2 * 2 * 3, dtype=np.uint8).reshape(5, 2, 2, 3)
    whole = Source("dots", ("a", "b"), np.arange(5) % 2, np.full((5, 2), 2, np.int32), PixelArray(pixels), "f")
    part = whole.select(np.array([4, 1]))
    np.testing.assert_array_equal(part.images.pixels, pixels[[4, 1]])
    assert part.labels.tolist() == [0, 1]


def test_a_limit_takes_always_the_same_samples(image_folder: Path) -> None:
    whole, _ = open_both(image_folder)
    part = whole.take(7)
    assert paths(part) == paths(whole.take(7)) == sorted(set(paths(part)))
    assert len(part) == 7
    assert part.fingerprint == whole.take(7).fingerprint != whole.take(8).fingerprint
    assert set(paths(part)) < set(paths(whole.take(8)))


@pytest.mark.parametrize("limit", [24, 1000])
def test_a_limit_beyond_what_is_there_takes_all(image_folder: Path, limit: int) -> None:
    whole, _ = open_both(image_folder)
    assert whole.take(limit).fingerprint == whole.fingerprint
    assert paths(whole.take(limit)) == paths(whole)


# --- images as people have them ------------------------------------------------------------------


def of_two_classes(folder: Path, name: str) -> Path:
    """Where to put an image under test: it will be the last one."""
    for number in range(3):
        put(folder / "a" / f"{number}.png")
        put(folder / "b" / f"{number}.png")
    return folder / "b" / name


@pytest.mark.parametrize(("mode", "top"), [("I", 70000), ("I", -1), ("F", 300.0), ("F", float("nan"))])
def test_32_bit_pixels_of_unknown_range_are_bad(tmp_path: Path, mode: str, top: float) -> None:
    values = np.full((4, 5), 7, np.int32 if mode == "I" else np.float32)
    values[2, 3] = top
    Image.fromarray(values).save(of_two_classes(tmp_path, "z.tif"))
    everything = [reason for source in open_both(tmp_path) for reason in source.bad.values()]
    assert everything == ["its 32-bit pixels are not within 0 to 255: save it with 8 or 16 bits"]


def test_an_image_of_more_pixels_than_allowed_is_bad_and_not_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(of_two_classes(tmp_path, "z.png"), size=(40, 50))
    limits = {2000: [], 1999: ["its 50 × 40 pixels are more than 1,999 (`max_pixels`)"]}
    for limit in (2000, 1999, 2000):  # a cached verdict does not outlive its limit
        sources = open_data(str(tmp_path), root=tmp_path, max_pixels=limit)
        assert [reason for source in sources for reason in source.bad.values()] == limits[limit]
    loaded: list[str] = []
    monkeypatch.setattr(Image.Image, "load", lambda image: loaded.append(image.format))
    assert index.examine(tmp_path / "b" / "z.png", 1999).reason
    assert not loaded


@pytest.mark.parametrize("turned", [False, True])
def test_an_image_far_longer_than_wide_is_bad_and_a_panorama_is_not(tmp_path: Path, turned: bool) -> None:
    sizes = {"panorama.jpg": (20, 600), "just.png": (2, 200), "thread.png": (2, 201), "hair.jpg": (1, 65500)}
    for name, size in sizes.items():
        put(of_two_classes(tmp_path, name), size=size[::-1] if turned else size)
    bad = {source.images.describe(i): reason for source in open_both(tmp_path) for i, reason in source.bad.items()}
    reasons = {Path(path).name: reason for path, reason in bad.items()}
    assert reasons.keys() == {"thread.png", "hair.jpg"}
    size = "1 × 65,500" if turned else "65,500 × 1"
    assert reasons["hair.jpg"] == f"of its {size} pixels one side is over 100 times the other"


def test_a_named_pipe_is_bad_and_waits_for_nobody(tmp_path: Path) -> None:
    os.mkfifo(of_two_classes(tmp_path, "z.jpg"))
    assert [r for source in open_both(tmp_path) for r in source.bad.values()] == ["it is no regular file"]


def test_a_file_that_must_not_be_read_is_bad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = put(of_two_classes(tmp_path, "z.png"))
    read = index.read_file

    def refuse(path: str, **options: int) -> bytes:  # what permissions do to anybody but root
        if path == str(closed):
            raise PermissionError(13, "Permission denied", path)
        return read(path, **options)

    monkeypatch.setattr(index, "read_file", refuse)
    assert [r for source in open_both(tmp_path) for r in source.bad.values()] == [
        "[Errno 13] Permission denied: 'z.png'"
    ]


def test_files_that_are_passed_over_are_counted(image_folder: Path) -> None:
    oak = image_folder / "train" / "oak"
    for name in ("notes.txt", "raw.heic", "raw2.HEIC", "README", ".hidden"):
        (oak / name).write_text("no image")
    put(image_folder / "train" / "loose.png")
    (image_folder / "train" / "labels.json").write_text("{}")
    put(image_folder / "train" / "__MACOSX" / "oak" / "1.png")
    train, val = open_both(image_folder)
    assert len(train) == 24
    others, loose = train.notes
    assert others.startswith(f"{image_folder}/train: passed over, being no images: 2 × .heic, 1 × ")
    assert {"1 × .txt", "1 × no extension"} < set(others.split(": ")[-1].split(", "))
    assert loose.endswith("no label (1)")
    assert loose.startswith(f"{image_folder}/train: passed over, as they lie beside")
    assert not val.notes


# --- folders that cannot be used -----------------------------------------------------------------


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    said = f"^`data`: there is no folder or CSV file {tmp_path}/nowhere.*sample, cifar10"
    with pytest.raises(InputError, match=said):
        open_both(tmp_path / "nowhere")


def test_a_sample_that_cannot_be_generated_names_the_root(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    said = f"^`root`: the sample cannot be made under {tmp_path}/file: File exists$"
    with pytest.raises(InputError, match=said):
        open_data("sample", root=tmp_path / "file")


def test_a_home_that_nobody_has_is_no_folder() -> None:
    with pytest.raises(InputError, match="no folder or CSV file ~nobody-of-that-name/trees"):
        open_data("~nobody-of-that-name/trees", root=Path("data"))


@pytest.mark.parametrize("closed", ["train", "train/ash"])
def test_a_folder_that_must_not_be_read_is_named(
    image_folder: Path, monkeypatch: pytest.MonkeyPatch, closed: str
) -> None:
    def refuse(path: Path | str) -> object:  # what permissions do to anybody but root
        if Path(path) == image_folder / closed:
            raise PermissionError(13, "Permission denied", str(path))
        return scanned(path)

    scanned = os.scandir
    (image_folder / "train" / "1.jpg").touch()
    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", refuse)
        with pytest.raises(InputError, match=rf"^`data`: {image_folder / closed} cannot be read: Permission denied"):
            open_both(image_folder)


def test_train_without_val_is_refused(image_folder: Path) -> None:
    shutil.rmtree(image_folder / "val")
    with pytest.raises(InputError, match=rf'{image_folder} has train/ but no val/.* `data="{image_folder}/train"`$'):
        open_both(image_folder)
    assert all(map(len, open_both(image_folder / "train")))


def test_an_empty_class_folder_is_named(image_folder: Path) -> None:
    (image_folder / "val" / "yew").mkdir()
    (image_folder / "val" / "yew" / "readme.txt").write_text("none yet")
    with pytest.raises(InputError, match=rf"{image_folder}/val: no images in .*yew.*\.jpg"):
        open_both(image_folder)


@pytest.mark.parametrize(("names", "found"), [(["elm"], "only one, elm"), ([], "none")])
def test_fewer_than_two_classes_are_refused(tmp_path: Path, names: list[str], found: str) -> None:
    for name in names:
        put(tmp_path / "trees" / name / "1.png")
    (tmp_path / "trees").mkdir(exist_ok=True)
    with pytest.raises(InputError, match=rf"{tmp_path}/trees: .*two classes or more, but found {found}"):
        open_both(tmp_path / "trees")


def test_classes_that_differ_between_train_and_val_are_named(image_folder: Path) -> None:
    (image_folder / "train" / "ash").rename(image_folder / "train" / "elm")
    with pytest.raises(InputError, match=r"only in train: \['elm'\], only in val: \['ash'\]"):
        open_both(image_folder)


def test_a_home_relative_path_is_found(image_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(image_folder.parent))
    train, _ = open_data(f"~/{image_folder.name}", root=Path("data"))
    assert len(train) == 24
    assert train.name == "trees"


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    for name in ("bus", "train", "val"):
        for number in range(5):
            put(tmp_path / name / f"{number}.png")
    train, val = open_both(tmp_path)
    assert train.classes == val.classes == ("bus", "train", "val")
