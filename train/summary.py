"""What a run says of itself: `config.json`, `summary.json`, and the lines that are printed."""

from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from loaders import Choice
from loaders.errors import listed
from loaders.sampling.plan import IMAGENET_MEAN, IMAGENET_STD, ResizeCenterCrop
from train.device import device_name
from train.models import count_parameters
from train.options import Options
from train.recipes import Recipe, with_crop_margin
from train.run_folder import LAST, RunFolder
from train.run_state import EpochRow
from train.session import Session


def run_config(options: Options, recipe: Recipe, classes: tuple[str, ...]) -> dict[str, Any]:
    """The content of `config.json`: options, recipe, and what `load_classifier` needs to use the model."""
    evaluated = recipe.eval_spec.crop
    assert isinstance(evaluated, ResizeCenterCrop)  # `load_classifier` repeats it with torchvision's transforms
    return {
        "options": asdict(options),
        "recipe": asdict(recipe),
        "model": {
            "architecture": options.model,
            "num_classes": len(classes),
            "label_names": list(classes),
            "resize": evaluated.resize,
            "size": recipe.size,
            "mean": IMAGENET_MEAN,
            "std": IMAGENET_STD,
        },
    }


def summarize(session: Session) -> dict[str, Any]:
    """The content of `summary.json`: the result of a finished run."""
    options, learner, state = session.options, session.learner, session.state
    train, val = session.train_loader, session.val_loader
    total, trainable = count_parameters(learner.model)
    best = state.best_row
    last = state.rows[-1]
    return {
        "mode": options.mode,
        "model": options.model,
        "data": train.source.name,
        "loader": session.image_loader.name,
        "recipe": options.recipe,
        "views": options.views,
        "device": device_name(learner.device),
        "precision": str(learner.precision),
        "train_images": len(train.ids),
        "epochs": len(state.rows),
        "best_epoch": best["epoch"],
        "seconds": state.seconds,
        "val_top1": best["val_top1"],
        "val_loss": best["val_loss"],
        "val_seen": best["val_seen"],
        "last_val_top1": last["val_top1"],
        "images_per_second": _mean_over_time(state.rows, "images_per_second"),
        "last_images_per_second": last["images_per_second"],
        "data_wait": _mean_over_time(state.rows, "data_wait"),
        "parameters_total": total,
        "parameters_trainable": trainable,
        "bad_images": len(train.bad_images) + len(val.bad_images),
    }


def _mean_over_time(rows: list[EpochRow], key: Literal["images_per_second", "data_wait"]) -> float:
    """The mean of a rate or share over the epochs, weighted by their duration."""
    return sum(row[key] * row["seconds"] for row in rows) / sum(row["seconds"] for row in rows)


# --- what is printed ----------------------------------------------------------------------------


def print_session(session: Session, choice: Choice, *, weights: str, out: Path) -> None:
    """Prints data, model, loader and the reason for it, precision and device, then notes and warnings."""
    options, recipe, learner, reporter = session.options, session.recipe, session.learner, session.reporter
    train, val = session.train_loader, session.val_loader
    total, trainable = count_parameters(learner.model)
    views = f"; features of {options.views} views of each computed once and cached" if options.views else ""
    processes = f" × {session.process_group.size}" if session.process_group.size > 1 else ""
    compilation = ", compiled" if learner.compiled else ""
    reporter.facts(
        {
            "mode": f"{options.mode}, recipe {options.recipe}: {_describe_recipe(recipe)}",
            "data": f"{train.source.name}, {len(train.ids):,} images to train on, {len(val.ids):,} to validate, "
            f"{len(train.source.classes)} classes, at {recipe.size} px{views}",
            "model": f"{options.model}, {weights} weights, {total:,} parameters, {trainable:,} trained",
            "loader": f"{choice.name} ({choice.reason})",
            "device": f"{device_name(learner.device)}{processes}, {learner.precision}{compilation}",
            "out": str(out),
        }
    )
    for note in dict.fromkeys([*train.source.notes, *val.source.notes]):
        reporter.say(note)
    if choice.name == "streamed" and recipe.size > options.cache_size:
        reporter.warn(
            f"pixels are cached at {options.cache_size} px for images of {recipe.size} px: --cache-size "
            f"{with_crop_margin(recipe.size)} keeps them sharp"
        )
    if bad := [*train.bad_images, *val.bad_images]:
        reporter.warn(f"left out, as Pillow cannot decode them ({len(bad)}):", *listed(bad))
    if options.mode == "feature" and weights == "random":
        reporter.warn("the features of a random backbone tell little: MODE=finetune trains that too")


def _describe_recipe(recipe: Recipe) -> str:
    epochs = "1 epoch" if recipe.epochs == 1 else f"{recipe.epochs} epochs"
    schedule = recipe.schedule.replace("_", " ")
    return f"{epochs}, batches of {recipe.batch_size}, {recipe.optimizer} {recipe.learning_rate:.2g}, {schedule}"


def throughput_text(images_per_second: float, data_wait: float) -> str:
    """Throughput, and the share of the time spent waiting for data."""
    return f"{images_per_second:,.0f} images/s, waiting for data {data_wait:.0%}"


def epoch_line(title: str, row: EpochRow) -> str:
    """An epoch's result in one line."""
    return (
        f"{title}  train loss {row['train_loss']:.3f} top-1 {row['train_top1']:.1%}"
        f"  val loss {row['val_loss']:.3f} top-1 {row['val_top1']:.1%}"
        f"  {row['seconds']:.1f} s  {row['images_per_second']:,.0f} images/s  waiting for data {row['data_wait']:.0%}"
    )


def interruption_message(folder: RunFolder, loader: str, *, saved: bool) -> str:
    """What an interrupted run has saved, and how to resume it."""
    message = "saved" if saved else f"LOADER={loader} cannot go on inside an epoch, this one begins again"
    if (folder.path / LAST).exists():
        message += f". To go on: the same options, OUT={folder.path} and ARGS=--resume"
    return message


def result_message(summary: dict[str, Any], folder: Path, classes: int) -> list[str]:
    """The lines that state the result of a finished run, and how to use its model."""
    return [
        "",
        f"top-1 {summary['val_top1']:.2%} on {summary['val_seen']:,} validation images "
        f"(chance {100 / classes:.2g}%), epoch {summary['best_epoch']} of {summary['epochs']}, "
        f"in {summary['seconds']:.0f} s",
        f"{folder} holds the weights (model.safetensors), curves.png and all figures. To use it:",
        "    from train import load_classifier",
        f'    classify = load_classifier("{folder}")',
        '    classify("photo.jpg")  # {label: probability}',
    ]
