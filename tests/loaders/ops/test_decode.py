"""Decoding: the same pixels and the same verdict as Pillow's, whoever decodes."""

import re
import warnings
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageOps

from loaders.ops import decode
from loaders.ops.decode import decode_jpeg, decode_with_pillow, load_pixels, shorten_jpeg
from loaders.sources import ImageFiles, PixelArray, open_data
from loaders.sources.index import examine
from tests.conftest import smooth_image


def encoded(image: Image.Image | np.ndarray, format: str = "JPEG", **options: object) -> bytes:
    buffer = BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, format, **options)
    return buffer.getvalue()


def by_pillow(data: bytes | Path) -> np.ndarray:
    """What the user sees in a viewer: Pillow's pixels, upright, as RGB."""
    with Image.open(BytesIO(data) if isinstance(data, bytes) else data) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


def indexed(path: Path) -> ImageFiles:
    """A source's view of one file."""
    verdict = examine(path)
    facts = (path.name, verdict.format, verdict.mode, verdict.orientation, 0, path.stat().st_size)
    columns = [np.array([value]) for value in facts]
    return ImageFiles(path.parent, *columns)


@pytest.fixture
def no_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow's turn does not come: what decodes, simplejpeg has decoded."""

    def refuse(_: bytes) -> None:
        raise AssertionError("left to Pillow")

    monkeypatch.setattr(decode, "decode_with_pillow", refuse)


@pytest.mark.usefixtures("no_pillow")
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0", "4:1:1"])
def test_simplejpeg_decodes_as_pillow_does_whatever_the_subsampling(subsampling: str, progressive: bool) -> None:
    for quality in (15, 75, 100):
        data = encoded(smooth_image(97, 131, 0), subsampling=subsampling, progressive=progressive, quality=quality)
        np.testing.assert_array_equal(decode_jpeg(data), by_pillow(data))


@pytest.mark.usefixtures("no_pillow")
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
def test_simplejpeg_decodes_as_pillow_does_at_every_small_size(subsampling: str) -> None:
    for height in range(1, 19):
        for width in range(1, 19):
            data = encoded(smooth_image(40, 40, height)[:height, :width], subsampling=subsampling)
            np.testing.assert_array_equal(decode_jpeg(data), by_pillow(data))


@pytest.mark.usefixtures("no_pillow")
@pytest.mark.parametrize(
    ("mode", "options"),
    [("L", {}), ("L", {"progressive": True}), ("RGB", {"keep_rgb": True}), ("RGB", {"restart_marker_rows": 1})],
)
def test_simplejpeg_decodes_grey_rgb_coded_and_restarting_jpegs_as_pillow_does(
    mode: str, options: dict[str, object]
) -> None:
    data = encoded(Image.fromarray(smooth_image(61, 45, 1)).convert(mode), **options)
    np.testing.assert_array_equal(decode_jpeg(data), by_pillow(data))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_images_are_turned_upright_as_pillow_turns_them(tmp_path: Path, format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    path = tmp_path / "turned"
    path.write_bytes(encoded(smooth_image(20, 30, 2), format, exif=exif))
    np.testing.assert_array_equal(load_pixels(indexed(path), 0), by_pillow(path))


def test_of_several_jpegs_in_one_file_the_first_counts(tmp_path: Path) -> None:
    first, second = smooth_image(20, 30, 3), smooth_image(20, 30, 4)
    path = tmp_path / "stereo.jpg"
    path.write_bytes(encoded(first, "MPO", save_all=True, append_images=[Image.fromarray(second)], quality=95))
    pixels = load_pixels(indexed(path), 0).astype(int)
    np.testing.assert_array_equal(pixels, by_pillow(path))
    assert abs(pixels - first).mean() < abs(pixels - second).mean() / 4


def test_an_image_of_a_pixel_array_is_as_it_lies_there() -> None:
    pixels = np.stack([smooth_image(5, 7, seed) for seed in range(3)])
    for index in range(3):
        np.testing.assert_array_equal(load_pixels(PixelArray(pixels), index), smooth_image(5, 7, index))


DAMAGE = {
    "extraneous bytes": lambda data: data[: data.index(b"\xff\xda")] + bytes(3) + data[data.index(b"\xff\xda") :],
    "bytes before the end marker": lambda data: data[:-2] + bytes(200) + data[-2:],
    "a marker amid the data": lambda data: data[:-40] + b"\xff\xd3" + data[-38:],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_simplejpeg_objects_to_is_good_if_pillow_says_so(damage: str) -> None:
    data = DAMAGE[damage](encoded(smooth_image(97, 131, 5)))
    with pytest.raises(ValueError, match="Corrupt JPEG data"):
        simplejpeg.decode_jpeg(data)
    np.testing.assert_array_equal(decode_jpeg(data), by_pillow(data))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "BMP"])
