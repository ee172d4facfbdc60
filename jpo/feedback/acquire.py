"""Acquisition: every candidate is asked about twice, with the order swapped; agreement decides.

Equal verdicts of both orders give 0 or 1; the same position twice, a tie in either order, or two ties give 2 (equal). A
question that stays without a parsed verdict after max_attempts is recorded as failed: feedback null, never a preference.
Input is streamed and output written aside and renamed, so memory does not grow with the number of records.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sized
from dataclasses import dataclass, field
from typing import Any

from jpo.data.readers import Record, iter_records
from jpo.data.records import Candidate, candidates
from jpo.data.report import Report
from jpo.errors import JpoError
from jpo.feedback.journal import Journal, content_key
from jpo.feedback.judges import Judge, JudgeFault
from jpo.feedback.prompts import VERSION, judge_prompt, parse_reply


@dataclass
class Summary:
    """What a run did: feedback by value, failures, questions asked now, tokens."""

    feedback: dict[str, int] = field(default_factory=lambda: {"0": 0, "1": 0, "2": 0, "failed": 0})
    asked: int = 0
    tokens: int = 0
    consistent: int = 0
    dropped: Report = field(default_factory=Report)  # blank texts and the like: they are not judged

    def __str__(self) -> str:
        done = sum(self.feedback.values())
        parts = ", ".join(f"{key}: {value}" for key, value in self.feedback.items())
        share = f"{100 * self.consistent / done:.1f} %" if done else "-"
        return f"feedback {parts}; position-consistent {share}; {self.asked} questions asked now, {self.tokens} tokens"


def combine(first: str, second: str) -> int:
    """Verdicts of the two orders (the second with sides swapped) -> feedback 0, 1 or 2."""
    given = {"A": 0, "B": 1, "tie": 2}[first]
    swapped = {"A": 1, "B": 0, "tie": 2}[second]
    return given if given == swapped else 2


class _Run:
    def __init__(
        self,
        judge: Judge,
        journal: Journal,
        concurrency: int,
        max_attempts: int,
        retry_failed: bool,
        deadline: float | None,
    ):
        self.judge, self.journal, self.max_attempts, self.retry_failed = judge, journal, max_attempts, retry_failed
        self.deadline = deadline
        self.slots = asyncio.Semaphore(concurrency)
        self.locks: dict[str, asyncio.Lock] = {}
        self.summary = Summary()

    async def verdict(self, prompt: str, swapped: bool) -> tuple[str | None, str | None]:
        """(verdict, problem) of one order: from the journal, or asked now."""
        key = content_key(self.judge.name, VERSION, swapped, prompt)
        lock = self.locks.setdefault(key, asyncio.Lock())  # equal questions at once are asked once
        try:
            async with lock:
                return await self._known_or_asked(key, prompt, swapped)
        finally:
            self.locks.pop(key, None)

    async def _known_or_asked(self, key: str, prompt: str, swapped: bool) -> tuple[str | None, str | None]:
        known = self.journal.get(key)
        attempts = 0
        if known:
            verdict, attempts, _, problem = known
            if verdict:
                return verdict, None
            if attempts >= self.max_attempts:
                if not self.retry_failed:
                    return None, problem
                attempts = 0
        problem = "not asked: the total timeout was reached"
        while attempts < self.max_attempts:
            wait = 0.0
            async with self.slots:
                if self.deadline is not None and time.monotonic() >= self.deadline:
                    raise TimeoutError
                attempts += 1
                verdict, reply, tokens = None, None, 0
                try:
                    answer = await self.judge.ask(prompt)
                    reply, tokens = answer.text[:200], answer.tokens
                    verdict = parse_reply(answer.text)
                    problem = "" if verdict else "unparsed reply"
                except JudgeFault as fault:
                    problem = str(fault)
                    wait = min(0.25 * 2**attempts, 8.0) if fault.wait is None else fault.wait
                self.journal.put(key, self.judge.name, swapped, attempts, verdict, reply, problem or None, tokens)
                self.summary.asked += 1
                self.summary.tokens += tokens
            if verdict:
                return verdict, None
            if wait and attempts < self.max_attempts:
                left = wait if self.deadline is None else min(wait, max(0.0, self.deadline - time.monotonic()))
                await asyncio.sleep(left)
        return None, problem

    async def record(self, record: Record, candidate: Candidate) -> dict[str, Any]:
        """The record with feedback, annotator, both verdicts and, where it failed, the reason."""
        answers = await asyncio.gather(
            *(self.verdict(judge_prompt(candidate, swapped), swapped) for swapped in (False, True))
        )
        verdicts = [verdict for verdict, _ in answers]
        problems = [problem for verdict, problem in answers if verdict is None]
        out: dict[str, Any] = {**record, "feedback": None, "annotator": self.judge.name, "verdicts": verdicts}
        if problems:
            out["failure"] = problems[0]
            self.summary.feedback["failed"] += 1
        else:
            out["feedback"] = combine(str(verdicts[0]), str(verdicts[1]))
            self.summary.feedback[str(out["feedback"])] += 1
            self.summary.consistent += {"A": "B", "B": "A", "tie": "tie"}[str(verdicts[0])] == verdicts[1]
        return out


async def _in_order(run: _Run, records: Iterable[Record], window: int) -> AsyncIterator[dict[str, Any]]:
    """Records judged side by side, given back in their order; at most `window` are held."""
    waiting: list[asyncio.Task[dict[str, Any]]] = []
    try:
        for record in records:
            found = candidates([record], report=run.summary.dropped)
            if not found:
                continue
            waiting.append(asyncio.create_task(run.record(record, found[0])))
            if len(waiting) >= window:
                yield await waiting.pop(0)
        while waiting:
            yield await waiting.pop(0)
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


def acquire(
    source: Any,
    output: str | os.PathLike[str],
    judge: Judge,
    *,
    journal: str | os.PathLike[str] | None = None,
    concurrency: int = 8,
    max_attempts: int = 3,
    retry_failed: bool = False,
    total_timeout: float | None = None,
    progress: Callable[[int, int | None], None] | None = None,
) -> Summary:
    """Judge every candidate of `source` (file or records) and write them with `feedback` to `output` (JSONL).

    Conditional: {instruction, response_0, response_1}; joint: {instruction_0, response_0, instruction_1, response_1}; all
    other keys travel along. The journal (default: output + ".journal.sqlite") makes a killed run go on where it was.
    TimeoutError after total_timeout seconds: the verdicts so far are kept, the output is not written.
    """
    for name, value in (("concurrency", concurrency), ("max_attempts", max_attempts)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise JpoError(f"{name}: expected a positive whole number, got {value!r}")
    path = os.fspath(output)
    book = Journal(journal if journal is not None else path + ".journal.sqlite")
    deadline = None if total_timeout is None else time.monotonic() + total_timeout
    part = f"{path}.part"

    async def work() -> Summary:
        run = _Run(judge, book, concurrency, max_attempts, retry_failed, deadline)
        done, total = 0, len(source) if isinstance(source, Sized) and not isinstance(source, str) else None
        with open(part, "w", encoding="utf-8") as file:
            async for row in _in_order(run, iter_records(source), max(2 * concurrency, 16)):
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                done += 1
                if progress is not None:
                    progress(done, total)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
        return run.summary

    try:
        return asyncio.run(work())
    except TimeoutError:
        raise JpoError(
            f"the total timeout of {total_timeout:g} s was reached; the verdicts so far are in {book.path}: run again to go on"
        ) from None
    finally:
        book.close()
