"""Who sees what: overlap, balance, gold, repetitions with sides exchanged, leases; all of it a function of the seed."""

import itertools
import random

import pytest

from jpo.errors import DataError, JpoError
from jpo.web.assignment import Choice, Desk, Rules, swapped
from jpo.web.items import read_items
from jpo.web.store import Answer, Showing


def records(count, **extra):
    return [{"instruction": f"I {i}", "response_0": f"a {i}", "response_1": f"b {i}", **extra} for i in range(count)]


class World:
    """Showings and answers as the store would hand them out, without a store."""

    def __init__(self, given, rules):
        self.items, self.rules = read_items(given).by_key, rules
        self.desk = Desk(rules, self.items, [], [])
        self.showings, self.answers, self.now = [], [], 0.0

    def ask(self, name):
        found = self.desk.next(name, self.now)
        if isinstance(found, Choice):
            found = Showing(len(self.showings) + 1, found.item, name, found.swapped, found.again, self.now)
            self.showings.append(found)
            self.desk.shown(found)
        return found

    def reply(self, showing, verdict="left"):
        self.answers.append(Answer(showing, verdict, "", (), 1.0, self.now))
        self.desk.answered(self.answers[-1])

    def undo(self, name):
        own = [answer for answer in self.answers if answer.showing.annotator == name]
        if own:
            self.answers.remove(own[-1])
            self.desk.undone(own[-1])

    def run(self, name):
        seen = []
        while (showing := self.ask(name)) is not None:
            seen.append(showing)
            self.reply(showing)
        return seen


def test_every_item_goes_to_as_many_as_asked_and_to_nobody_twice():
    world = World(records(12), Rules(overlap=2, seed=3))
    names, live = ["anna", "ben", "cleo"], []
    for name in itertools.islice(itertools.cycle(names), 60):
        showing = world.ask(name)
        if showing is not None:
            live.append(showing)
            world.reply(showing)
    seen = [(s.item, s.annotator) for s in live]
    assert len(set(seen)) == len(seen) == 24
    counts = {item: sum(key == item for key, _ in seen) for item in world.items}
    assert set(counts.values()) == {2}
    loads = [sum(who == name for _, who in seen) for name in names]
    assert max(loads) - min(loads) <= 1


def test_the_order_and_the_sides_are_a_function_of_the_seed_and_the_annotator():
    runs = {
        (seed, name): World(records(20), Rules(20, seed=seed)).run(name) for seed in (0, 1) for name in ("anna", "ben")
    }
    orders = {key: [(s.item, s.swapped) for s in run] for key, run in runs.items()}
    assert orders[0, "anna"] == [(s.item, s.swapped) for s in World(records(20), Rules(20, seed=0)).run("anna")]
    assert len({tuple(order) for order in orders.values()}) == 4
    shares = [sum(swap for _, swap in order) for order in orders.values()]
    assert all(3 < share < 17 for share in shares), "neither side is preferred"


def test_conditional_items_may_stand_apart():
    joint = [{"instruction_0": f"J {i}", "response_0": "a", "instruction_1": "K", "response_1": "b"} for i in range(6)]
    for apart in (False, True):
        world = World([*joint, *records(6)], Rules(apart=apart))
        kinds = [world.items[showing.item].joint for showing in world.run("anna")]
        assert (kinds == sorted(kinds)) is apart


def test_an_open_item_stands_until_it_is_answered():
    world = World(records(3), Rules())
    first = world.ask("anna")
    assert world.ask("anna") is first and world.ask("ben").item != first.item


def test_repetitions_come_later_and_exchanged():
    world = World(records(30), Rules(repeat=0.5, seed=2))
    seen = world.run("anna")
    again = [s for s in seen if s.again]
    assert 5 < len(again) < 25
    for repetition in again:
        first = next(s for s in seen if s.item == repetition.item and not s.again)
        assert repetition.swapped is not first.swapped
        assert seen.index(repetition) - seen.index(first) > 1
    assert {s.item for s in seen} == set(world.items)
    none = World(records(30), Rules(repeat=0.0)).run("anna")
    assert not any(s.again for s in none)


def test_a_skipped_item_does_not_come_again():
    world = World(records(10), Rules(repeat=1.0))
    while (showing := world.ask("anna")) is not None:
        world.reply(showing, "skip")
    assert not any(s.again for s in world.showings)


def test_gold_items_go_to_everybody():
    world = World([*records(4), *({**r, "gold": 1} for r in records(6)[4:])], Rules())
    for name in ("anna", "ben"):
        seen = {s.item for s in world.run(name)}
        assert {key for key, item in world.items.items() if item.gold is not None} <= seen
    assert world.desk.progress("ben") == (2, 2) and world.desk.progress("anna") == (6, 6)


def test_what_somebody_left_lying_is_free_after_half_an_hour():
    world = World(records(1), Rules())
    assert world.ask("anna") is not None and world.ask("ben") is None
    world.now = 1801.0
    assert world.ask("ben") is not None


@pytest.mark.parametrize("seed", range(4))
def test_what_the_desk_remembers_is_what_a_new_one_reads(seed):
    rng = random.Random(seed)
    given = [*records(24), *({**r, "gold": 0} for r in records(26)[24:])]
    world = World(given, Rules(overlap=1 + seed % 3, repeat=0.4 * (seed % 2), seed=seed))
    names = ["anna", "ben", "cleo", "dora"]
    for step in range(150):
        name = rng.choice(names)
        showing = world.ask(name)
        if showing is not None and rng.random() < 0.8:
            world.reply(showing, rng.choice(["left", "skip"]))
        if rng.random() < 0.15:
            world.undo(rng.choice(names))
        world.now += rng.choice([1.0, 60.0, 700.0])
        if step % 10 == 0:
            again = Desk(world.rules, world.items, world.showings, world.answers)
            for other in names:
                assert again.next(other, world.now) == world.desk.next(other, world.now), (step, other)
                assert again.progress(other) == world.desk.progress(other)
    assert len(world.answers) > 20


def test_items_are_known_by_content_and_wrong_gold_is_named():
    exchanged = {"instruction": "I 0", "response_0": "b 0", "response_1": "a 0"}
    items = read_items([*records(2), exchanged])
    assert len(items) == 2 and items.repeated == 1
    joint = {"instruction_0": "I", "response_0": "a", "instruction_1": "J", "response_1": "b"}
    assert [item.joint for item in read_items([joint, *records(1)])] == [True, False]
    with pytest.raises(DataError, match="gold: expected 0, 1 or 2"):
        read_items([{**exchanged, "gold": "left"}])
    with pytest.raises(DataError, match="no candidate to annotate"):
        read_items([])
    for wrong in ({"overlap": 0}, {"repeat": 1.5}):
        with pytest.raises(JpoError, match=next(iter(wrong))):
            Rules(**wrong)
    assert swapped(Rules(), "a", "b", 0) is not swapped(Rules(), "a", "b", 1)
