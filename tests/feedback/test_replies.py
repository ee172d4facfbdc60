"""Replies as people's models give them: what is read, and what stays unread because it names both sides or none."""

import time

import pytest

from jpo.feedback.prompts import ANSWERS
from jpo.feedback.replies import parse_reply

READ = {
    "A": [
        "A", " a\n", "A.", "A!", "**A**", "__A__", "(a)", "(A)", "[A]", "[[A]]", '"A"', "'A'", "`A`", "```\nA\n```", "> A",
        "a)", "A)", "\\boxed{A}", "Output (a)", "Output (a).", "output (A)", "**Output (a)**", "Output A", "Option A",
        "Response A", "Summary A", "Assistant A", "Answer: A", "Answer: (a)", "**Answer:** A", "Answer - A", "Final answer: A",
        "The answer is A.", "My choice: A", "Choice: [[A]]", "Verdict: **A**", "The winner is A", "I prefer response A",
        "Preferred Output: Output (a)", "## Preferred Output:\nOutput (a)", "Preferred output:\n\nA", "A is better",
        "A is better.", "Response A is better.", "Response A is the better response.", "Output (a) is preferred.",
        "The better response is A.", "A. It is more accurate.", "A - it is accurate", "A: more accurate",
        "A, because it answers the question.", "Output (a) because it is accurate", "Response (a): it is shorter",
        "A\n\nResponse A is more accurate than Response B.", "A.\nB invents a fact.",
        "Answer: A\nExplanation: Response A is better than Response B.", "<think>\nB? no\n</think>\n\nA",
        "B? no\n</think>\nA", "<think>" + "Is B better?\n" * 9000 + "</think>A", "\u0130" * 9 + "</think>A", "\ufeffA", "A\u200b",
        "\uff21", "Answer\uff1aA", "<answer>A</answer>", "<answer>\nA\n</answer>",
    ],
    "B": ["B", "b", "(b)", "Output (b)", "**(b)**", "Answer: B", "B because it is true", "B\n\nA is wrong about the date."],
    "tie": ["tie", "Tie.", "**tie**", "TIE", "Answer: tie", "It's a tie.", "It is a tie", "a tie", "Verdict: Tie"],
    None: [
        "", " ", "AB", "A or B", "A and B", "A B", "A/B", "A, B", "a. b.", "(a) and (b)", "(a) or (b)?", "Both A and B",
        "Output (a) and Output (b) are equal", "Output (a)\nOutput (b)", "Output (a), output (b)", "A\nB", "A\nOutput (b)",
        "A is better than B", "A is better. B is worse.", "A. Response B is worse.", "A because B is wrong", "Answer: A or B",
        "A, although response B is close", "B, but A is close", "A; B is also fine", "tie between A and B",
        "Response A and response B are equally good", "I cannot choose between A and B.", "Both are fine", "Neither",
        "Answer: neither", "Answer:", "A good answer would be longer", "A better answer exists", "a dog", "Absolutely",
        "Better", "B is worse", "A is not better", "not A", "A?", "I think A", "C", "Output (c)", "1", "Yes", "\ud800",
        "As an AI language model I cannot", "Bearer x",
    ],
}  # fmt: skip


@pytest.mark.parametrize("want", READ)
def test_replies_of_peoples_models(want):
    for reply in READ[want]:
        assert parse_reply(reply) == want, reply


def test_a_tie_is_no_answer_where_one_of_two_is_asked_for():
    for reply in READ["tie"]:
        assert parse_reply(reply, ANSWERS["forced"]) is None, reply
    for side in ("A", "B"):
        for reply in READ[side]:
            assert parse_reply(reply, ANSWERS["forced"]) == side, reply


def test_hostile_replies_take_no_time():
    pieces = (
        "A ",
        "(",
        "Answer: ",
        "the better ",
        "A \n",
        "<think>",
        "A is the ",
        "_",
        "> \n",
        "\\boxed{",
        "response (a) ",
    )
    for piece in pieces:
        start = time.process_time()  # an expression that backtracks takes minutes
        parse_reply(piece * (400_000 // len(piece)))
        assert time.process_time() - start < 5, piece
