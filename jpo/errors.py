"""The exceptions that a user's input can cause. All are ValueErrors, so that code that knows nothing of jpo catches them."""


class JpoError(ValueError):
    """A user's input cannot be used; the message says what was expected, what came and the remedy."""


class FormatError(JpoError):
    """A model, tokenizer or adapter file is malformed or uses something that jpo does not implement."""


class DataError(JpoError):
    """A record of training or evaluation data is malformed; the message names file and line."""


class MissingExtra(JpoError, ImportError):
    """An optional package is missing; the message names the pip command that installs it."""
