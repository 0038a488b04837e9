"""The shapes of values: what `has_shape` accepts and refuses, and what is read of files that hold anything at all."""

import os
from collections import OrderedDict
from pathlib import Path

import pytest

from loaders.system.shapes import Either, has_shape, parse_json, read_json

HUGE = 10**400


@pytest.mark.parametrize(
    ("shape", "accepted", "refused"),
    [
        (int, [0, -3, HUGE], [True, 1.0, "1", None, [1]]),
        (float, [0, 1.5, -2], [True, float("nan"), float("inf"), HUGE, "1", None]),
        (str, ["", "a"], [b"a", 1, None]),
        (None, [None], [0, "", []]),
        ("", [""], ["a", None, 0]),
        (range(1, 9), [1, 8], [0, 9, 1.0, True, HUGE, "1"]),
        ([int], [[], [1, 2]], [[1, "2"], (1, 2), {"a": 1}, "12", None]),
        ((int, str), [[1, "a"], (1, "a")], [[1], [1, "a", 2], ["a", 1], {"a": 1}, "1a"]),
        ({str: int}, [{}, {"a": 1}, OrderedDict(b=2)], [{"a": "1"}, {1: 1}, [("a", 1)], None]),
        ({"a": int, "b": [str]}, [{"a": 1, "b": []}, {"a": 1, "b": ["x"], "c": 0}], [{"a": 1}, {"a": 1, "b": [1]}, []]),
        (Either(None, {str: int}), [None, {"a": 1}], [0, {"a": None}]),
        (
            [{"a": (range(3), str)}],
            [[], [{"a": [2, ""]}] * 3],
            [[{"a": [2, ""]}, {"a": [3, ""]}], [{"a": [2, ""]}, {}]],
        ),
    ],
)
def test_a_value_has_its_shape_or_not(shape: object, accepted: list[object], refused: list[object]) -> None:
    assert [value for value in accepted if not has_shape(value, shape)] == []
    assert [value for value in refused if has_shape(value, shape)] == []


@pytest.mark.parametrize("text", ["", "{", "[1]", "[" * 100_000, "1" * 5000, '{"a": NaN}', '{"a": 1e999}', "\0"])
def test_text_that_holds_another_shape_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_json(text, {"a": float})


def test_what_is_no_file_of_that_shape_is_read_as_none(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    assert read_json(path, dict) is None
    path.write_bytes(b"\xff\xfe")
    assert read_json(path, dict) is None
    path.write_text('{"a": 1}')
    assert read_json(path, dict) == {"a": 1}
    assert read_json(path, list) is None
    path.unlink()
    os.mkfifo(path)  # reading it would block
    assert read_json(path, dict) is None
    assert read_json(tmp_path, dict) is None
