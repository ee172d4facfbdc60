"""The methods that a study compares: which feedback each trains on, and what makes it this method. One line adds one.

Knows names, datasets and options of PreferenceConfig; never trains.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jpo.data.batches import permutation

_AMOUNT, _MIX, _PARTNERS = range(3)  # streams of random words, one for each use of the seed


@dataclass(frozen=True)
class Method:
    """`data`: the sets of pairs that are joined; `options`: what PreferenceConfig gets; `text`: for the report."""

    label: str
    data: tuple[str, ...]
    text: str
    options: Mapping[str, Any] = field(default_factory=dict)


_DPO, _JPO = {"scope": "response", "loss": "sigmoid"}, {"scope": "joint", "loss": "sigmoid"}
METHODS: dict[str, Method] = {
    "sft": Method("SFT policy", (), "the policy that all others start from and are held to"),
    "dpo": Method("DPO, conditional", ("conditional",), "two responses to one instruction", _DPO),
    "jpo_joint": Method("JPO, joint", ("joint",), "pairs of different instructions, instruction scored too", _JPO),
    "jpo_union": Method("JPO, union", ("conditional", "joint"), "both sets of feedback together", _JPO),
    "jpo_masked": Method("JPO, prompts masked", ("joint",), "joint pairs, only the responses scored", _DPO),
    "kto": Method("KTO", ("conditional",), "the conditional labels as desirable and undesirable",
                  {"scope": "response", "loss": "kto"}),
    "rpo": Method("RPO", ("conditional",), "conditional pairs compared across the batch by prompt similarity",
                  {"scope": "response", "loss": "rpo"}),
    "iopo": Method("IOPO", ("swapped",), "chosen responses of two instructions against their exchange",
                   {"scope": "joint", "loss": "iopo"}),
}  # fmt: skip


def swapped(conditional: Sequence[Mapping[str, Any]], seed: int) -> list[dict[str, Any]]:
    """IOPO's groups (arXiv 2411.06208) out of conditional pairs: two instructions x, x' with chosen responses y, y'
    give (x, y) over (x', y) and (x', y') over (x, y'). Partners are neighbours in a seeded order; one may be left
    out."""
    order = [int(at) for at in permutation(len(conditional), seed, _PARTNERS)]
    found = []
    for first, second in zip(order[::2], order[1::2], strict=False):
        one, other = conditional[first], conditional[second]
        if one["i_chosen"] == other["i_chosen"] or one["r_chosen"] == other["r_chosen"]:
            continue  # nothing is exchanged
        for mine, theirs in ((one, other), (other, one)):
            sides = {"i_chosen": mine["i_chosen"], "r_chosen": mine["r_chosen"]}
            found.append({**sides, "i_reject": theirs["i_chosen"], "r_reject": mine["r_chosen"]})
    return found


def amount_of(pairs: Sequence[Mapping[str, Any]], share: float, seed: int) -> list[Any]:
    """The first `share` of the pairs in a seeded order, so that smaller amounts are part of larger ones."""
    if share >= 1:
        return list(pairs)
    order = permutation(len(pairs), seed, _AMOUNT)
    return [pairs[int(at)] for at in order[: max(1, round(share * len(pairs)))]]


def mixture(conditional: Sequence[Any], joint: Sequence[Any], share: float, seed: int) -> list[Any]:
    """As many pairs for every share of joint ones: as the smaller set has."""
    count = min(len(conditional), len(joint))
    joint_count = round(share * count)
    picked = [conditional[int(at)] for at in permutation(len(conditional), seed, _MIX)[: count - joint_count]]
    return picked + [joint[int(at)] for at in permutation(len(joint), seed, _MIX, 1)[:joint_count]]
