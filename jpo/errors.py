"""The errors that bad user input raises; each message names what was wrong, where, what was expected and the remedy.

Knows nothing else of jpo, so that every module may import it.
"""


class JpoError(ValueError):
    """Bad input from the user: an argument, an option, a file."""


class FormatError(JpoError):
    """A model, tokenizer or adapter file that cannot be read: malformed, truncated, or of an unsupported kind."""


class DataError(JpoError):
    """A record or a file of records that cannot be used; the message names file, line and key."""


class MissingExtra(JpoError, ImportError):
    """An optional package is not installed; the message holds the one command that installs it."""
