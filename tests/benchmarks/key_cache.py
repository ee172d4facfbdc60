"""How keys and values are stored while tokens come: `python -m tests.benchmarks.key_cache [--model smollm2-135m]`.

For each type: the greedy tokens that stand before the first one that differs from float32's, tokens/s of 1, 16 and 64
streams in turns (best of --rounds; "in one piece": without pages), and the memory of 64 streams of different
lengths."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np

sys.path[:0] = [str(Path(__file__).parents[2])]

import jpo  # noqa: E402
from jpo.cache import CACHE_TYPES, PAGE, Cache, row_bytes  # noqa: E402
from jpo.errors import JpoError  # noqa: E402

TEXT = (
    "The quick brown fox jumps over the lazy dog while the old farmer counts his sheep and the rain falls softly on the "
    "roof of the barn. Every morning the children walk along the river to a small school. Write about how people keep "
    "basil, thyme and mint fresh in a kitchen that has little light and no garden. "
)


def prompts_of(lm, count, length):
    """`count` prompts of `length` tokens from different places of one text."""
    ids = lm.tokenizer.encode(TEXT * (2 + (length + 11 * count) // 60))
    return [lm.tokenizer.decode(ids[11 * i : 11 * i + length]) for i in range(count)]


def agreement(lm, dtype, exact, prompts, tokens):
    """(tokens before the first other one, tokens, texts that are the same)."""
    found = lm.generate(prompts, temperature=0.0, max_new_tokens=tokens, cache_dtype=dtype)
    before = total = same = 0
    for (one,), (other,) in zip(exact, found, strict=True):
        equal = [a == b for a, b in zip(one.token_ids, other.token_ids)]  # one may have ended
        before += equal.index(False) if False in equal else len(equal)
        total += len(one.token_ids)
        same += one.token_ids == other.token_ids
    return before, total, same


class Streams:
    """`count` streams that hold `keys` keys each, somewhere in a cache: in pages, or each in one piece."""

    def __init__(self, cache, count, keys, pages=True):
        per, self.cache = -(-keys // PAGE), cache
        random = np.random.default_rng(0)
        order = random.permutation(count * per) if pages else np.arange(count * per)
        first = order.reshape(count, per) * PAGE
        ranges = [(int(row), min(PAGE, keys - PAGE * i)) for part in first for i, row in enumerate(part)]
        if not pages:
            per, ranges = 1, [(int(part[0]), keys) for part in first]
        last = first[:, -1] + (keys - 1) % PAGE
        number = np.arange(count)
        segments = np.stack([number, np.ones_like(number), per * number, np.full_like(number, per)], axis=1)
        self.arguments = (number + 5, np.full(count, keys - 1), last, segments, ranges, number, False, keys)

    def seconds(self, repeats):
        """Of the fastest step."""
        best = float("inf")
        for _ in range(repeats):
            start = time.perf_counter()
            self.cache.decode(*self.arguments)
            best = min(best, time.perf_counter() - start)
        return best


def steps(lm, types, count, keys, rounds):
    """One line: tokens/s of streams in each type, in turns."""
    caches = {name: Cache(lm, count * -(-keys // PAGE), name) for name in types}
    for cache in caches.values():  # bytes of 0x3c3c: 0.0115 in float32 and bfloat16, 1.06 in float16
        cache.k.view(np.uint8)[:] = cache.v.view(np.uint8)[:] = 0x3C
    rows = {f"{types[0]} in one piece": Streams(caches[types[0]], count, keys, pages=False)}
    rows |= {name: Streams(cache, count, keys) for name, cache in caches.items()}
    best = dict.fromkeys(rows, float("inf"))
    for _ in range(rounds):
        for name, streams in rows.items():
            best[name] = min(best[name], streams.seconds(3))
    print(f"{count} streams of {keys} keys: tokens/s "
          + ", ".join(f"{name} {count / value:.1f}" for name, value in best.items()), flush=True)  # fmt: skip


def main():
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--compute", default="float32")
    parser.add_argument("--types", default=",".join(CACHE_TYPES))
    parser.add_argument("--texts", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--streams", default="1,16,64")
    parser.add_argument("--keys", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    lm = jpo.load(options.model, compute=options.compute)
    types = options.types.split(",")
    if options.texts:
        prompts = prompts_of(lm, options.texts, 48)
        exact = lm.generate(prompts, temperature=0.0, max_new_tokens=options.tokens)
        for dtype in types:
            try:
                before, total, same = agreement(lm, dtype, exact, prompts, options.tokens)
            except JpoError as error:
                print(error)
                continue
            size = row_bytes(lm.config, dtype)
            print(f"{dtype:9} {size:6} bytes a token; greedy: {before} of {total} tokens before another one, "
                  f"{same} of {len(prompts)} texts the same", flush=True)  # fmt: skip
    for count in [int(part) for part in options.streams.split(",") if part]:
        steps(lm, types, count, options.keys, options.rounds)
    lengths = [PAGE * (i % 8 + 1) for i in range(64)]  # 64 streams of 64 to 512 tokens
    for dtype in types:
        if lm.config["head_dim"] % 32 and dtype == "q8_0":
            continue
        cache = Cache(lm, sum(lengths) // PAGE, dtype)
        print(f"{dtype}: 64 streams of 64..512 tokens hold {sum(lengths) * row_bytes(lm.config, dtype) / 2**20:.0f} MiB "
              f"in {cache.pages} pages; as many of the longest would hold "
              f"{64 * max(lengths) * row_bytes(lm.config, dtype) / 2**20:.0f}")  # fmt: skip


if __name__ == "__main__":
    main()
