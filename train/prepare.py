"""From options to everything that a run consists of."""

import os
from contextlib import ExitStack
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torchvision.models import ResNet

from loaders import Choice, InputError, Loader, LoaderConfig, Source, build_loader, choose_loader, open_data
from loaders.bad_images import require_good
from loaders.system.console import with_rate
from loaders.system.machine import cache_folder, can_compile, usable_cores
from train.batches import BatchLoader
from train.checkpoints import Checkpoints, run_identity
from train.console import Reporter
from train.device import choose_device
from train.environment import describe_environment
from train.features import FeatureLoader, count_training_batches, require_feature_memory
from train.learner import Learner, MetricAccumulator
from train.models import WeightsUnavailableError, build_model, load_weights
from train.options import Options
from train.precision import choose_precision
from train.process_group import ProcessGroup
from train.recipes import RECIPES, Recipe, Setting
from train.run_folder import (
    CONFIG,
    RunFolder,
    holds_checkpoint,
    load_samples,
    make_new_folder,
    require_space,
    require_usable_out,
)
from train.run_state import RunState
from train.samples import record_samples, with_recorded_samples
from train.session import Session
from train.stopping import StopRequest
from train.summary import print_session, run_config


def prepare(options: Options, process_group: ProcessGroup, reporter: Reporter, stop: StopRequest) -> Session:
    """Opens the data, builds model and loaders, prints what they are, and creates or resumes the run's folder.

    Raises:
        InputError: when something the user gave cannot be used. No folder has been created then.
    """
    with ExitStack() as on_failure:
        session = _prepare(options, process_group, reporter, stop, on_failure)
        on_failure.pop_all()
    return session


def _prepare(
    options: Options, process_group: ProcessGroup, reporter: Reporter, stop: StopRequest, on_failure: ExitStack
) -> Session:
    """The same as `prepare`. What must be closed when it fails is added to `on_failure`."""
    device = choose_device(options.device, process_group.local_rank)
    resume = False
    folder: RunFolder | None = None
    if options.out is not None:  # before minutes go into preparing
        out = options.out.expanduser()
        resume = _should_resume(options, out, process_group)
        require_usable_out(out, resume=resume)
        folder = _claim(out, process_group, reporter, on_failure, resume=resume)
    _make_repeatable(options)
    train, val = _open_sources(options, process_group, reporter, resume=resume)
    with process_group.main_first():
        model, weights = _build_model(options, train, reporter)
    precision = choose_precision(options.precision, device)
    recipe = _choose_recipe(options, train, device, pretrained=weights != "random", process_group=process_group)
    _require_values_to_normalize(options, recipe)
    config = _loader_config(options, recipe, device, precision.dtype, process_group)
    choice = _choose_loader(options, [train, val], recipe, config)
    image_loader, val_images = _image_loaders(train, val, config, recipe, choice)
    learner = Learner(
        model,
        mode=options.mode,
        recipe=recipe,
        steps=recipe.epochs * (count_training_batches(image_loader) if options.views else len(image_loader)),
        device=device,
        precision=precision,
        process_group=process_group,
        compiled=_should_compile(options, device, reporter),
    )
    train_loader, val_loader = _feature_loaders(options, choice, image_loader, val_images, learner)
    if options.out is None:
        out = _default_out(options, train.name)
        if process_group.is_main:
            out = make_new_folder(out)
        folder = _claim(out, process_group, reporter, on_failure, resume=False)
    if process_group.is_main and not resume:
        require_space(out, learner.checkpoint_bytes)
    state = RunState(MetricAccumulator(device))
    checkpoints = Checkpoints(
        folder,
        learner=learner,
        train_loader=train_loader,
        state=state,
        identity=run_identity(options, recipe, learner, train_loader, val_loader),
        samples=partial(record_samples, options, train, val),
    )
    session = Session(
        options=options,
        recipe=recipe,
        learner=learner,
        image_loader=image_loader,
        train_loader=train_loader,
        val_loader=val_loader,
        process_group=process_group,
        reporter=reporter,
        stop=stop,
        state=state,
        checkpoints=checkpoints,
        folder=folder,
    )
    print_session(session, choice, weights=weights, out=out)
    _prepare_loaders(session)
    _begin_or_resume(session, out, resume=resume)
    return session


