"""Backends: each carries plans out, fast, in its own way."""

from loaders.backends.baseline import BaselineLoader
from loaders.backends.host import HostLoader
from loaders.errors import InputError
from loaders.loader import Loader, LoaderConfig
from loaders.sources.base import Source

BACKENDS: dict[str, type[Loader]] = {loader.name: loader for loader in (BaselineLoader, HostLoader)}


def available_loaders() -> list[str]:
    """Names of the loaders that can be used on this machine."""
    return list(BACKENDS)


def choose_loader(name: str) -> tuple[str, str]:
    """The loader that `name` stands for, and why.

    Raises:
        InputError: when there is no such loader.
    """
    if name == "auto":
        return HostLoader.name, "the fastest that is here"
    if name not in BACKENDS:
        raise InputError(f"LOADER={name}: there are auto, {', '.join(BACKENDS)}")
    return name, "as asked"


def build_loader(source: Source, config: LoaderConfig, *, loader: str = "auto") -> Loader:
    """A loader of `source`, by name or the best one there is.

    Raises:
        InputError: when there is no such loader, or it cannot serve this source as configured.
    """
    name, _ = choose_loader(loader)
    return BACKENDS[name](source, config)
