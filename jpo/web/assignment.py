"""Which item comes before which annotator, and which side stands left: a function of the seed and of what was shown.

Every item goes to `overlap` annotators, the least shown ones first, in an order of each annotator's own; gold items go
to everybody; a share of the items comes a second time with its sides exchanged, some items later. What was shown and
answered is kept by item and by annotator, and every list is looked at from where the last look ended, so that the next
item costs the same however many stand behind. Knows keys; never texts.
"""

from __future__ import annotations

import bisect
import functools
import hashlib
import heapq
import math
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from jpo.errors import JpoError
from jpo.web.items import Item
from jpo.web.store import Answer, Showing

_GAP = 5  # answers between an item and its repetition, where so many are left
_LEASE = 1800.0  # seconds after which an unanswered item may go to somebody else


@dataclass(frozen=True)
class Rules:
    """overlap: annotators of each item; repeat: share of an annotator's items that comes again with sides exchanged;
    apart: all conditional items come before the joint ones."""

    overlap: int = 1
    repeat: float = 0.0
    seed: int = 0
    apart: bool = False

    def __post_init__(self) -> None:
        if self.overlap < 1:
            raise JpoError(f"overlap: expected a positive number of annotators, got {self.overlap}")
        if not 0 <= self.repeat <= 1:
            raise JpoError(f"repeat: expected a share from 0 to 1, got {self.repeat}")


@dataclass(frozen=True)
class Choice:
    """What comes next: the item's key, whether its side 1 stands left, 0 for the first time or 1 for the repetition."""

    item: str
    swapped: bool
    again: int


def _draw(seed: int, purpose: str, annotator: str, item: str) -> float:
    """A number in [0, 1) that depends on nothing else."""
    text = "\0".join((str(seed), purpose, annotator, item))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big") / (1 << 56)


def swapped(rules: Rules, annotator: str, item: str, again: int) -> bool:
    """Whether the item's side 1 stands left before this annotator; the repetition has it the other way round."""
    return (_draw(rules.seed, "side", annotator, item) < 0.5) != bool(again)


@functools.lru_cache(maxsize=1 << 16)
def _comes_again(rules: Rules, annotator: str, item: str) -> bool:
    """Whether this annotator is to see the item a second time."""
    return _draw(rules.seed, "again", annotator, item) < rules.repeat


@dataclass
class _Person:
    """What one annotator has before him and behind him. Numbers of items are places in `order`."""

    order: list[str] = field(default_factory=list)  # all items but the gold ones, in an order of his own
    gold: list[str] = field(default_factory=list)  # the gold ones, in that order
    open: list[Showing] = field(default_factory=list)  # unanswered, the oldest first
    shown: set[tuple[str, int]] = field(default_factory=set)  # (item, again)
    full: int = 0  # items shown to him that have all their annotators
    fresh: int = 0  # items of `order` before this one have been seen to have somebody
    golden: int = 0  # gold items before this one have been shown to him
    partly: dict[int, list[int]] = field(default_factory=dict)  # heaps of items that had so many annotators when seen
    answers: dict[int, Answer] = field(default_factory=dict)  # by showing
    items: Counter[str] = field(default_factory=Counter)  # answers of each answered item
    ended: list[tuple[float, int]] = field(default_factory=list)  # (when, showing) of each answer, sorted
    seconds: list[float] = field(default_factory=list)  # of each answer, sorted
    firsts: list[int] = field(default_factory=list)  # showings that are answered, without repetitions, sorted
    due: list[int] = field(default_factory=list)  # those of `firsts` whose item is to come again, sorted


def _remove(values: list[Any], value: Any) -> None:
    """Takes one `value` out of a sorted list that holds it."""
    del values[bisect.bisect_left(values, value)]