def _open_sources(
    options: Options, process_group: ProcessGroup, reporter: Reporter, *, resume: bool
) -> tuple[Source, Source]:
    """The images to train on and to validate, as many as the options allow.

    Raises:
        BadImageError: when images cannot be decoded and may not be skipped.
    """
    if options.max_pixels > (Image.MAX_IMAGE_PIXELS or options.max_pixels):
        Image.MAX_IMAGE_PIXELS = options.max_pixels  # Pillow would refuse larger images that are allowed here
    with process_group.main_first(), reporter.progress(f"preparing {options.data}") as show:
        train, val = open_data(
            options.data, root=options.root.expanduser(), max_pixels=options.max_pixels, progress=show
        )
    selected = train.take(options.train_limit or len(train)), val.take(options.val_limit or len(val))
    if resume and options.out is not None:
        recorded = load_samples(options.out.expanduser())
        selected = with_recorded_samples(recorded, options, selected, (train, val))
    require_good(selected, options.on_bad_image)
    return selected


def _loader_config(
    options: Options, recipe: Recipe, device: torch.device, dtype: torch.dtype, process_group: ProcessGroup
) -> LoaderConfig:
    """How the images to train on are loaded.

    Where features are cached, they are computed once for each image, whatever their order in training: the images
    are then loaded as in an evaluation.
    """
    return LoaderConfig(
        spec=recipe.train_spec,
        training=not options.views,
        batch_size=recipe.batch_size,
        seed=options.seed,
        device=device,
        dtype=dtype,
        rank=process_group.rank,
        world_size=process_group.size,
        workers=options.workers or max(1, usable_cores() // process_group.local_size),
        on_bad_image=options.on_bad_image,
        scaled_decoding=options.scaled_decoding,
        cache_size=options.cache_size,
        views=options.views,
    )


def _choose_loader(options: Options, sources: list[Source], recipe: Recipe, config: LoaderConfig) -> Choice:
    """The loader for all sources together, and the reason for it."""
    return choose_loader(
        options.loader,
        sources,
        device=config.device,
        epochs=recipe.epochs,
        workers=config.workers,
        world_size=config.world_size,
        cache_size=config.cache_size,
        scaled_decoding=config.scaled_decoding,
    )


def _image_loaders(
    train: Source, val: Source, config: LoaderConfig, recipe: Recipe, choice: Choice
) -> tuple[Loader, Loader]:
    """The chosen loader for the images to train on, and for those to validate. No other place in train/ builds one."""
    val_config = replace(config, spec=recipe.eval_spec, training=False, views=None)
    return build_loader(train, config, loader=choice), build_loader(val, val_config, loader=choice)


def _feature_loaders(
    options: Options, choice: Choice, image_loader: Loader, val_images: Loader, learner: Learner
) -> tuple[BatchLoader, BatchLoader]:
    """What is trained on and validated: features of the images where the options have views, else the images.

    Raises:
        InputError: when the device has too little memory for the features.
    """
    if options.views is None:
        return image_loader, val_images
    train, val = image_loader.source, val_images.source
    reserved = train.pixel_bytes + val.pixel_bytes if choice.name == "resident" else 0
    require_feature_memory([train, val], options.views, learner, reserved=reserved)
    return (
        FeatureLoader(image_loader, replace(image_loader.config, training=True), learner),
        FeatureLoader(val_images, replace(val_images.config, views=1), learner),
    )


def _default_out(options: Options, data: str) -> Path:
    """The path of the run's folder where none was given: named after mode, data and time."""
    return Path("runs") / f"{options.mode}-{data}-{datetime.now():%Y%m%d-%H%M%S}"


def _should_resume(options: Options, out: Path, process_group: ProcessGroup) -> bool:
    """Whether to go on with the run in `out`. The main process decides, as others may see its files later."""
    if options.resume == "auto":
        return process_group.any(process_group.is_main and holds_checkpoint(out))
    return options.resume == "yes"


def _claim(
    out: Path, process_group: ProcessGroup, reporter: Reporter, on_failure: ExitStack, *, resume: bool
) -> RunFolder | None:
    """The run's folder, which no other run may use until the session ends; None on processes that write nothing."""
    if not process_group.is_main:
        return None
    folder = RunFolder.claimed(out, resume=resume)
    on_failure.callback(folder.close)
    if folder.lock_problem is not None:
        reporter.warn(
            f"{out} cannot be locked ({folder.lock_problem}): see to it that no other run is given the same OUT"
        )
    return folder


def _prepare_loaders(session: Session) -> None:
    """Decodes beforehand what the loaders decode beforehand, and shows the progress."""
    for loader in (session.train_loader, session.val_loader):
        with session.reporter.progress(f"decoding {loader.source.name}") as show:
            loader.prepare(with_rate(show, "images"))
    session.process_group.wait_for_all()  # from now on nobody waits for long


def _should_compile(options: Options, device: torch.device, reporter: Reporter) -> bool:
    """Whether to compile the model: as requested, or on a GPU where a compiler is installed."""
    if options.compile == "auto":
        compiled = device.type == "cuda" and can_compile()
        if device.type == "cuda" and not compiled:
            reporter.warn(
                "the model is not compiled, and slower: that needs a C compiler and Python.h (gcc, python3-dev)"
            )
    else:
        compiled = options.compile == "on"
    if compiled:  # cached between runs; torch's own place is below /tmp, which is empty in a new container
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "compiled"))
    return compiled


