"""The embedded world: instructions over words, responses of graded quality, gold responses, and an exact judge.

Five families of instructions, from `count:` (easy for a small decoder) to `reverse:` of six words (hard), so that instructions differ in
how well they can be answered. The quality of a response is a number from 0 to 1, relative to its own instruction, read
from the text itself; so one judge compares two responses to one instruction and two (instruction, response) pairs
alike. Everything is a pure function of the seed. Knows words; never models, tokens or files.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from jpo.data.batches import raw_words
from jpo.errors import JpoError

WORDS = tuple("ant bee cat dog elk fox hen jay kid owl pig ram sow yak".split())  # alphabetical
NUMBERS = tuple("zero one two three four five six seven eight nine".split())
FAMILIES = ("ends", "repeat", "count", "reverse", "sort")
LENGTHS = (2, 3, 4, 5, 6)  # words of an instruction
TIE = 0.15  # qualities nearer than this are equal to the judge
TEMPLATE = "{instruction} = {response}"
GOLD_FAULTS = (0.4, 0.35, 0.25)  # shares of demonstrations with no, one, two faults: people are not perfect
TEXT_FAULTS = (0.5, 0.2, 0.15, 0.15)  # and of texts to pre-train on
_LONGEST = 12  # words of a response that are still read


class Dice:
    """Whole numbers drawn one by one from the counter-based generator: the same on every NumPy version."""

    def __init__(self, seed: int, *stream: int):
        self._seed, self._stream, self._page = seed, stream, 0
        self._words: list[int] = []

    def below(self, n: int) -> int:
        """A number from 0 to n - 1."""
        if not self._words:
            self._words = [int(word) for word in raw_words(4096, self._seed, *self._stream, self._page)]
            self._page += 1
        return self._words.pop() % n

    def pick(self, shares: Sequence[float]) -> int:
        """A place, drawn by its share."""
        ticket = self.below(1 << 30) / (1 << 30) * sum(shares)
        return min(int(np.searchsorted(np.cumsum(shares), ticket, side="right")), len(shares) - 1)


# --- instructions and answers -------------------------------------------------------------------------------------


def parse_instruction(text: str) -> tuple[str, list[str]]:
    """(family, its words). JpoError for a text that is no instruction of this world."""
    family, colon, rest = text.partition(":")
    words = rest.split()
    if not colon or family not in FAMILIES or not 0 < len(words) < len(NUMBERS) or not set(words) <= set(WORDS):
        raise JpoError(f"instruction {text[:80]!r}: expected one of the embedded world, such as 'sort: owl cat'")
    return family, words


def best_answer(instruction: str) -> list[str]:
    """The words of the one perfect response."""
    family, words = parse_instruction(instruction)
    if family == "count":
        return [NUMBERS[len(words)]]
    return {"ends": [words[0], words[-1]], "repeat": words, "reverse": words[::-1], "sort": sorted(words)}[family]


def parse_response(instruction: str, response: str) -> list[str] | None:
    """The words of a response as the judge reads them; None where it cannot: no words, too many, or others than the
    instruction's kind of answer has (one number word for count, animals for the others)."""
    family, _ = parse_instruction(instruction)
    words = response.split()
    if family == "count":
        return words if len(words) == 1 and words[0] in NUMBERS else None
    return words if 0 < len(words) <= _LONGEST and set(words) <= set(WORDS) else None


def quality(instruction: str, response: str) -> float | None:
    """From 0 to 1; None for a response that cannot be parsed.

    Lists: 1 - edits / length of the longer list (insertions, deletions, replacements of words). Numbers: 1 - distance / 4,
    at least 0."""
    found, best = parse_response(instruction, response), best_answer(instruction)
    if found is None:
        return None
    if best[0] in NUMBERS:
        return max(0.0, 1 - abs(NUMBERS.index(found[0]) - NUMBERS.index(best[0])) / 4)
    return 1 - edits(found, best) / max(len(found), len(best))


def edits(a: Sequence[str], b: Sequence[str]) -> int:
    """Levenshtein's distance between two lists of words."""
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, right in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (left != right))
    return row[-1]


# --- the judge ----------------------------------------------------------------------------------------------------


def compare(first: tuple[str, str], second: tuple[str, str]) -> str:
    """ "A", "B" or "tie": which (instruction, response) has the higher quality, by more than TIE. A response that cannot be
    parsed has quality 0."""
    qualities = [quality(*pair) or 0.0 for pair in (first, second)]
    if abs(qualities[0] - qualities[1]) < TIE:
        return "tie"
    return "A" if qualities[0] > qualities[1] else "B"


def judge(prompt: str) -> str:
    """The exact judge behind jpo.feedback's question (`--judge jpo.study.world:judge`): reads both sides from its text."""
    texts = {}
    for name in ("Instruction", "Instruction of A", "Instruction of B", "Response A", "Response B"):
        found = re.search(rf"(?:^|\n){name}:\n(==[0-9a-f]{{16}}==)\n(.*?)\n\1(?:\n|$)", prompt, re.DOTALL)
        if found:
            texts[name] = found[2]
    sides = []
    for letter in "AB":
        instruction = texts.get("Instruction", texts.get(f"Instruction of {letter}"))
        if instruction is None or f"Response {letter}" not in texts:
            raise JpoError(f"the question shows no instruction or response for {letter}")
        sides.append((instruction, texts[f"Response {letter}"]))
    return compare(*sides)


# --- texts --------------------------------------------------------------------------------------------------------


def instructions(count: int, seed: int, stream: int, without: Sequence[str] = ()) -> list[str]:
    """`count` different instructions, the families in turn; none of `without`."""
    dice, seen = Dice(seed, stream, 0), set(without)
    found: list[str] = []
    tried = 0
    while len(found) < count:
        tried += 1
        if tried > 50 * count + 1000:
            raise JpoError(f"the embedded world has no {count} further instructions; ask for fewer")
        text = _instruction(FAMILIES[tried % len(FAMILIES)], dice)
        if text not in seen:
            seen.add(text)
            found.append(text)
    return found


def _instruction(family: str, dice: Dice) -> str:
    words = [WORDS[dice.below(len(WORDS))] for _ in range(LENGTHS[dice.below(len(LENGTHS))])]
    return f"{family}: {' '.join(words)}"


def respond(instruction: str, faults: int, dice: Dice) -> str:
    """A response with so many faults (fewer where they undo each other): numbers go astray, list words get lost, replaced,
    doubled or exchanged with a neighbour."""
    words = list(best_answer(instruction))
    for _ in range(faults):
        if words[0] in NUMBERS:
            place = NUMBERS.index(words[0]) + (1 + dice.below(2)) * (1 if dice.below(2) else -1)
            words = [NUMBERS[min(max(place, 0), len(NUMBERS) - 1)]]
            continue
        at, kind = dice.below(len(words)), dice.below(4)
        if kind == 0 and len(words) > 1:
            del words[at]
        elif kind <= 1:
            words[at] = WORDS[dice.below(len(WORDS))]
        elif kind == 2:
            words.insert(at, words[at])
        else:
            at = min(at, max(0, len(words) - 2))
            words[at : at + 2] = words[at : at + 2][::-1]
    return " ".join(words)


def responses(texts: Sequence[str], seed: int, stream: int, shares: Sequence[float] = GOLD_FAULTS) -> list[str]:
    """A response to each instruction, its number of faults drawn by `shares`."""
    dice = Dice(seed, stream, 1)
    return [respond(text, dice.pick(shares), dice) for text in texts]
