"""`train`: whole runs of both modes with several loaders and seeds: accuracy and time side by side."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch

from benchmarks.measure import is_noisy
from benchmarks.options import Keep, Where, opened, told
from loaders import InputError, LoaderConfig, PlanSpec, RandomResizedCrop, build_loader
from train.console import Reporter
from train.environment import describe_environment
from train.option_values import Architecture, Mode, RecipeName
from train.options import OptionalInt
from train.options import Options as TrainOptions
from train.process_group import ProcessGroup
from train.run import run
from train.run_folder import require_usable_out


@dataclass(frozen=True, kw_only=True)
class AccuracyOptions(Where):
    """Time to accuracy: whole runs of both modes, with the ordinary loader and with ours."""

    mode: Literal["both", "feature", "finetune"] = "both"
    """Which mode is trained."""
    loaders: tuple[str, ...] = ("baseline", "auto")
    """What is compared; the others with the first."""
    seeds: tuple[int, ...] = (0,)
    """A run for each: of the new head, the order and the augmentation."""
    weights: str = "imagenet"
    """As for training."""
    model: Architecture = "resnet18"
    """Which of torchvision's ResNets."""
    recipe: RecipeName = "default"
    """default, or classic: the blog post's setting; the baseline has the same."""
    epochs: OptionalInt = None
    """The recipe's, unless given."""
    size: OptionalInt = None
    """Side of the images in pixels; the trainer's, unless given."""
    batch_size: OptionalInt = None
    """Images per step; the recipe's, unless given."""
    views: OptionalInt = None
    """Feature mode, the baseline apart, which cannot: keep the features of so many views of each image."""
    cache_size: int = 256
    """Where pixels are kept (streamed): their shorter side; smaller images stay as they are."""
    train_limit: OptionalInt = None
    """Train on this many images only."""
    val_limit: OptionalInt = None
    """Evaluate on this many images only."""

    @property
    def modes(self) -> tuple[Mode, ...]:
        """The modes that are asked for, in the order they are run in."""
        return ("feature", "finetune") if self.mode == "both" else (self.mode,)


@dataclass(frozen=True)
class Ran:
    """A run that is over."""

    mode: Mode
    loader: str
    """As asked for."""
    seed: int
    summary: dict[str, Any]
    """What the trainer says of it."""


def bench_time_to_accuracy(options: AccuracyOptions, reporter: Reporter, keep: Keep) -> None:
    """A run after the other, the loaders taking turns; each is kept as soon as it is there.

    Raises:
        InputError: before the first run, when a loader is unknown or cannot be used here or for these data, or a run's
            folder holds another.
    """
    planned = list(runs(options, keep.folder))
    require_loaders(options, reporter)
    done: list[Ran] = []
    for loader, train in planned:
        reporter.say(f"\n{train.mode}, LOADER={loader}, seed {train.seed}")
        with _nothing_compiled():
            done.append(Ran(train.mode, loader, train.seed, run(train, ProcessGroup())))
        keep(
            {
                "theme": "train",
                "environment": describe_environment(),
                "options": told(options),
                "runs": [{"loader_asked": ran.loader, "seed": ran.seed} | ran.summary for ran in done],
                "rows": rows(done),
                "notes": [
                    f"seeds {', '.join(map(str, options.seeds))}: means, with the lowest and the highest",
                    "each compiles for itself, where it compiles at all; pixels that are kept, the first one builds",
                    f"× baseline: the whole time of {options.loaders[0]} ÷ that of the row, of the same seed",
                ],
            }
        )


@contextmanager
def _nothing_compiled() -> Iterator[None]:
    """Each run compiles as it would alone: else the first pays for all, with which the others are compared."""
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
    """Each run's loader, as asked for, and options.

    Raises:
        InputError: when there is nothing to compare, the trainer refuses these, or `folder` holds a run already.
    """
    for name in ("loaders", "seeds"):
        if not (given := getattr(options, name)) or len(set(given)) < len(given):
            raise InputError(f"--{name} {' '.join(map(str, given))}: expected one at least, and each once")
    if options.views is not None and "feature" not in options.modes:
        raise InputError("--views: features can be kept only where the backbone stays as it is: --mode feature")
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
    train, _ = opened(options, reporter)
    config = LoaderConfig(
        spec=PlanSpec(RandomResizedCrop(options.size or 224)),
        training=True,
        batch_size=1,
        device=options.torch_device,
        cache_size=options.cache_size,
        workers=options.threads,
    )
    for loader in options.loaders:
        build_loader(train.take(options.train_limit or len(train)), config, loader=loader).close()


def rows(done: list[Ran]) -> list[dict[str, Any]]:
    """One for each mode and loader: what all seeds come to that have been run so far."""
    kinds = dict.fromkeys((ran.mode, ran.loader) for ran in done)
    first = done[0].loader
    return [
        run_row(
            {ran.seed: ran.summary for ran in done if (ran.mode, ran.loader) == (mode, loader)},
            {ran.seed: ran.summary for ran in done if (ran.mode, ran.loader) == (mode, first)},
            loader,
        )
        for mode, loader in kinds
    ]


def run_row(ours: dict[int, dict[str, Any]], firsts: dict[int, dict[str, Any]], loader: str) -> dict[str, Any]:
    """Accuracy, time and rate of the runs of one mode and loader.

    Args:
        ours: summaries, by seed.
        firsts: those that they are compared with; all seeds of `ours` have one.
        loader: as asked for.
    """
    summaries = list(ours.values())
    used, views = summaries[0]["loader"], summaries[0]["views"]
    rates, accuracies, seconds = (
        [summary[key] for summary in summaries] for key in ("images_per_second", "val_top1", "seconds")
    )
    return {
        "group": f"{summaries[0]['mode']}: whole runs",
        "name": loader + f" ({used})" * (used != loader) + f", {views} views kept" * bool(views),
        "images_per_second": mean(rates),
        "low": min(rates),
        "high": max(rates),
        "noisy": is_noisy(rates, mean(rates)),
        "times_baseline": median(firsts[seed]["seconds"] / summary["seconds"] for seed, summary in ours.items()),
        "val_top1": mean(accuracies),
        "val_top1_low": min(accuracies),
        "val_top1_high": max(accuracies),
        "seeds": list(ours),
        "minutes": mean(seconds) / 60,
        "data_wait": mean(summary["data_wait"] for summary in summaries),
    }
