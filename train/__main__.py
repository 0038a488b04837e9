"""`python -m train {feature,finetune}`."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


def main(arguments: list[str] | None = None) -> int:
    """Parses the options and trains. What the user gave and cannot be used is named in one message.

    Modules are imported in here, so that Ctrl-C ends quietly while they are imported, too. The options are parsed
    before torch is imported, which takes seconds.

    Returns:
        The exit code: 2 where something cannot be used, 130 after Ctrl-C, 128 + its number after another signal.
    """
    try:
        return _parse_and_train(arguments)
    except KeyboardInterrupt:
        return 130


def _parse_and_train(arguments: list[str] | None) -> int:
    with _missing_modules_named():
        from loaders.errors import InputError, name_options
        from train.options import OPTION_NAMES, parse_options
        from train.stopping import InterruptedRunError
    try:
        options = parse_options(arguments)
        with _missing_modules_named():
            from train.run import run_in_process_group
        run_in_process_group(options)
    except InputError as error:
        print(f"error: {name_options(str(error), OPTION_NAMES)}", file=sys.stderr)
        return 2
    except InterruptedRunError as interrupted:
        return interrupted.exit_code
    return 0


@contextmanager
def _missing_modules_named() -> Iterator[None]:
    """Ends the program with a remedy where a module is missing: with PYTHON=..., nothing has been installed."""
    try:
        yield
    except ModuleNotFoundError as missing:
        python = sys.executable
        remedy = f"{python} -m pip install {missing.name}"
        print(f"error: {python} has no {missing.name}; to add it: {remedy}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    sys.exit(main())
