"""`python -m benchmarks THEME`: what is measured, compared, or drawn anew."""

import sys
from collections.abc import Callable
from typing import Any

import tyro

from benchmarks.loader_rates import LoaderOptions, bench_loaders
from benchmarks.profiling import ProfileOptions, bench_profile
from benchmarks.report import Keeper
from benchmarks.saturation import SaturationOptions, bench_saturation
from loaders import InputError
from train.console import Reporter

MEASURED: dict[str, tuple[type[Any], Callable[..., None]]] = {
    "loaders": (LoaderOptions, bench_loaders),
    "saturation": (SaturationOptions, bench_saturation),
    "profile": (ProfileOptions, bench_profile),
}
"""Theme → its options and what measures it: called with options, reporter, and `keep`, which takes the result."""


def main(arguments: list[str] | None = None) -> int:
    """Does what is asked; what is measured ends with a table and one line of JSON.

    Returns:
        2 where something the user gave cannot be used.
    """
    options = tyro.extras.subcommand_cli_from_dict(
        {name: options for name, (options, _) in MEASURED.items()},
        prog="python -m benchmarks",
        args=arguments,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    theme = next(name for name, (kind, _) in MEASURED.items() if kind is type(options))
    try:
        keep = Keeper(options.folder(theme))
        MEASURED[theme][1](options, Reporter(), keep)
        keep.conclude()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
