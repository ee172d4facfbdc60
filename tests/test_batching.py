"""Streams that join and leave one another: the same tokens alone and beside others, scores that equal a forward pass,
pages that all come back, fairness, cancellation and bounds."""

import queue
import random
import threading
import time

import numpy as np
import pytest
from reference.models import adapter_of, write_random

import jpo
from jpo import _core
from jpo.batching import CHUNK, Batcher, scored
from jpo.cache import PAGE, Cache, pages_of
from jpo.errors import JpoError
from jpo.streams import Drawn, Failed, Full, PromptRead, Request

OWN_KERNELS = _core.system_info()["isa"] in ("avx2", "avx512")


class Heard:
    """The events of some requests, in order."""

    def __init__(self, batcher, *requests):
        self.queue, self.events = queue.Queue(), [[] for _ in requests]
        self.left = sum(request.n for request in requests)
        self.jobs = batcher.submit(requests, lambda place, event: self.queue.put((place, event)))

    def all(self, seconds=300):
        while self.left:
            place, event = self.queue.get(timeout=seconds)
            self.events[place].append(event)
            if isinstance(event, Failed):
                raise AssertionError(event.message)
            self.left -= isinstance(event, Drawn) and bool(event.finish)
        return self

    def tokens(self, place=0, sample=0):
        return [e.token.token_id for e in self.drawn(place, sample)]

    def logps(self, place=0, sample=0):
        return [e.token.logp for e in self.drawn(place, sample)]

    def text(self, place=0, sample=0):
        return "".join(e.text for e in self.drawn(place, sample))

    def drawn(self, place=0, sample=0):
        return [e for e in self.events[place] if isinstance(e, Drawn) and e.sample == sample]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("batching")
    _, values = write_random(folder / "base", max_position_embeddings=1024)
    for number in (1, 2):
        adapter_of(folder / f"a{number}", values, seed=number, base=str(folder / "base"))
    return folder


@pytest.fixture
def model(folder):
    lm = jpo.load(str(folder / "base"))
    adapters = {"base": None}
    for name in ("a1", "a2"):
        lm.load_adapter(folder / name)
        adapters[name] = lm.take_adapter()
    made = []

    def make(**options):
        made.append(Batcher(lm, adapters, **options))
        return made[-1]

    make.lm, make.adapters = lm, adapters
    yield make
    for batcher in made:
        batcher.close()


def ids(count, seed=0):
    return [int(i) for i in np.random.default_rng(seed).integers(3, 512, count)]


def noise(count, seed=0):
    """Requests of all kinds."""
    rng = random.Random(seed)
    return [
        Request(rng.choice(["base", "a1", "a2"]), ids(rng.randrange(1, 120), i), rng.randrange(1, 30),
                temperature=rng.choice([0.0, 0.7, 1.0]), seed=i, n=rng.choice([1, 1, 3]), top=rng.choice([0, 2]))
        for i in range(count)
    ]  # fmt: skip


@pytest.mark.skipif(not OWN_KERNELS, reason="OpenBLAS serves here, whose sums depend on a call's shape")
def test_a_request_gives_the_same_alone_and_beside_others(model):
    batcher = model()
    requests = [
        Request(name, ids(length, length), 20, n=2, temperature=temperature, seed=11, top=1, score_prompt=True)
        for name, length, temperature in [("base", 1, 0.0), ("a1", 20, 1.0), ("base", 40, 1.0), ("a2", 300, 0.0)]
    ]
    alone = [Heard(batcher, request).all().events[0] for request in requests]
    before = Heard(batcher, *noise(12, 1))
    beside = [Heard(batcher, request) for request in requests]
    after = Heard(batcher, *noise(12, 2))
    for one, events in zip(beside, alone, strict=True):
        found = one.all().events[0]
        assert found[0] == events[0] and isinstance(found[0], PromptRead), "bit for bit"
        assert sorted(found[1:], key=lambda e: e.sample) == sorted(events[1:], key=lambda e: e.sample)
    before.all(), after.all()
    assert batcher.cache.used == 0 and batcher._reserved == 0


