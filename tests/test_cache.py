"""Keys and values as they are stored: the bytes, what attention reads out of them, pages that come back, bounds."""

import threading

import numpy as np
import pytest
from reference.models import adapter_of, write_random

import jpo
from jpo import _core, cache, generation
from jpo.batching import Batcher
from jpo.cache import CACHE_TYPES, PAGE, Cache, row_bytes
from jpo.errors import JpoError
from jpo.formats import BLOCKS
from jpo.storage import _bfloat16, _q8_0
from jpo.streams import Request

STORED = {"float32": "F32", "bfloat16": "BF16", "float16": "F16", "q8_0": "Q8_0"}
NARROW = [name for name in CACHE_TYPES if name != "float32"]
SHAPES = {
    "plain": {"head_dim": 32},
    "one-row-groups": {"num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 64},
    "window": {"model_type": "mistral", "sliding_window": 40, "attention_bias": None, "mlp_bias": None, "head_dim": 96},
    "softcap": {"model_type": "gemma2", "head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 50,
                "hidden_activation": "gelu_pytorch_tanh", "attn_logit_softcapping": 3.0,
                "final_logit_softcapping": 5.0, "mlp_bias": None, "hidden_act": None},
}  # fmt: skip


@pytest.fixture(scope="module", params=SHAPES)
def lm(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache") / request.param
    write_random(folder, max_position_embeddings=512, vocab_size=512, num_hidden_layers=2, **SHAPES[request.param])
    return jpo.load(str(folder))


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    _, values = write_random(folder / "base", max_position_embeddings=512, head_dim=32)
    adapter_of(folder / "adapter", values, seed=1, base=str(folder / "base"))
    return folder


def bytes_of(values, dtype):
    """Float32 values (..., n) as NumPy stores them in the type."""
    if dtype == "float32":
        return values
    raw = {
        "bfloat16": lambda: _bfloat16(values),
        "float16": lambda: values.astype("<f2").view(np.uint8),
        "q8_0": lambda: _q8_0(values),
    }[dtype]()
    return np.ascontiguousarray(raw.reshape(*values.shape[:-1], -1))


def widened(data, width, dtype):
    """Stored rows as float32."""
    if dtype == "float32":
        return data
    out = np.empty((data.size // data.shape[-1], width), np.float32)
    _core.widen_rows(out, np.ascontiguousarray(data).reshape(-1), len(out), width, STORED[dtype], 0)
    return out.reshape(*data.shape[:-1], width)


def decode(lm, k, v, dtype, tokens, first, rows, ranges):
    """Logits of tokens at positions first.. whose keys go to `rows`, over `ranges`."""
    count = len(tokens)
    arrays = [np.asarray(x, dtype=np.int32) for x in (
        tokens, range(first, first + count), rows, [(0, count, 0, len(ranges))], ranges, range(count))]  # fmt: skip
    return lm._core.decode(k, v, *arrays, False, 0, STORED[dtype])


@pytest.mark.parametrize("dtype", CACHE_TYPES)
def test_the_bytes_are_those_of_the_type(lm, dtype, isa):
    """The first layer's keys do not depend on what was stored before."""
    tokens = [5, 17, 300, 2, 44]
    caches = {name: Cache(lm, 1, name) for name in ("float32", dtype)}
    for name, one in caches.items():
        decode(lm, one.k, one.v, name, tokens, 0, range(5), [(0, 5)])
    for exact, stored in ((caches["float32"].k, caches[dtype].k), (caches["float32"].v, caches[dtype].v)):
        assert np.array_equal(stored[0, :5], bytes_of(exact[0, :5], dtype))
    block, size = BLOCKS[STORED[dtype]]
    assert row_bytes(lm.config, dtype) * block == row_bytes(lm.config) // 4 * size


@pytest.mark.parametrize("count", [1, 3, 40])  # dot products along the keys; panels
@pytest.mark.parametrize("dtype", NARROW)
def test_attention_is_that_over_the_widened_values(lm, dtype, count, isa):
    """Bit for bit: the query's own keys go beside the path, which reads rows that stand there already."""
    one = Cache(lm, 5, dtype)
    random = np.random.default_rng(3)
    c = lm.config
    values = random.normal(size=(2, c["num_hidden_layers"], 6 * PAGE, c["num_key_value_heads"] * c["head_dim"]))
    one.k[:], one.v[:] = (bytes_of(part.astype(np.float32), dtype) for part in values)
    wide = [widened(part, values.shape[-1], dtype) for part in (one.k, one.v)]
    ranges = [(PAGE, PAGE), (0, 10), (3 * PAGE, 30)]  # 104 keys in three pieces
    tokens = random.integers(3, 500, count).tolist()
    spare = range(4 * PAGE, 4 * PAGE + count)
    found = decode(lm, one.k, one.v, dtype, tokens, 104 - count, spare, ranges)
    assert np.array_equal(found, decode(lm, *wide, "float32", tokens, 104 - count, spare, ranges))
    rounding = {"bfloat16": 0.1, "float16": 0.02, "q8_0": 0.2}[dtype]
    exact = [part.astype(np.float32) for part in values]
    other = decode(lm, *exact, "float32", tokens, 104 - count, spare, ranges)
    assert 0 < np.abs(found - other).max() < rounding * np.abs(other).max()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_texts_do_not_depend_on_neighbours_threads_or_places(plain, dtype):
    lm = jpo.load(str(plain / "base"))
    lm.load_adapter(plain / "adapter")
    prompts = ["Name a colour and say why it is the best of all. " * k for k in (1, 4, 2)]
    options = {"n": 2, "temperature": 1.0, "max_new_tokens": 70, "seed": 3, "cache_dtype": dtype}
    before = _core.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3):
            _core.set_num_threads(threads)
            found.append(lm.generate(prompts, **options))
        assert found[0] == found[1] == found[2]
    finally:
        _core.set_num_threads(before)
    assert all(len(c.token_ids) > PAGE or c.finish_reason == "stop" for some in found[0] for c in some)
    for place, prompt in list(enumerate(prompts))[1:]:  # other rows of the cache; the numbers name the same draws
        (alone,) = lm.generate([prompt], ids=[place], **options)
        assert [c.token_ids for c in alone] == [c.token_ids for c in found[0][place]]


def batcher_texts(batcher, requests):
    """Token ids and log-likelihoods of requests that are served together."""
    done, out, ended = threading.Event(), [[] for _ in requests], []

    def hear(place, event):
        if token := getattr(event, "token", None):
            out[place].append((token.token_id, token.logp))
        if getattr(event, "finish", ""):
            ended.append(place)
            if len(ended) == len(requests):
                done.set()

    batcher.submit(requests, hear)
    assert done.wait(60)
    return out


@pytest.mark.parametrize("dtype", ["bfloat16"])
def test_served_texts_are_the_same_alone_and_beside_others(plain, dtype):
    lm = jpo.load(str(plain / "base"))
    lm.load_adapter(plain / "adapter")
    adapter = lm.take_adapter()
    random = np.random.default_rng(0)
    requests = [
        Request(name, random.integers(3, 500, length).tolist(), 70, temperature=1.0, seed=length)
        for name, length in (("base", 3), ("tuned", 100), ("base", 64))
    ]
    batcher = Batcher(lm, {"base": None, "tuned": adapter}, cache_dtype=dtype, cache_tokens=4096)
    try:
        together = batcher_texts(batcher, requests)
        alone = [batcher_texts(batcher, [request])[0] for request in requests]
        if _core.system_info()["isa"] in ("avx2", "avx512"):  # elsewhere OpenBLAS's sums depend on a call's shape
            assert together == alone
        assert [[token for token, _ in some] for some in together] == [[token for token, _ in some] for some in alone]
        assert batcher.cache.used == 0
    finally:
        batcher.close()


class Watched(Cache):
    """A cache that says how many pages were out at most."""

    made: list["Watched"] = []

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.most = 0
        self.made.append(self)

    def take(self):
        page = super().take()
        self.most = max(self.most, self.used)
        return page


def test_pages_and_places_serve_the_next_stream(plain, monkeypatch):
    """Seventy streams of different lengths over 32 places: what each gives is what it gives alone."""
    lm = jpo.load(str(plain / "base"))
    monkeypatch.setattr(Watched, "made", [])
    monkeypatch.setattr(generation, "Cache", Watched)
    prompts = ["ab " * (5 * i % 31 + 1) for i in range(35)]
    options = {"n": 2, "max_new_tokens": 12, "temperature": 1.0, "stop_token_ids": range(3, 60)}
    heard = []
    many = lm.generate(prompts, on_token=lambda *event: heard.append(event), **options)
    (watched,) = Watched.made
    lengths = [len(lm.tokenizer.prompt_ids(prompt)) for prompt in prompts]
    whole = sum(cache.pages_of(length) + 2 for length in lengths)
    assert watched.used == 0 and watched.most < whole / 1.5
    assert len({len(c.token_ids) for some in many for c in some}) > 2, "they end at different times"
    for place, some in enumerate(many):
        for sample, completion in enumerate(some):
            assert completion.token_ids == [token for p, s, token in heard if (p, s) == (place, sample)]
    for place, some in list(enumerate(many))[::9]:
        (alone,) = lm.generate([prompts[place]], ids=[place], **options)
        assert [c.token_ids for c in alone] == [c.token_ids for c in some]


def test_what_does_not_fit_is_named(plain, tmp_path):
    lm = jpo.load(str(plain / "base"))
    with pytest.raises(JpoError, match="cache_dtype: expected one of float32, bfloat16, float16, q8_0, got 'int4'"):
        lm.generate(["a"], cache_dtype="int4")
    with pytest.raises(JpoError, match=r"1125899906842624 tokens \(.* GiB as float32\) do not fit.*cache_dtype="):
        Cache(lm, 1 << 44)
    with pytest.raises(JpoError, match="GiB as bfloat16"):
        Cache(lm, 1 << 44, "bfloat16")
    write_random(tmp_path / "narrow", head_dim=24)
    narrow = jpo.load(str(tmp_path / "narrow"))
    assert narrow.generate(["a"], max_new_tokens=2, cache_dtype="float16")
    with pytest.raises(JpoError, match="q8_0 stores blocks of 32 values, but this model's heads have 24"):
        narrow.generate(["a"], cache_dtype="q8_0")
    one = Cache(lm, 1, "bfloat16")
    for k, dtype in ((one.k, "float32"), (one.k, "q8_0"), (Cache(lm, 1).k, "bfloat16"), (one.k, "float16")):
        if (k is one.k) and dtype == "float16":
            continue  # as many bytes
        with pytest.raises((ValueError, TypeError)):
            decode(lm, k, k, dtype, [5], 0, [0], [(0, 1)])
    arrays = [np.asarray(x, dtype=np.int32) for x in ([5], [0], [0], [(0, 1, 0, 1)], [(0, 1)], [0])]
    for name in ("Q4_1", "Q2_K", "F64", ""):
        with pytest.raises(ValueError, match="not stored as"):
            lm._core.decode(one.k, one.v, *arrays, False, 0, name)
