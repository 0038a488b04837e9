"""The programs that `gpu-check` runs, in order."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from benchmarks.gpu_check import table
from benchmarks.gpu_check.options import GpuCheckOptions
from benchmarks.gpu_check.table import Line, Results
from benchmarks.harness.result_json import BENCH
from loaders.sources.cifar10 import BINARY_FOLDER
from train.models import imagenet_file
from train.option_values import Mode

SUMMARY = "summary.json"
COMPILED = "compiled"
"""Folder of all compile caches, within that of the check."""
MODES: tuple[Mode, ...] = ("finetune", "feature")

_MOST_SECONDS = 1800.0  # a program that takes longer hangs


@dataclass(frozen=True, kw_only=True)
class Extent:
    """How much of everything is done: options of the programs."""

    epochs: int
    """Epochs of the whole runs."""
    saturation: tuple[str, ...] = ()
    steps: tuple[str, ...] = ()
    profile: tuple[str, ...] = ()
    loaders: tuple[str, ...] = ()
    training: tuple[str, ...] = ()
    """Options of all training runs."""
    ours: tuple[str, ...] = ()
    """Options of the training runs that are not the blog's."""
    feature: tuple[str, ...] = ("--views", "4")
    """Options of those of them that train a head."""
    blog: tuple[str, ...]


_CIFAR10 = Extent(epochs=20, saturation=("--seconds", "1"), blog=("--train-limit", "6400", "--val-limit", "640"))
_SAMPLE = replace(_CIFAR10, epochs=3)
_SMALL, _SHORT = ("--size", "32", "--batch-size", "4"), ("--windows", "2", "--seconds", "0.05")
_CPU = Extent(
    epochs=2,
    saturation=(*_SMALL, *_SHORT, "--images", "16"),
    steps=(*_SMALL, *_SHORT),
    profile=(*_SMALL, "--steps", "5", "--trace-steps", "2"),
    loaders=(*_SMALL, *_SHORT, "--images", "16"),
    training=_SMALL,
    ours=("--train-limit", "16", "--val-limit", "8"),
    feature=("--views", "4", "--compile", "on"),  # for all weights it takes minutes on a CPU
    blog=("--train-limit", "16", "--val-limit", "8"),
)


@dataclass(frozen=True)
class Program:
    """One program to run; `gpu-check.json` calls it a part."""

    name: str
    command: tuple[str, ...]
    """Arguments of the interpreter."""
    folder: Path
    """The folder that it writes to."""
    lines: Callable[[Results], list[Line]]
    """Makes lines of the table from its result and those of the programs before."""
    file: str | None = None
    """Name of its result in its folder; None where the last line it prints is its result."""
    most_seconds: float = _MOST_SECONDS
    """A program that takes longer is stopped."""
    compiled: Path | None = None
    """Folder of the compile cache; the user's own, unless given."""
    empties: bool = False
    """Whether the compile cache is emptied before."""


def programs(options: GpuCheckOptions, folder: Path) -> list[Program]:
    """Saturation of both modes first, as that is the question, then what a user would see; what explains it last."""
    data = data_here(options.root)
    extent = _CPU if options.cpu else _CIFAR10 if data == "cifar10" else _SAMPLE
    weights = options.weights or weights_here()
    device = ("--device", "cpu" if options.cpu else "cuda")
    where = ("--data", data, "--root", str(options.root), *device)

    def bench(name: str, lines: Callable[[Results], list[Line]], *command: str) -> Program:
        out = folder / name
        return Program(name, ("-m", "benchmarks", *command, "--out", str(out)), out, lines, BENCH)

    def train(name: str, mode: Mode, lines: Callable[[Results], list[Line]], *more: str) -> Program:
        out = folder / name
        given = (*where, "--weights", weights, "--out", str(out), *extent.training, *more)
        return Program(name, ("-m", "train", mode, *given), out, lines, SUMMARY)

    def saturation(mode: Mode) -> Program:
        name = f"saturation-{mode}"
        lines = partial(table.saturation_lines, name, mode)
        return bench(name, lines, "saturation", "--mode", mode, *where, *extent.saturation)

    def whole(mode: Mode) -> Iterable[Program]:
        """An epoch with an empty compile cache, the same again, then all epochs."""
        more = (*extent.ours, *(extent.feature if mode == "feature" else ()))
        one, every = ("--epochs", "1"), ("--epochs", str(extent.epochs))
        compiled = folder / COMPILED / mode
        cold = train(f"{mode}-cold", mode, partial(table.cold_lines, mode), *more, *one)
        warm = train(f"{mode}-warm", mode, partial(table.warm_lines, mode), *more, *one)
        full = train(mode, mode, partial(table.run_lines, mode, weights), *more, *every)
        yield replace(cold, compiled=compiled, empties=True)
        yield replace(warm, compiled=compiled)
        yield replace(full, compiled=compiled)

    def blog(mode: Mode) -> Program:
        """The loop this project started from: no autocast, nothing compiled; its rate needs no whole run.

        But a second epoch: with the first alone, its start would be counted in each epoch it is extrapolated to.
        """
        loop = ("--loader", "baseline", "--recipe", "classic", "--precision", "fp32", "--compile", "off")
        lines = partial(table.blog_lines, mode)
        return train(f"blog-{mode}", mode, lines, *loop, "--epochs", "2", *extent.blog)

    def profile(mode: Mode) -> Program:
        lines = partial(table.profile_lines, mode)
        return bench(f"profile-{mode}", lines, "profile", mode, *where, *extent.profile)

    # By name, each as it begins: of tests that are cut off, nothing else is left.
    gpu_tests = ("-m", "pytest", "-v", "-m", "needs_cuda", "-p", "no:cacheprovider")
    log = partial(table.log_lines, "tests", "GPU tests")
    return [
        *map(saturation, MODES),
        *(program for mode in MODES for program in whole(mode)),
        *map(blog, MODES),
        bench("steps", table.steps_lines, "steps", *device, *extent.steps),
        Program("tests", gpu_tests, folder / "tests", log, most_seconds=600),
        *map(profile, MODES),
        bench("loaders", table.loaders_lines, "loaders", *where, *extent.loaders),
    ]


def weights_here() -> str:
    """torchvision's weights where they lie in its cache: a GPU node may have no network."""
    return "imagenet" if imagenet_file("resnet18").exists() else "none"


def data_here(root: Path) -> str:
    """CIFAR-10 where it lies under `root`, else the sample."""
    folders = (BINARY_FOLDER, "cifar-10-batches-py")
    return "cifar10" if any((root / name).is_dir() for name in folders) else "sample"
