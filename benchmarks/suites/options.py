"""Options of all suites. This module is imported before torch is, and apart from what it configures."""

from dataclasses import dataclass
from typing import Literal

import tyro

from benchmarks.harness.options import DataOptions, MachineOptions, TurnOptions
from loaders.errors import InputError
from train.option_values import Architecture, Mode, RecipeName
from train.options import OptionalFloat, OptionalInt, OptionalPath, require_positive, require_size

FEWEST_STEPS = 5
"""Steps that a profile measures at least: each is a window then."""


@dataclass(frozen=True, kw_only=True)
class LoaderOptions(TurnOptions):
    """Every loader here against the ordinary one: random resized crop and flip, training order."""

    size: int = 224
    """Side of the images in pixels."""
    batch_size: int = 64
    """Images per batch."""
    images: int = 4096
    """Length of an epoch at least: smaller sets are repeated within it."""
    demand: OptionalFloat = None
    """Images/s a GPU demands, for the cores it needs; what feature extraction reaches here, unless given."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "size", "batch_size", "images", "demand")


@dataclass(frozen=True, kw_only=True)
class SaturationOptions(TurnOptions):
    """How near each mode comes to its ceiling with each loader here, and what is lost to preparing and fetching."""

    mode: Literal["both", "feature", "finetune"] = "both"
    """Which step is fed."""
    model: Architecture = "resnet18"
    """Which of torchvision's ResNets."""
    recipe: RecipeName = "default"
    """default, or classic: the blog post's setting."""
    size: OptionalInt = None
    """Side of the images in pixels; the trainer's, unless given."""
    batch_size: OptionalInt = None
    """Images per step, unless given the recipe's; on a CPU 16, as a step of 256 takes it seconds."""
    images: OptionalInt = None
    """Length of an epoch; as many as step and loader manage in --seconds, unless given."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the model; auto: on a GPU."""

    @property
    def modes(self) -> tuple[Mode, ...]:
        """The modes to measure, in order."""
        return ("finetune", "feature") if self.mode == "both" else (self.mode,)


@dataclass(frozen=True, kw_only=True)
class ProfileOptions(DataOptions):
    """Where the time of a mode's training loop goes, and what to change."""

    mode: tyro.conf.Positional[Mode] = "finetune"
    """feature: a new head on a frozen backbone; finetune: all weights."""
    loader: str = "auto"
    """Which loader feeds the step."""
    model: Architecture = "resnet18"
    """Which of torchvision's ResNets."""
    recipe: RecipeName = "default"
    """default, or classic: the blog post's setting."""
    size: OptionalInt = None
    """Side of the images in pixels; the trainer's, unless given."""
    batch_size: OptionalInt = None
    """Images per step; the recipe's, unless given."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the model; auto: on a GPU."""
    steps: int = 40
    """Steps that are measured at most, after a quarter of them to warm up."""
    seconds: float = 16.0
    """Fewer steps are measured, and traced, where they would take longer than this; 5 in any case."""
    trace_steps: int = 6
    """Steps of the trace at most; 0 for none."""
    weights: str = "none"
    """As for training; speed does not depend on them."""
    out: OptionalPath = None
    """Folder for bench.json, report.html and the trace; runs/profile-TIME, unless given."""

    def __post_init__(self) -> None:
        if self.steps < FEWEST_STEPS:
            raise InputError(f"--steps {self.steps}: expected {FEWEST_STEPS} or more")
        require_positive(self, "seconds")

    def steps_within(self, share: float, step_seconds: float, *, most: int) -> int:
        """The number of steps of `step_seconds` that fit into a share of `seconds`, `most` at most."""
        return min(most, int(share * self.seconds / step_seconds))


@dataclass(frozen=True, kw_only=True)
class StepsOptions(MachineOptions):
    """What each switch is worth to the step, from plain fp32 on: a ladder of rates, augmentation last."""

    mode: Literal["both", "feature", "finetune"] = "both"
    """Which kind of training."""
    model: Architecture = "resnet18"
    """Which of torchvision's ResNets."""
    size: int = 224
    """Side of the images in pixels."""
    batch_size: int = 256
    """Images per step."""
    windows: int = 5
    """Turns that each rung has."""
    seconds: float = 1.5
    """Length of a turn."""
    autotune: bool = False
    """On a GPU, also a rung for which the compiler measures all its choices: that takes it minutes."""

    def __post_init__(self) -> None:
        require_positive(self, "batch_size", "windows", "seconds")
        require_size(self.size)


@dataclass(frozen=True, kw_only=True)
class AccuracyOptions(DataOptions):
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
    """Feature mode, the baseline apart, which cannot: cache the features of so many views of each image."""
    cache_size: int = 256
    """Shorter side of the images in the pixel cache (streamed); smaller images stay as they are."""
    train_limit: OptionalInt = None
    """Train on this many images only."""
    val_limit: OptionalInt = None
    """Evaluate on this many images only."""

    @property
    def modes(self) -> tuple[Mode, ...]:
        """The modes to train, in order."""
        return ("feature", "finetune") if self.mode == "both" else (self.mode,)
