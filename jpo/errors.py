"""The errors that bad user input raises; each message names what was wrong, where, what was expected and the remedy.

Knows nothing else of jpo, so that every module may import it.
"""

import re

# what a terminal obeys instead of showing it, and what turns the direction of a line: files may hold both
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """The text with control characters, direction marks and lone surrogates spelled out (\\x1b, \\u202e)."""
    return _CONTROL.sub(lambda found: found.group().encode("unicode_escape").decode("ascii"), text)


class JpoError(ValueError):
    """Bad input from the user: an argument, an option, a file. What a file smuggles into the message is spelled out."""

    def __init__(self, *arguments: object):
        super().__init__(*(printable(part) if isinstance(part, str) else part for part in arguments))


class FormatError(JpoError):
    """A model, tokenizer or adapter file that cannot be read: malformed, truncated, or of an unsupported kind."""


class DataError(JpoError):
    """A record or a file of records that cannot be used; the message names file, line and key."""


class MissingExtra(JpoError, ImportError):
    """An optional package is not installed; the message holds the one command that installs it."""