def test_garbage_behind_an_image_changes_nothing(tmp_path: Path, format: str) -> None:
    data = encoded(smooth_image(40, 50, 6), format)
    path = tmp_path / "longer"
    path.write_bytes(data + b"garbage " * 100)
    np.testing.assert_array_equal(load_pixels(indexed(path), 0), by_pillow(data))


@pytest.mark.parametrize("decoder", [decode_jpeg, decode_with_pillow])
@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "cannot identify"),
        (b"a text that calls itself a photograph", "cannot identify"),
        (encoded(smooth_image(97, 131, 7))[:-100], "truncated"),
    ],
    ids=["empty", "text", "truncated"],
)
def test_what_pillow_cannot_decode_is_an_error(
    decoder: Callable[[bytes], np.ndarray], data: bytes, reason: str
) -> None:
    with pytest.raises((OSError, ValueError), match=reason):
        decoder(data)


@pytest.mark.parametrize(
    ("format", "place", "value", "pillows"),
    [("PNG", 36, 4, SyntaxError), ("BMP", 25, 187, Image.DecompressionBombError)],
    ids=["a chunk's length", "an image of 94 gigapixels"],
)
def test_other_errors_of_pillow_become_valueerrors(
    format: str, place: int, value: int, pillows: type[Exception]
) -> None:
    data = bytearray(encoded(np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8), format))
    data[place] = value
    with pytest.raises(pillows) as raised:
        by_pillow(bytes(data))
    with pytest.raises(ValueError, match=re.escape(str(raised.value))):
        decode_with_pillow(bytes(data))


def test_a_file_that_is_gone_is_an_oserror(tmp_path: Path) -> None:
    path = tmp_path / "image.jpg"
    path.write_bytes(encoded(smooth_image(9, 9, 8)))
    images = indexed(path)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        load_pixels(images, 0)


GOOD = {format: encoded(smooth_image(20, 30, 9), format) for format in ("JPEG", "PNG", "GIF", "TIFF")}
BYTES = st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255))


@settings(max_examples=400)
@given(
    format=st.sampled_from(sorted(GOOD)), keep=st.floats(0.01, 1) | st.just(1.0), changes=st.lists(BYTES, max_size=6)
)
def test_damaged_bytes_give_pillows_pixels_or_an_oserror_or_a_valueerror(
    format: str, keep: float, changes: list[tuple[float, int]]
) -> None:
    data = bytearray(GOOD[format])
    for place, value in changes:
        data[int(place * len(data))] = value
    damaged = bytes(data[: round(keep * len(data))])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of broken metadata
        try:
            with Image.open(BytesIO(damaged)) as image:
                wanted = np.asarray(image.convert("RGB"))
        except Exception:
            wanted = None
        for decoder in (decode_jpeg, decode_with_pillow):
            try:
                pixels = decoder(damaged)
            except (OSError, ValueError):
                assert wanted is None
            else:
                np.testing.assert_array_equal(pixels, wanted)


@pytest.mark.needs_photos
def test_every_real_photograph_decodes_exactly_as_pillow_decodes_it(photos: Path) -> None:
    sources = open_data(str(photos), root=photos)
    assert sum(len(source) for source in sources) == 398
    for source in sources:
        assert not source.bad
        for index in range(len(source)):
            wanted = by_pillow(Path(source.images.describe(index)))
            assert source.sizes[index].tolist() == list(wanted.shape[:2])
            np.testing.assert_array_equal(load_pixels(source.images, index), wanted)


# --- decoding no more than is wanted ---------------------------------------------------------------


