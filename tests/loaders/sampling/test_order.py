"""Order: every sample in its place, on any number of ranks and after any resume point."""

from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from loaders.sampling.order import PADDING, batches, count_batches, shuffled
from loaders.sampling.philox import Purpose
from loaders.sampling.splits import seeded_subset, stratified_split

Last = Literal["drop", "pad"]

counts = st.integers(0, 150)
batch_sizes = st.integers(1, 17)
world_sizes = st.integers(1, 4)
lasts = st.sampled_from(["drop", "pad"])
label_lists = st.lists(st.integers(0, 4), max_size=60).map(lambda labels: np.array(labels, np.int64))


def _sequence(count: int) -> NDArray[np.int64]:
    """Ids that are neither in order nor their own positions."""
    return np.arange(count)[::-1] * 3 + 5


def _ranks(count: int, batch_size: int, world_size: int, last: Last, start: int = 0) -> list[NDArray[np.int64]]:
    options: dict[str, Any] = {"batch_size": batch_size, "last": last, "world_size": world_size, "start": start}
    return [batches(_sequence(count), rank=rank, **options) for rank in range(world_size)]


def _delivered(ranks: list[NDArray[np.int64]]) -> list[int]:
    """All samples in the order in which the ranks, in step, deliver them."""
    return [int(id) for step in zip(*ranks, strict=True) for share in step for id in share if id != PADDING]


@given(counts, batch_sizes, world_sizes)
def test_padded_batches_of_all_ranks_hold_every_sample_once_in_order(count: int, batch: int, world: int) -> None:
    ranks = _ranks(count, batch, world, "pad")
    assert {rank.shape for rank in ranks} == {ranks[0].shape}
    assert ranks[0].shape[1] == batch
    assert _delivered(ranks) == _sequence(count).tolist()


@given(counts, batch_sizes, world_sizes)
def test_padding_fills_less_than_one_global_batch(count: int, batch: int, world: int) -> None:
    ranks = np.stack(_ranks(count, batch, world, "pad"))
    assert (ranks == PADDING).sum() == ranks.size - count < batch * world


@given(counts, batch_sizes, world_sizes)
def test_drop_gives_as_many_whole_batches_on_each_rank_as_fit(count: int, batch: int, world: int) -> None:
    ranks = _ranks(count, batch, world, "drop")
    whole = count // (batch * world)
    assert {rank.shape for rank in ranks} == {(whole, batch)}
    assert _delivered(ranks) == _sequence(count)[: whole * batch * world].tolist()


@given(st.data(), counts, batch_sizes, world_sizes, lasts)
def test_count_batches_agrees_with_batches(data: st.DataObject, count: int, batch: int, world: int, last: Last) -> None:
    start = data.draw(st.integers(0, count))
    counted = count_batches(count, batch_size=batch, last=last, world_size=world, start=start)
    assert counted == len(_ranks(count, batch, world, last, start)[0])


