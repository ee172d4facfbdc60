"""Typed reading of configurations: every value is checked, every error names the file and the key."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from jpo.errors import FormatError

_LIMIT = 1 << 31  # sizes are C ints further down


def integer(where: str, config: Mapping[str, Any], key: str, default: int | None = None, least: int = 1) -> int:
    """config[key] as an int of at least `least` and below 2^31; FormatError names the key."""
    value = config.get(key, default)
    if value is None and default is not None:
        value = default
    if value is None:
        raise FormatError(f"{where}: key {key} is missing")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < _LIMIT:
        raise FormatError(f"{where}: key {key}: expected an integer from {least} to 2^31, got {value!r}")
    return value


def number(where: str, config: Mapping[str, Any], key: str, default: float) -> float:
    """config[key] as a finite float above 0; FormatError names the key."""
    value = config.get(key)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise FormatError(f"{where}: key {key}: expected a number, got {value!r}")
    try:
        value = float(value)
    except OverflowError:  # an integer of hundreds of digits
        value = math.inf
    if not math.isfinite(value) or value <= 0:
        raise FormatError(f"{where}: key {key}: expected a finite number above 0, got {value!r}")
    return value


def boolean(where: str, config: Mapping[str, Any], key: str, default: bool = False) -> bool:
    """config[key] as a bool, absent or null being `default`; FormatError names the key."""
    value = config.get(key)
    if value is not None and not isinstance(value, bool):
        raise FormatError(f"{where}: key {key}: expected true or false, got {value!r}")
    return default if value is None else value


def token_ids(where: str, value: Any, vocab_size: int | None = None) -> list[int]:
    """A token id, a list of them or None as a list; FormatError where an entry is no id of the vocabulary."""
    entries = [] if value is None else value if isinstance(value, list) else [value]
    for entry in entries:
        if isinstance(entry, bool) or not isinstance(entry, int) or entry < 0:
            raise FormatError(f"{where}: expected token ids (integers from 0), got {entry!r}")
        if vocab_size is not None and entry >= vocab_size:
            raise FormatError(f"{where}: token id {entry} lies outside the vocabulary of {vocab_size}")
    return list(dict.fromkeys(entries))


class Values:
    """A configuration that is read key by key; `keys` maps a usual key to this file's spelling."""

    def __init__(self, where: str, config: Mapping[str, Any], keys: Mapping[str, str] | None = None):
        self.where, self.config, self.keys = where, config, keys or {}

    def get(self, key: str, default: Any = None) -> Any:
        """The value as it stands, or `default` where it is absent."""
        return self.config.get(self.keys.get(key, key), default)

    def integer(self, key: str, default: int | None = None, least: int = 1) -> int:
        """An int of at least `least`."""
        return integer(self.where, self.config, self.keys.get(key, key), default, least)

    def number(self, key: str, default: float) -> float:
        """A finite float above 0."""
        return number(self.where, self.config, self.keys.get(key, key), default)

    def optional(self, key: str) -> float:
        """A finite float above 0, or 0.0 where the key is absent or null."""
        return 0.0 if self.get(key) is None else self.number(key, 1.0)

    def boolean(self, key: str, default: bool = False) -> bool:
        """A bool."""
        return boolean(self.where, self.config, self.keys.get(key, key), default)

    def fail(self, key: str, what: str) -> FormatError:
        """The error to raise: the place, the key, and `what` is wrong."""
        return FormatError(f"{self.where}: key {self.keys.get(key, key)}: {what}")
