"""CIFAR-10 (Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009).

Both official versions can be read: `cifar-10-batches-bin` (binary) where that folder is under the root, else
`cifar-10-batches-py` (python), which torchvision downloads and verifies.
"""

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from loaders.errors import InputError
from loaders.sources.base import PixelArray, Source, digest

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
BINARY_FOLDER = "cifar-10-batches-bin"
BINARY_MD5 = {
    "data_batch_1.bin": "5dd7e06a14cb22eb9f671a540d1b7c25",
    "data_batch_2.bin": "5ea93a67294ea407fff1d09f752e9692",
    "data_batch_3.bin": "942cd6a4bcdd0dd3c604fbe906cb4421",
    "data_batch_4.bin": "ae636b3ba5c66a11e91e8cb52e771fcb",
    "data_batch_5.bin": "53f37980c15c3d472c316c40844f3f0d",
    "test_batch.bin": "803d5f7f4d78ea53de84dbe85f74fb6d",
}
_RECORD = 1 + 3 * 32 * 32  # a label, then the red, green and blue planes


def open_cifar10(root: Path) -> tuple[Source, Source]:
    """Opens the 50,000 images for training and the 10,000 for validation, all uint8 `[32, 32, 3]`.

    Args:
        root: the folder that holds the version's folder, or that the data set is downloaded to.

    Raises:
        InputError: when a file is damaged, or the data set is not there and the download fails.
    """
    from torchvision.datasets import CIFAR10  # deferred because importing it takes seconds

    try:
        if (root / BINARY_FOLDER).is_dir():
            return _binary_version(root / BINARY_FOLDER)
        splits = [CIFAR10(root, train=train, download=train) for train in (True, False)]
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"CIFAR-10 is not under {root} and could not be downloaded ({error}).",
            f"Fetch {CIFAR10.url} elsewhere and unpack it there, so that {root / CIFAR10.base_folder} exists; "
            f"the binary version ({root / BINARY_FOLDER}) will do as well. `root` names another folder.",
        ) from error
    train, val = (_source(split.data, np.asarray(split.targets, np.int64)) for split in splits)
    return train, val


def _binary_version(folder: Path) -> tuple[Source, Source]:
    records = [_verified_records(folder / name, md5) for name, md5 in BINARY_MD5.items()]
    train, val = np.concatenate(records[:-1]), records[-1]
    return _from_records(train), _from_records(val)


def _verified_records(path: Path, md5: str) -> NDArray[np.uint8]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): unpack CIFAR-10's archive again") from error
    if hashlib.md5(data, usedforsecurity=False).hexdigest() != md5:
        raise InputError(f"{path} is damaged (its MD5 checksum is not {md5}): unpack CIFAR-10's archive again")
    return np.frombuffer(data, np.uint8).reshape(-1, _RECORD)


def _from_records(records: NDArray[np.uint8]) -> Source:
    planes = records[:, 1:].reshape(-1, 3, 32, 32)
    return _source(planes.transpose(0, 2, 3, 1), records[:, 0].astype(np.int64))


def _source(pixels: NDArray[np.uint8], labels: NDArray[np.int64]) -> Source:
    pixels = np.ascontiguousarray(pixels)
    sizes = np.full((len(pixels), 2), 32, np.int32)
    # Both official versions hold the same images in the same order, so the fingerprint is the same for both.
    fingerprint = digest(b"cifar10", labels.astype(np.uint8).tobytes(), pixels[:, ::8, ::8].tobytes())
    return Source("cifar10", CLASSES, labels, sizes, PixelArray(pixels), fingerprint)