def test_it_is_what_generate_draws(model):
    batcher = model()
    prompts = ["Name a colour.", "Add 2 and 3.", "x"]
    for name in ("base", "a1"):
        found = Heard(batcher, *[
            Request(name, model.lm.tokenizer.prompt_ids(p), 20, n=2, temperature=t, seed=5, top_k=40, top_p=0.95,
                    ends=frozenset(model.lm.tokenizer.eos_token_ids), stops=("e",))
            for p in prompts for t in (0.0, 1.0)
        ]).all()  # fmt: skip
        if model.adapters[name]:
            model.lm.use_adapter(model.adapters[name])
        for place, prompt in enumerate(prompts):
            for offset, temperature in enumerate((0.0, 1.0)):
                (wanted,) = model.lm.generate([prompt], n=2, temperature=temperature, seed=5, top_k=40, top_p=0.95,
                                              max_new_tokens=20, stop=["e"])  # fmt: skip
                for sample, completion in enumerate(wanted):
                    at = (2 * place + offset, sample)
                    assert found.tokens(*at) == completion.token_ids and found.text(*at) == completion.text
                    assert sum(found.logps(*at)) == pytest.approx(completion.logp, rel=1e-5)
                    assert found.drawn(*at)[-1].finish == completion.finish_reason
        batcher._installed = None  # the model was used beside it
        model.lm.take_adapter()


@pytest.mark.parametrize("length", [2, PAGE, CHUNK + 1])
def test_scores_of_prompt_and_tokens_equal_a_forward_pass(model, length):
    batcher = model()
    prompt = ids(length, 3)
    request = Request("a1", prompt, 70, temperature=1.0, seed=1, top=3, score_prompt=True, witnesses=("base", "a2"))
    heard = Heard(batcher, request).all()
    (read,) = [e for e in heard.events[0] if isinstance(e, PromptRead)]
    tokens = [*read.tokens, *(e.token for e in heard.drawn())]
    whole = [token.token_id for token in tokens]
    assert whole[:length] == prompt and len(whole) == length + 70 and tokens[0].logp is None
    for place, name in enumerate(("a1", "base", "a2")):
        if model.adapters[name]:
            model.lm.use_adapter(model.adapters[name])
        logits = model.lm.logits(whole, adapter=model.adapters[name] is not None).astype(np.float64)
        wanted = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
        got = [t.logp if place == 0 else t.witnesses[place - 1] for t in tokens[1:]]
        np.testing.assert_allclose(got, wanted[np.arange(len(whole) - 1), whole[1:]], rtol=2e-4, atol=2e-4)
        if place == 0:
            for row, token in zip(wanted, tokens[1:]):
                best = np.argsort(-row, kind="stable")[:3]
                np.testing.assert_allclose([logp for _, logp in token.top], row[best], rtol=2e-4, atol=2e-4)
    batcher._installed = None


def test_short_requests_pass_long_ones(model):
    batcher = model(streams=8)
    long = Heard(batcher, *[Request("base", ids(900, i), 40, temperature=0.0) for i in range(3)])
    short = Heard(batcher, Request("base", ids(5), 3, temperature=0.0)).all()
    assert len(short.tokens()) == 3
    ended = sum(isinstance(e, Drawn) and bool(e.finish) for _, e in list(long.queue.queue))
    assert ended == 0, "the short request waited for a long one"
    long.all()


def test_many_small_requests_do_not_starve_a_large_one(model):
    batcher = model(streams=4, queue=400)
    first = Heard(batcher, Request("base", ids(5), 60, n=3, temperature=0.0))
    large = Heard(batcher, Request("base", ids(5), 5, n=4, temperature=0.0))
    small = Heard(batcher, *[Request("base", ids(5, i), 4, temperature=0.0) for i in range(100)])
    large.all()
    assert small.queue.qsize() < 100 * 5, "all small ones went first"
    first.all(), small.all()


def test_a_cancelled_request_frees_its_room(model):
    batcher = model(streams=1, queue=8)
    heard = Heard(batcher, Request("base", ids(5), 900, temperature=0.0))
    waiting = Heard(batcher, Request("base", ids(5), 900, temperature=0.0))
    assert isinstance(heard.queue.get(timeout=20)[1], PromptRead)
    waiting.jobs[0].cancel()
    heard.jobs[0].cancel()
    Heard(batcher, Request("base", ids(5), 2, temperature=0.0)).all()
    assert batcher.cache.used == 0 and batcher.waiting == 0 and batcher.counts.cancelled == 2


