"""Recipes: the blog's setting to the letter, and a default that fits the data."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from loaders import RandomResizedCrop, ResizeCenterCrop
from train.recipes import Recipe, Setting, classic, default


def setting(
    mode: str = "finetune", images: int = 50_000, size: int = 224, pretrained: bool = True, gpus: int = 1
) -> Setting:
    return Setting(mode=mode, images=images, size=size, pretrained=pretrained, world_size=gpus)  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["feature", "finetune"])
def test_classic_is_the_blogs_setting(mode: str) -> None:
    recipe = classic(setting(mode))
    assert (recipe.epochs, recipe.batch_size, recipe.learning_rate) == (20, 64, 1e-3)
    assert (recipe.optimizer, recipe.momentum, recipe.weight_decay, recipe.nesterov) == ("sgd", 0.9, 1e-3, False)
    assert (recipe.schedule, recipe.label_smoothing, recipe.ema_horizon) == ("constant", 0.0, 0.0)
    assert recipe.norm_in_train_mode
    assert recipe.eval_spec.crop == ResizeCenterCrop(resize=256, size=224)
    assert recipe.train_spec.horizontal_flip == 0.5


def test_classic_feature_extraction_crops_once() -> None:
    spec = classic(setting("feature")).train_spec
    assert spec.crop == RandomResizedCrop(224, scale=(0.08, 1.0))
    assert not spec.reads_twice


def test_classic_fine_tuning_crops_turns_and_crops_again() -> None:
    spec = classic(setting("finetune")).train_spec
    assert spec.crop == RandomResizedCrop(256, scale=(0.8, 1.0))
    assert spec.rotation == 15
    assert spec.second_crop == RandomResizedCrop(224)


@pytest.mark.parametrize("images", [20, 245, 1000, 50_000, 1_281_167])
@pytest.mark.parametrize("gpus", [1, 4])
def test_default_takes_enough_steps_an_epoch(images: int, gpus: int) -> None:
    recipe = default(setting(images=images, gpus=gpus))
    assert 16 <= recipe.batch_size <= 256
    assert recipe.batch_size == 16 or images // (recipe.batch_size * gpus) >= 24


@pytest.mark.parametrize("recipe", [classic, default])
def test_a_batch_size_asked_for_is_taken(recipe: Callable[[Setting], Recipe]) -> None:
    assert recipe(replace(setting(), batch_size=24)).batch_size == 24


@pytest.mark.parametrize("mode", ["feature", "finetune"])
def test_the_default_learning_rate_falls_with_the_batch_size(mode: str) -> None:
    large, small = (default(replace(setting(mode), batch_size=size)).learning_rate for size in (256, 32))
    assert small == pytest.approx(large / (8 if mode == "finetune" else 8**0.5))


def test_default_keeps_the_frozen_backbone_as_it_is() -> None:
    assert not default(setting("feature")).norm_in_train_mode


def test_a_smaller_size_keeps_the_proportions() -> None:
    assert default(setting(size=112)).eval_spec.crop == ResizeCenterCrop(resize=128, size=112)
