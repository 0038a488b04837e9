"""The baseline is, literally, the ordinary loader: torchvision's data set, transforms and DataLoader."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from torch.utils.data import DataLoader, RandomSampler, SequentialSampler
from torchvision import transforms as tv
from torchvision.datasets import ImageFolder

from loaders import (
    BadImageError,
    ColorJitter,
    InputError,
    Loader,
    LoaderConfig,
    PaddedRandomCrop,
    PlanSpec,
    RandomResizedCrop,
    ResizeCenterCrop,
    Source,
    build_loader,
    open_data,
)
from loaders.sources import PixelArray
from tests.conftest import smooth_image

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TAIL = [tv.ToTensor(), tv.Normalize(MEAN, STD)]

STAGES = {
    "classic feature": (
        PlanSpec(RandomResizedCrop(224), horizontal_flip=0.5),
        [tv.RandomResizedCrop(224), tv.RandomHorizontalFlip()],
    ),
    "classic fine-tuning": (
        PlanSpec(
            RandomResizedCrop(256, scale=(0.8, 1.0)),
            rotation=15,
            second_crop=RandomResizedCrop(224),
            horizontal_flip=0.5,
        ),
        [
            tv.RandomResizedCrop(256, scale=(0.8, 1.0)),
            tv.RandomRotation(15),
            tv.RandomResizedCrop(224),
            tv.RandomHorizontalFlip(),
        ],
    ),
    "evaluation": (PlanSpec(ResizeCenterCrop(256, 224)), [tv.Resize(256), tv.CenterCrop(224)]),
    "small images": (
        PlanSpec(PaddedRandomCrop(32, 32, 4), horizontal_flip=0.5),
        [tv.Resize(32), tv.RandomCrop(32, padding=4), tv.RandomHorizontalFlip()],
    ),
    "all there is": (
        PlanSpec(
            RandomResizedCrop(64, ratio=(0.5, 2.0)),
            horizontal_flip=0.3,
            vertical_flip=0.2,
            color_jitter=ColorJitter((0.6, 1.4), (0.7, 1.3), (0.8, 1.2), (-0.1, 0.1)),
        ),
        [
            tv.RandomResizedCrop(64, ratio=(0.5, 2.0)),
            tv.RandomHorizontalFlip(0.3),
            tv.RandomVerticalFlip(0.2),
            tv.ColorJitter((0.6, 1.4), (0.7, 1.3), (0.8, 1.2), (-0.1, 0.1)),
        ],
    ),
}

each_stage = pytest.mark.parametrize(("spec", "stages"), STAGES.values(), ids=STAGES)


def baseline(source: Source, spec: PlanSpec = STAGES["evaluation"][0], **options: object) -> Loader:
    return build_loader(source, LoaderConfig(**{"spec": spec, "training": True, **options}), loader="baseline")


@pytest.fixture
def train(image_folder: Path) -> Source:
    return open_data(str(image_folder), root=image_folder)[0]


@pytest.fixture
def many() -> Source:
    """70 images of 6 × 8 pixels in memory."""
    pixels = np.stack([smooth_image(6, 8, seed) for seed in range(70)])
    return Source("many", ("a", "b"), np.arange(70) % 2, np.full((70, 2), (6, 8), np.int32), PixelArray(pixels), "f")


@pytest.mark.parametrize(("training", "sampler"), [(True, RandomSampler), (False, SequentialSampler)])
def test_it_is_the_data_loader_people_have(many: Source, training: bool, sampler: type) -> None:
    inner = baseline(many, training=training).executor.data_loader
    assert type(inner) is DataLoader
    assert type(inner.sampler) is sampler
    assert (inner.batch_size, inner.num_workers, inner.drop_last, inner.pin_memory) == (64, 0, False, False)


def test_random_samples_come_without_replacement(many: Source) -> None:
    assert baseline(many).executor.data_loader.sampler.replacement is False


def test_its_batches_are_of_the_configured_size_and_none_is_dropped(many: Source) -> None:
    loader = baseline(many, PlanSpec(ResizeCenterCrop(4, 4)), batch_size=32)
    assert [len(labels) for _, labels in loader] == [32, 32, 6]
    assert len(loader) == 3


@each_stage
def test_its_transforms_are_torchvisions(many: Source, spec: PlanSpec, stages: list[object]) -> None:
    transform = baseline(many, spec).executor.data_loader.dataset.transform
    assert repr(transform) == repr(tv.Compose([*stages, *TAIL]))
    assert [type(stage) for stage in transform.transforms] == [type(stage) for stage in [*stages, *TAIL]]


def test_a_crop_given_for_both_stages_is_rotated_once(many: Source) -> None:
    crop = RandomResizedCrop(64)
    transform = baseline(many, PlanSpec(crop, rotation=15, second_crop=crop)).executor.data_loader.dataset.transform
    stages = [tv.RandomResizedCrop(64), tv.RandomRotation(15), tv.RandomResizedCrop(64)]
    assert repr(transform) == repr(tv.Compose([*stages, *TAIL]))


def test_it_normalises_by_the_configured_mean_and_deviation(many: Source) -> None:
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    transform = baseline(many, mean=mean, std=std).executor.data_loader.dataset.transform
    assert repr(transform.transforms[-1]) == repr(tv.Normalize(mean, std))


@each_stage
def test_image_by_image_it_yields_what_torchvisions_image_folder_yields(
    image_folder: Path, train: Source, spec: PlanSpec, stages: list[object]
) -> None:
    ours = baseline(train, spec, batch_size=8).executor.data_loader.dataset
    theirs = ImageFolder(str(image_folder / "train"), tv.Compose([*stages, *TAIL]))
    assert len(ours) == len(theirs) == 24
    for index in range(24):
        torch.manual_seed(index)
        image, label = ours[index]
        torch.manual_seed(index)
        wanted, wanted_label = theirs[index]
        assert torch.equal(image, wanted)
        assert label == wanted_label


@pytest.mark.parametrize("training", [True, False])
def test_batch_by_batch_it_yields_what_torchvisions_data_loader_yields(
    image_folder: Path, train: Source, training: bool
) -> None:
    spec, stages = STAGES["classic feature"]
    theirs = DataLoader(ImageFolder(str(image_folder / "train"), tv.Compose([*stages, *TAIL])), 7, shuffle=training)
    torch.manual_seed(3)
    wanted = list(theirs)
    torch.manual_seed(3)
    batches = list(baseline(train, spec, training=training, batch_size=7))
    assert len(batches) == len(wanted) == 4
    for (images, labels), (their_images, their_labels) in zip(batches, wanted, strict=True):
        assert torch.equal(images, their_images)
        assert torch.equal(labels, their_labels)


def test_pixels_in_memory_are_transformed_as_pillow_images(many: Source) -> None:
    spec, stages = STAGES["small images"]
    ours = baseline(many, spec).executor.data_loader.dataset
    transform = tv.Compose([*stages, *TAIL])
    for index in range(0, 70, 9):
        torch.manual_seed(index)
        image, label = ours[index]
        torch.manual_seed(index)
        assert torch.equal(image, transform(Image.fromarray(smooth_image(6, 8, index))))
        assert label == index % 2


def test_exif_orientation_is_ignored_as_torchvision_ignores_it(image_folder: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.fromarray(smooth_image(60, 90, 0)).save(image_folder / "train" / "ash" / "00.jpg", exif=exif)
    source, _ = open_data(str(image_folder), root=image_folder)
    spec, stages = STAGES["evaluation"]
    ours = baseline(source, spec, training=False, batch_size=8).executor.data_loader.dataset
    theirs = ImageFolder(str(image_folder / "train"), tv.Compose([*stages, *TAIL]))
    assert torch.equal(ours[0][0], theirs[0][0])


def test_images_are_of_the_configured_dtype(many: Source) -> None:
    spec = PlanSpec(ResizeCenterCrop(4, 4))
    [(images, labels), *_] = baseline(many, spec, training=False, dtype=torch.bfloat16)
    [(wanted, _), *_] = baseline(many, spec, training=False)
    assert images.dtype == torch.bfloat16
    assert labels.dtype == torch.int64
    assert torch.equal(images, wanted.to(torch.bfloat16))


def test_several_gpus_are_refused(many: Source) -> None:
    with pytest.raises(InputError, match=r"baseline.* serves one GPU.*`world_size=1`"):
        baseline(many, world_size=2)


def test_bad_images_are_left_out_if_they_are_to_be_skipped(image_folder: Path) -> None:
    (image_folder / "train" / "ash" / "05.jpg").write_bytes(b"")
    source, _ = open_data(str(image_folder), root=image_folder)
    with pytest.raises(BadImageError, match=r"ash/05\.jpg"):
        baseline(source, batch_size=8)
    loader = baseline(source, batch_size=8, on_bad_image="skip")
    assert sum(len(labels) for _, labels in loader) == 23
    assert [Path(bad.path).name for bad in loader.bad_images] == ["05.jpg"]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("delivered", [1, 2])
def test_a_state_inside_an_epoch_is_refused(many: Source, training: bool, delivered: int) -> None:
    options = {"spec": PlanSpec(ResizeCenterCrop(4, 4)), "training": training, "batch_size": 32}
    loader = baseline(many, **options)
    for _ in zip(range(delivered), loader, strict=False):
        state = loader.state_dict()
    with pytest.raises(InputError, match=r"baseline.* cannot go on inside an epoch.*Begin anew"):
        baseline(many, **options).load_state_dict(state)


@pytest.mark.parametrize("training", [True, False])
def test_after_the_state_of_a_finished_epoch_comes_the_next_whole_one(many: Source, training: bool) -> None:
    options = {"spec": PlanSpec(ResizeCenterCrop(4, 4)), "training": training, "batch_size": 32}
    loader = baseline(many, **options)
    list(loader)
    resumed = baseline(many, **options)
    resumed.load_state_dict(loader.state_dict())
    assert len(resumed) == 0
    assert list(resumed) == []
    resumed.set_epoch(1)
    assert len(resumed) == len(list(resumed)) == 3
