"""Counts and sizes as people read them."""

import pytest

from loaders.system.format import format_bytes, format_count


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (0, "0 kB"),
        (12_300, "12 kB"),
        (999_000, "999 kB"),
        (1_000_000, "1.0 MB"),
        (9_960_000, "10.0 MB"),
        (184_200_000, "184 MB"),
        (1_234_000_000, "1.2 GB"),
        (78e9, "78 GB"),
        (1.5e12, "1500 GB"),
    ],
)
def test_bytes_are_given_in_the_largest_unit_that_fits(count: float, expected: str) -> None:
    assert format_bytes(count) == expected


@pytest.mark.parametrize(
    ("count", "expected"), [(0, "0 epochs"), (1, "1 epoch"), (2, "2 epochs"), (1500, "1500 epochs")]
)
def test_only_one_is_singular(count: int, expected: str) -> None:
    assert format_count(count, "epoch") == expected
