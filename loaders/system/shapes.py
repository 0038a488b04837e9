"""Content of files, checked before it is used: what parses and has the wrong shape is as damaged as what does not.

A shape is written like the value itself:

    str, int, bool, Tensor, ...  an instance of that class; a bool is no int
    float                        a finite number, an int too
    None, "", ...                None, or exactly that text
    range(0, 9)                  an int in that range
    [shape]                      a list whose items all have that shape
    (shape, shape)               a list, or a tuple, of exactly that length
    {str: shape}                 a dict whose keys are all text, and whose values all have that shape
    {"a": shape, "b": shape}     a dict with at least these keys
    Either(shape, shape)         one of these
"""

import json
import math
from collections.abc import Collection
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

Shape: TypeAlias = Any
"""See the module."""


class Either(NamedTuple):
    """A value of one of two shapes."""

    one: Shape
    other: Shape


def has_shape(value: object, shape: Shape) -> bool:
    """Whether a value has that shape."""
    return _all_have([value], shape)


def read_json(path: Path, shape: Shape) -> Any:
    """The content of a JSON file; None where there is no such file, or its content has another shape."""
    try:
        return parse_json(path.read_text(), shape) if path.is_file() else None  # reading a named pipe would block
    except (OSError, ValueError):
        return None


def parse_json(text: str, shape: Shape) -> Any:
    """The value of that shape in `text`.

    Raises:
        ValueError: when there is none.
    """
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise ValueError("its JSON is nested too deeply") from error
    if not has_shape(value, shape):
        raise ValueError("its JSON has another shape")
    return value


def _all_have(values: Collection[Any], shape: Shape) -> bool:
    """Whether all values have a shape: all at a time, as an index has a million of them."""
    types = set(map(type, values))
    match shape:
        case Either():
            return all(has_shape(value, shape.one) or has_shape(value, shape.other) for value in values)
        case None | str():
            return all(value == shape and type(value) is type(shape) for value in values)
        case range():
            return types <= {int} and (not values or (min(values) in shape and max(values) in shape))
        case [item] if isinstance(shape, list):
            return _are(types, list) and _all_have(list(chain.from_iterable(values)), item)
        case tuple():
            same_length = _are(types, list | tuple) and set(map(len, values)) <= {len(shape)}
            return same_length and all(map(_all_have, zip(*values, strict=True), shape))
        case dict() if _maps_any_keys(shape):
            [(key, item)] = shape.items()
            if not _are(types, dict):
                return False
            contents = list(chain.from_iterable(value.values() for value in values))
            return _all_have(list(chain.from_iterable(values)), key) and _all_have(contents, item)
        case dict():
            complete = _are(types, dict) and all(shape.keys() <= value.keys() for value in values)
            return complete and all(_all_have([value[key] for value in values], shape[key]) for key in shape)
    if shape is float:
        return types <= {int, float} and all(map(_is_finite, values))
    if shape is int:
        return types <= {int}
    return _are(types, shape)


def _are(types: set[type], kind: Any) -> bool:
    return all(issubclass(each, kind) for each in types)


def _maps_any_keys(shape: dict[Any, Any]) -> bool:
    return any(isinstance(key, type) for key in shape)


def _is_finite(number: float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # an int beyond every float
        return False
