"""`train`: whole runs of both modes, the ordinary loader against ours: accuracy and time side by side."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks.options import Keep, OptionalInt, Result, Where, told
from loaders import InputError, choose_loader
from train.console import Reporter
from train.folder import describe_environment
from train.models import Architecture
from train.options import Options as TrainOptions
from train.recipes import Mode, RecipeName
from train.run import run
from train.world import World


@dataclass(frozen=True, kw_only=True)
class AccuracyOptions(Where):
    """Time to accuracy: whole runs of both modes, with the ordinary loader and with ours."""

    mode: Literal["both", "feature", "finetune"] = "both"
    """Which mode is trained."""
    loader: str = "auto"
    """What is compared with the baseline."""
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
    train_limit: OptionalInt = None
    """Train on this many images only."""
    val_limit: OptionalInt = None
    """Evaluate on this many images only."""
    seed: int = 0
    """Of the new head, the order and the augmentation."""


def bench_time_to_accuracy(options: AccuracyOptions, reporter: Reporter, keep: Keep) -> None:
    """A run after the other; each is kept as soon as it is there."""
    result: Result = {
        "theme": "train",
        "environment": describe_environment(),
        "options": told(options),
        "runs": [],
        "rows": [],
    }
    modes: tuple[Mode, ...] = ("feature", "finetune") if options.mode == "both" else (options.mode,)
    for mode in modes:
        baseline: dict[str, Any] | None = None
        for loader in ("baseline", options.loader):
            reporter.say(f"\n{mode}, LOADER={loader}")
            summary = trained(options, mode, loader, keep.folder)
            if baseline is None:
                baseline = summary
            result["runs"].append(summary)
            result["rows"].append(run_row(mode, summary, baseline))
            keep(result)


def trained(options: AccuracyOptions, mode: Mode, loader: str, folder: Path) -> dict[str, Any]:
    """A run's summary, with its epochs."""
    given: dict[str, Any] = {
        name: getattr(options, name)
        for name in ("data", "root", "device", "workers", "weights", "model", "recipe", "epochs", "size")
    } | {name: getattr(options, name) for name in ("batch_size", "train_limit", "val_limit", "seed")}
    out = folder / f"{mode}-{loader}"
    if (out / "last.pt").exists():
        raise InputError(f"{out} holds another run: choose another OUT")
    choose_loader(loader, [], device=options.torch_device)
    return run(TrainOptions(mode=mode, loader=loader, out=out, **given), World())


def run_row(mode: str, summary: dict[str, Any], baseline: dict[str, Any]) -> dict[str, Any]:
    """Rate, accuracy and time of a run; a single run has no spread."""
    rate = summary["images_per_second"]
    return {
        "group": f"{mode}: whole runs, one seed",
        "name": f"{mode}, {summary['loader']}",
        "images_per_second": rate,
        "low": rate,
        "high": rate,
        "noisy": False,
        "times_baseline": baseline["seconds"] / summary["seconds"],
        "val_top1": summary["val_top1"],
        "minutes": summary["seconds"] / 60,
        "data_wait": summary["data_wait"],
    }
