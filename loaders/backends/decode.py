"""Encoded bytes → pixels, on the CPU: simplejpeg for what it reads exactly as Pillow does, Pillow for the rest."""

from io import BytesIO

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from loaders.sources.base import ImageFiles, PixelArray

_JPEG_FORMATS = ("JPEG", "MPO")  # MPO: several JPEGs in one file, of which the first counts
_JPEG_MODES = ("RGB", "L")


def load_pixels(
    images: PixelArray | ImageFiles, index: int, *, at_least: tuple[int, int] | None = None
) -> NDArray[np.uint8]:
    """One image as uint8 `[H, W, 3]`, upright.

    Args:
        at_least: height and width that will do: a JPEG may then come at n/8 of its size, which is decoded faster.

    Raises:
        OSError, ValueError: when the file cannot be read or decoded.
    """
    if isinstance(images, PixelArray):
        pixels: NDArray[np.uint8] = images.pixels[index]
        return pixels
    data = images.read(index)
    is_jpeg = images.formats[index] in _JPEG_FORMATS and images.modes[index] in _JPEG_MODES
    orientation = int(images.orientations[index])
    if at_least is not None and orientation >= 5:
        at_least = at_least[1], at_least[0]
    pixels = decode_jpeg(data, at_least) if is_jpeg else decode_with_pillow(data)
    return upright(pixels, orientation)


def require_size(pixels: NDArray[np.uint8], height: int, width: int) -> None:
    """Raises ValueError where an image is not what it was when indexed, on which its plan depends."""
    if pixels.shape[:2] != (height, width):
        raise ValueError(f"its {pixels.shape[0]} × {pixels.shape[1]} pixels are not {height} × {width}")


def decode_jpeg(data: bytes, at_least: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """RGB or grey JPEG → uint8 `[H, W, 3]`; what simplejpeg objects to is Pillow's to judge.

    With `at_least`, at the smallest n/8 of its size whose height and width are no less.
    """
    height, width = at_least or (0, 0)
    try:
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(
            data, "RGB", min_height=height, min_width=width, min_factor=2 if at_least else 1
        )
    except ValueError:
        return decode_with_pillow(data)
    return pixels


def decode_with_pillow(data: bytes) -> NDArray[np.uint8]:
    """Any image Pillow knows (of several frames the first) → uint8 `[H, W, 3]`, as it is stored.

    Raises:
        OSError, ValueError: when Pillow cannot decode it.
    """
    try:
        with Image.open(BytesIO(data)) as image:
            if "transparency" in image.info:  # Pillow wants this way round, and warns otherwise
                return np.array(image.convert("RGBA").convert("RGB"))
            return np.array(image.convert("RGB"))
    except (OSError, ValueError):
        raise
    except Exception as error:  # damaged files raise nearly anything: SyntaxError, struct.error, ...
        raise ValueError(str(error) or type(error).__name__) from error


def upright(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Turns `[H, W, 3]` as its EXIF orientation (1 to 8) says; a view of the input."""
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels
