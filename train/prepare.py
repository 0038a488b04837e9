"""From options to everything a run needs."""

import os
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torchvision.models import ResNet

from loaders import Choice, InputError, Loader, LoaderConfig, Source, build_loader, choose_loader, open_data
from loaders.backends.resident import ResidentLoader
from loaders.bad_images import require_good
from loaders.errors import listed
from loaders.system.console import with_rate
from loaders.system.machine import cache_folder, can_compile, usable_cores
from train.console import Reporter
from train.device import choose_device, device_name
from train.folder import RunFolder, check_out
from train.learner import Learner
from train.models import WeightsUnavailableError, build_model, count_parameters, load_weights
from train.options import Options
from train.precision import choose_precision
from train.recipes import RECIPES, Recipe, Setting
from train.session import Session
from train.stopping import StopRequest
from train.views import FeatureViews, count_steps, require_memory
from train.world import ProcessGroup


def prepare(options: Options, world: ProcessGroup, reporter: Reporter, stop: StopRequest) -> Session:
    """Opens the data, builds model and loaders, says what they are, and makes the run's folder.

    Raises:
        InputError: when something the user gave cannot be used; no folder has been made then.
    """
    device = choose_device(options.device, world.local_rank)
    if out := options.out and options.out.expanduser():
        check_out(out, resume=options.resume)  # before minutes go into preparing
    _make_repeatable(options)
    train, val = _open(options, world, reporter)
    with world.main_first():
        model, weights = _model(options, train, reporter)
    precision = choose_precision(options.precision, device)
    recipe = _recipe(options, train, device, pretrained=weights != "random", world=world)
    _require_values_to_normalise(options, recipe)
    train_loader, val_loader, choice = _loaders(options, train, val, recipe, device, precision.dtype, world)
    compiled = _compiled(options, device, reporter)
    if compiled:  # kept between runs; by default it lies in /tmp, which containers begin anew
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "compiled"))
    learner = Learner(
        model,
        mode=options.mode,
        recipe=recipe,
        steps=recipe.epochs * (count_steps(train_loader) if options.views else len(train_loader)),
        device=device,
        precision=precision,
        world=world,
        compiled=compiled,
    )
    if options.views:
        taken = train.pixel_bytes + val.pixel_bytes if choice.name == ResidentLoader.name else 0
        require_memory([train, val], options.views, learner, taken=taken)
        train_loader = FeatureViews(train_loader, replace(train_loader.config, training=True), learner)
        val_loader = FeatureViews(val_loader, replace(val_loader.config, views=1), learner)
    out = out or Path("runs") / f"{options.mode}-{train.name}-{datetime.now():%Y%m%d-%H%M%S}"
    folder = RunFolder(out, resume=options.resume) if world.is_main or options.resume else None
    session = Session(options, recipe, learner, train_loader, val_loader, folder, reporter, stop, world)
    _tell(session, choice, weights=weights, compiled=compiled, out=out)
    for loader in (train_loader, val_loader):
        with reporter.progress(f"decoding {loader.source.name}") as show:
            loader.prepare(with_rate(show, "images"))
    session.open_folder()
    return session


def _open(options: Options, world: ProcessGroup, reporter: Reporter) -> tuple[Source, Source]:
    """The images to train on and to validate, as many of them as are wanted, none bad that may not be skipped."""
    if options.max_pixels > (Image.MAX_IMAGE_PIXELS or options.max_pixels):
        Image.MAX_IMAGE_PIXELS = options.max_pixels  # or Pillow would refuse what is allowed here
    with world.main_first(), reporter.progress(f"preparing {options.data}") as show:
        train, val = open_data(
            options.data, root=options.root.expanduser(), max_pixels=options.max_pixels, progress=show
        )
    train, val = train.take(options.train_limit or len(train)), val.take(options.val_limit or len(val))
    require_good([train, val], options.on_bad_image)
    return train, val


