"""`train`: whole runs of both modes with several loaders and seeds: accuracy and time side by side."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.harness.data import open_images
from benchmarks.harness.device import chosen_device
from benchmarks.harness.options import describe_options
from benchmarks.harness.rates import is_noisy
from benchmarks.harness.result import RATE_KEYS, Result, Row, RunSummary, WriteResult
from benchmarks.harness.result_json import environment_from_json, summary_from_json, to_json
from benchmarks.suites.options import AccuracyOptions
from loaders import InputError, LoaderConfig, PlanSpec, RandomResizedCrop, build_loader
from train.console import Reporter
from train.environment import describe_environment
from train.option_values import Mode
from train.options import Options as TrainOptions
from train.process_group import ProcessGroup
from train.run import run
from train.run_folder import require_usable_out

_KEYS = ("theme", "date", "environment", "options", "runs", "rows", "notes")
_ROW_KEYS = (
    *RATE_KEYS, "times_baseline", "val_top1", "val_top1_low", "val_top1_high", "seeds", "minutes", "data_wait",
)  # fmt: skip


@dataclass(frozen=True)
class FinishedRun:
    """A run that is over."""

    mode: Mode
    loader: str
    """As named in the options, "auto" for one."""
    seed: int
    summary: RunSummary


def bench_time_to_accuracy(options: AccuracyOptions, reporter: Reporter, write: WriteResult) -> None:
    """One run after the other, the loaders taking turns; the result is written after each.

    Raises:
        InputError: before the first run, when a loader is unknown or cannot be used here or for these data, or a run's
            folder holds another.
    """
    planned = list(runs(options, write.folder))
    require_loaders(options, reporter)
    done: list[FinishedRun] = []
    for loader, train in planned:
        reporter.say("", f"{train.mode}, LOADER={loader}, seed {train.seed}")
        with _nothing_compiled():
            summary = summary_from_json(run(train, ProcessGroup()))
        done.append(FinishedRun(train.mode, loader, train.seed, summary))
        write(
            Result(
                keys=_KEYS,
                theme="train",
                environment=environment_from_json(describe_environment()),
                options=describe_options(options),
                runs=tuple({"loader_asked": ran.loader, "seed": ran.seed} | to_json(ran.summary) for ran in done),
                rows=tuple(rows(done)),
                notes=(
                    f"seeds {', '.join(map(str, options.seeds))}: means, with the lowest and the highest",
                    "each compiles for itself, where it compiles at all; pixels that are kept, the first one builds",
                    f"× baseline: the whole time of {options.loaders[0]} ÷ that of the row, of the same seed",
                ),
            )
        )


@contextmanager
def _nothing_compiled() -> Iterator[None]:
    """Lets a run compile as it would alone: else the first, with which the others are compared, would pay for all."""
    torch.compiler.reset()
    before = dict(os.environ)
    with TemporaryDirectory(prefix="saturate-") as folder:
        os.environ |= {"TORCHINDUCTOR_CACHE_DIR": folder, "TRITON_CACHE_DIR": str(Path(folder) / "triton")}
        try:
            yield
        finally:
            for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
                os.environ.pop(name)
                os.environ |= {name: before[name]} if name in before else {}


def runs(options: AccuracyOptions, folder: Path) -> Iterator[tuple[str, TrainOptions]]:
    """The loader, as named in the options, and the trainer's options of each run.

    Raises:
        InputError: when there is nothing to compare, the trainer refuses these, or `folder` holds a run already.
    """
    for name in ("loaders", "seeds"):
        if not (given := getattr(options, name)) or len(set(given)) < len(given):
            raise InputError(f"--{name} {' '.join(map(str, given))}: expected one at least, and each once")
    if options.views is not None and "feature" not in options.modes:
        raise InputError("--views: features can be cached only where the backbone stays as it is: --mode feature")
    shared: dict[str, Any] = {
        name: getattr(options, name)
        for name in ("data", "root", "device", "workers", "weights", "model", "recipe", "epochs", "size")
    } | {name: getattr(options, name) for name in ("batch_size", "cache_size", "train_limit", "val_limit")}
    for mode in options.modes:
        for seed in options.seeds:
            for loader in options.loaders:
                out = folder / f"{mode}-{loader}-seed{seed}"
                require_usable_out(out, resume=False)
                views = options.views if mode == "feature" and loader != "baseline" else None
                yield loader, TrainOptions(mode=mode, loader=loader, seed=seed, views=views, out=out, **shared)


def require_loaders(options: AccuracyOptions, reporter: Reporter) -> None:
    """Raises InputError where one is unknown, or cannot serve these data on this machine."""
    train, _ = open_images(options, reporter)
    config = LoaderConfig(
        spec=PlanSpec(RandomResizedCrop(options.size or 224)),
        training=True,
        batch_size=1,
        device=chosen_device(options),
        cache_size=options.cache_size,
        workers=options.threads,
    )
    for loader in options.loaders:
        build_loader(train.take(options.train_limit or len(train)), config, loader=loader).close()


def rows(done: Sequence[FinishedRun]) -> list[Row]:
    """A row for each mode and loader: the figures of all seeds that have been run so far."""
    kinds = dict.fromkeys((ran.mode, ran.loader) for ran in done)
    first = done[0].loader

    def by_seed(mode: Mode, loader: str) -> dict[int, RunSummary]:
        return {ran.seed: ran.summary for ran in done if (ran.mode, ran.loader) == (mode, loader)}

    return [run_row(by_seed(mode, loader), by_seed(mode, first), loader) for mode, loader in kinds]


def run_row(ours: Mapping[int, RunSummary], firsts: Mapping[int, RunSummary], loader: str) -> Row:
    """Accuracy, time and rate of the runs of one mode and loader.

    Args:
        ours: summaries, by seed.
        firsts: those that they are compared with; all seeds of `ours` have one.
        loader: as named in the options.
    """
    summaries = list(ours.values())
    rates = [summary.images_per_second for summary in summaries]
    accuracies = [summary.val_top1 for summary in summaries]
    return Row(
        keys=_ROW_KEYS,
        group=f"{summaries[0].mode}: whole runs",
        name=_row_name(loader, summaries[0]),
        images_per_second=mean(rates),
        low=min(rates),
        high=max(rates),
        noisy=is_noisy(rates, mean(rates)),
        times_baseline=median(firsts[seed].seconds / summary.seconds for seed, summary in ours.items()),
        val_top1=mean(accuracies),
        val_top1_low=min(accuracies),
        val_top1_high=max(accuracies),
        seeds=tuple(ours),
        minutes=mean(summary.seconds for summary in summaries) / 60,
        data_wait=mean(summary.data_wait for summary in summaries),
    )


def _row_name(loader: str, summary: RunSummary) -> str:
    """The loader as named in the options, the one it stands for, and how many views were cached."""
    name = loader if summary.loader == loader else f"{loader} ({summary.loader})"
    return f"{name}, {summary.views} views kept" if summary.views else name  # scripts read this name
