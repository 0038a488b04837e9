"""The images that a suite measures with."""

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness.options import DataOptions
from loaders import Source, open_data
from train.console import Reporter


def open_images(options: DataOptions, reporter: Reporter) -> tuple[Source, Source]:
    """Images to train on and to validate with, behind a progress bar."""
    with reporter.progress(f"preparing {options.data}") as show:
        return open_data(options.data, root=options.root.expanduser(), progress=show)


def repeat_to(source: Source, images: int) -> Source:
    """The good images of `source`, repeated until there are at least `images`.

    Short epochs would measure their beginnings.
    """
    good = np.setdiff1d(np.arange(len(source)), list(source.bad))
    return source.select(np.resize(good, max(images, len(good))))


def without_repeats(source: Source) -> tuple[Source, NDArray[np.int64]]:
    """The images that `source` repeats, each once, and for every sample of `source` its index among them."""
    ids = np.arange(len(source)) if source.selected_from is None else source.selected_from[1]
    _, firsts, places = np.unique(ids, return_index=True, return_inverse=True)
    return source.select(firsts), places
