"""What the attacks share: a few small images, and a process that runs are forked from."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.attack.runs import Attack
from tests.attack.warm_process import WarmProcess
from tests.conftest import smooth_image


@pytest.fixture(scope="session")
def small_photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`train/` (2 × 16) and `val/` (2 × 5) with small JPEGs in the classes `ash` and `oak`."""
    root = tmp_path_factory.mktemp("attacked") / "trees"
    for split, count in (("train", 16), ("val", 5)):
        for label, name in enumerate(("ash", "oak")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = smooth_image(60 + 3 * number, 90 - 3 * number, number + 100 * label + 1000 * (split == "val"))
                Image.fromarray(pixels).save(folder / f"{number:02}.jpg", quality=90)
    return root


@pytest.fixture(scope="session")
def attack(small_photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attack]:
    process = WarmProcess()
    yield Attack(process, small_photos, tmp_path_factory.mktemp("runs"))
    process.close()
