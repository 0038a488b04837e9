"""Batches without end, from a loader or from memory."""

from collections.abc import Iterator
from itertools import count

from benchmarks.harness import loader_internals
from loaders import Batch, Loader

BATCHES_IN_TURN = 4
"""Different batches on the device that a step is fed in turn."""


def endless(loader: Loader) -> Iterator[Batch]:
    """Epoch after epoch of a loader, which is prepared first."""
    loader_internals.prepare(loader)
    for epoch in count():
        loader.set_epoch(epoch)
        yield from loader
