"""What a judge's server answers: through the judge, the reading of a verdict, and the journal."""

import asyncio
import gzip
import importlib
import json
import os
import time

from jpo.feedback import acquire
from jpo.feedback.entries import Entry
from jpo.feedback.journal import Journal
from jpo.feedback.openai_judge import MAX_WAIT, OpenAIJudge
from jpo.feedback.prompts import Question

from . import mutate


class Server:
    """What a judge's server answers: status, headers, body, and the text that a verdict is read from and journalled."""

    BODY = {
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "Output (a)"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11},
    }
    HEADERS = ("content-type", "content-encoding", "retry-after", "retry-after-ms", "location") + tuple(
        f"x-ratelimit-{which}-{what}" for which in ("remaining", "reset") for what in ("requests", "tokens")
    )
    SAID = ("application/json", "gzip", "deflate", "gzip, gzip", "br", "identity", "0", "1e400", "nan", "-1", "6m0s",
            "99999999999999999999h", "Wed, 21 Oct 2015 07:28:00 GMT", "\u0660", "http://other.host/v1", "/v1", "//")  # fmt: skip
    PIECES = ("A", "B", "tie", "(a)", "Output (b)", "Answer:", "**", "\n", "</think>", "<answer>", " is better", " because ",
              "\ud800", "\x00", "\u200b", "\\boxed{", "> ", "_" * 2000, "A " * 500, "neither", "\u0130")  # fmt: skip

    def __init__(self, folder):
        os.environ["OPENAI_API_KEY"] = "sk-0123456789abcdef"
        self.loop = asyncio.new_event_loop()
        self.judge = OpenAIJudge("m", "http://localhost:9/v1", 5.0)
        client = self.loop.run_until_complete(self._client())
        library = importlib.import_module(type(client._transport).__module__.split(".")[0])
        client._transport = library.MockTransport(lambda request: self._answer(library))
        self.journal = Journal(folder / "journal.sqlite")
        self.questions = acquire._Run(self.judge, self.journal, Question(), 1, 1, False)

    async def _client(self):
        return self.judge._openai()._client

    def _answer(self, library):
        if self.redirects > 3:
            raise library.ConnectError("redirected for ever")
        self.redirects += 1
        return library.Response(self.status, headers=self.headers, content=_pieces(self.body))

    def case(self, rng):
        body = self.BODY
        if rng.random() < 0.5:
            body = json.loads(json.dumps(body))
            body["choices"][0]["message"]["content"] = "".join(rng.choices(self.PIECES, k=rng.choice((1, 3, 8))))
        body = mutate.of_json(rng, body) if rng.random() < 0.6 else mutate.dumped(body)
        if rng.random() < 0.2:
            body = gzip.compress(body, 1) if rng.random() < 0.8 else gzip.compress(bytes(4 << 20), 1)
        head = {"status": rng.choice((200, 200, 200, 200, 204, 302, 307, 400, 422, 429, 500, 999))}
        head["headers"] = [[rng.choice(self.HEADERS), rng.choice(self.SAID)] for _ in range(rng.choice((0, 1, 3)))]
        return {"body": body, "head.json": json.dumps(head).encode()}

    def run(self, case):
        head = json.loads(case["head.json"])
        self.status, self.body, self.redirects = head["status"], case["body"], 0
        self.headers = [(name, text.encode()) for name, text in head["headers"]]
        self.questions.quiet_until = 0.0
        entry, wait = self.loop.run_until_complete(self._ask())
        self.journal.put([entry])
        assert self.journal.get(entry.key) == entry and (entry.verdict or entry.problem)
        assert 0 <= wait <= MAX_WAIT and self.questions.quiet_until <= time.monotonic() + MAX_WAIT

    async def _ask(self):
        return await self.questions._attempt(Entry("f" * 64, self.judge.name, False, 0), "Which?", 1)


async def _pieces(body):
    for at in range(0, len(body), 1 << 16):
        yield body[at : at + (1 << 16)]