def _loaders(
    options: Options,
    train: Source,
    val: Source,
    recipe: Recipe,
    device: torch.device,
    dtype: torch.dtype,
    world: ProcessGroup,
) -> tuple[Loader, Loader, Choice]:
    """Of images to train on, of images to validate, and why they are these.

    Where features are kept, they are computed of each image once, whatever the order they are wanted in: both go
    through theirs as an evaluation does.
    """
    workers = options.workers or max(1, usable_cores() // world.local_size)
    choice = choose_loader(
        options.loader,
        [train, val],
        device=device,
        epochs=recipe.epochs,
        workers=workers,
        world_size=world.size,
        cache_size=options.cache_size,
        scaled_decoding=options.scaled_decoding,
    )
    config = LoaderConfig(
        spec=recipe.train_spec,
        training=not options.views,
        batch_size=recipe.batch_size,
        seed=options.seed,
        device=device,
        dtype=dtype,
        rank=world.rank,
        world_size=world.size,
        workers=workers,
        on_bad_image=options.on_bad_image,
        scaled_decoding=options.scaled_decoding,
        cache_size=options.cache_size,
        from_cache=choice.from_cache,
        views=options.views,
    )
    judging = replace(config, spec=recipe.eval_spec, training=False, views=None)
    return build_loader(train, config, loader=choice.name), build_loader(val, judging, loader=choice.name), choice


def _tell(session: Session, choice: Choice, *, weights: str, compiled: bool, out: Path) -> None:
    """Data, model, loader and why, precision, device."""
    options, recipe, world, learner = session.options, session.recipe, session.world, session.learner
    train, val = session.train_loader, session.val_loader
    total, trainable = count_parameters(learner.model)
    device = device_name(learner.device) + (f" × {world.size}" if world.size > 1 else "")
    session.reporter.facts(
        {
            "mode": f"{options.mode}, recipe {options.recipe}: {_told(recipe)}",
            "data": f"{train.source.name}, {len(train.ids):,} images to train on, {len(val.ids):,} to validate, "
            f"{len(train.source.classes)} classes, at {recipe.size} px{_told_views(options)}",
            "model": f"{options.model}, {weights} weights, {total:,} parameters, {trainable:,} trained",
            "loader": f"{choice.name} ({choice.reason})",
            "device": f"{device}, {learner.precision}{', compiled' if compiled else ''}",
            "out": str(out),
        }
    )
    for note in dict.fromkeys([*train.source.notes, *val.source.notes]):
        session.reporter.say(note)
    if choice.name == "streamed" and recipe.size > options.cache_size:
        session.reporter.warn(
            f"pixels are kept at {options.cache_size} px for images of {recipe.size} px: --cache-size "
            f"{round(recipe.size * 256 / 224)} keeps them sharp"
        )
    if bad := [*train.bad_images, *val.bad_images]:
        session.reporter.warn(f"left out, as Pillow cannot decode them ({len(bad)}):{listed(bad)}")
    if options.mode == "feature" and weights == "random":
        session.reporter.warn("the features of a random backbone tell little: MODE=finetune trains that too")


def _compiled(options: Options, device: torch.device, reporter: Reporter) -> bool:
    """Whether to compile: when asked to, or on a GPU where what that needs is there."""
    if options.compile != "auto" or device.type != "cuda":
        return options.compile == "on"
    if can_compile():
        return True
    reporter.warn("the model is not compiled, and slower: that needs a C compiler and Python.h (gcc, python3-dev)")
    return False


def _make_repeatable(options: Options) -> None:
    torch.manual_seed(options.seed)
    if options.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    else:
        torch.backends.cudnn.benchmark = True
        if torch.cuda.is_available():  # TF32 in matrix products too, as torch has it in convolutions
            torch.set_float32_matmul_precision("high")


def _model(options: Options, train: Source, reporter: Reporter) -> tuple[ResNet, str]:
    model = build_model(options.model, len(train.classes))
    try:
        return model, load_weights(model, options.weights, options.model)
    except WeightsUnavailableError as error:
        if options.data != "sample":
            raise
        reporter.warn(f"{error}\nThe embedded sample can be learnt without: going on from random weights.")
        return model, "random"


def _recipe(options: Options, train: Source, device: torch.device, *, pretrained: bool, world: ProcessGroup) -> Recipe:
    small = options.data == "sample" and device.type == "cpu"
    setting = Setting(
        mode=options.mode,
        images=len(train),
        size=options.size or (64 if small else 224),
        pretrained=pretrained,
        world_size=world.size,
        batch_size=options.batch_size,
    )
    recipe = RECIPES[options.recipe](setting)
    chosen: dict[str, Any] = {"epochs": options.epochs, "learning_rate": options.lr}
    return replace(recipe, **{name: value for name, value in chosen.items() if value is not None})


def _require_values_to_normalise(options: Options, recipe: Recipe) -> None:
    """Raises InputError where BatchNorm would have a single value of each channel: of 32 px, one is left at the end."""
    trains_norms = options.mode == "finetune" or recipe.norm_in_train_mode
    if trains_norms and recipe.batch_size == 1 and recipe.size == 32:
        raise InputError("--batch-size 1: at 32 px BatchNorm has nothing to normalise by; choose 2 or more")


def _told_views(options: Options) -> str:
    return f"; features of {options.views} views of each computed once and kept" if options.views else ""


def _told(recipe: Recipe) -> str:
    return (
        f"{recipe.epochs} epoch{'s' * (recipe.epochs != 1)}, batches of {recipe.batch_size}, "
        f"{recipe.optimizer} {recipe.learning_rate:.2g}, {recipe.schedule.replace('_', ' ')}"
    )
