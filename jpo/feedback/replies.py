"""What a judge's raw reply says: "A", "B" or "tie", or nothing that can be told.

Read are the forms that people's models give: a letter ("A", "A.", "**A**", "(a)"), a named side ("Output (a)",
"Response B is better."), each with a lead-in ("Answer: B", "The better response is A"), then an explanation where the
first line alone decides. A reply that names both sides stays unread, and so does one in which the letter may be the
English article. Knows texts; never judges.
"""

from __future__ import annotations

import re
import unicodedata

LONGEST = 1 << 14  # characters behind the thoughts that are looked at

_NOUN = r"(?:the\s+)?(?:output|response|answer|option|choice|summary|assistant|model|candidate|pair|side)"
_LEAD = (
    r"(?:(?:my|the)\s+)?(?:(?:final|preferred|better|best|chosen|correct|more\s+helpful)\s+)?"
    r"(?:answer|verdict|choice|output|response|preference|decision|judge?ment|winner|selection|result|preferred|better|option)"
    r"(?:\s+(?:is|would\s+be)\s*:?|\s*[:=]|\s*-)\s*"
)
_PREFER = r"(?:i\s+(?:would\s+)?(?:prefer|choose|pick|select))\s+"
_SIDE = rf"(?:{_NOUN}\s*[:#-]?\s*)?[(\[{{<\"'`]*(?P<side>a|b|tie)[)\]}}>\"'`]*"
_TIE = r"(?:it(?:'|\u2019)?s\s+a\s+|it\s+is\s+a\s+|a\s+)?(?P<tie>tie)"
_BETTER = (
    r"(?:\s+(?:is|was|would\s+be)\s+(?:(?:much|slightly|clearly|the|a)\s+)*(?:better|best|preferred|preferable|superior|"
    r"more\s+(?:accurate|helpful))(?:\s+(?:one|response|output|answer|option|choice|summary))?|\s+wins)"
)
_WHY = r"(?P<why>\s*(?:[.,;:!\u2013\u2014]|\s-|\bbecause\b|\bsince\b|\bas\b)(?:\s.*)?)"
# the line as a whole, and the line with an explanation behind it
_LINE = re.compile(rf"(?:{_PREFER}|{_LEAD})?(?:{_TIE}|{_SIDE}){_BETTER}?{_WHY}?", re.IGNORECASE | re.DOTALL)
_LEAD_ALONE = re.compile(_LEAD, re.IGNORECASE)
_NAMED = re.compile(rf"{_NOUN}\s*[(\[]?(?P<named>a|b)\b|[(\[](?P<bracket>a|b)[)\]]", re.IGNORECASE)
_LONE = re.compile(
    r"\bA\b(?!\s+[a-z])|\bA(?=\s+(?:is|was|has|wins|would|could|does|lacks|also|and|or)\b)|\b[Bb]\b"
)  # no article
_MARKUP = re.compile(r"[*_#`~]+|\\boxed\{|^[ \t]*>[ \t]?", re.MULTILINE)
_TAGS = re.compile(r"</?(?:final_?answer|answer|verdict|choice|preferred|output)>", re.IGNORECASE)
_THOUGHT_ENDS = re.compile(r"</think>", re.IGNORECASE)  # <think> may stand in the server's own template, unseen here
_ENDS = " \t\r\n.!,;:\"'`}\u201c\u201d\u2018\u2019"


def parse_reply(reply: str, answers: tuple[str, ...] = ("A", "B", "tie")) -> str | None:
    """The verdict that a reply gives, one of `answers`; None where it gives none, or names both sides.

    The first line that says something decides; later lines are its explanation, unless one of them is a verdict too and
    another one.
    """
    begins = max((found.end() for found in _THOUGHT_ENDS.finditer(reply)), default=0)
    said = unicodedata.normalize("NFKC", reply[begins : begins + LONGEST])
    text = "".join(letter for letter in said if unicodedata.category(letter) != "Cf")
    text = _MARKUP.sub("", _TAGS.sub("", text))
    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if line.strip(_ENDS)]
    if not lines:
        return None
    if len(lines) > 1 and _LEAD_ALONE.fullmatch(lines[0]):
        lines = [f"{lines[0]} {lines[1]}", *lines[2:]]  # "Preferred output:" and the answer under it
    first = _verdict(lines[0])
    if first is None or first not in answers:
        return None
    others = {_bare(line) for line in dict.fromkeys(lines[1:])} - {None, first}
    return None if others else first


def _verdict(line: str) -> str | None:
    """Of a line that begins with a verdict: it, where the rest of the line names no other side."""
    found = _LINE.fullmatch(line.strip(_ENDS.replace(".", "")) or line)
    if found is None:
        return None
    side = (found["side"] or found["tie"]).lower()
    named = {(m["named"] or m["bracket"]).upper() for m in _NAMED.finditer(line)}
    named |= {m[0].upper() for m in _LONE.finditer(found["why"] or "")}
    verdict = "tie" if side == "tie" else side.upper()
    return verdict if named <= {verdict} else None


def _bare(line: str) -> str | None:
    """A later line that is a verdict and nothing else."""
    found = _LINE.fullmatch(line.strip(_ENDS))
    if found is None or (found["why"] or "").strip(_ENDS):
        return None
    return _verdict(line)
