"""jpo's docstrings are plain text, not markup: before autodoc reads them, what markup would read is escaped, and lists of
"name: text" become lists. Knows docutils' rules; never jpo."""

import inspect
import re

_NAMED = re.compile(r"([A-Za-z_][\w, ]{0,40}):\s+(.*)", re.DOTALL)
_CODE = re.compile(r"`([^`]+)`")


def _escaped(text):
    """`code` as literals, everything else as text."""
    parts = _CODE.split(text)
    plain = [re.sub(r"([\\*|_<>\[\]])", r"\\\1", part).replace("`", r"\`") for part in parts[::2]]
    literal = [f"``{part.strip()}``" for part in parts[1::2]]
    return "".join(part for pair in zip(plain, [*literal, ""]) for part in pair)


def _blocks(paragraph):
    """(whether it is "name: text", text) of the paragraph's pieces. It is a list where such a line has indented ones below
    it or another beside it; there, a line that is not indented begins a new piece."""
    named = [bool(_NAMED.match(line)) for line in paragraph]
    below = any(here and after.startswith(" ") for here, after in zip(named, paragraph[1:]))
    if not below and not any(one and two for one, two in zip(named, named[1:])):
        return [(False, " ".join(line.strip() for line in paragraph))]
    pieces = []
    for line, is_named in zip(paragraph, named):
        if pieces and (line.startswith(" ") or not (is_named or pieces[-1][0])):
            pieces[-1][1].append(line.strip())
        else:
            pieces.append((is_named, [line.strip()]))
    return [(is_named, " ".join(lines)) for is_named, lines in pieces]


def plain(lines):
    """A docstring's lines as reStructuredText."""
    result, paragraph = [], []
    for line in [*inspect.cleandoc("\n".join(lines)).splitlines(), ""]:
        if line.strip():
            paragraph.append(line)
            continue
        pieces = _blocks(paragraph)
        for named, text in pieces:
            found = _NAMED.match(text) if named else None
            result.append(f"- {_escaped(found[1])}: {_escaped(found[2])}" if found else _escaped(text))
            result.append("")
        paragraph = []
    return result


def setup(app):
    def process(app, what, name, value, options, lines):
        lines[:] = plain(lines)

    app.connect("autodoc-process-docstring", process)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
