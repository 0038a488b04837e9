"""Figures as people read them."""

from dataclasses import fields

import pytest

from benchmarks.harness.result import Row
from benchmarks.report.columns import COLUMNS, attained, number, percent


def test_every_column_is_a_field_of_a_row() -> None:
    assert {column.key for column in COLUMNS} <= {field.name for field in fields(Row)}


@pytest.mark.parametrize(
    ("value", "expected"), [(12345.6, "12,346"), (99.96, "100"), (12.34, "12.3"), (1.234, "1.23"), (0.0123, "0.01")]
)
def test_numbers_have_three_digits(value: float, expected: str) -> None:
    assert number(value) == expected


def test_no_mark_is_reached_by_rounding() -> None:
    assert [attained(share) for share in (0.96, 0.9699, 0.97, 0.99999, 1.0, 1.0123)] == [
        "96.0 %", "96.9 %", "97.0 %", "99.9 %", "100.0 %", "101.2 %",
    ]  # fmt: skip


def test_shares_are_written_in_percent() -> None:
    assert [percent(share) for share in (0, 0.004, 0.0994, 0.0996, 0.61, 1)] == [
        "0 %", "0.4 %", "9.9 %", "10 %", "61 %", "100 %",
    ]  # fmt: skip
