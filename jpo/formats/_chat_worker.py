"""What the worker of chat templates answers (_worker_loop.py): {"template", "variables", "limit"} -> {"text": ...}.

A chat template is a program that came with a downloaded model. jinja2's immutable sandbox keeps it from attributes and
files; the process, with limits on its memory and time, from everything that a sandbox cannot stop in its tracks:
endless loops, strings of gigabytes, lists of lists.
"""

import json
from datetime import datetime

MEMORY_LIMIT = 1 << 29  # bytes of address space; rendering an ordinary template takes some 40 MB


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


def answering():
    sandbox, cache = environment(), {}

    def answer(request):
        source = request["template"]
        if source not in cache:
            cache.clear()
            cache[source] = sandbox.from_string(source)
        return render(cache[source], request)

    return answer
