"""Transfer learning: feature extraction and fine-tuning. `python -m train --help` tells how."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from train.classifier import Classifier, load_classifier

__all__ = ["Classifier", "load_classifier"]


def __getattr__(name: str) -> object:
    """Imports what is exported when it is first asked for, so that `python -m train` can say what is missing."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from train import classifier

    return getattr(classifier, name)
