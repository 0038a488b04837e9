"""Transfer learning: feature extraction and fine-tuning. `python -m train --help` lists the options.

    result = fit("photos", mode="finetune", epochs=3)
    classify = load_classifier(result.folder)

Names are imported on first use, so that `python -m train` parses its options without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from train.classifier import Classifier, load_classifier
    from train.fitting import FittedModel, fit

__all__ = ["Classifier", "FittedModel", "fit", "load_classifier"]

_MODULE_OF = {
    "Classifier": "train.classifier",
    "FittedModel": "train.fitting",
    "fit": "train.fitting",
    "load_classifier": "train.classifier",
}


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULE_OF[name]), name)
