"""JSON of results: the only module that knows `bench.json` as text."""

import json
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.harness.result import (
    Demand,
    Diagnosis,
    Environment,
    ModeSaturation,
    Record,
    Result,
    Row,
    RunSummary,
    StageTime,
    TimelineSpan,
)
from loaders.errors import InputError
from loaders.system.files import write_whole

BENCH = "bench.json"

Parsers = Mapping[str, Callable[[Any], Any]]
"""Name of a field → what makes its value from JSON; other values are taken as they are."""

RecordType = TypeVar("RecordType", bound=Record)

_BOOKKEEPING = frozenset({"keys", "others"})


def to_json(record: Record) -> dict[str, Any]:
    """The record as dicts, lists and plain values, its keys in the order that `Record` states."""
    named = {field.name: field for field in fields(record) if field.name not in _BOOKKEEPING}
    content: dict[str, Any] = {}
    for key in dict.fromkeys((*record.keys, *named, *record.others)):
        if key in record.others:
            content[key] = _plain(record.others[key])
        elif key in record.keys or getattr(record, key) != _default(named[key]):
            content[key] = _plain(getattr(record, key))
    return content


def record_from_json(kind: type[RecordType], content: Mapping[str, Any], parsers: Parsers) -> RecordType:
    """The record that a JSON object holds. `to_json` makes an equal object of it.

    Raises:
        InputError: when a field that has no default is missing.
    """
    named = {field.name: field for field in fields(kind) if field.name not in _BOOKKEEPING}
    missing = [name for name, field in named.items() if _default(field) is MISSING and name not in content]
    if missing:
        raise InputError(f"it has no {' and no '.join(missing)}")
    values = {
        name: parsers[name](value) if name in parsers and value is not None else value
        for name, value in content.items()
        if name in named
    }
    others = {key: value for key, value in content.items() if key not in named}
    return kind(**values, others=others, keys=tuple(content))


def from_json(content: Any) -> Result:
    """The result that a file's JSON holds.

    Raises:
        InputError: when it is no result.
    """
    if not isinstance(content, dict) or not isinstance(content.get("rows"), list):
        raise InputError("it has no rows")
    if "theme" not in content or not all(isinstance(row, dict) and "name" in row for row in content["rows"]):
        raise InputError("it has no theme, or a row no name")
    return record_from_json(Result, content, _RESULT)


def row_from_json(content: Mapping[str, Any]) -> Row:
    """One row of a result."""
    return record_from_json(Row, content, _ROW)


def environment_from_json(content: Mapping[str, Any]) -> Environment:
    """The environment that the trainer describes."""
    return record_from_json(Environment, content, {"gpus": tuple})


def summary_from_json(content: Mapping[str, Any]) -> RunSummary:
    """The summary that the trainer writes of a run."""
    return record_from_json(RunSummary, content, {})


def _all_of(kind: type[RecordType]) -> Callable[[list[Any]], tuple[RecordType, ...]]:
    return lambda contents: tuple(record_from_json(kind, content, {}) for content in contents)


_ROW: Parsers = {"device_seconds": tuple, "windows": tuple, "seeds": tuple, "summary": summary_from_json}
_RESULT: Parsers = {
    "environment": environment_from_json,
    "diagnosis": lambda content: record_from_json(Diagnosis, content, {}),
    "stages": _all_of(StageTime),
    "timeline": _all_of(TimelineSpan),
    "modes": lambda modes: {mode: record_from_json(ModeSaturation, content, {}) for mode, content in modes.items()},
    "runs": tuple,
    "rows": lambda rows: tuple(map(row_from_json, rows)),
    "notes": tuple,
    "demand": lambda content: record_from_json(Demand, content, {}),
}


def _plain(value: object) -> object:
    if isinstance(value, Record):
        return to_json(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value


def _default(field: "Field[Any]") -> object:
    return field.default if field.default_factory is MISSING else field.default_factory()


# --- files -----------------------------------------------------------------------------------------


def as_text(record: Record, *, indent: int | None = None) -> str:
    """The record as JSON text, with what JSON has no word for as text; on one line without `indent`."""
    return json.dumps(to_json(record), indent=indent, default=str)


def write_record(record: Record, file: Path) -> None:
    """Writes the record's JSON to `file`, whole or not at all."""
    text = as_text(record, indent=1) + "\n"
    write_whole(file, lambda part: part.write_text(text))


def read_json(file: Path) -> Any:
    """The JSON of a file that another program has written.

    Raises:
        OSError, ValueError: when there is none.
    """
    return json.loads(file.read_text())


def read_result(path: Path) -> Result:
    """The result in a file, or in the `bench.json` of a folder.

    Raises:
        InputError: when there is none.
    """
    file = path / BENCH if path.is_dir() else path
    try:
        content = read_json(file)
    except FileNotFoundError as error:
        raise InputError(f"there is no {file}") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{file} cannot be read as a result: {error}") from error
    try:
        return from_json(content)
    except InputError as error:
        raise InputError(f"{file} holds no result: {error}") from error
