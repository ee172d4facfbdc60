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
    """The paragraph's pieces: a line that is indented no deeper than the first starts a new one where it names something."""
    pieces = []
    for line in paragraph:
        starts = not line.startswith(" ") and (not pieces or _NAMED.match(line) and pieces[-1][0])
        named = bool(_NAMED.match(line)) and not line.startswith(" ")
        if not pieces or starts or (named and not pieces[-1][0] and len(pieces[-1][1]) > 1):
            pieces.append((named, [line.strip()]))
        else:
            pieces[-1][1].append(line.strip())
    return [(named, " ".join(lines)) for named, lines in pieces]


def plain(lines):
    """A docstring's lines as reStructuredText."""
    result, paragraph = [], []
    for line in [*inspect.cleandoc("\n".join(lines)).splitlines(), ""]:
        if line.strip():
            paragraph.append(line)
            continue
        pieces = _blocks(paragraph)
        for named, text in pieces:
            found = _NAMED.match(text) if named and len(pieces) > 1 else None
            result.append(f"- {_escaped(found[1])}: {_escaped(found[2])}" if found else _escaped(text))
            result.append("")
        paragraph = []
    return result


def setup(app):
    def process(app, what, name, value, options, lines):
        lines[:] = plain(lines)

    app.connect("autodoc-process-docstring", process)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
