"""Acquisition: every candidate is asked about twice, with the order swapped; agreement decides.

Equal verdicts of both orders give 0 or 1; the same position twice, a tie in either order, or two ties give 2 (equal).
By the protocol `forced` no single verdict is a tie. A question that stays without a parsed verdict after max_attempts
is recorded as failed: feedback null, never a preference. Input is streamed and output written aside and renamed, so
memory does not grow with the number of records.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sized
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from jpo.data.readers import Record, check_apart, check_source, iter_records
from jpo.data.records import Candidate, candidates
from jpo.data.report import Report
from jpo.defaults import CONCURRENCY, MAX_ATTEMPTS
from jpo.disk import lock, naming_faults, settle
from jpo.errors import JpoError
from jpo.feedback.entries import Entry
from jpo.feedback.journal import MOST, GroupCommit, Journal, content_key
from jpo.feedback.prompts import Prompt, Question
from jpo.feedback.protocol import Judge, JudgeFault
from jpo.feedback.replies import parse_reply
from jpo.feedback.salvage import salvage as salvage_journal

_REPLY_KEPT = 200  # characters of a raw reply that the journal keeps
_MIRROR = {"A": "B", "B": "A", "tie": "tie"}
Progress = Callable[[int, int | None], None]  # (records done, of how many, if known)


@dataclass
class Summary:
    """What a run did: feedback by value, records whose two verdicts agree, attempts made now and their tokens."""

    feedback: dict[str, int] = field(default_factory=lambda: {"0": 0, "1": 0, "2": 0, "failed": 0})
    asked: int = 0  # attempts of this run; what the journal knew is not asked
    prompt_tokens: int = 0
    completion_tokens: int = 0
    consistent: int = 0  # both orders name the same side, or both say tie
    failure: str | None = None  # why the first failed record failed
    dropped: Report = field(default_factory=Report)  # blank texts and the like: they are not judged

    @property
    def tokens(self) -> int:
        """Tokens of this run, as the server counted them."""
        return self.prompt_tokens + self.completion_tokens

    @property
    def consistent_share(self) -> float | None:
        """Of the records with two verdicts, the share whose verdicts do not depend on the order."""
        judged = sum(count for key, count in self.feedback.items() if key != "failed")
        return self.consistent / judged if judged else None

    def cost(self, prompt_price: float, completion_price: float) -> float:
        """In the currency of the prices, which are for a million tokens."""
        return (self.prompt_tokens * prompt_price + self.completion_tokens * completion_price) / 1e6

    def __str__(self) -> str:
        parts = ", ".join(f"{key}: {value}" for key, value in self.feedback.items())
        share = "-" if self.consistent_share is None else f"{100 * self.consistent_share:.1f} %"
        tokens = f"{self.tokens} tokens ({self.prompt_tokens} + {self.completion_tokens})"
        text = f"feedback {parts}; position-consistent {share}; {self.asked} questions asked now, {tokens}"
        if self.failure is not None:
            text += f"; the first failure: {self.failure} (--retry-failed asks again)"
        if self.dropped.dropped:
            reasons = ", ".join(f"{count} {reason}" for reason, count in self.dropped.dropped.most_common())
            text += f"; dropped unasked: {reasons}"
        return text


def combine(first: str, second: str) -> int:
    """Verdicts of the two orders (the second with sides swapped) -> feedback 0, 1 or 2."""
    given = {"A": 0, "B": 1, "tie": 2}[first]
    swapped = {"A": 1, "B": 0, "tie": 2}[second]
    return given if given == swapped else 2


def _key(judge: Any, question: Question, candidate: Candidate, swapped: bool) -> tuple[str, Prompt]:
    """(journal key, prompt) of one order."""
    prompt = question.prompt(candidate, swapped)
    version = question.version("joint" if candidate.joint else "conditional")
    return content_key(getattr(judge, "key", judge.name), version, swapped, prompt), prompt


def _known(journal: Journal, key: str, question: Question) -> Entry | None:
    """What the journal holds. A reply that was not understood when it came may be by now."""
    entry = journal.get(key)
    if entry is None or entry.verdict or entry.reply is None or len(entry.reply) >= _REPLY_KEPT:
        return entry
    return dataclasses.replace(entry, verdict=parse_reply(entry.reply, question.answers))


def _plain(text: str) -> str:
    """Text that every file can hold: half a surrogate pair is spelled out."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


