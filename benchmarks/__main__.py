"""`python -m benchmarks THEME`: what is measured, compared, or drawn anew."""

import sys
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from loaders.system.startup import INTERRUPTED, startup

with startup():
    import tyro

    from benchmarks.gpu_check.options import GpuCheckOptions
    from benchmarks.harness.result_json import BENCH
    from benchmarks.report.options import CompareOptions, KeepOptions, RedrawOptions, TablesOptions
    from benchmarks.suites.options import (
        AccuracyOptions,
        LoaderOptions,
        ProfileOptions,
        SaturationOptions,
        StepsOptions,
    )
    from loaders.errors import InputError
    from loaders.system.console import print_error
    from train.options import OPTION_NAMES


@dataclass(frozen=True)
class Command:
    """What a word of the command line stands for. What carries it out is imported when it is chosen."""

    options: type[Any]
    module: str
    function: str

    def load(self) -> Any:
        """The function that carries it out."""
        with startup():
            return getattr(import_module(self.module), self.function)


SUITES = {
    "loaders": Command(LoaderOptions, "benchmarks.suites.loader_rates", "bench_loaders"),
    "saturation": Command(SaturationOptions, "benchmarks.suites.saturation", "bench_saturation"),
    "profile": Command(ProfileOptions, "benchmarks.suites.profiling", "bench_profile"),
    "steps": Command(StepsOptions, "benchmarks.suites.steps", "bench_steps"),
    "train": Command(AccuracyOptions, "benchmarks.suites.time_to_accuracy", "bench_time_to_accuracy"),
}
"""Theme → what measures it: a function of options, reporter, and a `WriteResult`."""

OTHER_COMMANDS = {
    "compare": Command(CompareOptions, "benchmarks.report.compare", "run_compare"),
    "redraw": Command(RedrawOptions, "benchmarks.report.result_files", "run_redraw"),
    "keep": Command(KeepOptions, "benchmarks.report.result_files", "run_keep"),
    "readme-tables": Command(TablesOptions, "benchmarks.report.markdown", "run_tables"),
    "gpu-check": Command(GpuCheckOptions, "benchmarks.gpu_check.check", "run_gpu_check"),
}
"""Name → what does it: a function of options that returns the exit code."""


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; a suite ends with a table and, where the output is piped, one line of JSON.

    Returns:
        The exit code: 2 where something the user gave cannot be used.
    """
    commands = SUITES | OTHER_COMMANDS
    try:
        options: Any = tyro.extras.subcommand_cli_from_dict(
            {name: command.options for name, command in commands.items()},
            prog="python -m benchmarks",
            args=arguments,
            config=(tyro.conf.FlagCreatePairsOff,),
        )
        name = next(name for name, command in commands.items() if command.options is type(options))
        if name in SUITES:
            return run_suite(name, options)
        exit_code: int = OTHER_COMMANDS[name].load()(options)
        return exit_code
    except InputError as error:
        print_error(error, OPTION_NAMES)
        return 2
    except KeyboardInterrupt:
        return INTERRUPTED


def run_suite(theme: str, options: Any) -> int:
    """Measures a theme, writes what is found, and concludes.

    Raises:
        InputError: when the folder holds a result already, or the theme cannot be measured with these options.
    """
    folder = options.folder(theme)
    if (folder / BENCH).exists():
        raise InputError(f"{folder} holds another result: choose another OUT, or remove it")
    measure = SUITES[theme].load()
    with startup():
        from benchmarks.report.writer import ResultWriter
        from train.console import Reporter
        from train.stopping import InterruptedRunError
    write = ResultWriter(folder)
    try:
        measure(options, Reporter(), write)
    except InterruptedRunError as interrupted:
        exit_code: int = interrupted.exit_code
        return exit_code
    write.conclude()
    return 0


if __name__ == "__main__":
    sys.exit(main())
