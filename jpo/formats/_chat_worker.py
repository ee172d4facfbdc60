"""The process that runs chat templates: a loop over messages on standard input, one reply on standard output each.

A chat template is a program that came with a downloaded model. jinja2's immutable sandbox keeps it from attributes and
files; this process, with a limit on its memory and a parent that ends it when time is up, keeps it from everything
that a sandbox cannot stop in its tracks: endless loops, strings of gigabytes, lists of lists.
Run as a file, outside the package, so that it imports neither jpo nor NumPy.
"""

import json
import struct
import sys
from datetime import datetime

MEMORY_LIMIT = 1 << 29  # bytes of address space; rendering an ordinary template takes some 40 MB


def limit_process():
    try:
        import resource
    except ImportError:  # Windows: the parent's clock and the limit on output remain
        return
    for name, value in (("RLIMIT_AS", MEMORY_LIMIT), ("RLIMIT_FSIZE", 0), ("RLIMIT_CORE", 0)):
        kind = getattr(resource, name, None)
        if kind is None:
            continue
        try:
            resource.setrlimit(kind, (value, value))
        except (ValueError, OSError):
            pass  # a lower limit stands already, or the system (macOS) does not take this one


def environment():
    import jinja2
    import jinja2.ext
    import jinja2.nodes
    import jinja2.sandbox

    class Generation(jinja2.ext.Extension):
        """{% generation %} ... {% endgeneration %} marks the assistant's text for others; here only its body counts."""

        tags = frozenset({"generation"})

        def parse(self, parser):
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.Scope(body, lineno=line)

    def raise_exception(message):
        raise jinja2.TemplateError(message)

    def strftime_now(pattern):
        return datetime.now().strftime(pattern)

    def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    sandbox = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    sandbox.filters["tojson"] = tojson  # jinja2's own escapes for HTML
    sandbox.globals.update(raise_exception=raise_exception, strftime_now=strftime_now)
    return sandbox


def render(compiled, request):
    """{"text": ...} or {"error": ...}; stops as soon as the text is longer than the request allows."""
    pieces, length = [], 0
    for piece in compiled.generate(**request["variables"]):
        pieces.append(piece)
        length += len(piece)
        if length > request["limit"]:
            return {"error": f"its output is longer than {request['limit']} characters"}
    return {"text": "".join(pieces)}


def answer(sandbox, cache, request):
    try:
        source = request["template"]
        if source not in cache:
            cache.clear()
            cache[source] = sandbox.from_string(source)
        return render(cache[source], request)
    except MemoryError:
        return {"error": f"it needs more than {MEMORY_LIMIT >> 20} MB of memory"}
    except RecursionError:
        return {"error": "it is nested too deeply"}
    except Exception as error:  # noqa: BLE001 - whatever a template does wrong is its own error
        line = getattr(error, "lineno", None)
        place = f"line {line}: " if line else ""
        return {"error": f"{place}{type(error).__name__}: {str(error)[:500]}"}


def main():
    sys.path[:0] = sys.argv[1:]  # where the parent found jinja2 and markupsafe
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    sandbox, cache = environment(), {}
    limit_process()
    while True:
        head = source.read(4)
        if len(head) < 4:
            return
        request = json.loads(source.read(struct.unpack("<I", head)[0]))
        reply = json.dumps(answer(sandbox, cache, request)).encode("ascii")
        sink.write(struct.pack("<I", len(reply)) + reply)
        sink.flush()


if __name__ == "__main__":
    main()
