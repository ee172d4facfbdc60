"""The process that runs tokenizers of unknown origin: a loop over requests on standard input, one reply each.

A request is {"tokenizer": text of a tokenizer.json or null for the last one, "texts": [...]}; the reply {"ids":
[[...]]} or {"error": ...}. Run as a file, outside the package, so that it imports neither jpo nor NumPy.
"""

import json
import struct
import sys

MEMORY_LIMIT = 2 << 30  # bytes of address space


def limit_process():
    try:
        import resource
    except ImportError:  # Windows: the parent's clock remains
        return
    for name, value in (("RLIMIT_AS", MEMORY_LIMIT), ("RLIMIT_FSIZE", 0), ("RLIMIT_CORE", 0)):
        kind = getattr(resource, name, None)
        if kind is None:
            continue
        try:
            resource.setrlimit(kind, (value, value))
        except (ValueError, OSError):
            pass  # a lower limit stands already, or the system (macOS) does not take this one


def main():
    sys.path[:0] = sys.argv[1:]  # where the parent found tokenizers
    import tokenizers

    limit_process()
    source, sink, tokenizer = sys.stdin.buffer, sys.stdout.buffer, None
    while True:
        head = source.read(4)
        if len(head) < 4:
            return
        request = json.loads(source.read(struct.unpack("<I", head)[0]))
        try:
            if request["tokenizer"] is not None:
                tokenizer = None
                tokenizer = tokenizers.Tokenizer.from_str(request["tokenizer"])
                tokenizer.no_truncation()
                tokenizer.no_padding()
            reply = {"ids": [tokenizer.encode(text, add_special_tokens=False).ids for text in request["texts"]]}
        except MemoryError:
            reply = {"error": f"it needs more than {MEMORY_LIMIT >> 20} MB of memory"}
        except BaseException as error:  # noqa: BLE001 - the package raises bare Exception, and its panics BaseException
            reply = {"error": f"{type(error).__name__}: {str(error)[:300]}"}
        data = json.dumps(reply).encode("ascii")
        sink.write(struct.pack("<I", len(data)) + data)
        sink.flush()


if __name__ == "__main__":
    main()
