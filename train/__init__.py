"""Transfer learning: feature extraction and fine-tuning. `python -m train --help` tells how."""

from train.classifier import Classifier, load_classifier

__all__ = ["Classifier", "load_classifier"]
