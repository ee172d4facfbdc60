"""Texts to token ids under a length bound: what the model is trained on, and a report of what was cut or dropped.

A prompt's ids are those of its text, which sampling continues; a response's are the ones that follow them in the joined
text (Tokenizer.response_ids). The cut of a prompt depends on the prompt alone, so that equal prompts stay equal; the
response gets the rest. Knows the template and the tokenizer; never batches or the model.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from jpo.data.records import Example, Judged, Pair
from jpo.data.report import Report
from jpo.data.templates import Template
from jpo.data.texts import Messages, Text, text_key
from jpo.errors import DataError, JpoError

TRUNCATION = ("keep_start", "keep_end", "drop")
_PROMPTS_KEPT = 1 << 16  # equal prompts are encoded once; the oldest is forgotten beyond this
_CHUNK, _CHUNK_CHARACTERS = 1024, 1 << 22  # records of a stream that stand in memory together


@dataclass(frozen=True, slots=True)
class Encoded:
    """One sequence: prompt (with BOS) and response (with EOS unless cut). 4 bytes a token."""

    prompt: array[int]
    response: array[int]
    cut_prompt: bool = False
    cut_response: bool = False
    crossed: bool = False  # a merge of the joined text crosses the boundary: the response stands as a continuation
    too_long: str = ""  # under truncation "drop", what exceeds its bound

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        """Token ids of the prompt."""
        return tuple(self.prompt)

    @property
    def response_ids(self) -> tuple[int, ...]:
        """Token ids of the response."""
        return tuple(self.response)

    def identity(self) -> list[array[int]]:
        """What tells it from another."""
        return [self.prompt, self.response]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.response)


@dataclass(frozen=True, slots=True)
class EncodedPair:
    """A preference pair in tokens, or a judged example, which has one side; `index` is its place in the list that was
    encoded."""

    chosen: Encoded | None
    rejected: Encoded | None
    weak: bool = False
    index: int = 0
    tie: bool = False

    @property
    def sequences(self) -> tuple[Encoded, ...]:
        """Chosen, rejected: those that there are."""
        return tuple(side for side in (self.chosen, self.rejected) if side is not None)

    def identity(self) -> list[array[int]]:
        """What tells it from another: the tokens of its sides, and a mark where it is a tie or has one side alone."""
        ids = [part for sequence in self.sequences for part in (sequence.prompt, sequence.response)]
        kind = 1 if self.tie else 2 if self.rejected is None else 3 if self.chosen is None else 0
        return [*ids, array("i", [kind])] if kind else ids

    @property
    def tokens(self) -> int:
        """|I_w| + |R_w| + |I_l| + |R_l|, template, BOS and EOS included, before any sharing."""
        return sum(map(len, self.sequences))


@dataclass(frozen=True, slots=True)
class _Prompt:
    instruction: Text  # after the cut
    text: str
    ids: array[int]
    cut: bool
    too_long: str


@dataclass
class Encoder:
    """Encodes under a template; `truncation` says which end of a too long instruction stays, or to drop its record.

    At most `max_length` tokens in all and `max_prompt_length` of prompt, template and BOS included. Tokens are taken
    from the instruction, never from the template; a response that is cut ends without EOS, for it did not end there.
    """

    tokenizer: Any
    template: Template = field(default_factory=Template)
    max_length: int = 1024
    max_prompt_length: int = 512
    truncation: str = "keep_start"

    def __post_init__(self) -> None:
        for name in ("max_length", "max_prompt_length"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise JpoError(f"{name}: expected a positive integer, got {value!r}")
        if self.max_prompt_length >= self.max_length:
            raise JpoError(
                f"max_prompt_length: expected less than max_length = {self.max_length}, because the response needs "
                f"room; got {self.max_prompt_length}"
            )
        if self.truncation not in TRUNCATION:
            raise JpoError(f"truncation: expected one of {', '.join(TRUNCATION)}; got {self.truncation!r}")
        if self.tokenizer.eos_token_id is None:
            raise JpoError("tokenizer: has no end-of-sequence token, without which no response can end")
        self.template.check(self.tokenizer)
        self._report = Report()
        self._prompts: dict[str, _Prompt] = {}
        self._prompts_kept = _PROMPTS_KEPT
        self._joined: dict[str, list[int]] = {}  # ids of texts that were encoded many at once
        if self.template.kind == "text":
            own = len(self.tokenizer.prompt_ids(self.template.prompt_text("")))
            if own >= self.max_prompt_length:
                raise JpoError(
                    f"max_prompt_length: the template alone has {own} tokens; expected more than that, got "
                    f"{self.max_prompt_length}"
                )

    def report(self) -> Report:
        """What this encoder has kept, cut and dropped so far."""
        return self._report

    def prompt_text(self, instruction: Text) -> str:
        """The prompt as text, cut as for training: generation from it meets the same tokens (BOS not spelled out)."""
        return self._prompt(instruction).text

    def prompt_ids(self, instruction: Text) -> tuple[int, ...]:
        """The prompt's token ids, BOS included, cut as for training."""
        return tuple(self._prompt(instruction).ids)

    def encode(self, instruction: Text, response: Text) -> Encoded:
        """One sequence. Under truncation "drop" nothing is cut, and `too_long` says what exceeds its bound."""
        prompt = self._prompt(instruction)
        text, end = self.template.response_text(prompt.instruction, response, self.tokenizer)
        ids, crossed = self.tokenizer.response_ids(prompt.text, text, prompt.ids, self._joined.get(prompt.text + text))
        ids.append(self.tokenizer.eos_token_id if end is None else end)
        room = max(self.max_length - len(prompt.ids), 0)
        if self.truncation == "drop":
            too_long = prompt.too_long or ("response too long" if len(ids) > room else "")
            return Encoded(prompt.ids, array("i", ids), crossed=crossed, too_long=too_long)
        cut = len(ids) > room
        return Encoded(prompt.ids, array("i", ids[:room] if cut else ids), prompt.cut, cut, crossed, prompt.too_long)

    def example(self, instruction: Text, response: Text) -> str:
        """The template's name, and one example as the model reads and learns it: two lines to print before a run."""
        prompt = self._prompt(instruction)
        text, end = self.template.response_text(prompt.instruction, response, self.tokenizer)
        end_id = self.tokenizer.eos_token_id if end is None else end
        bos = self.tokenizer.id_to_token(self.tokenizer.bos_token_id) if self.tokenizer.adds_bos else ""
        shown = " + ".join(map(_shown, (f"{bos}{prompt.text}", text, self.tokenizer.id_to_token(end_id))))
        return f"template: {self.template.name!r}; the first record as prompt + response + end:\n  {shown}"

    def pairs(self, pairs: Sequence[Pair | Judged]) -> list[EncodedPair]:
        """All pairs (or judged examples) that fit, in order; the others are counted in the report. DataError if none is
        left."""
        known: dict[tuple[str, str], Encoded] = {}  # an (I, R) that several pairs hold
        made = (self._record(pair, index, known) for index, pair in enumerate(pairs))
        result = [pair for pair in made if isinstance(pair, EncodedPair)]
        self.check_left(len(result), len(pairs), "pairs")
        return result

    def examples(self, examples: Sequence[Example]) -> list[Encoded]:
        """All examples that fit, in order; the others are counted in the report. DataError if none is left."""
        made = (self._record(example, index, {}) for index, example in enumerate(examples))
        result = [example for example in made if isinstance(example, Encoded)]
        self.check_left(len(result), len(examples), "examples")
        return result

    def stream(self, records: Iterable[Pair | Judged | Example]) -> Iterator[EncodedPair | Encoded]:
        """What `pairs` and `examples` make of the records, one by one; a chunk of them stands in memory at a time, and
        its texts are encoded at once."""
        self._prompts_kept = min(self._prompts_kept, 4 * _CHUNK)
        index = 0
        for chunk in _chunks(records):
            self._encode_many(chunk)
            known: dict[tuple[str, str], Encoded] = {}
            for record in chunk:
                made = self._record(record, index, known)
                index += 1
                if made is not None:
                    yield made
        self._joined.clear()

    def _encode_many(self, records: Sequence[Pair | Judged | Example]) -> None:
        """Encodes the texts that `_record` will ask for, many at once; what cannot be is left to it."""
        self._joined.clear()
        if self.template.kind != "text":
            return
        sides = [(i, r) for record in records for i, r in _sides(record) if isinstance(i, str) and isinstance(r, str)]
        new = list(dict.fromkeys(i for i, _ in sides if i not in self._prompts))
        texts = [self.template.prompt_text(instruction) for instruction in new]
        try:
            for instruction, text, ids in zip(new, texts, self.tokenizer.encode_many(texts), strict=True):
                ids = self.tokenizer.with_bos(ids)
                if len(ids) <= self.max_prompt_length:
                    self._remember(instruction, _Prompt(instruction, text, array("i", ids), False, ""))
            joined = list(
                dict.fromkeys(
                    self._prompts[i].text + self.template.response_text(i, r)[0] for i, r in sides if i in self._prompts
                )
            )
            self._joined = dict(zip(joined, self.tokenizer.encode_many(joined), strict=True))
        except JpoError:
            return  # encoding the record itself will say where

    def _record(
        self, record: Pair | Judged | Example, index: int, known: dict[tuple[str, str], Encoded]
    ) -> EncodedPair | Encoded | None:
        """One record in tokens; None, counted, where it does not fit. `known`: sequences that several records hold."""
        sequences = [
            self._known(known, instruction, response, record.where) for instruction, response in _sides(record)
        ]
        if not self._keep(sequences, record.where):
            return None
        return sequences[0] if isinstance(record, Example) else _encoded_pair(record, sequences, index)

    def _known(self, known: dict[tuple[str, str], Encoded], instruction: Text, response: Text, where: str) -> Encoded:
        key = (text_key(instruction), text_key(response))
        if key not in known:
            known[key] = self._located(instruction, response, where)
        return known[key]

    def _located(self, instruction: Text, response: Text, where: str) -> Encoded:
        try:
            return self.encode(instruction, response)
        except JpoError as error:
            raise DataError(f"{where}: {error}" if where else str(error)) from None

    def _keep(self, sequences: Sequence[Encoded], where: str) -> bool:
        report = self._report
        report.records += 1
        reason = next((sequence.too_long for sequence in sequences if sequence.too_long), "")
        if reason:
            report.drop(reason, where)
            return False
        report.kept += 1
        for sequence in sequences:
            report.sequences += 1
            report.cut_prompts += sequence.cut_prompt
            report.cut_responses += sequence.cut_response
            report.crossed += sequence.crossed
            report.tokens += len(sequence)
            report.longest = max(report.longest, len(sequence))
        return True

    def check_left(self, left: int, count: int, noun: str) -> None:
        """DataError where none of `count` records is left."""
        if not left:
            reasons = "; ".join(f"{reason}: {times}" for reason, times in self._report.dropped.items())
            raise DataError(f"none of {count} {noun} is left to train on ({reasons or 'the data are empty'})")

    def _prompt(self, instruction: Text) -> _Prompt:
        key = text_key(instruction)
        found = self._prompts.get(key)
        if found is None:
            found = self._encode_prompt(instruction)
            self._remember(key, found)
        return found

    def _remember(self, key: str, prompt: _Prompt) -> None:
        while len(self._prompts) >= self._prompts_kept:
            del self._prompts[next(iter(self._prompts))]
        self._prompts[key] = prompt

    def _encode_prompt(self, instruction: Text) -> _Prompt:
        text = self.template.prompt_text(instruction, self.tokenizer)
        ids = self.tokenizer.prompt_ids(text)
        excess = len(ids) - self.max_prompt_length
        if excess <= 0:
            return _Prompt(instruction, text, array("i", ids), False, "")
        if self.truncation == "drop":
            return _Prompt(instruction, text, array("i", ids), False, "prompt too long")
        left = sum(len(self.tokenizer.encode(part)) for part in _parts(instruction))
        while excess > 0 and left > 0:  # the joints may encode differently, so that one round need not be enough
            left = max(left - excess, 0)
            short = self._shorten(instruction, left)
            text = self.template.prompt_text(short, self.tokenizer)
            ids = self.tokenizer.prompt_ids(text)
            excess = len(ids) - self.max_prompt_length
        if excess > 0:
            return _Prompt(short, text, array("i", ids), True, "prompt too long without its instruction")
        return _Prompt(short, text, array("i", ids), True, "")

    def _shorten(self, instruction: Text, left: int) -> Text:
        """The instruction with `left` tokens of its turns, from the end that `truncation` keeps; system turns stay."""
        if isinstance(instruction, str):
            return self._shorten_text(instruction, left)
        order = list(range(len(instruction)))
        if self.truncation == "keep_end":
            order.reverse()
        turns: list[dict[str, str]] = list(instruction)
        for index in order:
            turn = instruction[index]
            if turn["role"] != "system":
                size = len(self.tokenizer.encode(turn["content"]))
                turns[index] = {**turn, "content": self._shorten_text(turn["content"], min(left, size))}
                left -= min(left, size)
        return tuple(turns)

    def _shorten_text(self, text: str, left: int) -> str:
        """At most about `left` tokens of `text`, cut where its own tokens end and between characters."""
        ids = self.tokenizer.encode(text)
        start = self.truncation == "keep_start"
        if left >= len(ids):
            return text
        for count in range(left, max(left - 8, 0), -1):
            part: str = self.tokenizer.decode(ids[:count] if start else ids[-count:])
            part = part.rstrip("\ufffd") if start else part.lstrip("\ufffd")  # a character cut in two
            if part and (text.startswith(part) if start else text.endswith(part)):
                return part
        size = len(text) * left // len(ids)  # a tokenizer that does not give its text back
        return text[:size] if start else text[len(text) - size :]


