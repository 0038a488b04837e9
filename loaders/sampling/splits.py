"""Subsets of a source: the samples held out for validation, and those of a limited run."""

import numpy as np
from numpy.typing import NDArray

from loaders.sampling.order import shuffled
from loaders.sampling.philox import Purpose


def stratified_split(
    labels: NDArray[np.int64], *, val_share: float, seed: int = 0
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Splits samples into training and validation so that validation gets `val_share` of every class.

    A class with two or more samples has at least one on either side; the only sample of a class is for training. The
    split depends only on the labels and the seed.

    Args:
        labels: int64 `[N]`.
        val_share: between 0 and 1, exclusive.
        seed: draws which samples are held out.

    Returns:
        The ids for training and the ids for validation, int64, each sorted.

    Raises:
        ValueError: when `val_share` is not between 0 and 1.
    """
    if not 0 < val_share < 1:
        raise ValueError(f"val_share = {val_share}: expected a share between 0 and 1")
    ids = shuffled(np.arange(len(labels)), seed=seed, epoch=0, purpose=Purpose.SPLIT)
    by_class = ids[np.argsort(labels[ids], kind="stable")]
    held_out = []
    for members in np.split(by_class, np.cumsum(np.unique(labels, return_counts=True)[1])[:-1]):
        held_out.append(members[: min(max(round(len(members) * val_share), 1), len(members) - 1)])
    val = np.sort(np.concatenate(held_out))
    return np.setdiff1d(ids, val), val


def seeded_subset(count: int, limit: int, *, seed: int = 0) -> NDArray[np.int64]:
    """Draws `limit` of the ids 0 to `count` - 1 without replacement.

    The ids of a smaller limit are a subset of those of a larger one.

    Returns:
        int64, sorted; all ids where `limit` is `count` or more.
    """
    ids = shuffled(np.arange(count), seed=seed, epoch=1, purpose=Purpose.SPLIT)
    return np.sort(ids[:limit])
