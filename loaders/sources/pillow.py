"""Image files as Pillow reads them, which is the reference for every decoder."""

from importlib.util import find_spec
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from loaders.sources.jpeg import find_frame, require_few_scans

_AVIF = ("AVIF",) if find_spec("PIL.AvifImagePlugin") is not None else ()  # from Pillow 11.3 on

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "WEBP", "TIFF", *_AVIF)
"""The formats that are opened, by Pillow's names; first those that it knows without importing all of its plugins.

Left to itself, Pillow goes by the content and knows over forty: for EPS it runs Ghostscript on the file, whatever its
name is."""

FORMATS_FOUND = (*FORMATS, "MPO")
"""The formats that an opened image may be of: Pillow opens an MPO, several JPEGs in one file, as a JPEG."""

NOT_ENOUGH_MEMORY = "there is not enough memory to decode it"
"""The reason of an image whose decoding raises a MemoryError."""

MOST_READS = 1_000_000
"""The largest allowed number of pieces in which Pillow reads an image file; real ones take up to thousands.

Pillow reads comments and fill bytes one by one, and PNG chunk by chunk: 50 MB of them took minutes."""

MOST_OBLONG = 100
"""The largest allowed ratio of an image's longer side to its shorter one.

Evaluation resizes whole images by their shorter side. An image of 1 × 65,535 pixels, which a small PNG file can hold,
would take 13 GB at 256 pixels.
"""


def open_image(data: bytes, size: tuple[int, int] | None = None) -> Image.Image:
    """Opens the bytes of an image file without decoding its pixels.

    Every file that this project opens by Pillow is opened here.

    Args:
        data: all bytes of the file.
        size: the height and width that it must have, or width and height.

    Raises:
        OSError: when the content is of none of the `FORMATS`; damaged files may raise nearly any other error.
        ValueError: when it is not of `size`, or would take long to read.
    """
    content = _BoundedReads(data)
    try:
        image = Image.open(content, formats=FORMATS)
    except UnidentifiedImageError as error:
        raise UnidentifiedImageError(f"cannot identify image file: it is none of {', '.join(FORMATS)}") from error
    if size is not None and sorted(image.size) != sorted(size):
        raise other_size(image.height, image.width, size)
    if image.format in ("JPEG", "MPO"):
        require_few_scans(data, find_frame(data))
    if image.format == "BMP":
        content.reads_left += 3 * image.width * image.height  # of runs of one pixel, and ends of rows
    return image


class _BoundedReads(BytesIO):
    """The bytes of a file, which can be read in `MOST_READS` pieces."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.reads_left = MOST_READS

    def read(self, size: int | None = -1, /) -> bytes:
        self.reads_left -= 1
        if self.reads_left < 0:
            raise ValueError(f"its headers, comments and chunks take more than {MOST_READS:,} reads: save it anew")
        return super().read(size)


def other_size(height: int, width: int, size: tuple[int, int]) -> ValueError:
    """The error of an image that is not of the height and width `size`."""
    return ValueError(f"its {height} × {width} pixels are not {size[0]} × {size[1]}")


def require_shape(image: Image.Image) -> None:
    """Raises ValueError where one side is more than `MOST_OBLONG` times the other."""
    width, height = image.size
    if max(width, height) > MOST_OBLONG * min(width, height):
        raise ValueError(f"of its {width:,} × {height:,} pixels one side is over {MOST_OBLONG} times the other")


def as_rgb(image: Image.Image) -> NDArray[np.uint8]:
    """Converts an image of any mode to uint8 RGB `[H, W, 3]`, without applying its EXIF orientation.

    Transparency is dropped, as `convert("RGB")` does. 16-bit gray is reduced to its high byte, as Pillow does with
    16-bit color; `convert` would clip nearly all of it to white.

    Raises:
        ValueError: for 32-bit pixels outside 0 to 255, whose range is unknown.
        OSError: when Pillow cannot decode the image; damaged files may raise nearly any other error.
    """
    if image.mode.startswith("I;16") or (image.mode, image.format) == ("I", "PPM"):
        high = (np.asarray(image) >> 8).astype(np.uint8)
        return np.repeat(high[:, :, None], 3, axis=2)
    if image.mode in ("I", "F"):
        values = np.asarray(image)
        if not (values.min() >= 0 and values.max() <= 255):
            raise ValueError("its 32-bit pixels are not within 0 to 255: save it with 8 or 16 bits")
    if "transparency" in image.info:  # Pillow warns about a direct conversion to RGB
        image = image.convert("RGBA")
    return np.array(image.convert("RGB"))


def orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 is upright. The image must be loaded, because loading rotates a TIFF upright."""
    tag = image.getexif().get(ExifTags.Base.Orientation, 1)
    return tag if tag in range(1, 9) else 1