def test_the_queue_is_bounded_and_all_or_none_are_taken(model):
    batcher = model(streams=2, queue=3)
    started = Heard(batcher, *[Request("base", ids(5), 400, temperature=0.0) for _ in range(2)])
    while batcher.speaking < 2:
        time.sleep(0.01)
    Heard(batcher, Request("base", ids(3), 1), Request("base", ids(3), 1), Request("base", ids(3), 1))
    with pytest.raises(Full, match="try again in") as full:
        Heard(batcher, Request("base", ids(3), 1))
    assert 1 <= full.value.after <= 60
    for job in started.jobs:
        job.cancel()


def test_what_can_never_be_served_is_named(model):
    batcher = model(streams=4, cache_tokens=8 * PAGE)
    assert batcher.longest == 6 * PAGE
    with pytest.raises(JpoError, match="n: 5 samples"):
        Heard(batcher, Request("base", ids(3), 1, n=5))
    with pytest.raises(JpoError, match="do not fit"):
        Heard(batcher, Request("base", ids(600), 1))
    with pytest.raises(JpoError, match="prompt: is empty"):
        Heard(batcher, Request("base", [], 1))
    for wrong in ({"streams": 0}, {"queue": -1}, {"cache_tokens": PAGE}):
        with pytest.raises(JpoError, match=next(iter(wrong))):
            model(**wrong)


def test_a_full_cache_makes_requests_wait(model):
    batcher = model(cache_tokens=8 * PAGE)
    heard = Heard(batcher, *[Request("base", ids(100, i), 80, temperature=0.0) for i in range(5)]).all()
    assert all(len(heard.tokens(place)) == 80 for place in range(5)) and batcher.cache.used == 0


def test_a_pass_that_fails_ends_its_requests_and_no_others(model, monkeypatch):
    batcher = model()
    run = Cache.run

    def fails(self, pieces, **options):
        if any(7 in piece.tokens for piece in pieces):
            raise MemoryError("none left")
        run(self, pieces, **options)

    monkeypatch.setattr(Cache, "run", fails)
    heard = Heard(batcher, Request("base", [5, 7], 3))
    with pytest.raises(AssertionError, match="MemoryError: none left"):
        heard.all()
    monkeypatch.undo()
    assert Heard(batcher, Request("base", [5, 8], 3, temperature=0.0)).all().tokens() and batcher.cache.used == 0


def test_closing_ends_what_is_on_its_way(model):
    batcher = model(streams=1)
    heard = [Heard(batcher, Request("base", ids(5), 900)) for _ in range(3)]
    threading.Timer(0.1, batcher.close).start()
    for one in heard:
        with pytest.raises(AssertionError, match="shutting down"):
            one.all()
    assert not batcher.alive
    with pytest.raises(JpoError, match="shutting down"):
        Heard(batcher, Request("base", ids(5), 1))


def test_prompt_only_and_pages(model):
    batcher = model()
    heard = Heard(batcher, Request("base", ids(70), 0, score_prompt=True)).all()
    assert heard.drawn()[-1] == Drawn(0, None, "", "length")
    assert len(heard.events[0][0].tokens) == 70
    assert [pages_of(n) for n in (0, 1, PAGE, PAGE + 1)] == [0, 1, 1, 2]


def test_alternatives_are_the_likeliest_first():
    z = np.random.default_rng(0).normal(size=(3, 50)).astype(np.float32)
    logps, top = scored(z, np.array([4, 5, 6]), 5)
    wanted = z - np.logaddexp.reduce(z.astype(np.float64), axis=1, keepdims=True)
    np.testing.assert_allclose(logps, wanted[np.arange(3), [4, 5, 6]], rtol=1e-5)
    for row, found in zip(wanted, top):
        assert [token for token, _ in found] == np.argsort(-row)[:5].tolist()
    assert [t[0][0] for t in scored(z, np.array([4, 5, 6]), 1)[1]] == z.argmax(axis=1).tolist()
