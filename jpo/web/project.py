"""A project: items, store and rules together; what the pages show and what the output file holds.

Knows everything about annotation but HTTP and HTML.
"""

from __future__ import annotations

import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from jpo.disk import naming_faults, write_atomic
from jpo.errors import JpoError, MissingExtra
from jpo.web.assignment import Choice, Desk, Rules
from jpo.web.exchange import VERDICT, exported
from jpo.web.forms import Format
from jpo.web.items import Item, Items
from jpo.web.store import LIMITS, Answer, Showing, Store

GUIDELINE = (
    "Which side is better? Weigh accuracy first, then coherence, then harmlessness. Length alone is no merit. Where the two "
    "sides answer different instructions, judge which response serves its own instruction better."
)
_FEW, _CARELESS = 4, 0.7  # gold items or repetitions from which on a share below this is marked


@dataclass
class Project:
    """One annotation project. in_rounds: an item is asked when `release` has named it (gold ones at once). Safe to call
    from several threads."""

    items: Items
    store: Store
    rules: Rules = field(default_factory=Rules)
    guideline: str = GUIDELINE
    form: Format = "feedback"  # of the output file
    in_rounds: bool = False

    def __post_init__(self) -> None:
        self._lock = threading.RLock()
        self._views: dict[str, tuple[int, float, Any]] = {}  # name -> version, good until, value
        self._viewing = threading.Lock()
        self.version = 0  # rises with every verdict: the output file is behind where it differs
        self._remember()

    def _remember(self) -> None:
        """Reads the store: what is in memory is then what is on disk."""
        self._answers: dict[int, Answer] = {answer.showing.id: answer for answer in self.store.answers()}
        items = self.items.by_key
        if self.in_rounds:
            asked = self.store.asked()
            items = {key: item for key, item in items.items() if key in asked or item.gold is not None}
        self._desk = Desk(self.rules, items, self.store.showings(), self._answers.values())
        self.version += 1

    # rounds

    def asked(self) -> list[str]:
        """Keys of the items that have been asked so far, round by round."""
        return list(self.store.asked())

    def round_is_over(self) -> bool:
        """Whether everything that is asked has its answers, and there is more to ask."""
        with self._lock:
            return self.more_to_ask() and self._desk.answered_all()

    def more_to_ask(self) -> bool:
        """Whether another round can follow."""
        return self.in_rounds and len(self._desk.items) < len(self.items)

    def release(self, keys: Sequence[str]) -> None:
        """Asks these items from now on."""
        with self._lock:
            self.store.ask(keys)
            self._remember()

    def together(self, calls: Sequence[Callable[[], Any]]) -> list[Any]:
        """What each call gives, or the exception that it raised: all of them on disk by one sync."""
        results: list[Any] = []
        with self._lock:
            try:
                with self.store.together():
                    for call in calls:
                        try:
                            with self.store.together():
                                results.append(call())
                        except JpoError as error:  # raised before anything was changed
                            results.append(error)
            except Exception as error:  # the disk is full, say: nothing is there, so nothing has happened
                self._remember()
                return [error] * len(calls)
        return results

    # what one annotator does

    def showing(self, annotator: str) -> Showing | None:
        """What now stands before the annotator: the open item, or a new one; None when all is done."""
        with self._lock:
            found = self._desk.next(annotator)
            if isinstance(found, Choice):
                found = self.store.show(found.item, annotator, found.swapped, found.again)
                self._desk.shown(found)
            return found

    def answer(
        self,
        annotator: str,
        showing: int,
        verdict: str,
        rationale: str = "",
        tags: Sequence[str] = (),
        seconds: float = 0,
    ) -> bool:
        """Keeps a verdict; False where it was kept before. JpoError names what is wrong with it."""
        for name, text in (("rationale", rationale), *(("tag", tag) for tag in tags)):
            if not isinstance(text, str) or len(text) > LIMITS[name]:
                raise JpoError(f"{name}: expected a text of at most {LIMITS[name]} characters")
        if len(tags) > LIMITS["tags"]:
            raise JpoError(f"tags: expected at most {LIMITS['tags']}, got {len(tags)}")
        with self._lock:
            new = self.store.answer(showing, annotator, verdict, rationale, tags, seconds)
            if new is not None:
                self._answers[showing] = new
                self._desk.answered(new)
                self.version += 1
            return new is not None

    def undo(self, annotator: str) -> Answer | None:
        """Takes the annotator's last verdict back; it stands before him again."""
        with self._lock:
            last = self._desk.last(annotator)
            if last is not None:
                self.store.undo(last.showing.id)
                del self._answers[last.showing.id]
                self._desk.undone(last)
                self.version += 1
            return last

    def progress(self, annotator: str) -> tuple[int, int, float | None]:
        """(answered, of how many, median seconds an item)."""
        with self._lock:
            return *self._desk.progress(annotator), self._desk.seconds(annotator)

    def finished(self) -> bool:
        """Whether nobody has anything left to do."""
        with self._lock:
            return not self.more_to_ask() and self._desk.finished()

    # what comes out

    def answers(self) -> list[Answer]:
        """The standing verdicts on items that the input holds, in the order of their showings."""
        with self._lock:
            answers = sorted(self._answers.values(), key=lambda answer: answer.showing.id)
        return [answer for answer in answers if answer.showing.item in self.items.by_key]

    def rows(self) -> Iterator[dict[str, Any]]:
        """Feedback records, one a verdict: the candidate, feedback 0, 1, 2 or null (skipped), annotator, words. Gold
        items and repetitions measure the annotator and are left out; jpo interplay, pairs and train read the rest."""
        for answer in self.answers():
            item = self.items.by_key[answer.showing.item]
            if answer.showing.again == 0 and item.gold is None:
                given = {name: value for name, value in item.record.items() if name not in VERDICT}  # another's verdict
                yield {**given, **self._verdict(answer)}

    def _verdict(self, answer: Answer) -> dict[str, Any]:
        row: dict[str, Any] = {
            "feedback": answer.feedback,
            "annotator": answer.showing.annotator,
            "annotator_kind": "human",
            "swapped": answer.showing.swapped,
            "seconds": round(answer.seconds, 1),
        }
        if answer.verdict == "skip":
            row["failure"] = "skipped"
        if answer.rationale:
            row["rationale"] = answer.rationale
        if answer.tags:
            row["tags"] = list(answer.tags)
        return row

    def write(self, path: str | os.PathLike[str]) -> int:
        """Writes the feedback records in the project's form aside and renames; returns their number."""
        rows = list(self.rows())
        text = exported(rows, self.form)

        def put(part: str) -> None:
            with open(part, "w", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
                file.write(text)

        with naming_faults(
            os.fspath(path), f"the verdicts are in {self.store.path}; mend this and run the command again"
        ):
            write_atomic(os.fspath(path), put)
        return len(rows)

    # what the overview shows

    def view(self, name: str, compute: Callable[[], Any]) -> Any:
        """compute() over the verdicts of now, or of a moment ago: never older than ten times what it takes, so that
        people who look on leave the processor to those who answer."""
        with self._viewing:
            version, now = self.version, time.monotonic()
            known, until, value = self._views.get(name, (-1, 0.0, None))
            if known != version and now >= until:
                value = compute()
                self._views[name] = (version, now + 11 * (time.monotonic() - now), value)
            return value

    def quality(self) -> list[dict[str, Any]]:
        """Each annotator: verdicts, skipped, median seconds, gold {right, of}, self-consistency {same, of}; careless:
        whether either is low, where enough of them are known."""
        answers = self.answers()
        return [
            self._quality(name, [a for a in answers if a.showing.annotator == name]) for name in self.store.annotators()
        ]

    def _quality(self, name: str, answers: Sequence[Answer]) -> dict[str, Any]:
        first = {answer.showing.item: answer for answer in answers if answer.showing.again == 0}
        again = [answer for answer in answers if answer.showing.again and answer.showing.item in first]
        gold = [(self.items.by_key[key].gold, answer.feedback) for key, answer in first.items()]
        gold = [pair for pair in gold if pair[0] is not None]
        seconds = [answer.seconds for answer in answers if answer.seconds > 0]
        right, same = (
            sum(known == given for known, given in gold),
            sum(a.feedback == first[a.showing.item].feedback for a in again),
        )
        return {
            "annotator": name,
            "careless": any(
                of >= _FEW and good < _CARELESS * of for good, of in ((right, len(gold)), (same, len(again)))
            ),
            "verdicts": len(first),
            "skipped": sum(answer.verdict == "skip" for answer in first.values()),
            "seconds": statistics.median(seconds) if seconds else None,
            "gold": {"right": right, "of": len(gold)},
            "consistency": {"same": same, "of": len(again)},
        }

    def agreement(self) -> dict[str, Any]:
        """jpo.feedback.agreement over the output's records; {"missing": what to install} without its package."""
        from jpo.feedback.agreement import agreement

        rows = [row for row in self.rows() if row["feedback"] is not None]
        try:
            return agreement(rows)
        except MissingExtra as error:
            return {"missing": str(error)}

    def interplay(self) -> dict[str, Any] | None:
        """jpo.feedback.interplay over the joint records that carry labels; None where there are none."""
        from jpo.feedback.interplay import interplay

        rows = [row for row in self.rows() if row["feedback"] is not None and row.get("label_0") and row.get("label_1")]
        return interplay(rows) if rows else None


def item_of(project: Project, showing: Showing) -> Item:
    """The item that a showing shows."""
    return project.items.by_key[showing.item]
