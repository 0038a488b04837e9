"""Recipes: everything about a training that is not where it runs or what it runs on."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from loaders import PlanSpec, RandomResizedCrop, ResizeCenterCrop
from train.option_values import Mode, RecipeName


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a model is trained; `classic` and `default` return one."""

    epochs: int
    batch_size: int
    """Images per step and GPU."""
    learning_rate: float
    """The highest of the run."""
    weight_decay: float
    optimizer: Literal["sgd", "adamw"] = "sgd"
    momentum: float = 0.9
    """Used by SGD alone."""
    nesterov: bool = False
    schedule: Literal["constant", "one_cycle"] = "constant"
    label_smoothing: float = 0.0
    ema_horizon: float = 0.0
    """Share of the run's steps over which weights are averaged for evaluation; 0 for none."""
    norm_in_train_mode: bool = True
    """Whether BatchNorm uses each batch's statistics; matters where the backbone is frozen."""
    train_spec: PlanSpec
    eval_spec: PlanSpec

    @property
    def size(self) -> int:
        """Side of the images in pixels."""
        return self.train_spec.size


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a recipe may depend on."""

    mode: Mode
    images: int
    """Images to train on."""
    size: int
    """Side of the images in pixels."""
    pretrained: bool
    world_size: int = 1
    batch_size: int | None = None
    """Images per step and GPU; the recipe chooses it where it is None."""


def _evaluation(size: int) -> PlanSpec:
    return PlanSpec(ResizeCenterCrop(resize=with_crop_margin(size), size=size))


def with_crop_margin(size: int) -> int:
    """The size that images are resized to before a crop of `size` pixels: 256 for 224, as is usual."""
    return round(size * 256 / 224)


def classic(setting: Setting) -> Recipe:
    """The blog's own setting, which this project starts from: 73.6 % and 92 % on CIFAR-10 after 3 epochs."""
    crop = RandomResizedCrop(setting.size)
    if setting.mode == "finetune":
        first = RandomResizedCrop(with_crop_margin(setting.size), scale=(0.8, 1.0))
        train_spec = PlanSpec(first, rotation=15, second_crop=crop, horizontal_flip=0.5)
    else:
        train_spec = PlanSpec(crop, horizontal_flip=0.5)
    return Recipe(
        epochs=20,
        batch_size=setting.batch_size or 64,
        learning_rate=1e-3,
        weight_decay=1e-3,
        train_spec=train_spec,
        eval_spec=_evaluation(setting.size),
    )


def default(setting: Setting) -> Recipe:
    """Better and faster than `classic`: a one-cycle learning rate, milder crops, averaged weights."""
    # Steps matter more than their size where images are few: at least 24 an epoch, batches of 16 to 256.
    per_step = max(1, setting.images // (24 * setting.world_size))
    batch_size = setting.batch_size or min(256, max(16, 1 << (per_step.bit_length() - 1)))
    global_batch_size = batch_size * setting.world_size
    if setting.mode == "feature":
        return Recipe(
            epochs=10,
            batch_size=batch_size,
            optimizer="adamw",
            learning_rate=2e-3 * (global_batch_size / 64) ** 0.5,
            weight_decay=1e-2,
            schedule="one_cycle",
            norm_in_train_mode=False,
            train_spec=PlanSpec(RandomResizedCrop(setting.size, scale=(0.5, 1.0)), horizontal_flip=0.5),
            eval_spec=_evaluation(setting.size),
        )
    return Recipe(
        epochs=10 if setting.pretrained else 20,
        batch_size=batch_size,
        # Of 5,000 images of CIFAR-10 in 3 epochs: 80.8 % at 0.0015 × batch / 64, 79.7 at 0.003, 78.6 at 0.005 and
        # 38.5 at 0.015; runs are usually longer, hence not the lowest.
        learning_rate=(0.003 if setting.pretrained else 0.05) * global_batch_size / 64,
        weight_decay=5e-4,
        nesterov=True,
        schedule="one_cycle",
        label_smoothing=0.1,
        ema_horizon=0.02,
        train_spec=PlanSpec(RandomResizedCrop(setting.size, scale=(0.25, 1.0)), horizontal_flip=0.5),
        eval_spec=_evaluation(setting.size),
    )


RECIPES: dict[RecipeName, Callable[[Setting], Recipe]] = {"default": default, "classic": classic}
