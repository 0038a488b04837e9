"""The images that a suite measures with."""

import numpy as np

from benchmarks.harness.data import repeat_to, without_repeats
from loaders.sources import PixelArray
from tests.loaders.test_loader import numbered


def test_short_sets_are_repeated_and_bad_images_left_out() -> None:
    source = numbered(10, bad=[3])
    long = repeat_to(source, 40)
    assert len(long) == 40
    assert set(long.labels.tolist()) == set(range(10)) - {3}
    assert not long.bad
    assert len(repeat_to(source, 4)) == 9


def test_what_is_repeated_is_found_once() -> None:
    long = repeat_to(numbered(10, bad=[3]), 40)
    images, places = without_repeats(long)
    assert sorted(images.labels.tolist()) == sorted(set(range(10)) - {3})
    np.testing.assert_array_equal(images.labels[places], long.labels)


def test_pixels_in_memory_and_numbers_of_them_are_what_they_were() -> None:
    source = numbered(5)
    long = repeat_to(source, 12)
    assert isinstance(long.images, PixelArray)
    assert isinstance(source.images, PixelArray)
    for place in range(12):
        np.testing.assert_array_equal(long.images.pixels[place], source.images.pixels[long.labels[place]])
