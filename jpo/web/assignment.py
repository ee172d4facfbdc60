"""Which item comes before which annotator, and which side stands left: a function of the seed and of what was shown.

Every item goes to `overlap` annotators, the least shown ones first, in an order of each annotator's own; gold items go
to everybody; a share of the items comes a second time with its sides exchanged, some items later. Knows keys; never
texts.
"""

from __future__ import annotations

import functools
import hashlib
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from jpo.errors import JpoError
from jpo.web.items import Item
from jpo.web.store import Answer, Showing

_GAP = 5  # answers between an item and its repetition, where so many are left
_LEASE = 1800.0  # seconds after which an unanswered item may go to somebody else


@dataclass(frozen=True)
class Rules:
    """overlap: annotators of each item; repeat: share of an annotator's items that comes again with sides exchanged."""

    overlap: int = 1
    repeat: float = 0.0
    seed: int = 0

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


def _holders(showings: Iterable[Showing]) -> dict[str, set[str]]:
    """item -> the annotators before whom it stood or stands."""
    holders: dict[str, set[str]] = {}
    for showing in showings:
        holders.setdefault(showing.item, set()).add(showing.annotator)
    return holders


def _open(rules: Rules, annotator: str, item: Item, holders: Mapping[str, set[str]]) -> bool:
    """Whether this annotator has not seen the item and it still lacks annotators."""
    held = holders.get(item.key, ())
    return annotator not in held and (item.gold is not None or len(held) < rules.overlap)


@functools.lru_cache(maxsize=256)
def _order(seed: int, annotator: str, keys: tuple[str, ...]) -> list[str]:
    """The items in the order of this annotator's own."""
    return sorted(keys, key=lambda key: _draw(seed, "order", annotator, key))


def _fresh(rules: Rules, annotator: str, items: Mapping[str, Item], holders: Mapping[str, set[str]]) -> str | None:
    """The item that this annotator sees next: the least shown, in an order of his own."""
    best, least = None, rules.overlap
    for key in _order(rules.seed, annotator, tuple(items)):
        item = items[key]
        count = 0 if item.gold is not None else len(holders.get(key, ()))
        if count < least and _open(rules, annotator, item, holders):
            best, least = key, count
            if count == 0:
                break
    return best


def _due_again(
    rules: Rules, annotator: str, answers: Sequence[Answer], shown: set[tuple[str, int]], gap: int
) -> list[str]:
    """Items to be repeated with `gap` answers behind them, oldest first; a skipped item does not come again."""
    firsts = [answer for answer in answers if answer.showing.again == 0]
    return [
        answer.showing.item
        for place, answer in enumerate(firsts)
        if answer.verdict != "skip"
        and (answer.showing.item, 1) not in shown
        and len(firsts) - place > gap
        and _draw(rules.seed, "again", annotator, answer.showing.item) < rules.repeat
    ]


def next_choice(
    rules: Rules,
    annotator: str,
    items: Mapping[str, Item],
    showings: Sequence[Showing],
    answers: Sequence[Answer],
    now: float | None = None,
) -> Choice | Showing | None:
    """The annotator's open showing, or what to show next, or None when everything is done.

    showings, answers: those of all annotators, in order. An item that stands unanswered before somebody for more than
    half an hour counts as free; showings of items that the input no longer holds are passed over.
    """
    now = time.time() if now is None else now
    answered = {answer.showing.id for answer in answers}
    for showing in showings:
        if showing.annotator == annotator and showing.id not in answered and showing.item in items:
            return showing
    live = (
        showing
        for showing in showings
        if showing.annotator == annotator or showing.id in answered or now - showing.at < _LEASE
    )
    holders = _holders(live)
    own = [answer for answer in answers if answer.showing.annotator == annotator and answer.showing.item in items]
    shown = {(showing.item, showing.again) for showing in showings if showing.annotator == annotator}
    fresh = _fresh(rules, annotator, items, holders)
    due = _due_again(rules, annotator, own, shown, _GAP if fresh else 1)
    if due:
        return Choice(due[0], swapped(rules, annotator, due[0], 1), 1)
    return Choice(fresh, swapped(rules, annotator, fresh, 0), 0) if fresh else None


def progress(
    rules: Rules, annotator: str, items: Mapping[str, Item], showings: Sequence[Showing], answers: Sequence[Answer]
) -> tuple[int, int]:
    """(items that the annotator has answered, items that are his or could still become his)."""
    own = {answer.showing.item for answer in answers if answer.showing.annotator == annotator}
    own &= items.keys()
    holders = _holders(showings)
    closed = sum(
        not (annotator in holders[key] or _open(rules, annotator, items[key], holders))
        for key in holders.keys() & items.keys()
    )
    return len(own), len(items) - closed
