"""Images on disk → batches on the device.

    train, val = open_data("cifar10", root=Path("data"))
    spec = PlanSpec(RandomResizedCrop(224), horizontal_flip=0.5)
    loader = build_loader(train, LoaderConfig(spec=spec, training=True, batch_size=64))
    for images, labels in loader:
        ...

The path of a batch: source → order → plan → executor (decode, crop, resize) → device (flip, color, normalize).

Names are imported on first use, so that programs can parse their options without waiting for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from loaders.auto import Choice
    from loaders.config import LoaderConfig
    from loaders.errors import BadImage, BadImageError, InputError
    from loaders.factory import available_loaders, build_loader, choose_loader
    from loaders.loader import NO_LABEL, Batch, Loader
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

_MODULES = {
    "auto": ("Choice",),
    "config": ("LoaderConfig",),
    "errors": ("BadImage", "BadImageError", "InputError"),
    "factory": ("available_loaders", "build_loader", "choose_loader"),
    "loader": ("NO_LABEL", "Batch", "Loader"),
    "sampling.plan": ("ColorJitter", "PaddedRandomCrop", "PlanSpec", "RandomResizedCrop", "ResizeCenterCrop"),
    "sources": ("Source", "open_data"),
}
_MODULE_OF = {name: f"{__name__}.{module}" for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
