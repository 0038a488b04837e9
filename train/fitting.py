"""Training from Python. Nothing here imports torch before `fit` is called."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from functools import cached_property
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints

from loaders.errors import InputError
from train.option_values import Mode
from train.options import OPTION_NAMES, Options

if TYPE_CHECKING:
    from train.classifier import Classifier
    from train.run_state import EpochRow


@dataclass(frozen=True)
class FittedModel:
    """A finished run."""

    rows: "Sequence[EpochRow]"
    """A row for each epoch, as `metrics.jsonl` has them."""
    summary: Mapping[str, Any]
    """The content of `summary.json`."""
    folder: Path
    """The run's folder."""

    @cached_property
    def classifier(self) -> "Classifier":
        """The trained model of the best epoch with its preprocessing and labels, on the CPU; loaded when first used."""
        from train.classifier import load_classifier

        return load_classifier(self.folder)


def fit(data: str | os.PathLike[str] = "sample", *, mode: Mode = "finetune", **options: Any) -> FittedModel:
    """Trains a classifier on labelled images, as `python -m train` does, and prints its progress as lines of text.

        result = fit("photos", mode="finetune", epochs=3)
        result.classifier("photo.jpg")  # {label: probability}

    It trains in this process alone, on one GPU, and may be called in any thread. In the main thread, Ctrl-C saves the
    run before it raises KeyboardInterrupt, and the same call with `out=` the run's folder and `resume=True` goes on
    with it.

    Args:
        data: "sample", "cifar10", an image folder, or a CSV file of paths and labels.
        mode: "feature" for a new head on a frozen backbone, "finetune" for all weights.
        options: the other fields of `train.options.Options`.

    Raises:
        TypeError: when there is no option of that name.
        InputError: when something that was given cannot be used.
    """
    given = _options({"data": data, "mode": mode} | options)

    from train.console import Reporter
    from train.process_group import ProcessGroup
    from train.run import run_to_end
    from train.stopping import InterruptedRunError

    try:
        finished = run_to_end(given, ProcessGroup(), Reporter(plain=True, rewrite=name_fields))
    except InputError as error:
        _name_fields_in(error)
        raise
    except InterruptedRunError as interrupted:
        if interrupted.exit_code == 130:
            raise KeyboardInterrupt(*interrupted.args) from interrupted
        raise SystemExit(interrupted.exit_code) from interrupted
    assert finished.folder is not None  # a process alone writes
    return FittedModel(finished.rows, finished.summary, finished.folder)


def _options(given: Mapping[str, Any]) -> Options:
    """The options of a run.

    Raises:
        TypeError: when there is none of that name; the nearest one is named.
        InputError: when a value cannot be used.
    """
    names = [field.name for field in fields(Options)]
    for name in given.keys() - names:
        nearest = get_close_matches(name, names, n=1, cutoff=0.5)
        advice = f"did you mean {nearest[0]!r}?" if nearest else f"there are {', '.join(names)}"
        raise TypeError(f"fit() got an unexpected keyword argument {name!r}; {advice}")
    if isinstance(resume := given.get("resume"), bool):
        given = {**given, "resume": "yes" if resume else "no"}
    try:
        return Options(**{name: _converted(name, value) for name, value in given.items()})
    except InputError as error:
        _name_fields_in(error)
        raise


_KINDS = get_type_hints(Options)

_DESCRIPTIONS = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "text",
    Path: "a path",
    NoneType: "None",
}


def _alternatives(kind: Any) -> tuple[Any, ...]:
    """The types of a union; of any other type, itself."""
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def _converted(name: str, value: Any) -> Any:
    """A value of the field's type.

    Raises:
        InputError: when it is none.
    """
    for kind in _alternatives(_KINDS[name]):
        match value:
            case bool() | None:
                if kind is type(value):
                    return value
            case Integral() if kind in (int, float):
                return kind(value)
            case Real() if kind is float:
                return float(value)
            case str() if get_origin(kind) is Literal:
                if value in get_args(kind):
                    return value
            case str() | os.PathLike() if kind in (str, Path):
                return kind(os.fspath(value))
    expected = [
        ", ".join(get_args(kind)) if get_origin(kind) is Literal else _DESCRIPTIONS[kind]
        for kind in _alternatives(_KINDS[name])
    ]
    shown = f'"{value}"' if isinstance(value, str) else repr(value)
    raise InputError(f"`{name}={shown}`: expected {' or '.join(expected)}")


# --- messages ------------------------------------------------------------------------------------

_FIELDS = {f"--{name.replace('_', '-')}": name for name in _KINDS} | {
    option: name for name, option in OPTION_NAMES.items() if name in _KINDS
}
_OPTION = re.compile(r"(?<![\w/.-])(--[a-z][a-z-]*|[A-Z]+)(?![\w/-])(?:([ =])(\.{3}|[^\s,;:()]*[^\s,;:().]))?")


def name_fields(message: str) -> str:
    """Rewrites the options and Make variables in a message as fields in backticks.

    It is the inverse of `loaders.errors.name_options`, for the messages of this package, which name what the user of
    `python -m train` or `make` types: `--batch-size 8` becomes `` `batch_size=8` ``, and `MODE=feature` becomes
    `` `mode="feature"` ``.
    """

    def field(found: re.Match[str]) -> str:
        option, joint, value = found.groups()
        if option not in _FIELDS:
            return found[0]
        name = _FIELDS[option]
        if value is None:
            return f"`{name}`"
        kinds = _alternatives(_KINDS[name])
        if any(value in get_args(kind) for kind in kinds) or (joint == "=" and {str, Path} & set(kinds)):
            return f'`{name}="{value}"`'
        if {int, float} & set(kinds) and re.fullmatch(r"-?[\d.]+(e-?\d+)?|nan", value):
            return f"`{name}={value}`"
        return f"`{name}`{joint}{value}"  # the sentence goes on

    return _OPTION.sub(field, message)


def _name_fields_in(error: InputError) -> None:
    """Has an error name fields."""
    error.args = tuple(map(name_fields, error.lines))