def _make_repeatable(options: Options) -> None:
    """Seeds torch, and chooses between deterministic and fast GPU kernels."""
    torch.manual_seed(options.seed)
    if options.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    else:
        torch.backends.cudnn.benchmark = True
        if torch.cuda.is_available():  # TF32 in matrix products, too; in convolutions it is torch's default
            torch.set_float32_matmul_precision("high")


def _build_model(options: Options, train: Source, reporter: Reporter) -> tuple[ResNet, str]:
    """The model, and the name of the weights that it starts from."""
    model = build_model(options.model, len(train.classes))
    try:
        return model, load_weights(model, options.weights, options.model)
    except WeightsUnavailableError as error:
        if options.data != "sample":
            raise
        reporter.warn(*error.lines, "The embedded sample can be learnt without: going on from random weights.")
        return model, "random"


def _choose_recipe(
    options: Options, train: Source, device: torch.device, *, pretrained: bool, process_group: ProcessGroup
) -> Recipe:
    """The recipe for this data, with the values that the options replace."""
    small = options.data == "sample" and device.type == "cpu"
    setting = Setting(
        mode=options.mode,
        images=len(train),
        size=options.size or (64 if small else 224),
        pretrained=pretrained,
        world_size=process_group.size,
        batch_size=options.batch_size,
    )
    recipe = RECIPES[options.recipe](setting)
    given: dict[str, Any] = {"epochs": options.epochs, "learning_rate": options.lr}
    return replace(recipe, **{name: value for name, value in given.items() if value is not None})


def _require_values_to_normalize(options: Options, recipe: Recipe) -> None:
    """Raises InputError where BatchNorm would normalize by one value per channel: images of 32 px end as one pixel."""
    trains_norms = options.mode == "finetune" or recipe.norm_in_train_mode
    if trains_norms and recipe.batch_size == 1 and recipe.size == 32:
        raise InputError("--batch-size 1: at 32 px BatchNorm has nothing to normalise by; choose 2 or more")


def _begin_or_resume(session: Session, out: Path, *, resume: bool) -> None:
    """Writes what is known beforehand, or loads the run that was saved in `out`."""
    checkpoints, loader = session.checkpoints, session.train_loader
    if resume:
        for note in checkpoints.resume(checkpoints.folder or RunFolder(out, resume=True)):
            session.reporter.warn(note)
        session.reporter.say(
            f"resumed after {len(session.state.rows)} epochs; "
            f"{len(loader)} batches of epoch {loader.epoch + 1} are left"
        )
    elif checkpoints.folder is not None:
        checkpoints.folder.write_json(CONFIG, run_config(session.options, session.recipe, loader.source.classes))
    if checkpoints.folder is not None:
        checkpoints.folder.write_json("environment.json", describe_environment())
