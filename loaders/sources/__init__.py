"""Sources: labeled images on disk or in memory, with the label and size of each."""

import os
from pathlib import Path

from loaders.errors import InputError
from loaders.sources.base import ImageFiles, PixelArray, Source
from loaders.sources.cifar10 import open_cifar10
from loaders.sources.image_folder import open_image_folder
from loaders.sources.index import MAX_PIXELS, Progress
from loaders.sources.label_file import open_label_file
from loaders.sources.sample import prepare_sample

__all__ = ["MAX_PIXELS", "ImageFiles", "PixelArray", "Progress", "Source", "open_data"]


def open_data(
    data: str, *, root: Path, max_pixels: int = MAX_PIXELS, progress: Progress | None = None
) -> tuple[Source, Source]:
    """Opens a data set: its training and its validation images.

    Args:
        data: "sample" (generated on first use), "cifar10" (downloaded on first use), or the path of
            an image folder or of a CSV file of paths and labels.
        root: the folder of the named data sets.
        max_pixels: images with more pixels count as bad. Pillow itself warns above `PIL.Image.MAX_IMAGE_PIXELS` and
            refuses images with twice as many: raise that limit, too, for larger images.
        progress: called with the number of images examined or generated so far, and their total.

    Raises:
        InputError: when the data cannot be read or downloaded, or are inconsistent.
    """
    if data == "sample":
        try:
            folder = prepare_sample(root, progress=progress)
            return open_image_folder(folder, name="sample", max_pixels=max_pixels, progress=progress)
        except OSError as error:
            raise InputError(f"`root`: the sample cannot be made under {root}: {error.strerror}") from error
    if data == "cifar10":
        return open_cifar10(root)
    path = Path(os.path.expanduser(data))
    try:
        if path.is_dir():
            return open_image_folder(path, max_pixels=max_pixels, progress=progress)
        if path.is_file():
            return open_label_file(path, max_pixels=max_pixels, progress=progress)
    except OSError as error:
        raise InputError(f"`data`: {error.filename or path} cannot be read: {error.strerror}") from error
    raise InputError(f"`data`: there is no folder or CSV file {path} (nor a data set of that name: sample, cifar10)")
