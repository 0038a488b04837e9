"""The order in which samples come: on which rank, in which batch, after which resume point.

An epoch is one array of sample ids. Every batch of every rank is a slice of it, so that a resume point is one number:
how many samples of the epoch have been delivered over all ranks. It stays meaningful when the world size changes.
"""

from collections.abc import Collection
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from loaders.sampling.philox import Purpose, words

LastBatch: TypeAlias = Literal["drop", "pad"]
"""Whether an incomplete last batch is dropped (training) or padded with `PADDING` (evaluation)."""

PADDING = -1
"""The id that stands for "no sample" in the last batches of an evaluation."""


def shuffled(ids: NDArray[np.int64], *, seed: int, epoch: int, purpose: Purpose = Purpose.ORDER) -> NDArray[np.int64]:
    """`ids` in random order: sorted by a 64-bit key that depends only on seed, epoch, purpose and id.

    Args:
        ids: int64 `[N]`, >= 0.

    Returns:
        int64 `[N]`.
    """
    high, low, _, _ = words(seed, epoch, purpose, ids)
    return ids[np.argsort(high << np.uint64(32) | low, kind="stable")]


def batches(
    sequence: NDArray[np.int64],
    *,
    batch_size: int,
    last: LastBatch,
    rank: int = 0,
    world_size: int = 1,
    start: int = 0,
) -> NDArray[np.int64]:
    """One rank's batches of an epoch: int64 `[K, batch_size]`.

    The sequence from `start` on is cut into global batches of `world_size * batch_size` samples, of which each rank
    takes its share. All ranks get the same number of batches.

    Args:
        sequence: int64 `[N]`, the sample ids of the whole epoch, the same on every rank.
        batch_size: samples per batch and rank.
        last: whether to "drop" an incomplete last global batch (training), or to "pad" it with `PADDING`, so that every
            sample comes exactly once over all ranks (evaluation).
        start: samples of the sequence that have been delivered before, over all ranks.

    Raises:
        ValueError: when batch size, rank, world size or start is impossible.
    """
    if batch_size < 1 or world_size < 1 or not 0 <= rank < world_size or not 0 <= start <= len(sequence):
        raise ValueError(f"no such share of {len(sequence)} samples: {batch_size=}, {rank=}, {world_size=}, {start=}")
    rest = sequence[start:]
    global_batch = batch_size * world_size
    if last == "drop":
        rest = rest[: len(rest) // global_batch * global_batch]
    else:
        rest = np.concatenate([rest, np.full(-len(rest) % global_batch, PADDING, np.int64)])
    return rest.reshape(-1, world_size, batch_size)[:, rank]


def count_batches(samples: int, *, batch_size: int, last: LastBatch, world_size: int = 1, start: int = 0) -> int:
    """The number of batches that `batches` returns for a sequence of so many samples."""
    global_batch = batch_size * world_size
    rest = samples - start
    return rest // global_batch if last == "drop" else -(-rest // global_batch)


def replace_unreadable(
    ids: NDArray[np.int64], unreadable: Collection[int], sequence: NDArray[np.int64] | None
) -> NDArray[np.int64]:
    """`ids` without the unreadable samples; the same array where it has none.

    Args:
        ids: int64, of any shape.
        unreadable: samples that must not be delivered.
        sequence: the epoch's order. Each unreadable sample is replaced by the readable one that follows it there,
            cyclically. With None it is replaced by `PADDING`, so that no other sample counts twice.

    Returns:
        int64, of the shape of `ids`. `PADDING` stands where no readable sample is left.
    """
    affected = np.isin(ids, list(unreadable)) if unreadable else None
    if affected is None or not affected.any():
        return ids
    replaced = ids.copy()
    replaced[affected] = PADDING if sequence is None else _next_readable(ids[affected], unreadable, sequence)
    return replaced


def _next_readable(ids: NDArray[np.int64], unreadable: Collection[int], sequence: NDArray[np.int64]) -> list[int]:
    """For each of the ids, the readable sample that follows it in the sequence; `PADDING` where there is none."""
    places = np.flatnonzero(np.isin(sequence, ids))
    place_of = dict(zip(sequence[places].tolist(), places.tolist(), strict=True))
    found = []
    for index in ids.tolist():
        here = place_of[index]
        following = (int(sequence[place % len(sequence)]) for place in range(here + 1, here + len(sequence)))
        found.append(next((other for other in following if other not in unreadable), PADDING))
    return found
