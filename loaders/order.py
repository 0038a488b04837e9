"""Which sample comes when, on which rank, after which resume point.

An epoch is one array of sample ids. Every batch of every rank is a slice of it, so a resume point is
one number (how many samples of the epoch have been delivered, over all ranks) and stays meaningful
when the world size changes.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from loaders.philox import Purpose, words

PADDING = -1
"""Stands for "no sample" in the last batches of an evaluation."""


def shuffled(ids: NDArray[np.int64], *, seed: int, epoch: int, purpose: Purpose = Purpose.ORDER) -> NDArray[np.int64]:
    """`ids` in random order: sorted by a 64-bit key that depends on nothing but seed, epoch and id."""
    high, low, _, _ = words(seed, epoch, purpose, ids)
    return ids[np.argsort(high << np.uint64(32) | low, kind="stable")]


def batches(
    sequence: NDArray[np.int64],
    *,
    batch_size: int,
    last: Literal["drop", "pad"],
    rank: int = 0,
    world_size: int = 1,
    start: int = 0,
) -> NDArray[np.int64]:
    """One rank's batches of an epoch: int64 `[K, batch_size]`.

    The sequence from `start` on is cut into global batches of `world_size * batch_size` samples, of
    which the rank takes its share. All ranks get equally many.

    Args:
        sequence: the sample ids of the whole epoch, the same on every rank.
        last: what becomes of an incomplete last global batch: "drop" (training), or "pad" with
            `PADDING`, so that every sample comes exactly once over all ranks (evaluation).
        start: how many samples of the sequence have been delivered before, over all ranks.

    Raises:
        ValueError: when batch size, rank, world size or start is impossible.
    """
    if batch_size < 1 or world_size < 1 or not 0 <= rank < world_size or not 0 <= start <= len(sequence):
        raise ValueError(f"no such share of {len(sequence)} samples: {batch_size=}, {rank=}, {world_size=}, {start=}")
    rest = sequence[start:]
    together = batch_size * world_size
    if last == "drop":
        rest = rest[: len(rest) // together * together]
    else:
        rest = np.concatenate([rest, np.full(-len(rest) % together, PADDING, np.int64)])
    return rest.reshape(-1, world_size, batch_size)[:, rank]


def count_batches(
    samples: int, *, batch_size: int, last: Literal["drop", "pad"], world_size: int = 1, start: int = 0
) -> int:
    """How many rows `batches` returns."""
    together = batch_size * world_size
    return (samples - start) // together if last == "drop" else -(-(samples - start) // together)


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
