"""Which samples are held out for validation, and which ones a limited run takes."""

import numpy as np
from numpy.typing import NDArray

from loaders.sampling.order import shuffled
from loaders.sampling.philox import Purpose


def stratified_split(
    labels: NDArray[np.int64], *, val_share: float, seed: int = 0
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Ids for training and for validation, each sorted, with `val_share` of every class in the second.

    Of a class with two or more samples at least one goes to either side; a single one is trained on.
    The split depends on the labels and the seed alone.

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
    """`limit` of the ids below `count`, drawn without replacement, sorted; a larger limit adds to a smaller one's."""
    ids = shuffled(np.arange(count), seed=seed, epoch=1, purpose=Purpose.SPLIT)
    return np.sort(ids[:limit])
