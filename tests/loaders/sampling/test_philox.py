"""Philox4x32-10: Random123's vectors, uniformity, and numbers that depend only on their counters."""

from itertools import product

import numpy as np
import pytest
from scipy import stats

from loaders.sampling import philox
from loaders.sampling.philox import Purpose, philox4x32, uniforms, words

IDS = np.arange(20_000)

# kat_vectors of Random123 for philox4x32 with 10 rounds: counter, key, result.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def _unhex(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_known_answers_of_random123(counter: str, key: str, expected: str) -> None:
    c0, c1, c2, c3 = (np.array([word], np.uint64) for word in _unhex(counter))
    k0, k1 = _unhex(key)
    assert [int(word[0]) for word in philox4x32((c0, c1, c2, c3), (k0, k1))] == _unhex(expected)


def test_many_counters_at_once_are_mixed_one_by_one() -> None:
    columns = np.array([_unhex(counter) for counter, _, _ in KNOWN_ANSWERS[:2]], np.uint64).T
    together = np.stack(philox4x32((columns[0], columns[1], columns[2], columns[3]), (0, 0)))
    alone = [philox4x32((c[:1], c[1:2], c[2:3], c[3:]), (0, 0)) for c in columns.T]
    assert together.T.tolist() == np.squeeze(alone, axis=2).tolist()
    assert together[:, 0].tolist() == _unhex(KNOWN_ANSWERS[0][2])


@pytest.mark.parametrize("row", range(4))
def test_each_of_the_four_numbers_is_uniform(row: int) -> None:
    assert stats.kstest(uniforms(3, 0, Purpose.CROP, IDS)[row], "uniform").pvalue > 1e-3


@pytest.mark.parametrize(
    ("purpose", "epoch", "block", "step"),
    [(Purpose.CROP, 0, 0, 1), (Purpose.CROP, 1, 0, 0), (Purpose.CROP, 0, 1, 0), (Purpose.ROTATION_AND_FLIP, 0, 0, 0)],
    ids=["next sample", "next epoch", "next block", "other purpose"],
)
def test_neighboring_counters_give_independent_numbers(purpose: Purpose, epoch: int, block: int, step: int) -> None:
    here = uniforms(3, 0, Purpose.CROP, IDS)
    there = uniforms(3, epoch, purpose, IDS + step, block)
    for mine, other in product(here, there):
        table = np.histogram2d(mine, other, bins=8, range=[[0, 1], [0, 1]])[0]
        assert stats.chisquare(table.ravel()).pvalue > 1e-5


def test_the_interval_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    extremes = np.array([0, 2**32 - 1], np.uint64)
    monkeypatch.setattr(philox, "words", lambda *_: [extremes] * 4)
    drawn = uniforms(0, 0, Purpose.CROP, np.arange(2))
    assert drawn.tolist() == [[2.0**-33, 1 - 2.0**-33]] * 4
    assert ((drawn > 0) & (drawn < 1)).all()


def test_no_two_seeds_epochs_purposes_samples_or_blocks_share_numbers() -> None:
    ids = np.array([0, 1, 2, 2**32, 2**32 + 1, 2**63 - 1])
    arguments = product((0, 1, 2**32, -1), (0, 1, 2**32 - 1), Purpose, (0, 1, 65535))
    drawn = [np.stack(words(seed, epoch, purpose, ids, block)) for seed, epoch, purpose, block in arguments]
    numbers = np.concatenate(drawn, axis=1)
    assert len(np.unique(numbers, axis=1).T) == 4 * 3 * len(Purpose) * 3 * len(ids)


def test_a_samples_numbers_do_not_depend_on_its_companions() -> None:
    some = np.array([19_999, 7, 7, 0])
    assert (uniforms(1, 2, Purpose.COLOR, IDS)[:, some] == uniforms(1, 2, Purpose.COLOR, some)).all()


def test_global_numpy_state_plays_no_part() -> None:
    np.random.seed(1)
    first = uniforms(1, 2, Purpose.COLOR, IDS)
    np.random.seed(2)
    assert (uniforms(1, 2, Purpose.COLOR, IDS) == first).all()


@pytest.mark.parametrize("count", [0, 1, 2])
def test_extreme_arguments_raise_no_numpy_warning(count: int) -> None:
    ids = np.full(count, 2**63 - 1)
    with np.errstate(all="raise"):  # warnings are errors in this suite anyhow; this is for those that NumPy hides
        assert uniforms(-1, 2**32 - 1, Purpose.COLOR_ORDER, ids, 65535).shape == (4, count)
