"""What an image file holds, in Pillow's view, which is the one that counts."""

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

MOST_OBLONG = 100
"""How many times as long as wide an image may be. Evaluation resizes images as a whole, by the shorter side, and one of
1 × 65,535 pixels, which a small PNG can be, would take 13 GB at 256."""


def require_shape(image: Image.Image) -> None:
    """Raises ValueError where one side is over `MOST_OBLONG` times the other."""
    width, height = image.size
    if max(width, height) > MOST_OBLONG * min(width, height):
        raise ValueError(f"of its {width:,} × {height:,} pixels one side is over {MOST_OBLONG} times the other")


def as_rgb(image: Image.Image) -> NDArray[np.uint8]:
    """Any image → uint8 `[H, W, 3]`, not turned.

    Transparency is dropped, as it is by `convert("RGB")`. Of 16-bit grey the high byte is taken, as Pillow does
    with 16-bit colour; `convert` would make nearly all of it white.

    Raises:
        ValueError: for 32-bit pixels outside 0 to 255, as nobody can tell what is white.
        OSError: when Pillow cannot decode it; damaged files raise nearly any other error, too.
    """
    if image.mode.startswith("I;16") or (image.mode, image.format) == ("I", "PPM"):
        high = (np.asarray(image) >> 8).astype(np.uint8)
        return np.repeat(high[:, :, None], 3, axis=2)
    if image.mode in ("I", "F"):
        values = np.asarray(image)
        if not (values.min() >= 0 and values.max() <= 255):
            raise ValueError("its 32-bit pixels are not within 0 to 255: save it with 8 or 16 bits")
    if "transparency" in image.info:  # Pillow wants this way round, and warns otherwise
        image = image.convert("RGBA")
    return np.array(image.convert("RGB"))


def orientation(image: Image.Image) -> int:
    """The EXIF tag, 1 to 8; 1 is upright. Of a loaded image, as loading turns a TIFF upright."""
    tag = image.getexif().get(ExifTags.Base.Orientation, 1)
    return tag if tag in range(1, 9) else 1
