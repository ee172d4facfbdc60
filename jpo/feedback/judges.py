"""The judges of --judge: an OpenAI-compatible server, a local model, a Python callable. Knows prompts; never
records."""

from __future__ import annotations

import asyncio
import inspect
import queue
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from jpo.defaults import CONCURRENCY, FUNCTION_CONCURRENCY, MAX_TOKENS, TIMEOUT
from jpo.errors import JpoError
from jpo.feedback.openai_judge import OpenAIJudge, retry_after, server_name
from jpo.feedback.prompts import VERSION, Prompt, Question
from jpo.feedback.protocol import Judge, JudgeFault, Reply
from jpo.functions import function_named


def slots(spec: str, concurrency: int | None = None) -> int:
    """Questions at once of a judge by its spec; `concurrency` where it is given."""
    return concurrency if concurrency is not None else FUNCTION_CONCURRENCY if ":" in spec else CONCURRENCY


class Worker:
    """One thread that runs plain functions one after the other, in the order they came, beside the event loop.

    A daemon: a function that hangs keeps neither the run from its total timeout nor the process from its end."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    async def run(self, function: Callable[[Any], Any], prompt: str) -> Any:
        """function(prompt), or what it raised."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, daemon=True, name="judge")
            self._thread.start()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        self._jobs.put((loop, future, function, prompt))
        return await future

    def _serve(self) -> None:
        while True:
            loop, future, function, prompt = self._jobs.get()
            if future.cancelled():
                continue
            result, error = None, None
            try:
                result = function(prompt)
            except BaseException as caught:  # SystemExit too: a judge's end is not ours
                error = caught
            try:
                loop.call_soon_threadsafe(_settle, future, result, error)
            except RuntimeError:  # the loop has ended: nobody waits any more
                continue


def _settle(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(JudgeFault(f"{type(error).__name__}: {error}"))
    else:
        future.set_result(result)


class CallableJudge:
    """A Python function of the prompt's text that returns "A", "B" or (protocol tie) "tie", or an awaitable of it.

    A plain function runs in one thread of its own, a call at a time; coroutines run side by side. What it raises is a
    fault, and so is a call that takes more than `timeout` seconds (None: no end)."""

    def __init__(self, function: Callable[[str], Any], name: str, timeout: float | None = None):
        self.function, self.name, self.timeout = function, name, timeout
        self._worker = Worker()

    @classmethod
    def named(cls, spec: str, timeout: float | None = None) -> CallableJudge:
        """From "module:function"; the current folder is searched too."""
        function = function_named(spec, "judge", "module:function that can be imported")
        return cls(function, f"callable:{spec}", timeout)

    async def ask(self, prompt: str) -> Reply:
        """One call."""
        try:
            result = await asyncio.wait_for(self._call(prompt), self.timeout)
        except (asyncio.TimeoutError, TimeoutError):
            self._worker = Worker()  # the one that hangs is left behind
            raise JudgeFault(f"no reply within {self.timeout:g} s") from None
        except JudgeFault:
            raise
        except Exception as error:
            raise JudgeFault(f"{type(error).__name__}: {error}") from None
        return Reply(str(result))

    async def _call(self, prompt: str) -> Any:
        if inspect.iscoroutinefunction(self.function):
            return await self.function(prompt)
        result = await self._worker.run(self.function, prompt)
        return await result if inspect.isawaitable(result) else result


class LocalJudge:
    """A model of ours: the answer of the highest log-likelihood, without the model's preference for a letter.

    Small models prefer A or B whatever it stands for. How much is read off a question about texts that say nothing
    (contextual calibration, Zhao et al. 2021, arXiv 2102.09690) and taken from both letters alike; tie, where the
    protocol has it, keeps its likelihood, because to that question it is the right answer. The prompt is computed once
    for all answers."""

    def __init__(self, lm: Any, answers: tuple[str, ...] = ("A", "B", "tie")):
        from jpo.evaluate.sampling import weights_digest

        self.lm, self.name, self.answers = lm, f"local:{lm.source}", answers
        self.key = f"{self.name}:{weights_digest(lm)}:letters calibrated"
        self._lead: dict[str, float] = {}  # neutral prompt -> log p(A) - log p(B): conditional and joint
        self._worker = Worker()

    def scores(self, prompt: str) -> Any:
        """(answers,) float64 log-likelihoods of the answers A, B and, if it is one, tie; not calibrated."""
        return self.lm.sequence_logps(
            [f"{prompt}\n\nAnswer:"] * len(self.answers), [f" {answer}" for answer in self.answers], add_eos=False
        )

    def calibrated(self, prompt: Prompt) -> Any:
        """(answers,) float64: scores, A and B without the lead that one has under the neutral prompt."""
        neutral = prompt.neutral
        if neutral not in self._lead:
            a, b = self.scores(neutral)[:2]
            self._lead[neutral] = float(a - b)
        half = self._lead[neutral] / 2
        return self.scores(prompt) - np.array([half, -half, 0.0][: len(self.answers)])

    async def ask(self, prompt: str) -> Reply:
        """One pass of the model, in a thread beside the event loop. JudgeFault for a prompt without its neutral
        twin."""
        if not isinstance(prompt, Prompt):
            raise JudgeFault("the local judge is asked jpo.feedback.prompts.Prompt, which knows its neutral twin")
        scores = await self._worker.run(self.calibrated, prompt)
        return Reply(self.answers[int(scores.argmax())])


def make_judge(
    spec: str,
    *,
    base_url: str | None = None,
    model: str | None = None,
    timeout: float = TIMEOUT,
    temperature: float | None = 0.0,
    max_tokens: int | None = MAX_TOKENS,
    question: Question | None = None,
) -> Judge:
    """The judge of --judge: "openai", "local" or "module:function". timeout: seconds for one request. temperature and
    max_tokens: what an openai server is sent; None: nothing. question: what it will be asked, for its answers."""
    answers = (question or Question()).answers
    if spec == "openai":
        if not model:
            raise JpoError("--judge openai needs --model, the name of the model on the server")
        sent: dict[str, Any] = {"temperature": temperature, "max_tokens": max_tokens}
        return OpenAIJudge(model, base_url, timeout, **sent, answers=answers)
    if spec == "local":
        import jpo

        return LocalJudge(jpo.load(model or "smollm2-135m"), answers)
    if ":" in spec:
        return CallableJudge.named(spec, timeout)
    raise JpoError(f"judge: expected openai, local or module:function, got {spec!r}")


__all__ = [
    "VERSION",
    "CallableJudge",
    "Judge",
    "JudgeFault",
    "LocalJudge",
    "OpenAIJudge",
    "Reply",
    "make_judge",
    "retry_after",
    "server_name",
    "slots",
]