def _sides(record: Pair | Judged | Example) -> tuple[tuple[Text, Text], ...]:
    """The (instruction, response) of a record's sequences."""
    if isinstance(record, Pair):
        return (record.i_chosen, record.r_chosen), (record.i_reject, record.r_reject)
    return ((record.instruction, record.response),)


def _chunks(records: Iterable[Pair | Judged | Example]) -> Iterator[list[Pair | Judged | Example]]:
    """Runs of at most _CHUNK records and, but for the last of them, _CHUNK_CHARACTERS of plain text."""
    chunk: list[Pair | Judged | Example] = []
    characters = 0
    for record in records:
        chunk.append(record)
        characters += sum(len(text) for side in _sides(record) for text in side if isinstance(text, str))
        if len(chunk) == _CHUNK or characters >= _CHUNK_CHARACTERS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


def side_by_side(pairs: Sequence[EncodedPair]) -> list[Encoded]:
    """All chosen sequences of the pairs, then all rejected ones."""
    chosen = [pair.chosen for pair in pairs if pair.chosen is not None]
    return chosen + [pair.rejected for pair in pairs if pair.rejected is not None]


def iopo_groups(pairs: Sequence[EncodedPair]) -> dict[int, int]:
    """Pairs whose instructions are each other's, swapped, belong together; the others stand alone."""
    waiting: dict[tuple[bytes, bytes], list[int]] = {}
    groups: dict[int, int] = {}
    for pair in pairs:
        if pair.chosen is None or pair.rejected is None:
            continue
        w, l = pair.chosen.prompt.tobytes(), pair.rejected.prompt.tobytes()
        if waiting.get((l, w)):
            groups[pair.index] = waiting[l, w].pop()
        else:
            waiting.setdefault((w, l), []).append(pair.index)
            groups[pair.index] = pair.index
    return groups


def _encoded_pair(pair: Pair | Judged, sequences: Sequence[Encoded], index: int) -> EncodedPair:
    if isinstance(pair, Pair):
        return EncodedPair(sequences[0], sequences[1], pair.weak, index, pair.tie)
    return EncodedPair(sequences[0] if pair.label else None, None if pair.label else sequences[0], index=index)


def _shown(text: str, start: int = 240, end: int = 80) -> str:
    """As Python spells it, so that spaces and line ends are seen; the middle of a long text left out."""
    return repr(text) if len(text) <= start + end else f"{text[:start]!r} ... {text[-end:]!r}"


def _parts(instruction: Text) -> list[str]:
    turns: Messages = ({"role": "user", "content": instruction},) if isinstance(instruction, str) else instruction
    return [turn["content"] for turn in turns if turn["role"] != "system"]
