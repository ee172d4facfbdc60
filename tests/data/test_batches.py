"""The order is a pure function of (seed, epoch, step); cuts keep records whole, within the budget, and share."""

from array import array

import numpy as np
import pytest

from jpo.data.batches import Order, forest_rows, micro_batches, permutation
from jpo.data.encoding import Encoded
from jpo.data.words import raw_words
from jpo.errors import JpoError


def sequence(prompt, response):
    return Encoded(array("i", prompt), array("i", response))


def random_records(count, seed=0):
    random = np.random.default_rng(seed)
    return [
        tuple(sequence([1] * random.integers(1, 30), [2] * random.integers(1, 30)) for _ in range(2))
        for _ in range(count)
    ]


def test_the_order_is_the_same_on_every_machine():
    assert permutation(8, 3, 5).tolist() == [2, 6, 7, 5, 0, 3, 4, 1]
    assert raw_words(2, 1).tolist() == raw_words(3, 1).tolist()[:2]
    assert len({tuple(permutation(9, seed, epoch)) for seed in range(4) for epoch in range(4)}) == 16
    assert raw_words(1, -1).shape == (1,)
    with pytest.raises(JpoError, match="at most 3 numbers"):
        raw_words(1, 0, 1, 2, 3, 4)


def test_every_epoch_sees_every_record_once_in_a_new_order():
    order = Order(10, 4, seed=7)
    assert order.steps_per_epoch == 3
    epochs = [[order.batch(step) for step in range(3 * epoch, 3 * epoch + 3)] for epoch in range(3)]
    for batches in epochs:
        assert [len(batch) for batch in batches] == [4, 4, 2]
        assert sorted(index for batch in batches for index in batch) == list(range(10))
    assert epochs[0] != epochs[1] != epochs[2]
    assert [order.epoch(step) for step in (0, 2, 3, 8)] == [0, 0, 1, 2]


def test_a_step_does_not_depend_on_the_steps_before():
    whole = [Order(50, 8, seed=1).batch(step) for step in range(30)]
    order = Order(50, 8, seed=1)
    assert [order.batch(step) for step in reversed(range(30))] == whole[::-1]
    assert Order(50, 8, seed=2).batch(0) != whole[0]


def test_wrong_orders():
    for count, size in ((0, 1), (1, 0), (1.5, 1), (True, 1)):
        with pytest.raises(JpoError, match="expected a positive integer"):
            Order(count, size, 0)
    with pytest.raises(JpoError, match="step: expected 0 or more, got -1"):
        Order(1, 1, 0).batch(-1)


def test_rows_count_what_the_forest_shares():
    prompt, other = [1] * 5, [3] * 5
    pair = (sequence(prompt, [7] * 3), sequence(prompt, [8] * 4))
    assert forest_rows([pair]) == 5 + 3 + 4
    assert forest_rows([pair, pair]) == 12
    assert forest_rows([pair, (sequence(prompt, [7] * 3), sequence(other, [7] * 3))]) == 12 + 5 + 3


@pytest.mark.parametrize("budget", [1, 60, 200, 10_000])
def test_micro_batches_keep_records_whole_and_the_budget(budget):
    records = random_records(40)
    groups = micro_batches(records, budget)
    assert sorted(index for group in groups for index in group) == list(range(40))
    for group in groups:
        assert group == sorted(group)
        assert len(group) == 1 or forest_rows([records[index] for index in group]) <= budget
    assert groups == micro_batches(records, budget) and groups == sorted(groups)
    if budget == 10_000:
        assert len(groups) == 1


def test_micro_batches_gather_what_shares():
    shared = [(sequence([9] * 40, [index] * 5), sequence([9] * 40, [50 + index] * 5)) for index in range(4)]
    alone = [(sequence([index] * 40, [1] * 5), sequence([index] * 40, [2] * 5)) for index in range(20, 22)]
    records = [shared[0], alone[0], shared[1], shared[2], alone[1], shared[3]]
    assert micro_batches(records, 100) == [[0, 2, 3, 5], [1, 4]]
    with pytest.raises(JpoError, match="token_budget: expected a positive integer, got 0"):
        micro_batches(records, 0)


def test_groups_stay_in_one_step_and_every_epoch_sees_each_record_once():
    from jpo.data.batches import GroupedOrder

    groups = [[0, 7], [1, 6], [2, 5], [3, 4], [8]]
    order = GroupedOrder(groups, batch_size=4, seed=3)
    steps = [order.batch(step) for step in range(2 * order.steps_per_epoch)]
    for group in groups:
        assert sum(set(group) <= set(step) for step in steps) == 2
    first = [index for step in steps[: order.steps_per_epoch] for index in step]
    second = [index for step in steps[order.steps_per_epoch :] for index in step]
    assert sorted(first) == sorted(second) == list(range(9)) and first != second
    assert GroupedOrder(groups, 4, 3).batch(1) == order.batch(1)
