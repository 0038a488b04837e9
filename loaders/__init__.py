"""Images on disk → batches on the device.

    train, val = open_data("cifar10", root=Path("data"))
    spec = PlanSpec(RandomResizedCrop(224), horizontal_flip=0.5)
    loader = build_loader(train, LoaderConfig(spec=spec, training=True, batch_size=64))
    for images, labels in loader:
        ...

The way of a batch: source → order → plan → backend (decode, crop, resize) → device (flip, colour,
normalise).
"""

from loaders.auto import Choice
from loaders.errors import BadImage, BadImageError, InputError
from loaders.factory import available_loaders, build_loader, choose_loader
from loaders.loader import NO_LABEL, Batch, Loader, LoaderConfig
from loaders.sampling.plan import ColorJitter, PaddedRandomCrop, PlanSpec, RandomResizedCrop, ResizeCenterCrop
from loaders.sources import Source, open_data

__all__ = [
    "NO_LABEL",
    "BadImage",
    "BadImageError",
    "Batch",
    "Choice",
    "ColorJitter",
    "InputError",
    "Loader",
    "LoaderConfig",
    "PaddedRandomCrop",
    "PlanSpec",
    "RandomResizedCrop",
    "ResizeCenterCrop",
    "Source",
    "available_loaders",
    "build_loader",
    "choose_loader",
    "open_data",
]
