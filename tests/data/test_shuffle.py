"""The shuffle that holds nothing: a permutation, a pure function of (seed, epoch, step), and even."""

import numpy as np
import pytest

from jpo.data.batches import LARGE, GroupedOrder, Order, permutation
from jpo.data.shuffle import Shuffle


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 17, 255, 256, 257, 1000, 4097, 65536])
def test_is_a_permutation(count):
    assert sorted(Shuffle(count, 7, 3).places(0, count).tolist()) == list(range(count))


def test_any_part_is_the_same_part():
    whole = Shuffle(10_000_019, 5, 2).places(0, 64)
    assert np.array_equal(Shuffle(10_000_019, 5, 2).places(30, 40), whole[30:40])
    last = Shuffle(10_000_019, 5, 2).places(10_000_000, 10_000_064)
    assert len(last) == 19 and last.max() < 10_000_019


@pytest.mark.parametrize("other", [(6, 2), (5, 3), (5 + (1 << 64), 2)])
def test_seed_and_epoch_change_it(other):
    count = 100_000
    same = (Shuffle(count, 5, 2).places(0, count) == Shuffle(count, *other).places(0, count)).sum()
    assert same < 10  # of two random permutations 1 place is the same in the mean


def test_is_even():
    """Where many seeds put one record, and how far neighbours are thrown apart, is as chance has it."""
    count, bins, draws = 1000, 10, 1500
    found = np.array([Shuffle(count, seed, 0).places(0, 2) for seed in range(draws)])
    for column in (found[:, 0], (found[:, 1] - found[:, 0]) % count):
        counts = np.bincount(column * bins // count, minlength=bins)
        chi2 = ((counts - draws / bins) ** 2 / (draws / bins)).sum()
        assert chi2 < 33.7  # 9 degrees of freedom, p = 1e-4


def test_far_pairs_are_uncorrelated():
    """Serial correlation of one large order: 0 within five standard errors."""
    places = Shuffle(10_000_000, 11, 0).places(0, 200_000).astype(float)
    for lag in (1, 2, 64):
        assert abs(np.corrcoef(places[:-lag], places[lag:])[0, 1]) < 5 / np.sqrt(len(places))


def test_small_orders_are_those_of_every_version():
    order = Order(1000, 32, 3)
    assert order.way == "argsort"
    assert order.batch(1) == permutation(1000, 3, 0)[32:64].tolist()
    assert Order(LARGE, 32, 3).way == "argsort"


def test_large_orders_hold_nothing():
    order = Order(LARGE + 1, 1000, 3)
    assert order.way == "feistel"
    last = order.steps_per_epoch - 1
    assert order.batch(last) == Shuffle(LARGE + 1, 3, 0).places(1000 * last, LARGE + 1).tolist()
    assert order.batch(last + 1) == Shuffle(LARGE + 1, 3, 1).places(0, 1000).tolist()
    assert order._permutation.size == 0
    order.way = "argsort"  # of a run that an earlier version began
    assert order.batch(2) == permutation(LARGE + 1, 3, 0)[2000:3000].tolist()


def test_an_epoch_sees_each_record_once(monkeypatch):
    monkeypatch.setattr("jpo.data.batches.LARGE", 100)
    order = Order(1001, 32, 3)
    seen = [index for step in range(order.steps_per_epoch) for index in order.batch(step)]
    assert order.way == "feistel" and sorted(seen) == list(range(1001))


def test_groups_follow(monkeypatch):
    monkeypatch.setattr("jpo.data.batches.LARGE", 10)
    order = GroupedOrder([[2 * i, 2 * i + 1] for i in range(50)], 8, 3)
    assert order.way == "feistel"
    seen = [order.batch(step) for step in range(order.steps_per_epoch)]
    assert sorted(sum(seen, [])) == list(range(100))
    order.way = "argsort"
    assert order.batch(0) != seen[0]
