"""Image files of every accepted format, and mutations of them that depend on nothing but a number."""

import random
import struct
import zlib
from collections.abc import Callable
from io import BytesIO

import numpy as np
from PIL import Image

from tests.conftest import smooth_image

HEIGHT, WIDTH = 72, 96
_JPEG, _PNG = b"\xff\xd8", b"\x89PNG\r\n\x1a\n"
_FRAMES = (0xC0, 0xC1, 0xC2)  # markers of JPEG's segments with height and width
_SCAN = 0xDA
_LENGTHS = (0, 1, 2, 3, 127, 255, 65535, 65536, 100_000, 2**31 - 1, 2**31, 2**32 - 1)


def valid_images() -> dict[str, bytes]:
    """Whole files by name: every format in `EXTENSIONS`, and the variants of each that decoders treat differently."""
    first, second, third = (Image.fromarray(smooth_image(HEIGHT, WIDTH, seed)) for seed in range(3))
    gray, gray16 = first.convert("L"), np.asarray(first.convert("L")).astype(np.uint16) * 257
    turned = Image.Exif()
    turned[0x0112], turned[0x010F] = 6, "Camera"
    palette = first.quantize(64)
    frames = {"save_all": True, "append_images": [second, third]}
    files = {
        "baseline.jpg": encoded(first, "JPEG", quality=85),
        "full-color.jpg": encoded(second, "JPEG", quality=92, subsampling=0),
        "progressive.jpg": encoded(third, "JPEG", progressive=True),
        "gray.jpeg": encoded(gray, "JPEG"),
        "cmyk.jpe": encoded(first.convert("CMYK"), "JPEG"),
        "turned.jpg": encoded(first, "JPEG", exif=turned),
        "comment.jfif": encoded(first, "JPEG", comment=b"a comment"),
        "restarts.jpg": encoded(second, "JPEG", restart_marker_rows=1),
        "several.jpg": encoded(first, "MPO", save_all=True, append_images=[second]),
        "color.png": encoded(first, "PNG", exif=turned),
        "transparent.png": encoded(first.convert("RGBA"), "PNG"),
        "palette.png": encoded(palette, "PNG"),
        "palette-transparent.png": encoded(palette, "PNG", transparency=bytes([0, 128, 255])),
        "gray-16.png": encoded(Image.fromarray(gray16), "PNG"),
        "bits.png": encoded(first.convert("1"), "PNG"),
        "gray-transparent.png": encoded(first.convert("LA"), "PNG"),
        "still.gif": encoded(first, "GIF"),
        "animated.gif": encoded(first, "GIF", duration=50, transparency=0, **frames),
        "lossy.webp": encoded(first, "WEBP"),
        "lossless.webp": encoded(second, "WEBP", lossless=True),
        "animated.webp": encoded(first, "WEBP", **frames),
        "raw.tif": encoded(first, "TIFF", exif=turned),
        **{
            f"{name}.tiff": encoded(first, "TIFF", compression=f"tiff_{name}" if name != "packbits" else name)
            for name in ("lzw", "adobe_deflate", "packbits")
        },
        "jpeg.tif": encoded(first, "TIFF", compression="jpeg"),
        "fax.tif": encoded(first.convert("1"), "TIFF", compression="group4"),
        "float.tif": encoded(Image.fromarray(np.asarray(gray).astype(np.float32)), "TIFF"),
        "gray-16.tif": encoded(Image.fromarray(gray16), "TIFF"),
        "gray-32.tif": encoded(Image.fromarray(np.asarray(gray).astype(np.int32)), "TIFF"),
        "two.tif": encoded(first, "TIFF", save_all=True, append_images=[second]),
        "color.bmp": encoded(first, "BMP"),
        "palette.bmp": encoded(palette, "BMP"),
        "color.ppm": encoded(first, "PPM"),
        "gray.pgm": encoded(gray, "PPM"),
        "gray-16.pgm": b"P5\n%d %d\n65535\n" % (WIDTH, HEIGHT) + gray16.astype(">u2").tobytes(),
    }
    small = np.asarray(first.resize((40, 30))).ravel()
    files["text.ppm"] = b"P3\n40 30\n255\n" + b" ".join(b"%d" % value for value in small)
    if ".avif" in Image.registered_extensions():
        files["still.avif"] = encoded(first, "AVIF")
    return files


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    file = BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def mutated(number: int, files: dict[str, bytes]) -> tuple[str, bytes]:
    """The name and the content of the mutation of this number; one in five is mutated twice."""
    rng = random.Random(number)
    name = list(files)[number % len(files)]
    others = list(files.values())
    mutate = rng.choice(_MUTATIONS)
    data = mutate(files[name], rng, others)
    if rng.random() < 0.2 and len(data) > 10:
        data = rng.choice(_MUTATIONS)(data, rng, others)
    return f"{number:05}-{mutate.__name__.strip('_')}-{name}", data


Mutation = Callable[[bytes, random.Random, list[bytes]], bytes]


def _flip_bits(data: bytes, rng: random.Random, _: list[bytes]) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5, 20, 60))):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _flip_bits_of_the_header(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    return _flip_bits(data[:200], rng, others) + data[200:]


def _set_bytes(data: bytes, rng: random.Random, _: list[bytes]) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 3, 10))):
        changed[rng.randrange(len(changed))] = rng.choice((0, 127, 128, 255, rng.randrange(256)))
    return bytes(changed)


