"""Transfer learning: feature extraction and fine-tuning. `python -m train --help` lists the options."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from train.classifier import Classifier, load_classifier

__all__ = ["Classifier", "load_classifier"]


def __getattr__(name: str) -> object:
    """Imports an exported name on first use, so that `python -m train` parses its options without torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from train import classifier

    return getattr(classifier, name)
