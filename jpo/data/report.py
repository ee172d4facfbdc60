"""What became of the records: kept, cut, dropped and why, counted and printable, so that no loss is silent."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

_SHOWN = 3  # places named for each reason


@dataclass
class Report:
    """Counts over one or more data sets. "Sequences" are (prompt, response): a pair has two, an SFT example one."""

    records: int = 0  # read
    kept: int = 0  # records that go on
    sequences: int = 0  # encoded, of the kept records
    cut_prompts: int = 0  # sequences whose instruction lost tokens
    cut_responses: int = 0  # sequences whose response lost its end, and with it EOS
    crossed: int = 0  # sequences in which a merge would join prompt and response: encoded as a continuation
    tokens: int = 0  # over the kept sequences, prompts counted for each
    longest: int = 0  # tokens of the longest kept sequence
    dropped: Counter[str] = field(default_factory=Counter)  # reason -> records
    places: dict[str, list[str]] = field(default_factory=dict)  # reason -> where, the first few
    notes: list[str] = field(default_factory=list)  # what else is to be said, printed behind the counts

    def drop(self, reason: str, where: str = "") -> None:
        """Counts one record that does not go on."""
        self.dropped[reason] += 1
        shown = self.places.setdefault(reason, [])
        if where and len(shown) < _SHOWN:
            shown.append(where)

    def stored(self) -> dict[str, Any]:
        """All of it, as JSON holds it."""
        return asdict(self) | {"dropped": dict(self.dropped)}

    @classmethod
    def from_stored(cls, stored: Mapping[str, Any]) -> Report:
        """What `stored` gave."""
        return cls(**{**stored, "dropped": Counter(stored["dropped"])})

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        names = ("records", "kept", "sequences", "cut_prompts", "cut_responses", "crossed", "tokens", "longest")
        return {**{name: getattr(self, name) for name in names}, "dropped": dict(self.dropped)}

    def __str__(self) -> str:
        lines = [f"{self.kept} of {self.records} records kept"]
        for reason, count in self.dropped.most_common():
            shown = self.places.get(reason, [])
            more = ", ..." if count > len(shown) else ""
            lines.append(f"  dropped {count}: {reason}" + (f" ({'; '.join(shown)}{more})" if shown else ""))
        if self.sequences:
            mean = self.tokens / self.sequences
            longest = f"mean {mean:.1f}, longest {self.longest}"
            lines.append(f"{self.tokens} tokens in {self.sequences} sequences ({longest})")
            lines.append(f"  cut: {self.cut_prompts} prompts, {self.cut_responses} responses (without EOS)")
        if self.crossed:
            lines.append(
                f"  {self.crossed} responses whose first characters would merge with the prompt: encoded as continuations"
            )
        return "\n".join([*lines, *self.notes])

    def then(self, later: Report) -> str:
        """This report and that of the next stage; what both say first stands once."""
        mine, its = str(self).splitlines(), str(later).splitlines()
        return "\n".join([*mine, *(its[1:] if its[0] == mine[0] else its)])

    def warn(self) -> None:
        """The drops as one UserWarning, for a caller who asked for no report."""
        if self.dropped:
            reasons = ", ".join(f"{count} {reason}" for reason, count in self.dropped.most_common())
            warnings.warn(f"{sum(self.dropped.values())} of {self.records} records dropped: {reasons}", stacklevel=3)
