"""Which item comes before which annotator, and which side stands left: a function of the seed and of what was shown.

Every item goes to `overlap` annotators, the least shown ones first, in an order of each annotator's own; gold items go
to everybody; a share of the items comes a second time with its sides exchanged, some items later. What was shown and
answered is kept by item and by annotator, so that the next item costs the same however many stand behind. Knows keys;
never texts.
"""

from __future__ import annotations

import bisect
import functools
import hashlib
import math
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial

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
    """What one annotator has before him and behind him."""

    open: list[Showing] = field(default_factory=list)  # unanswered, the oldest first
    shown: set[tuple[str, int]] = field(default_factory=set)  # (item, again)
    answers: dict[int, Answer] = field(default_factory=dict)  # by showing
    order: list[str] = field(default_factory=list)  # all items in an order of his own


class Desk:
    """Hands out items by the rules. Tell it of every showing, answer and undoing; it is then what a new one would be
    that was told the same. Items that the input no longer holds are passed over."""

    def __init__(self, rules: Rules, items: Mapping[str, Item], showings: Iterable[Showing], answers: Iterable[Answer]):
        self.rules, self.items = rules, items
        self._people: dict[str, _Person] = {}
        self._holders: dict[str, dict[str, float]] = {}  # item -> annotator -> since when; infinity: answered
        self._held = Counter({0: sum(item.gold is None for item in items.values())})  # items by number of holders
        for showing in showings:
            self.shown(showing)
        for answer in answers:
            self.answered(answer)

    def _person(self, annotator: str) -> _Person:
        found = self._people.get(annotator)
        if found is None:
            found = self._people[annotator] = _Person(order=sorted(self.items, key=partial(self._place, annotator)))
        return found

    def _place(self, annotator: str, item: str) -> tuple[bool, float]:
        """What an annotator's items are sorted by."""
        return self.rules.apart and self.items[item].joint, _draw(self.rules.seed, "order", annotator, item)

    # what happens

    def shown(self, showing: Showing) -> None:
        """The item stands before its annotator."""
        person = self._person(showing.annotator)
        person.shown.add((showing.item, showing.again))
        if showing.item not in self.items:
            return
        bisect.insort(person.open, showing, key=lambda other: other.id)
        if showing.again:
            return
        holders = self._holders.setdefault(showing.item, {})
        if self.items[showing.item].gold is None:
            self._held[len(holders)] -= 1
            self._held[len(holders) + 1] += 1
        holders[showing.annotator] = showing.at

    def answered(self, answer: Answer) -> None:
        """The showing has a verdict."""
        showing = answer.showing
        if showing.item not in self.items:
            return
        person = self._person(showing.annotator)
        person.open.remove(showing)
        person.answers[showing.id] = answer
        if not showing.again:
            self._holders[showing.item][showing.annotator] = math.inf

    def undone(self, answer: Answer) -> None:
        """The verdict is taken back: its item stands before the annotator again, before any newer one."""
        showing = answer.showing
        if showing.item not in self.items:
            return
        person = self._person(showing.annotator)
        del person.answers[showing.id]
        bisect.insort(person.open, showing, key=lambda other: other.id)
        if not showing.again:
            self._holders[showing.item][showing.annotator] = showing.at

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
        left = {s.item for person in self._people.values() for s in person.open if now - s.at >= _LEASE}
        floor = min(
            [n for n, items in self._held.items() if items] + [self._live(item, now) for item in left], default=0
        )
        best, least = None, self.rules.overlap
        for key in self._person(annotator).order:
            holders = self._holders.get(key, {})
            if annotator in holders:
                continue
            if self.items[key].gold is not None:
                return key
            count = self._live(key, now) if key in left else len(holders)
            if count < least:
                best, least = key, count
                if count <= floor:
                    break
        return best

    def _live(self, item: str, now: float) -> int:
        """Annotators who have answered the item or have had it before them for less than the lease."""
        return sum(now - since < _LEASE for since in self._holders[item].values())

    def _due_again(self, annotator: str, gap: int) -> str | None:
        """The oldest item to be repeated with `gap` answers behind it; a skipped item does not come again."""
        person = self._person(annotator)
        firsts = [answer for answer in self.answers_of(annotator) if answer.showing.again == 0]
        for answer in firsts[: max(0, len(firsts) - gap)]:
            item = answer.showing.item
            if answer.verdict != "skip" and (item, 1) not in person.shown and _comes_again(self.rules, annotator, item):
                return item
        return None

    # how far it is

    def answered_all(self) -> bool:
        """Whether every item has its answers."""
        return all(
            sum(since == math.inf for since in self._holders.get(key, {}).values()) >= self.rules.overlap
            for key, item in self.items.items()
            if item.gold is None
        )

    def finished(self) -> bool:
        """Whether every item has its answers and nobody who has entered has anything left to do."""
        return self.answered_all() and all(self.next(name) is None for name in self._people)

    def answers_of(self, annotator: str) -> list[Answer]:
        """The annotator's standing verdicts, repetitions too, in the order of their showings."""
        answers = self._person(annotator).answers
        return [answers[showing] for showing in sorted(answers)]

    def progress(self, annotator: str) -> tuple[int, int]:
        """(items that the annotator has answered, items that are his or could still become his)."""
        person, overlap = self._person(annotator), self.rules.overlap
        done = {answer.showing.item for answer in person.answers.values()}
        full = sum(items for count, items in self._held.items() if count >= overlap)
        own = {item for item, _ in person.shown if item in self.items and self.items[item].gold is None}
        return len(done), len(self.items) - full + sum(len(self._holders[item]) >= overlap for item in own)
