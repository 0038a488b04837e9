"""Backends: each carries plans out, fast, in its own way."""

from loaders.backends.baseline import BaselineLoader
from loaders.backends.dali import DaliLoader
from loaders.backends.ffcv import FFCVLoader
from loaders.backends.host import HostLoader
from loaders.backends.resident import ResidentLoader
from loaders.backends.streamed import StreamedLoader
from loaders.loader import Loader

BACKENDS: dict[str, type[Loader]] = {
    loader.name: loader
    for loader in (HostLoader, ResidentLoader, StreamedLoader, DaliLoader, FFCVLoader, BaselineLoader)
}
"""By name, in the order in which they are listed."""
