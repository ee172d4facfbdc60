"""The embedded world: instructions over words, responses of graded quality, gold responses, and an exact judge.

Five families of instructions over two to six different words. The texts are by writers of four habits: the careful one
is right, the hasty one stops early, the stammering one says a word twice, the absent-minded one does another job; the
longer an instruction, the fewer write with care. So a policy fine-tuned on them has good and bad habits to choose
between, and instructions differ in how well they are answered. The quality of a response is a number from 0 to 1,
relative to its own instruction, read from the text itself; so one judge compares two responses to one instruction and
two (instruction, response) pairs alike. Everything is a pure function of the seed. Knows words; never models, tokens or
files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from jpo.data.words import raw_words
from jpo.errors import JpoError
from jpo.feedback.prompts import sides_of

WORDS = tuple("ant bee cat dog elk fox hen jay kid owl pig ram sow yak".split())  # alphabetical
NUMBERS = tuple("zero one two three four five six seven eight nine".split())
FAMILIES = ("ends", "repeat", "count", "reverse", "sort")
LENGTHS = (2, 3, 4, 5, 6)  # words of an instruction
TIE = 0.15  # qualities nearer than this are equal to the judge
TEMPLATE = "{instruction} = {response}"
HABITS = ("careful", "hasty", "stammering", "absent-minded")  # of the people who wrote the texts
CAREFUL = {2: 0.6, 3: 0.5, 4: 0.4, 5: 0.3, 6: 0.2}  # demonstrations and gold: share of careful writers, by words
CARELESS = dict.fromkeys(LENGTHS, 0.25)  # and of the texts to pre-train on: every habit alike
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

    Lists: 1 - edits / length of the longer list (insertions, deletions, replacements of words). Numbers: 1 - distance /
    4, at least 0."""
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
    """ "A", "B" or "tie": which (instruction, response) has the higher quality, by more than TIE. A response that
    cannot be parsed has quality 0."""
    qualities = [quality(*pair) or 0.0 for pair in (first, second)]
    if abs(qualities[0] - qualities[1]) < TIE:
        return "tie"
    return "A" if qualities[0] > qualities[1] else "B"


def judge(prompt: str) -> str:
    """The exact judge behind jpo.feedback's question (`--judge jpo.study.world:judge`): reads both sides from its
    text."""
    first, second = sides_of(prompt)
    return compare(first, second)


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
    left = list(WORDS)
    words = [left.pop(dice.below(len(left))) for _ in range(LENGTHS[dice.below(len(LENGTHS))])]
    return f"{family}: {' '.join(words)}"


def respond(instruction: str, habit: str, dice: Dice) -> str:
    """What a writer of that habit (one of HABITS) writes. Hasty: one or two words too few. Stammering: a word twice.
    Absent-minded: the words as they stand in the instruction, or from behind where that is the job. Numbers: one or two
    too small, too large, or always two. What does no harm is right by chance."""
    family, given = parse_instruction(instruction)
    words = best_answer(instruction)
    if habit == "careful":
        return " ".join(words)
    if family == "count":
        strayed = {"hasty": len(given) - 1 - dice.below(2), "stammering": len(given) + 1 + dice.below(2)}
        return NUMBERS[min(max(strayed.get(habit, 2), 1), len(NUMBERS) - 1)]
    if habit == "hasty":
        return " ".join(words[: max(1, len(words) - 1 - dice.below(2))])
    if habit == "stammering":
        at = dice.below(len(words))
        return " ".join([*words[: at + 1], *words[at:]])
    return " ".join(given[::-1] if family == "repeat" else given)


def responses(texts: Sequence[str], seed: int, stream: int, careful: Mapping[int, float] = CAREFUL) -> list[str]:
    """A response to each instruction by a writer drawn by chance: careful with the share that `careful` gives for the
    instruction's number of words, else of one of the other habits."""
    dice = Dice(seed, stream, 1)
    found = []
    for text in texts:
        share = careful[len(parse_instruction(text)[1])]
        others = [(1 - share) / (len(HABITS) - 1)] * (len(HABITS) - 1)
        found.append(respond(text, HABITS[dice.pick([share, *others])], dice))
    return found


def reading(texts: Sequence[str], answers: Sequence[str]) -> list[dict[str, str]]:
    """Texts to pre-train on. Of one in four all but the first word is learned, as joint scope scores it; of the others,
    whose instruction is words at random, the answer alone, which is learned the faster for it."""
    found = []
    for place, (text, answer) in enumerate(zip(texts, answers, strict=True)):
        family, words = text.split(":")
        if place % 4 == 0:
            found.append({"instruction": family, "response": f":{words} = {answer}"})
        else:
            found.append({"instruction": f"{text} =", "response": f" {answer}"})
    return found
