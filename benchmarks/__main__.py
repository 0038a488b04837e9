"""`python -m benchmarks THEME`: what is measured, compared, or drawn anew."""

import sys
from collections.abc import Callable
from typing import Any

try:
    import tyro

    from benchmarks.compare import CompareOptions, run_compare
    from benchmarks.files import KeepOptions, RedrawOptions, run_keep, run_redraw
    from benchmarks.gpu_check import GpuCheckOptions, run_gpu_check
    from benchmarks.loader_rates import LoaderOptions, bench_loaders
    from benchmarks.profiling import ProfileOptions, bench_profile
    from benchmarks.readme_tables import TablesOptions, run_tables
    from benchmarks.report import BENCH, Keeper
    from benchmarks.saturation import SaturationOptions, bench_saturation
    from benchmarks.steps import StepsOptions, bench_steps
    from benchmarks.time_to_accuracy import AccuracyOptions, bench_time_to_accuracy
    from loaders import InputError
    from train.console import Reporter
    from train.stopping import InterruptedRunError
except ModuleNotFoundError as missing:  # with PYTHON=..., nothing has been installed
    python = sys.executable
    print(f"error: {python} has no {missing.name}; to add it: {python} -m pip install {missing.name}", file=sys.stderr)
    sys.exit(2)

MEASURED: dict[str, tuple[type[Any], Callable[..., None]]] = {
    "loaders": (LoaderOptions, bench_loaders),
    "saturation": (SaturationOptions, bench_saturation),
    "profile": (ProfileOptions, bench_profile),
    "steps": (StepsOptions, bench_steps),
    "train": (AccuracyOptions, bench_time_to_accuracy),
}
"""Theme → its options and what measures it: called with options, reporter, and `keep`, which takes the result."""

OTHERS: dict[str, tuple[type[Any], Callable[..., int]]] = {
    "compare": (CompareOptions, run_compare),
    "redraw": (RedrawOptions, run_redraw),
    "keep": (KeepOptions, run_keep),
    "readme-tables": (TablesOptions, run_tables),
    "gpu-check": (GpuCheckOptions, run_gpu_check),
}
"""Name → its options and what does it: called with options, returns the exit code."""


def main(arguments: list[str] | None = None) -> int:
    """Does what is asked; what is measured ends with a table and, where it is piped, one line of JSON.

    Returns:
        2 where something the user gave cannot be used.
    """
    kinds: dict[str, Callable[..., Any]] = {name: options for name, (options, _) in (MEASURED | OTHERS).items()}
    try:
        options = tyro.extras.subcommand_cli_from_dict(
            kinds, prog="python -m benchmarks", args=arguments, config=(tyro.conf.FlagCreatePairsOff,)
        )
        name = next(name for name, kind in kinds.items() if kind is type(options))
        return OTHERS[name][1](options) if name in OTHERS else measure(name, options)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except InterruptedRunError as interrupted:
        return interrupted.exit_code
    except KeyboardInterrupt:
        return 130


def measure(theme: str, options: Any) -> int:
    """Measures a theme, keeps what is found, and concludes.

    Raises:
        InputError: when the folder holds a result already, or the theme cannot be measured as asked.
    """
    folder = options.folder(theme)
    if (folder / BENCH).exists():
        raise InputError(f"{folder} holds another result: choose another OUT, or remove it")
    keep = Keeper(folder)
    MEASURED[theme][1](options, Reporter(), keep)
    keep.conclude()
    return 0


if __name__ == "__main__":
    sys.exit(main())
