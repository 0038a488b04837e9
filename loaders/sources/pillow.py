"""Image files as Pillow reads them, which is the reference for every decoder."""

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

MOST_OBLONG = 100
"""The largest allowed ratio of an image's longer side to its shorter one.

Evaluation resizes whole images by their shorter side. An image of 1 × 65,535 pixels, which a small PNG file can hold,
would take 13 GB at 256 pixels.
"""


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