class _Run:
    """The questions of one run: each asked until it has a verdict or its attempts are used up."""

    def __init__(
        self,
        judge: Judge,
        journal: Journal,
        question: Question,
        concurrency: int,
        max_attempts: int,
        retry_failed: bool,
    ):
        self.judge, self.journal, self.max_attempts, self.retry_failed = judge, journal, max_attempts, retry_failed
        self.question = question
        self.refused = self._recalled()
        self.commits = GroupCommit(journal)
        self.slots = asyncio.Semaphore(concurrency)
        self.under_way: dict[str, asyncio.Task[Entry]] = {}
        self.quiet_until = 0.0  # the server wants no request before this time (time.monotonic)
        self.summary = Summary()

    def _recalled(self) -> dict[str, Any] | None:
        """What the judge's server refused in earlier runs, told to the judge; None for a judge that does not ask."""
        refused: dict[str, Any] | None = getattr(self.judge, "refused", None)
        if refused is None:
            return None
        for name, instead in self.journal.refused(self.judge.name).items():
            if isinstance(instead, (str, type(None))):
                refused.setdefault(name, instead)
        return dict(refused)

    def _remember(self) -> None:
        refused = getattr(self.judge, "refused", None)
        if refused is not None and refused != self.refused:
            self.refused = dict(refused)
            self.journal.remember(self.judge.name, refused)

    async def verdict(self, candidate: Candidate, swapped: bool) -> Entry:
        """The final state of one order's question: from the journal, or asked now; equal questions at once are one."""
        key, prompt = _key(self.judge, self.question, candidate, swapped)
        task = self.under_way.get(key)
        if task is None:
            task = self.under_way[key] = asyncio.create_task(self._known_or_asked(key, prompt, swapped))
            task.add_done_callback(lambda _: self.under_way.pop(key, None))
        return await asyncio.shield(task)

    async def _known_or_asked(self, key: str, prompt: Prompt, swapped: bool) -> Entry:
        entry = _known(self.journal, key, self.question) or Entry(
            key, self.judge.name, swapped, 0, protocol=self.question.protocol
        )
        given_up = entry.failed or entry.attempts >= self.max_attempts
        if entry.verdict or (given_up and not self.retry_failed):
            return entry
        attempts, wait = (0 if given_up else entry.attempts), 0.0
        while True:
            await asyncio.sleep(wait)  # without a slot: others are asked meanwhile
            async with self.slots:
                await self._quiet()
                attempts += 1
                entry, wait = await self._attempt(entry, prompt, attempts)
                self._remember()
                await self.commits.put(entry)  # before this slot asks again
            if entry.verdict or entry.failed:
                return entry

    async def _quiet(self) -> None:
        while (left := self.quiet_until - time.monotonic()) > 0:
            await asyncio.sleep(left)

    async def _attempt(self, before: Entry, prompt: Prompt, attempts: int) -> tuple[Entry, float]:
        """(the question's state after one more attempt, seconds to back off before the next)"""
        verdict, raw, problem, wait = None, None, None, min(0.25 * 2**attempts, 8.0)
        prompt_tokens = completion_tokens = 0
        try:
            reply = await self.judge.ask(prompt)
        except JudgeFault as fault:
            problem = str(fault) or "no reply"
            if fault.wait is not None:  # it speaks for the whole server
                self.quiet_until = max(self.quiet_until, time.monotonic() + fault.wait)
                wait = 0.0
        else:
            raw, prompt_tokens, completion_tokens = reply.text, reply.prompt_tokens, reply.completion_tokens
            verdict, wait = parse_reply(raw, self.question.answers), 0.0
            problem = None if verdict else "unparsed reply"
            if reply.wait:
                self.quiet_until = max(self.quiet_until, time.monotonic() + reply.wait)
        self.summary.asked += 1
        self.summary.prompt_tokens += prompt_tokens
        self.summary.completion_tokens += completion_tokens
        entry = Entry(
            before.key,
            before.judge,
            before.swapped,
            attempts,
            verdict,
            None if raw is None else _plain(raw[:_REPLY_KEPT]),
            None if problem is None else _plain(problem),
            min(before.tokens + prompt_tokens + completion_tokens, MOST),
            min(before.completion_tokens + completion_tokens, MOST),
            failed=verdict is None and attempts >= self.max_attempts,
            protocol=self.question.protocol,
        )
        return entry, wait

    async def record(self, record: Record, candidate: Candidate) -> dict[str, Any]:
        """The record with feedback, annotator, both verdicts and, where it failed, the reason."""
        entries = await asyncio.gather(*(self.verdict(candidate, swapped) for swapped in (False, True)))
        verdicts = [entry.verdict for entry in entries]
        out: dict[str, Any] = {**record, "feedback": None, "annotator": self.judge.name, "verdicts": verdicts}
        if self.question.protocol != "tie":
            out["protocol"] = self.question.protocol
        out.pop("failure", None)  # of an earlier run's output that is judged again
        first, second = verdicts
        if first is None or second is None:
            out["failure"] = next(entry.problem for entry in entries if entry.verdict is None)
            self.summary.feedback["failed"] += 1
            self.summary.failure = self.summary.failure or out["failure"]
        else:
            out["feedback"] = combine(first, second)
            self.summary.feedback[str(out["feedback"])] += 1
            self.summary.consistent += _MIRROR[first] == second
        return out

    async def in_order(self, records: Iterable[Record], window: int) -> AsyncIterator[dict[str, Any]]:
        """Records judged side by side, given back in their order; at most `window` are held."""
        waiting: list[asyncio.Task[dict[str, Any]]] = []
        try:
            for record in records:
                found = candidates([record], report=self.summary.dropped)
                if not found:
                    continue
                waiting.append(asyncio.create_task(self.record(record, found[0])))
                if len(waiting) >= window:
                    yield await waiting.pop(0)
            while waiting:
                yield await waiting.pop(0)
        finally:
            rest: list[asyncio.Task[Any]] = [*waiting, *self.under_way.values()]
            for task in rest:
                task.cancel()
            await asyncio.gather(*rest, return_exceptions=True)


