"""Backends: each executes plans, fast, in its own way."""

from loaders.backends import baseline, dali, ffcv, resident, streamed, torchvision
from loaders.backends.executor import Backend

BACKENDS: dict[str, Backend] = {
    module.BACKEND.name: module.BACKEND for module in (torchvision, resident, streamed, dali, ffcv, baseline)
}
"""By name, in the order in which they are listed."""
