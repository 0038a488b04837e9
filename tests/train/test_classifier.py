"""A trained model put to use."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image
from torch import Tensor, nn, stack
from torchvision import transforms

from train import Classifier


class BrighterHalf(nn.Linear):
    """Tells the upper half from the lower."""

    def __init__(self) -> None:
        super().__init__(1, 1)

    def forward(self, images: Tensor) -> Tensor:
        middle = images.shape[2] // 2
        return stack([images[:, :, :middle].mean((1, 2, 3)), images[:, :, middle:].mean((1, 2, 3))], 1)


def test_a_photograph_is_turned_whether_it_is_a_path_or_an_image(tmp_path: Path) -> None:
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[:16] = 255
    upside_down = Image.Exif()
    upside_down[ExifTags.Base.Orientation] = 3
    Image.fromarray(pixels).save(tmp_path / "photo.jpg", exif=upside_down)
    model: Any = BrighterHalf()
    classify = Classifier(model, transforms.ToTensor(), ("upper", "lower"))
    for given in (tmp_path / "photo.jpg", str(tmp_path / "photo.jpg"), Image.open(tmp_path / "photo.jpg")):
        assert next(iter(classify(given))) == "lower"


def test_an_image_far_longer_than_wide_is_refused_before_it_is_resized(tmp_path: Path) -> None:
    Image.new("RGB", (1, 65535)).save(tmp_path / "hair.png")
    model: Any = nn.Identity()
    with pytest.raises(ValueError, match=r"1 × 65,535 pixels one side is over 100 times"):
        Classifier(model, transforms.Resize(256), ())(tmp_path / "hair.png")


def test_only_regular_files_of_the_formats_that_are_opened_are_classified(tmp_path: Path) -> None:
    model: Any = nn.Identity()
    classify = Classifier(model, transforms.ToTensor(), ())
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(ValueError, match="it is no regular file"):
        classify(tmp_path / "pipe.jpg")
    (tmp_path / "eps.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    with pytest.raises(OSError, match="cannot identify image file"):
        classify(tmp_path / "eps.jpg")