@given(st.data(), counts, batch_sizes, world_sizes, lasts)
def test_resuming_reproduces_the_tail_of_every_rank(
    data: st.DataObject, count: int, batch: int, world: int, last: Last
) -> None:
    done = data.draw(st.integers(0, count // (batch * world)))
    whole = _ranks(count, batch, world, last)
    resumed = _ranks(count, batch, world, last, start=done * batch * world)
    assert [rank[done:].tolist() for rank in whole] == [rank.tolist() for rank in resumed]


@given(st.data(), counts, batch_sizes, world_sizes, world_sizes, lasts)
def test_resuming_with_another_world_size_goes_on_in_the_same_order(
    data: st.DataObject, count: int, batch: int, before: int, after: int, last: Last
) -> None:
    assume(before != after)
    done = data.draw(st.integers(0, count // (batch * before)))
    first = [rank[:done] for rank in _ranks(count, batch, before, last)]
    rest = _ranks(count, batch, after, last, start=done * batch * before)
    delivered = _delivered(first) + _delivered(rest)
    assert delivered == _sequence(count)[: len(delivered)].tolist()
    assert count - len(delivered) < (1 if last == "pad" else batch * after)


@pytest.mark.parametrize(
    "changed",
    [
        {"batch_size": 0},
        {"batch_size": -1},
        {"world_size": 0},
        {"rank": -1},
        {"rank": 2},
        {"rank": 3},
        {"start": -1},
        {"start": 11},
    ],
    ids=str,
)
def test_an_impossible_share_is_refused(changed: dict[str, int]) -> None:
    possible: dict[str, Any] = {"batch_size": 2, "last": "pad", "rank": 1, "world_size": 2, "start": 10}
    assert len(batches(np.arange(10), **possible)) == 0
    with pytest.raises(ValueError, match="no such share of 10 samples"):
        batches(np.arange(10), **possible | changed)


@given(st.lists(st.integers(0, 2**63 - 1), unique=True, max_size=50), st.integers(-(2**70), 2**70))
def test_shuffled_is_a_permutation(ids: list[int], seed: int) -> None:
    assert sorted(shuffled(np.array(ids, np.int64), seed=seed, epoch=0)) == sorted(ids)


@pytest.mark.parametrize(("seed", "epoch"), [(0, 1), (1, 0), (2**32, 0), (-1, 0)])
def test_shuffled_depends_on_seed_and_epoch(seed: int, epoch: int) -> None:
    ids = np.arange(1000)
    here, there = shuffled(ids, seed=0, epoch=0), shuffled(ids, seed=seed, epoch=epoch)
    assert abs(stats.spearmanr(here, there).statistic) < 0.15


@pytest.mark.parametrize("varied", ["seed", "epoch"])
def test_every_permutation_is_equally_likely(varied: str) -> None:
    runs = [shuffled(np.arange(4), **{"seed": 5, "epoch": 5} | {varied: value}) for value in range(2400)]
    _, times = np.unique(runs, axis=0, return_counts=True)
    assert len(times) == 24
    assert stats.chisquare(times).pvalue > 1e-3


def test_the_order_does_not_depend_on_the_order_of_the_ids() -> None:
    ids = np.arange(300_000)  # of which ten would share a key of 32 bits
    assert (shuffled(ids, seed=0, epoch=0) == shuffled(ids[::-1], seed=0, epoch=0)).all()


def test_removing_samples_leaves_the_order_of_the_others() -> None:
    everything = shuffled(np.arange(100), seed=4, epoch=2)
    assert shuffled(np.arange(0, 100, 3), seed=4, epoch=2).tolist() == everything[everything % 3 == 0].tolist()


def test_the_order_is_the_same_on_every_machine_and_release() -> None:
    # Worked out with a scalar Philox in plain Python: resuming relies on it, so a change must be deliberate.
    assert shuffled(np.arange(10), seed=7, epoch=3).tolist() == [6, 2, 3, 1, 0, 4, 8, 5, 9, 7]
    assert seeded_subset(1000, 5).tolist() == [234, 488, 544, 934, 973]


@given(label_lists, st.floats(0.001, 0.999), st.integers(0, 3))
def test_split_sides_are_sorted_disjoint_and_complete(labels: NDArray[np.int64], share: float, seed: int) -> None:
    train, val = stratified_split(labels, val_share=share, seed=seed)
    assert (np.diff(train) > 0).all()
    assert (np.diff(val) > 0).all()
    assert sorted([*train, *val]) == list(range(len(labels)))


@given(label_lists, st.floats(0.001, 0.999))
def test_split_takes_its_share_of_every_class_and_leaves_neither_side_empty(
    labels: NDArray[np.int64], share: float
) -> None:
    _, val = stratified_split(labels, val_share=share)
    for label, members in zip(*np.unique(labels, return_counts=True), strict=True):
        held_out = (labels[val] == label).sum()
        if members == 1:
            assert held_out == 0
        else:
            assert 1 <= held_out <= members - 1
            assert abs(held_out - members * share) <= (0.5 if 1 <= members * share <= members - 1 else 1)


def test_split_holds_out_each_member_of_a_class_equally_often() -> None:
    labels = np.array([0, 1, 0, 1, 0, 1, 0, 0])
    times = np.zeros(len(labels))
    for seed in range(600):
        times[stratified_split(labels, val_share=0.4, seed=seed)[1]] += 1
    for label, expected in ((0, 2 / 5), (1, 1 / 3)):
        assert times[labels == label] / 600 == pytest.approx(expected, abs=0.07)


def test_split_holds_out_the_first_of_each_class_in_the_order_it_draws() -> None:
    labels = np.random.default_rng(0).integers(0, 7, 100)
    drawn = shuffled(np.arange(100), seed=0, epoch=0, purpose=Purpose.SPLIT)
    members = [drawn[labels[drawn] == label] for label in range(7)]
    expected = np.concatenate([ids[: round(len(ids) / 5)] for ids in members])
    assert stratified_split(labels, val_share=0.2)[1].tolist() == sorted(expected.tolist())


def test_split_depends_on_the_seed_and_on_nothing_else() -> None:
    labels = np.arange(200) % 4
    splits = []
    for seed in (0, 0, 1):
        np.random.seed(len(splits))
        splits.append(stratified_split(labels, val_share=0.2, seed=seed)[1].tolist())
    assert splits[0] == splits[1] != splits[2]


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 5))
def test_subset_has_so_many_distinct_sorted_ids(count: int, limit: int, seed: int) -> None:
    subset = seeded_subset(count, limit, seed=seed)
    assert len(subset) == min(count, limit)
    assert (np.diff(subset) > 0).all()
    assert set(subset) <= set(range(count))


def test_a_smaller_subset_lies_within_a_larger_one() -> None:
    assert set(seeded_subset(1000, 30)) < set(seeded_subset(1000, 40))


def test_subset_depends_on_the_seed_and_is_spread_evenly() -> None:
    first, other = seeded_subset(2000, 1000, seed=0), seeded_subset(2000, 1000, seed=1)
    assert 400 < len(np.intersect1d(first, other)) < 600
    assert stats.kstest(first / 2000, "uniform").pvalue > 1e-3


@pytest.mark.parametrize("share", [-0.1, 0.0, 1.0, 20.0])
def test_a_split_needs_a_share(share: float) -> None:
    with pytest.raises(ValueError, match="val_share"):
        stratified_split(np.zeros(10, np.int64), val_share=share)