def acquire(
    source: Any,
    output: str | os.PathLike[str],
    judge: Judge,
    *,
    journal: str | os.PathLike[str] | None = None,
    beside: str | os.PathLike[str] | None = None,
    question: Question | None = None,
    concurrency: int = CONCURRENCY,
    max_attempts: int = MAX_ATTEMPTS,
    retry_failed: bool = False,
    salvage: bool = False,
    total_timeout: float | None = None,
    progress: Progress | None = None,
) -> Summary:
    """Judge every candidate of `source` (file or records) and write them with `feedback` to `output` (JSONL).

    Conditional: {instruction, response_0, response_1}; joint: {instruction_0, response_0, instruction_1, response_1};
    all other keys travel along. question: protocol, task and wording. The journal (default: output + ".journal.sqlite")
    makes a killed run go on where it was; beside: another, if it is there, whose verdicts are not asked again; salvage:
    of a damaged one what is sound is kept, otherwise it is a FormatError. progress(done, total) after each record.
    JpoError after total_timeout seconds: what is under way is given up, the verdicts so far are kept, the output is not
    written.
    """
    for name, value in (("concurrency", concurrency), ("max_attempts", max_attempts)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise JpoError(f"{name}: expected a positive whole number, got {value!r}")
    path = os.fspath(output)
    check_apart(path, [source])
    if isinstance(source, (str, os.PathLike)):
        check_source(source)
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder):
        os.makedirs(folder)
    where = os.fspath(journal) if journal is not None else f"{path}.journal.sqlite"
    if salvage:
        print(f"jpo: {salvage_journal(where)}", file=sys.stderr, flush=True)
    book = Journal(where, beside=beside)
    run = _Run(judge, book, question or Question(), concurrency, max_attempts, retry_failed)
    total = len(source) if isinstance(source, Sized) and not isinstance(source, (str, os.PathLike)) else _lines(source)

    async def work(file: Any) -> None:
        done = 0
        try:
            async for row in run.in_order(iter_records(source), max(8 * concurrency, 64)):
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                done += 1
                if progress is not None:
                    progress(done, total)
        finally:
            close = getattr(judge, "close", None)
            if close is not None:
                await close()

    part = f"{path}.part"
    try:
        remedy = "mend this and run the command again: it goes on where it was, and asks nothing twice"
        with naming_faults(part, remedy), open(part, "a", encoding="utf-8", newline="\n") as file:
            _alone(file, path)
            _run_to_end(asyncio.wait_for(work(file), total_timeout))
            file.flush()
            settle(part, path)
        return run.summary
    except (asyncio.TimeoutError, TimeoutError):
        raise JpoError(
            f"the total timeout of {total_timeout:g} s was reached; the verdicts so far are in {book.path}: run again to go on"
        ) from None
    finally:
        run.commits.flush()
        book.close()


