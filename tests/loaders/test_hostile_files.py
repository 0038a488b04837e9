"""Files made to harm whoever opens them, indexed or put in the place of an indexed file: named, and nothing worse."""

import os
import re
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image

import loaders.backends.dali
import loaders.ops.decode
import loaders.sources.index
import loaders.sources.pillow
from loaders import BadImageError, LoaderConfig, PlanSpec, ResizeCenterCrop, Source, build_loader, open_data
from loaders.sources import guarded, jpeg
from loaders.sources.index import Verdict, examine, index_files
from tests.conftest import PROMISING, smooth_image

HUGE = 6 << 30
"""Bytes; sparse, so that the disk need not have them."""


def encoded(format: str = "JPEG", size: tuple[int, int] = (60, 90), **options: object) -> bytes:
    buffer = BytesIO()
    Image.fromarray(smooth_image(*size, 0)).save(buffer, format, **options)
    return buffer.getvalue()


def eps(marker: Path) -> bytes:
    """PostScript that creates `marker` where it is executed."""
    return (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 90 60\n%%EndComments\n"
        + f"({marker}) (w) file closefile\n".encode()
        + b"0 0 90 60 rectfill\nshowpage\n%%EOF\n"
    )


def with_size(data: bytes, height: int, width: int) -> bytes:
    """A JPEG that claims another size, of the same length."""
    at = next(at for at in range(len(data)) if data[at] == 0xFF and data[at + 1] in (0xC0, 0xC2))
    return data[: at + 5] + struct.pack(">HH", height, width) + data[at + 9 :]


def with_tail(path: Path) -> None:
    path.write_bytes(encoded())
    os.truncate(path, HUGE)


