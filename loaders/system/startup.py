"""How a program starts: what is printed when a package is missing, and a quiet end when it is interrupted.

This module imports the standard library only, so that it works with any interpreter.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

INTERRUPTED = 130
"""Exit code of a program that Ctrl-C has ended: 128 + SIGINT."""


@contextmanager
def startup() -> Iterator[None]:
    """Imports of a program stand in this block.

    A missing package ends the program with exit code 2 and one line that names it; Ctrl-C, as importing torch takes
    seconds, ends it without a traceback.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        exit_for_missing_module(error)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def exit_for_missing_module(error: ModuleNotFoundError) -> NoReturn:
    """Ends the program with exit code 2: with PYTHON=..., nothing has been installed for that interpreter."""
    python = sys.executable
    print(f"error: {python} has no {error.name}; to add it: {python} -m pip install {error.name}", file=sys.stderr)
    sys.exit(2)
