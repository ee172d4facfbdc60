"""Go's text/template for what Modelfiles use: {{ .Name }}, {{ "string" }}, if, eq, else, range, end.

Written from the package's documentation, apart from jpo.export.modelfile."""

import json
import re

_ACTION = re.compile(r'\{\{ ((?:"(?:[^"\\]|\\.)*"|[^"}])*?) \}\}', re.DOTALL)


def _body(pieces, at):
    """(nodes, place behind) up to the next else or end; a node is a text or (action, then, otherwise)."""
    nodes = []
    while at < len(pieces):
        if at % 2 == 0:
            assert "{{" not in pieces[at], pieces[at]
            nodes.append(pieces[at])
        elif pieces[at] == "end" or pieces[at].startswith("else"):
            break
        elif pieces[at].startswith(("if ", "range ")):
            node, at = _branch(pieces, at, pieces[at])
            nodes.append(node)
        else:
            nodes.append((pieces[at], None, None))
        at += 1
    return nodes, at


def _branch(pieces, at, action):
    then, at = _body(pieces, at + 1)
    otherwise = []
    if pieces[at].startswith("else if "):
        node, at = _branch(pieces, at, pieces[at].removeprefix("else "))
        return (action, then, [node]), at
    if pieces[at] == "else":
        otherwise, at = _body(pieces, at + 1)
    return (action, then, otherwise), at


def _run(nodes, dot):
    parts = []
    for node in nodes:
        if isinstance(node, str):
            parts.append(node)
            continue
        action, then, otherwise = node
        if action.startswith("range ."):
            parts += [_run(then, entry) for entry in dot[action[7:]]]
        elif action.startswith("if eq ."):
            name, text = action[7:].split(" ", 1)
            parts.append(_run(then if dot[name] == json.loads(text) else otherwise, dot))
        elif action.startswith("if ."):
            parts.append(_run(then if dot.get(action[4:]) else otherwise, dot))
        else:
            parts.append(json.loads(action) if action.startswith('"') else dot.get(action.removeprefix("."), ""))
    return "".join(parts)


def render(template, values):
    """The template with .System, .Prompt, ... as given; an absent value is empty."""
    pieces = _ACTION.split(template)  # text, action, text, ...
    nodes, at = _body(pieces, 0)
    assert at == len(pieces)
    return _run(nodes, values)


def conversation(template, messages, system=""):
    """As Ollama fills a template: over .Messages at once, or turn by turn, the last cut where its response begins."""
    rest = [message["content"] for message in messages if message["role"] != "system"]
    system = next((message["content"] for message in messages if message["role"] == "system"), system)
    if "range .Messages" in template:
        talk = [{"Role": message["role"], "Content": message["content"]} for message in messages]
        return render(template, {"System": system, "Messages": talk})
    text = ""
    for index in range(0, len(rest), 2):
        own = {"System": system if index == 0 else "", "Prompt": rest[index]}
        if index + 1 < len(rest):
            text += render(template, {**own, "Response": rest[index + 1]})
        else:
            text += render(template[: template.index("{{ .Response }}")], own)
    return text
