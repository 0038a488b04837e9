"""The options of `python -m train`. Nothing here imports torch: a mistake is reported before that is loaded."""

import itertools
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Literal, get_args

import tyro

from loaders import InputError
from loaders.sources import MAX_PIXELS
from train.option_values import Architecture, DeviceName, Mode, PrecisionName, RecipeName, Resume

OptionalInt = Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="")]
OptionalFloat = Annotated[float | None, tyro.conf.arg(metavar="FLOAT", help_behavior_hint="")]
OptionalStr = Annotated[str | None, tyro.conf.arg(metavar="STR", help_behavior_hint="")]
OptionalPath = Annotated[Path | None, tyro.conf.arg(metavar="PATH", help_behavior_hint="")]


@dataclass(frozen=True)
class Options:
    """Trains a classifier on labelled images, from ImageNet weights."""

    mode: tyro.conf.Positional[Mode]
    """feature: a new head on a frozen backbone; finetune: all weights."""
    data: str = "sample"
    """sample (drawn), cifar10 (downloaded), a folder (train/ and val/, or one per class), or a CSV file of labels."""
    root: Path = Path("data")
    """Where named data sets lie, or are put."""
    loader: str = "auto"
    """auto, torchvision, resident, streamed, baseline (the ordinary one): `python -m loaders` tells more."""
    model: Architecture = "resnet18"
    """Which of torchvision's ResNets."""
    weights: str = "imagenet"
    """imagenet (torchvision's, cached or downloaded), none, or a file: .pth, .pt, .safetensors."""
    recipe: RecipeName = "default"
    """default, or classic: the blog post's setting."""
    epochs: OptionalInt = None
    """The recipe's, unless given."""
    batch_size: OptionalInt = None
    """Images per step and GPU; the recipe's, unless given."""
    lr: OptionalFloat = None
    """Highest learning rate; the recipe's, unless given."""
    size: OptionalInt = None
    """Side of the images in pixels: 224, unless given (64 for the sample without a GPU)."""
    views: OptionalInt = None
    """Feature mode: augment in this many ways only, again and again, compute the features once, and keep them."""
    train_limit: OptionalInt = None
    """Train on this many images only, drawn at random, always the same."""
    val_limit: OptionalInt = None
    """Evaluate on this many images only, drawn at random, always the same."""
    max_minutes: OptionalFloat = None
    """Stop training after this long, evaluate, and finish in order. The schedule of learning rates stays that of all
    epochs: fewer --epochs come down, too."""
    seed: int = 0
    """Of the new head, the order and the augmentation."""
    deterministic: bool = False
    """Deterministic GPU kernels: the same numbers each time, more slowly. A CPU needs no asking."""
    device: DeviceName = "auto"
    """auto: a GPU where there is one."""
    precision: PrecisionName = "auto"
    """auto: bf16 where the hardware has it, else fp16 on a GPU and fp32 on a CPU."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the model; auto: on a GPU."""
    workers: OptionalInt = None
    """Threads that decode and resize; all usable cores, unless given."""
    on_bad_image: Literal["raise", "skip"] = "raise"
    """What to do about images that cannot be decoded; up to 1 % can be skipped."""
    max_pixels: int = MAX_PIXELS
    """Images of more pixels count as bad: a small file can unpack to gigabytes. Pillow's own limit, unless given."""
    scaled_decoding: bool = False
    """Decode JPEGs at 1/2, 1/4 or 1/8 of their size where that leaves the crop its pixels: faster, a little blurred."""
    cache_size: int = 256
    """Shorter side of the cached pixels (streamed); smaller images stay as they are."""
    out: OptionalPath = None
    """The run's folder; runs/MODE-DATA-TIME, unless given."""
    resume: Resume = "no"
    """Go on with the interrupted run in the folder given with --out. auto: begin it where there is none yet, so that
    the same command can be restarted; without a value: yes."""

    def __post_init__(self) -> None:
        require_positive(self, "epochs", "batch_size", "lr", "train_limit", "val_limit", "max_minutes", "max_pixels")
        require_positive(self, "workers", "cache_size", "views")
        if not -(2**63) <= self.seed < 2**64:
            raise InputError(f"--seed {self.seed}: expected a number of 64 bits")
        if self.size is not None:
            require_size(self.size)
        if self.views is not None:
            self._check_views()
        if self.resume != "no" and self.out is None:
            raise InputError("--resume: name the run's folder with --out (OUT=...)")

    def _check_views(self) -> None:
        if self.mode != "feature":
            raise InputError("--views: features can be cached only where the backbone stays as it is: MODE=feature")
        if self.recipe == "classic":
            raise InputError("--views: BatchNorm follows each batch in --recipe classic, so that no features stay true")
        if self.loader == "baseline":
            raise InputError("--views: LOADER=baseline draws anew each time, so that no views come again")


_MAKE_VARIABLES = ("mode", "data", "root", "loader", "weights", "out")
"""The options that the Makefile has a variable for."""

OPTION_NAMES = {
    field.name: field.name.upper() if field.name in _MAKE_VARIABLES else f"--{field.name.replace('_', '-')}"
    for field in fields(Options)
} | {"world_size": "NGPU"}
"""For `loaders.errors.name_options`: what the user types for the fields that messages of the packages below name."""


def require_positive(options: object, *names: str) -> None:
    """Raises InputError where one of the named options is given and is not more than 0."""
    for name in names:
        if (value := getattr(options, name)) is not None and not value > 0:
            raise InputError(f"--{name.replace('_', '-')} {value}: expected more than 0")


def require_size(size: int) -> None:
    """Raises InputError where images of `size` pixels are too small for a ResNet."""
    if size < 32:
        raise InputError(f"--size {size}: a ResNet needs 32 pixels or more")


def parse_options(arguments: list[str] | None = None) -> Options:
    """The options on the command line. A mistake there ends the program with a message and code 2."""
    given = _with_value_of_resume(sys.argv[1:] if arguments is None else arguments)
    return tyro.cli(Options, args=given, prog="python -m train", config=(tyro.conf.FlagCreatePairsOff,))


def _with_value_of_resume(arguments: list[str]) -> list[str]:
    """The arguments, with a value after a `--resume` that has none: for tyro an option always has one, or never."""
    given: list[str] = []
    for argument, following in itertools.zip_longest(arguments, arguments[1:]):
        given.append(argument)
        if argument == "--resume" and following not in get_args(Resume):
            given.append("yes")
    return given
