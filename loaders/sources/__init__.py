"""Sources: which images exist, with which labels and sizes, and how their data are reached."""

from pathlib import Path

from loaders.errors import InputError
from loaders.sources.base import ImageFiles, PixelArray, Source
from loaders.sources.cifar10 import open_cifar10
from loaders.sources.image_folder import open_image_folder
from loaders.sources.index import Progress
from loaders.sources.sample import prepare_sample

__all__ = ["ImageFiles", "PixelArray", "Progress", "Source", "open_data"]


def open_data(data: str, *, root: Path, progress: Progress | None = None) -> tuple[Source, Source]:
    """Training and validation images.

    Args:
        data: "sample" (generated on first use), "cifar10" (downloaded on first use), or the path of
            an image folder.
        root: where named data sets lie.

    Raises:
        InputError: when the data cannot be had or make no sense.
    """
    if data == "sample":
        try:
            folder = prepare_sample(root, progress=progress)
        except OSError as error:
            raise InputError(f"ROOT: the sample cannot be made under {root}: {error.strerror}") from error
        return open_image_folder(folder, name="sample", progress=progress)
    if data == "cifar10":
        return open_cifar10(root)
    return open_image_folder(Path(data).expanduser(), progress=progress)
