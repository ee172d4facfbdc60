"""What the worker of tokenizers of unknown origin answers (_worker_loop.py).

A request is {"tokenizer": text of a tokenizer.json or null for the last one, "texts": [...]}; the reply {"ids":
[[...]]}.
"""

MEMORY_LIMIT = 2 << 30  # bytes of address space


def answering():
    import tokenizers

    held = None

    def answer(request):
        nonlocal held
        if request["tokenizer"] is not None:
            held = None
            held = tokenizers.Tokenizer.from_str(request["tokenizer"])
            held.no_truncation()
            held.no_padding()
        return {"ids": [held.encode(text, add_special_tokens=False).ids for text in request["texts"]]}

    return answer