class Desk:
    """Hands out items by the rules. Tell it of every showing, answer and undoing; it is then what a new one would be
    that was told the same. Items that the input no longer holds are passed over."""

    def __init__(self, rules: Rules, items: Mapping[str, Item], showings: Iterable[Showing], answers: Iterable[Answer]):
        self.rules, self.items = rules, items
        self._people: dict[str, _Person] = {}
        self._holders: dict[str, dict[str, float]] = {}  # item -> annotator -> since when; infinity: answered
        self._lacking = sum(item.gold is None for item in items.values())  # items that have not all their answers
        self._held = Counter({0: self._lacking})  # items by number of holders
        for showing in showings:
            self.shown(showing)
        for answer in answers:
            self.answered(answer)

    def _person(self, annotator: str) -> _Person:
        found = self._people.get(annotator)
        if found is None:
            order = sorted(self.items, key=partial(self._place, annotator))
            gold = [key for key in order if self.items[key].gold is not None]
            rest = [key for key in order if self.items[key].gold is None] if gold else order
            found = self._people[annotator] = _Person(rest, gold)
        return found

    def _place(self, annotator: str, item: str) -> tuple[bool, float]:
        """What an annotator's items are sorted by."""
        return self.rules.apart and self.items[item].joint, _draw(self.rules.seed, "order", annotator, item)

    def _answered_by_all(self, item: str) -> bool:
        """Whether the item has all its answers."""
        return sum(since == math.inf for since in self._holders.get(item, {}).values()) >= self.rules.overlap

    # what happens

    def shown(self, showing: Showing) -> None:
        """The item stands before its annotator."""
        person = self._person(showing.annotator)
        person.shown.add((showing.item, showing.again))
        if showing.item not in self.items:
            return
        bisect.insort(person.open, showing, key=lambda other: other.id)
        if showing.again:
            first = next((id for id in person.due if person.answers[id].showing.item == showing.item), None)
            if first is not None:
                person.due.remove(first)
            return
        self._hold(person, showing)

    def _hold(self, person: _Person, showing: Showing) -> None:
        """The item has one annotator more."""
        holders = self._holders.setdefault(showing.item, {})
        holders[showing.annotator] = showing.at
        if self.items[showing.item].gold is not None:
            return
        self._held[len(holders) - 1] -= 1
        self._held[len(holders)] += 1
        if len(holders) == self.rules.overlap:
            for name in holders:
                self._people[name].full += 1
        elif len(holders) > self.rules.overlap:
            person.full += 1

    def answered(self, answer: Answer) -> None:
        """The showing has a verdict."""
        self._count(answer, 1)

    def undone(self, answer: Answer) -> None:
        """The verdict is taken back: its item stands before the annotator again, before any newer one."""
        self._count(answer, -1)

    def _count(self, answer: Answer, change: int) -> None:
        showing = answer.showing
        if showing.item not in self.items:
            return
        person, put = self._person(showing.annotator), bisect.insort if change > 0 else _remove
        if change > 0:
            person.open.remove(showing)
            person.answers[showing.id] = answer
        else:
            bisect.insort(person.open, showing, key=lambda other: other.id)
            del person.answers[showing.id]
        person.items[showing.item] += change
        if not person.items[showing.item]:
            del person.items[showing.item]
        put(person.ended, (answer.at, showing.id))
        if answer.seconds > 0:
            put(person.seconds, answer.seconds)
        if showing.again:
            return
        put(person.firsts, showing.id)
        if self._returns(person, answer):
            put(person.due, showing.id)
        before = self._answered_by_all(showing.item)
        self._holders[showing.item][showing.annotator] = math.inf if change > 0 else showing.at
        if self.items[showing.item].gold is None:
            self._lacking += before - self._answered_by_all(showing.item)

    def _returns(self, person: _Person, answer: Answer) -> bool:
        """Whether an answered item is still to come a second time; a skipped one does not."""
        item, name = answer.showing.item, answer.showing.annotator
        return answer.verdict != "skip" and (item, 1) not in person.shown and _comes_again(self.rules, name, item)

    # what comes next

    def next(self, annotator: str, now: float | None = None) -> Choice | Showing | None:
        """The annotator's open showing, or what to show next, or None when everything is done. An item that stands
        unanswered before somebody for more than half an hour counts as free."""
        person = self._person(annotator)
        if person.open:
            return person.open[0]
        fresh = self._fresh(annotator, time.time() if now is None else now)
        again = self._due_again(annotator, _GAP if fresh else 1) if self.rules.repeat else None
        if again is not None:
            return Choice(again, swapped(self.rules, annotator, again, 1), 1)
        return Choice(fresh, swapped(self.rules, annotator, fresh, 0), 0) if fresh else None

    def _fresh(self, annotator: str, now: float) -> str | None:
        """The item that this annotator sees next: the least shown, in an order of his own."""
        person, place = self._person(annotator), partial(self._place, annotator)
        best = self._least_shown(annotator)
        count = len(self._holders.get(best, ())) if best is not None else self.rules.overlap
        left = {s.item for other in self._people.values() for s in other.open if now - s.at >= _LEASE}
        for item in left:
            live = self._live(item, now)
            if self.items[item].gold is not None or annotator in self._holders[item] or live > count:
                continue
            if live < count or (best is not None and place(item) < place(best)):
                best, count = item, live
        while person.golden < len(person.gold) and annotator in self._holders.get(person.gold[person.golden], ()):
            person.golden += 1
        gold = person.gold[person.golden] if person.golden < len(person.gold) else None
        return gold if best is None or (gold is not None and place(gold) < place(best)) else best

    def _least_shown(self, annotator: str) -> str | None:
        """The first in his order of the items that have the fewest annotators, he not among them. An item is passed
        over for good once it has him or enough others, and waits in a heap while it has some: annotators of an item
        only become more."""
        person = self._person(annotator)
        while person.fresh < len(person.order):
            item = person.order[person.fresh]
            if not self._holders.get(item):
                return item
            self._set_aside(person, annotator, person.fresh, 0)
            person.fresh += 1
        for count in range(1, self.rules.overlap):
            heap = person.partly.get(count, [])
            while heap:
                if not self._set_aside(person, annotator, heap[0], count):
                    return person.order[heap[0]]
                heapq.heappop(heap)
        return None

    def _set_aside(self, person: _Person, annotator: str, place: int, known: int) -> bool:
        """Whether the item has him or more annotators than are known; it then waits where it belongs, if anywhere."""
        holders = self._holders[person.order[place]]
        if annotator in holders:
            return True
        if len(holders) == known:
            return False
        if len(holders) < self.rules.overlap:
            heapq.heappush(person.partly.setdefault(len(holders), []), place)
        return True

    def _live(self, item: str, now: float) -> int:
        """Annotators who have answered the item or have had it before them for less than the lease."""
        return sum(now - since < _LEASE for since in self._holders[item].values())

    def _due_again(self, annotator: str, gap: int) -> str | None:
        """The oldest item to be repeated with `gap` answers behind it."""
        person = self._person(annotator)
        if not person.due or len(person.firsts) - bisect.bisect_left(person.firsts, person.due[0]) <= gap:
            return None
        return person.answers[person.due[0]].showing.item

    # how far it is

    def answered_all(self) -> bool:
        """Whether every item has its answers."""
        return not self._lacking

    def finished(self) -> bool:
        """Whether every item has its answers and nobody who has entered has anything left to do."""
        return self.answered_all() and all(self.next(name) is None for name in self._people)

    def last(self, annotator: str) -> Answer | None:
        """The annotator's newest standing verdict."""
        person = self._person(annotator)
        return person.answers[person.ended[-1][1]] if person.ended else None

    def seconds(self, annotator: str) -> float | None:
        """The median of the seconds that the annotator looked at an item."""
        own = self._person(annotator).seconds
        return (own[(len(own) - 1) // 2] + own[len(own) // 2]) / 2 if own else None

    def progress(self, annotator: str) -> tuple[int, int]:
        """(items that the annotator has answered, items that are his or could still become his)."""
        person, overlap = self._person(annotator), self.rules.overlap
        full = sum(items for count, items in self._held.items() if count >= overlap)
        return len(person.items), len(self.items) - full + person.full