def _truncate(data: bytes, rng: random.Random, _: list[bytes]) -> bytes:
    return data[: rng.randrange(len(data))]


def _delete(data: bytes, rng: random.Random, _: list[bytes]) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + data[at + rng.choice((1, 2, 17, 300)) :]


def _insert(data: bytes, rng: random.Random, _: list[bytes]) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + rng.randbytes(rng.choice((1, 2, 17, 300))) + data[at:]


def _repeat(data: bytes, rng: random.Random, _: list[bytes]) -> bytes:
    at, length = rng.randrange(len(data)), rng.choice((4, 64, 1000))
    return data[: at + length] + data[at:]


def _clear(data: bytes, rng: random.Random, _: list[bytes]) -> bytes:
    at, length = rng.randrange(len(data)), rng.choice((4, 64, 1000))
    return data[:at] + bytes(min(length, len(data) - at)) + data[at + length :]


def _swap_blocks(data: bytes, rng: random.Random, _: list[bytes]) -> bytes:
    length = min(rng.choice((4, 32, 256)), len(data) // 2)
    first = rng.randrange(len(data) - 2 * length + 1)
    second = rng.randrange(first + length, len(data) - length + 1)
    one, other = data[first : first + length], data[second : second + length]
    return data[:first] + other + data[first + length : second] + one + data[second + length :]


def _set_length_field(data: bytes, rng: random.Random, _: list[bytes]) -> bytes:
    at = rng.randrange(max(1, min(len(data), 120) - 4))
    order, value = rng.choice("<>"), rng.choice(_LENGTHS)
    field = struct.pack(order + "I", value) if rng.random() < 0.5 else struct.pack(order + "H", value & 0xFFFF)
    return data[:at] + field + data[at + len(field) :]


def _splice(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    other = rng.choice(others)
    return data[: rng.randrange(len(data))] + other[rng.randrange(len(other)) :]


def _append(data: bytes, rng: random.Random, _: list[bytes]) -> bytes:
    return data + rng.choice((bytes(1000), rng.randbytes(500), data))


def _change_structure(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    """Changes the segments of a JPEG or the chunks of a PNG, and leaves the file well-formed around them."""
    if data.startswith(_JPEG):
        return _change_segments(data, rng, others)
    if data.startswith(_PNG):
        return _change_chunks(data, rng, others)
    return _set_length_field(data, rng, others)


def _change_segments(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    segments, at = [], 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != _SCAN:
        length = 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        segments.append(data[at : at + length])
        at += length
    rest = data[at:]
    if not segments:
        return _flip_bits(data, rng, others)
    one, other = rng.randrange(len(segments)), rng.randrange(len(segments))
    segment = segments[one]
    match rng.randrange(6):
        case 0:
            segments[one], segments[other] = segments[other], segment
        case 1:
            del segments[one]
        case 2:
            segments.insert(other, segment)
        case 3:
            wrong = rng.choice((0, 1, 2, 3, 65535, (len(segment) + 5) & 0xFFFF))
            segments[one] = segment[:2] + wrong.to_bytes(2, "big") + segment[4:]
        case 4:
            segments[one] = segment[:4] + _flip_bits(segment[4:] or b"\0", rng, others)
        case _:
            for place, frame in enumerate(segments):
                if len(frame) > 12 and frame[1] in _FRAMES:  # precision, height, width, components
                    field = rng.randrange(4, 13)
                    segments[place] = frame[:field] + bytes([rng.randrange(256)]) + frame[field + 1 :]
    return _JPEG + b"".join(segments) + rest


def _change_chunks(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    chunks, at = [], len(_PNG)
    while at + 8 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    if not chunks:
        return _flip_bits(data, rng, others)
    one, other = rng.randrange(len(chunks)), rng.randrange(len(chunks))
    kind, content = chunks[one]
    match rng.randrange(6):
        case 0:
            chunks[one], chunks[other] = chunks[other], chunks[one]
        case 1:
            del chunks[one]
        case 2:
            chunks.insert(other, chunks[one])
        case 3 if chunks[0][1]:  # of the header: depth, color type, interlacing, ...
            field, header = rng.randrange(len(chunks[0][1])), chunks[0][1]
            value = rng.choice((0, 1, 2, 3, 4, 6, 8, 16, 255))
            chunks[0] = chunks[0][0], header[:field] + bytes([value]) + header[field + 1 :]
        case 4 if content:
            chunks[one] = kind, _flip_bits(content, rng, others)
        case _:
            for place, (kind, content) in enumerate(chunks):
                if kind == b"IDAT":
                    chunks[place] = kind, _recompressed(content, rng, others)
    return _PNG + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )


def _recompressed(content: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    """The same compressed data with other rows in them, perhaps cut short."""
    try:
        rows = zlib.decompress(content)
    except zlib.error:
        return content
    return zlib.compress(_flip_bits(rows, rng, others))[: rng.choice((None, 500))]


_MUTATIONS: tuple[Mutation, ...] = (
    _flip_bits, _flip_bits, _flip_bits_of_the_header, _flip_bits_of_the_header, _set_bytes, _truncate, _truncate,
    _delete, _insert, _repeat, _clear, _swap_blocks, _swap_blocks, _set_length_field, _set_length_field, _splice,
    _append, _change_structure, _change_structure, _change_structure,
)  # fmt: skip
"""What is chosen from; what occurs more than once is chosen more often."""