def _run_to_end(work: Coroutine[Any, Any, None]) -> None:
    """asyncio.run; in a thread beside it where this one runs an event loop already, as a notebook's does."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(work)
        return
    under_way: list[tuple[asyncio.AbstractEventLoop, Any]] = []

    async def noted() -> None:
        under_way.append((asyncio.get_running_loop(), asyncio.current_task()))
        await work

    with ThreadPoolExecutor(1, "feedback") as pool:
        end = pool.submit(asyncio.run, noted())
        try:
            end.result()
        except BaseException:
            if not end.done() and under_way:  # an interrupt of this thread ends the other's work
                loop, task = under_way[0]
                loop.call_soon_threadsafe(task.cancel)
            raise


def _alone(file: Any, path: str) -> None:
    """Locks and empties the part file."""
    lock(file, f"{path}: another run is writing it; wait for it, or give another --output")
    file.truncate(0)


def _lines(source: Any) -> int | None:
    """Records of a JSON Lines file, counted without reading them; None for other sources."""
    if not isinstance(source, (str, os.PathLike)) or not os.fspath(source).lower().endswith((".jsonl", ".ndjson")):
        return None
    try:
        with open(source, "rb") as file:
            return sum(bool(line.strip()) for line in file)
    except OSError:
        return None


@dataclass
class Plan:
    """What a run would ask: records, questions (two a record, equal ones once), and what the journal knows of them."""

    records: int = 0
    questions: int = 0
    known: int = 0
    failed: int = 0  # given up before: asked again with retry_failed alone
    characters: int = 0  # of all questions
    dropped: Report = field(default_factory=Report)

    def __str__(self) -> str:
        left = self.questions - self.known - self.failed
        text = f"{self.records} records, {self.questions} questions: {self.known} known, {self.failed} failed before, {left} to ask"
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.dropped.dropped.most_common())
        return text + (f"; dropped unasked: {reasons}" if reasons else "")


def plan(
    source: Any,
    output: str | os.PathLike[str],
    judge: Any,
    *,
    journal: str | os.PathLike[str] | None = None,
    question: Question | None = None,
    max_attempts: int = MAX_ATTEMPTS,
) -> Plan:
    """What `acquire` with these arguments would ask; asks and writes nothing. judge: anything with `name` (and
    `key`)."""
    question = question or Question()
    path = os.fspath(journal) if journal is not None else f"{os.fspath(output)}.journal.sqlite"
    result = Plan()
    book = Journal(path, create=False)
    seen: set[bytes] = set()
    try:
        for record in iter_records(source):
            for candidate in candidates([record], report=result.dropped):
                result.records += 1
                for swapped in (False, True):
                    key, prompt = _key(judge, question, candidate, swapped)
                    if (mark := bytes.fromhex(key)) in seen:
                        continue
                    seen.add(mark)
                    result.questions += 1
                    result.characters += len(prompt)
                    entry = _known(book, key, question)
                    result.known += entry is not None and entry.verdict is not None
                    result.failed += (
                        entry is not None and entry.verdict is None and (entry.failed or entry.attempts >= max_attempts)
                    )
    finally:
        book.close()
    return result
