"""llama.cpp on the same GGUF file and threads: pip install --no-binary llama-cpp-python llama-cpp-python."""

from __future__ import annotations

import time
from typing import Any

from . import LeftOut, contestant


def load(work: Any) -> Any:
    """The model; batch size and context fit the case."""
    import os

    import llama_cpp

    if not work["gguf"]:
        raise LeftOut("the model is no GGUF file")
    threads = len(os.sched_getaffinity(0))
    return llama_cpp.Llama(
        work["gguf"], n_ctx=1024, n_batch=512, n_ubatch=512, n_threads=threads, n_threads_batch=threads, verbose=False
    )


@contestant("llama.cpp", enters=("generate-1",), needs=("llama-cpp-python",), gigabytes=0.6)
def llama_generate(work: Any, turns: Any) -> None:
    """Greedy tokens after the first."""
    llm = load(work)

    def repetition(turn: int) -> dict[str, Any]:
        llm.reset()
        llm.eval(work["prompt_ids"])
        token = llm.sample(temp=0.0)
        start = time.perf_counter()
        for _ in range(work["new_tokens"] - 1):
            llm.eval([token])
            token = llm.sample(temp=0.0)
        return {"seconds": time.perf_counter() - start, "units": work["new_tokens"] - 1}

    turns.loop(repetition)


@contestant("llama.cpp", enters=("prompt-512",), needs=("llama-cpp-python",), gigabytes=0.6)
def llama_prompt(work: Any, turns: Any) -> None:
    """The prompt in one batch, logits of its last token."""
    llm = load(work)

    def repetition(turn: int) -> dict[str, Any]:
        llm.reset()
        start = time.perf_counter()
        llm.eval(work["ids"])
        return {"seconds": time.perf_counter() - start}

    turns.loop(repetition)
