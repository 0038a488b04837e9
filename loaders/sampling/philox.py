"""Random numbers as a pure function of seed, epoch, purpose and sample.

Philox4x32-10 is a counter-based generator: its output is a keyed mixing of a counter, without any state (Salmon,
Moraes, Dror, Shaw: "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011; constants and test vectors from their
Random123 library). The key is the seed of the run; the counter holds the sample, the epoch and the purpose of the
number. A sample's random numbers therefore do not depend on the worker, rank or restart that draws them. NumPy's own
generators are not used, because their streams may change between releases.
"""

from enum import IntEnum
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Uint64s: TypeAlias = NDArray[np.uint64]

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_ROUNDS = 10


class Purpose(IntEnum):
    """The purpose of a random number. Two purposes never share a counter."""

    ORDER = 0
    SPLIT = 1
    CROP = 2
    SECOND_CROP = 3
    ROTATION_AND_FLIP = 4
    COLOR = 5
    COLOR_ORDER = 6


def philox4x32(counter: tuple[Uint64s, Uint64s, Uint64s, Uint64s], key: tuple[int, int]) -> list[Uint64s]:
    """Four random 32-bit words for every counter, as four uint64 arrays of the common shape of the counters.

    Args:
        counter: four arrays of 32-bit values that broadcast against each other.
        key: two 32-bit values.
    """
    # One-element arrays and not scalars, because NumPy warns about the intended overflow of scalars.
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        first = c0 * _MULTIPLIERS[0]
        second = c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            (second >> _HALF) ^ c1 ^ np.uint64(k0),
            second & _LOW,
            (first >> _HALF) ^ c3 ^ np.uint64(k1),
            first & _LOW,
        )
        k0, k1 = (k0 + _KEY_STEPS[0]) & 0xFFFFFFFF, (k1 + _KEY_STEPS[1]) & 0xFFFFFFFF
    return [c0, c1, c2, c3]


def words(seed: int, epoch: int, purpose: Purpose, ids: NDArray[np.int64], block: int = 0) -> list[Uint64s]:
    """Four random 32-bit words per id, as four uint64 arrays `[N]`.

    Args:
        seed: any integer; its lowest 64 bits are the key.
        epoch: 0 to 2**32 - 1.
        purpose: what the words are drawn for.
        ids: int64 `[N]`, >= 0: sample ids.
        block: the number of the four words among those of this purpose, 0 to 65535.
    """
    wide = ids.astype(np.uint64)
    purpose_and_block = np.array([int(purpose) << 16 | block], np.uint64)
    counter = (wide & _LOW, purpose_and_block, np.array([epoch], np.uint64), wide >> _HALF)
    return philox4x32(counter, (seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF))


def uniforms(seed: int, epoch: int, purpose: Purpose, ids: NDArray[np.int64], block: int = 0) -> NDArray[np.float64]:
    """Four independent random numbers per id, uniform on the open interval (0, 1): float64 `[4, N]`.

    The arguments are those of `words`. The numbers lie on the grid (k + 1/2) / 2**32.
    """
    return (np.stack(words(seed, epoch, purpose, ids, block)).astype(np.float64) + 0.5) * 2.0**-32