def replaced_by_pipe(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def replaced_by_device(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/zero")


def many_scans(height: int, width: int, scans: int) -> bytes:
    """A grey progressive JPEG of which each scan but the first says in a few bytes that it changes nothing."""

    def segment(marker: int, content: bytes) -> bytes:
        return bytes((0xFF, marker)) + struct.pack(">H", len(content) + 2) + content

    def scan(first: int, last: int, data: bytes) -> bytes:
        return segment(0xDA, bytes((1, 1, 0, first, last, 0))) + data

    one_code = bytes([1, *[0] * 15])
    blocks = -(-height // 8) * -(-width // 8)
    runs = -(-blocks // 32767)  # of blocks without coefficients: the code 0, and 14 bits that count them
    bits = ("0" + "1" * 14) * runs
    bits += "1" * (-len(bits) % 8)
    nothing = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")
    return (
        b"\xff\xd8"
        + segment(0xDB, bytes([0, *[1] * 64]))
        + segment(0xC2, struct.pack(">BHHB", 8, height, width, 1) + bytes((1, 0x11, 0)))
        + segment(0xC4, b"\x00" + one_code + b"\x00")
        + segment(0xC4, b"\x10" + one_code + b"\xe0")
        + scan(0, 0, bytes(-(-blocks // 8)))
        + scan(1, 63, nothing) * (scans - 1)
        + b"\xff\xd9"
    )


def many_chunks(count: int) -> bytes:
    """A PNG with so many empty comments."""
    data = encoded("PNG")
    text = struct.pack(">I", 3) + b"tEXtk\0v"
    return data[:33] + (text + struct.pack(">I", zlib.crc32(text[4:]))) * count + data[33:]


Put = Callable[[Path], object]
"""Puts a file at a path, whatever lies there."""

INDEXED: dict[str, tuple[Put, str]] = {
    "EPS": (lambda path: path.write_bytes(eps(path.with_name("executed"))), "cannot identify image file"),
    "named pipe": (replaced_by_pipe, "it is no regular file"),
    "device": (replaced_by_device, "it is no regular file"),
    "folder": (Path.mkdir, "it is no regular file"),
    "scans": (
        lambda path: path.write_bytes(many_scans(4000, 4000, 600)),
        "its 600 scans are more than 500: save it anew",
    ),
    "comment": (lambda path: path.write_bytes(b"P6\n#" + bytes(20_000)), "take more than 10,000 reads"),
    "fill bytes": (
        lambda path: path.write_bytes(b"\xff\xd8" + b"\xff" * 20_000 + encoded()[2:]),
        "take more than 10,000 reads",
    ),
    "chunks": (lambda path: path.write_bytes(many_chunks(20_000)), "take more than 10,000 reads"),
    "long tail": (with_tail, r"its 6,442,450,944 bytes are more than the [\d,]+ that an image file may have"),
}
EXCHANGED: dict[str, tuple[Put, str]] = {
    "EPS": (
        lambda path: path.write_bytes(eps(path.with_name("executed")).ljust(path.stat().st_size)),
        "cannot identify image file",
    ),
    "named pipe": (replaced_by_pipe, "it is no regular file"),
    "device": (replaced_by_device, "it is no regular file"),
    "long tail": (with_tail, "its length is 6,442,450,944 bytes, and was"),
    "another length": (lambda path: path.write_bytes(encoded() + bytes(1)), "its length is"),
    "claims to be huge": (
        lambda path: path.write_bytes(with_size(path.read_bytes(), 65500, 65500)),
        "its 65500 × 65500 pixels are not",
    ),
}


def cases(table: dict[str, tuple[Put, str]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(("put", "reason"), table.values(), ids=table)


@pytest.fixture
def ghostscript(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Where Pillow's calls of Ghostscript are noted, which this machine may lack."""
    calls: list[object] = []

    def noted(*given: object) -> object:
        calls.append(given)
        return Image.new("RGB", (90, 60)).im

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", noted)
    return calls


@contextmanager
def no_long_read() -> Iterator[None]:
    """Within it, a read of more than 10 megabytes fails."""
    read = os.read

    def checked(descriptor: int, size: int) -> bytes:
        assert size < 10 << 20
        return read(descriptor, size)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(guarded.os, "read", checked)
        yield


# --- indexing --------------------------------------------------------------------------------------


@cases(INDEXED)
def test_a_hostile_file_is_bad_when_it_is_indexed(
    put: Put, reason: str, tmp_path: Path, ghostscript: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.jpg"
    put(path)
    monkeypatch.setattr(loaders.sources.pillow, "MOST_READS", 10_000)
    Image.init()  # one of its plugins draws an image
    monkeypatch.setattr(Image.Image, "load", lambda _: pytest.fail("decoded"))
    with no_long_read():
        assert re.search(reason, examine(path).reason)
    assert not ghostscript
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("format", ["ICO", "TGA", "PCX", "SGI", "DDS"])
def test_only_formats_on_the_list_are_opened(tmp_path: Path, format: str) -> None:
    path = tmp_path / "x.jpg"
    path.write_bytes(encoded(format))
    assert "it is none of JPEG, PNG, BMP" in examine(path).reason


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM"])
def test_formats_on_the_list_are_opened_whatever_the_name_says(tmp_path: Path, format: str) -> None:
    path = tmp_path / "x.jpg"
    path.write_bytes(encoded(format))
    assert examine(path)[:3] == (60, 90, format)


def test_pillow_is_asked_to_open_a_file_in_one_place_only() -> None:
    """Another place could forget what `open_image` sees to."""
    root = Path(loaders.sources.pillow.__file__).parents[2]
    files = [path for package in ("loaders", "train", "benchmarks") for path in (root / package).rglob("*.py")]
    assert [path.name for path in files if "Image.open(" in path.read_text()] == ["pillow.py"]


def test_an_index_of_an_earlier_version_does_not_vouch_for_other_formats_or_lengths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = ["eps.jpg", "long.jpg", "good.jpg"]
    (tmp_path / "eps.jpg").write_bytes(eps(tmp_path / "executed"))
    with_tail(tmp_path / "long.jpg")
    (tmp_path / "good.jpg").write_bytes(encoded())
    stats = [loaders.sources.index.file_stat(tmp_path, path) for path in paths]
    verdicts = [Verdict(60, 90, format, "RGB", 1, "") for format in ("EPS", "JPEG", "JPEG")]
    keys = [f"{path}\0{size}\0{changed}" for path, (size, changed) in zip(paths, stats, strict=True)]
    monkeypatch.setattr(loaders.sources.index, "_load", lambda *_: dict(zip(keys, verdicts, strict=True)))
    assert sorted(index_files(tmp_path, paths, stats).bad) == [0, 1]


def test_an_image_for_which_memory_does_not_suffice_is_bad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Image.Image) -> None:
        raise MemoryError

    path = tmp_path / "x.png"
    path.write_bytes(encoded("PNG"))
    monkeypatch.setattr(Image.Image, "load", fail)
    assert examine(path).reason == "there is not enough memory to decode it"


# --- put in the place of an indexed file -----------------------------------------------------------


@pytest.fixture
def jpegs(image_folder: Path) -> Source:
    return open_data(str(image_folder), root=image_folder)[0]


def iterate(source: Source, loader: str) -> None:
    config = LoaderConfig(spec=PlanSpec(ResizeCenterCrop(40, 32)), training=False, batch_size=8, dtype=torch.uint8)
    for _ in build_loader(source, config, loader=loader):
        pass


@cases(EXCHANGED)
@pytest.mark.parametrize("loader", PROMISING)
def test_a_hostile_file_in_the_place_of_an_indexed_one_is_named(
    loader: str, put: Put, reason: str, jpegs: Source, ghostscript: list[object]
) -> None:
    path = Path(jpegs.images.describe(3))
    put(path)
    with no_long_read(), pytest.raises(BadImageError, match=rf"{path}: {reason}.*\(it was good"):
        iterate(jpegs, loader)
    assert not ghostscript


@cases(EXCHANGED)
def test_the_baseline_ends_at_a_hostile_file(put: Put, reason: str, jpegs: Source, ghostscript: list[object]) -> None:
    put(Path(jpegs.images.describe(3)))
    refusals = (OSError, ValueError, Image.DecompressionBombError)
    with no_long_read(), pytest.raises(refusals, match=f"{reason}|decompression bomb"):
        iterate(jpegs, "baseline")
    assert not ghostscript


@pytest.mark.parametrize("loader", PROMISING)
@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_memory_is_taken_only_for_the_size_that_was_indexed(
    loader: str, format: str, image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The size stands in the header: nothing of the pixels is decoded."""
    path = image_folder / "train" / "ash" / f"changed.{format}".lower()
    path.write_bytes(encoded(format, (40, 50)).ljust(10_000, b"\0"))
    source = open_data(str(image_folder), root=image_folder)[0]
    path.write_bytes(encoded(format, (33, 50)).ljust(10_000, b"\0"))
    decoded: list[int] = []
    decode, convert = loaders.ops.decode.simplejpeg.decode_jpeg, loaders.ops.decode.as_rgb

    def noted(decoder: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
        def run(*given: object, **named: object) -> np.ndarray:
            pixels = decoder(*given, **named)
            decoded.append(len(pixels))
            return pixels

        return run

    monkeypatch.setattr(loaders.ops.decode.simplejpeg, "decode_jpeg", noted(decode))
    monkeypatch.setattr(loaders.ops.decode, "as_rgb", noted(convert))
    with pytest.raises(BadImageError, match="its 33 × 50 pixels are not 40 × 50"):
        iterate(source, loader)
    assert 33 not in decoded


@pytest.mark.parametrize("loader", PROMISING)
def test_scans_are_counted_again_when_a_file_is_used(
    loader: str, image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = image_folder / "train" / "ash" / "scans.jpg"
    path.write_bytes(many_scans(60, 90, 500).ljust(20_000, b"\0"))
    source = open_data(str(image_folder), root=image_folder)[0]
    assert not source.bad
    path.write_bytes(many_scans(60, 90, 501).ljust(20_000, b"\0"))
    monkeypatch.setattr(jpeg, "HARMLESS", 0)
    with pytest.raises(BadImageError, match=rf"{path}: its 501 scans are more than 500"):
        iterate(source, loader)


def test_what_looks_like_a_scan_in_metadata_or_behind_the_image_is_not_counted() -> None:
    data = encoded(progressive=True)
    looks = b"\xff\xda" * 2000
    comment = b"\xff\xfe" + struct.pack(">H", len(looks) + 2) + looks
    frame = jpeg.find_frame(data)
    assert frame is not None
    assert frame.has_several_scans
    for same in (data[:2] + comment + data[2:], data + looks):
        assert jpeg.count_scans(same) == jpeg.count_scans(data) == 10


@pytest.mark.parametrize("options", [{}, {"optimize": True}, {"quality": 10}], ids=str)
def test_a_jpeg_of_one_scan_is_known_without_counting(options: dict[str, object]) -> None:
    frame = jpeg.find_frame(encoded(**options))
    assert frame is not None
    assert not frame.has_several_scans


def test_a_long_run_length_coded_bmp_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow reads it in two or three pieces for each run: its limit goes by its size."""
    monkeypatch.setattr(loaders.sources.pillow, "MOST_READS", 100)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50), np.uint8)
    rows = b"".join(bytes(value for pixel in row for value in (1, pixel)) + b"\0\0" for row in pixels[::-1].tolist())
    header = b"BM" + struct.pack("<IHHI", 1078 + len(rows) + 2, 0, 0, 1078)
    header += struct.pack("<IiiHHIIiiII", 40, 50, 40, 1, 8, 1, len(rows) + 2, 0, 0, 256, 0)
    header += bytes(value for level in range(256) for value in (level, level, level, 0))
    path = tmp_path / "x.bmp"
    path.write_bytes(header + rows + b"\0\1")
    assert not examine(path).reason


@pytest.mark.parametrize("loader", PROMISING)
def test_an_image_for_which_memory_does_not_suffice_is_named(
    loader: str, jpegs: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    if loader == "dali":
        monkeypatch.setattr(loaders.backends.dali, "_is_intact", lambda *_: False)
    monkeypatch.setattr(loaders.ops.decode.simplejpeg, "decode_jpeg", fail)
    with pytest.raises(BadImageError, match="there is not enough memory to decode it"):
        iterate(jpegs, loader)


def test_a_link_to_a_file_is_read_like_the_file(jpegs: Source, tmp_path: Path) -> None:
    path = Path(jpegs.images.describe(3))
    expected = jpegs.images.read(3)
    shutil.move(path, tmp_path / "elsewhere.jpg")
    path.symlink_to(tmp_path / "elsewhere.jpg")
    assert jpegs.images.read(3) == expected