@pytest.mark.usefixtures("no_pillow")
@given(
    height=st.integers(1, 120),
    width=st.integers(1, 60),
    share=st.floats(0, 1),
    subsampling=st.sampled_from(["4:4:4", "4:2:2", "4:2:0", "4:1:1"]),
    options=st.sampled_from([{}, {"optimize": True}, {"restart_marker_blocks": 2}, {"quality": 30}]),
)
def test_the_rows_wanted_are_those_of_the_whole_image(
    height: int, width: int, share: float, subsampling: str, options: dict[str, object]
) -> None:
    noise = np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)
    data, rows = encoded(noise, subsampling=subsampling, **options), max(1, round(share * height))
    top = decode_jpeg(data, top=(rows, height))
    assert top.shape == (min(height, rows + 2), width, 3)
    np.testing.assert_array_equal(top[:rows], by_pillow(data)[:rows])


@pytest.mark.parametrize(
    ("data", "height"),
    [
        (encoded(smooth_image(64, 64, 0), progressive=True), 64),
        (encoded(smooth_image(64, 64, 0))[:-2], 64),
        (encoded(smooth_image(64, 64, 0)), 65),
        (encoded(smooth_image(64, 64, 0)) + b"garbage", 64),
        (encoded(smooth_image(64, 64, 0), "PNG"), 64),
        (b"\xff\xd8\xff\xe0\x00\x04ab\xff\xd9", 64),
        (b"\xff\xd8\xff\xd9", 64),
        (b"", 64),
    ],
    ids=[
        "progressive",
        "cut off",
        "another height",
        "garbage behind",
        "no JPEG",
        "no frame",
        "nothing inside",
        "empty",
    ],
)
def test_what_cannot_be_shortened_is_decoded_whole(data: bytes, height: int) -> None:
    assert shorten_jpeg(data, 20, height) is None


def test_a_jpeg_that_is_all_wanted_is_not_shortened() -> None:
    data = encoded(smooth_image(64, 64, 0))
    assert shorten_jpeg(data, 62, 64) is None
    assert shorten_jpeg(data, 61, 64) is not None


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_images_have_the_rows_wanted(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded(smooth_image(50, 70, 3), exif=exif))
    whole = by_pillow(path)
    pixels = load_pixels(indexed(path), 0, size=whole.shape[:2], rows=20)
    assert len(pixels) == (22 if orientation in (1, 2) else len(whole))
    np.testing.assert_array_equal(pixels[:20], whole[:20])


@pytest.mark.parametrize("rows", [None, 20])
def test_an_image_that_is_not_what_it_was_is_refused(tmp_path: Path, rows: int | None) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded(smooth_image(50, 70, 3)))
    images = indexed(path)
    path.write_bytes(encoded(smooth_image(48, 70, 3)))
    with pytest.raises(ValueError, match="its 48 × 70 pixels are not 50 × 70"):
        load_pixels(images, 0, size=(50, 70), rows=rows)


@pytest.mark.needs_photos
def test_the_rows_wanted_of_every_real_photograph_are_exact(photos: Path) -> None:
    shortened = 0
    for source in open_data(str(photos), root=photos):
        assert isinstance(source.images, ImageFiles)
        for index in range(0, len(source), 3):
            if index in source.bad or source.images.formats[index] != "JPEG":
                continue
            size = tuple(source.sizes[index].tolist())
            whole, rows = load_pixels(source.images, index), size[0] * (index % 7 + 1) // 9 + 1
            top = load_pixels(source.images, index, size=size, rows=rows)
            np.testing.assert_array_equal(top[:rows], whole[:rows])
            shortened += len(top) < size[0]
    assert shortened > 50


@pytest.mark.parametrize("at_least", [(50, 70), (26, 36), (25, 35), (24, 30), (7, 9), (1, 1)])
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_scaled_jpeg_is_the_smallest_eighth_that_will_do(
    tmp_path: Path, at_least: tuple[int, int], orientation: int
) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded(smooth_image(50, 70, 3), exif=exif))
    size = (50, 70) if orientation == 1 else (70, 50)
    wanted = at_least if orientation == 1 else at_least[::-1]
    found = load_pixels(indexed(path), 0, size=size, at_least=wanted).shape[:2]
    possible = [(-(-size[0] * n // 8), -(-size[1] * n // 8)) for n in range(1, 9)]
    # simplejpeg takes a smaller size only from half on, as others are slower to decode.
    enough = [p for n, p in enumerate(possible, 1) if p[0] >= wanted[0] and p[1] >= wanted[1] and (n <= 4 or n == 8)]
    assert found == enough[0]
