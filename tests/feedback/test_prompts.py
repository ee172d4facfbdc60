"""The question: protocols, the task, wording of one's own, and journals that were written before there were any."""

import hashlib
import json

import pytest

from jpo.cli.main import main
from jpo.data import Template
from jpo.data.records import candidates
from jpo.errors import JpoError
from jpo.feedback.acquire import acquire
from jpo.feedback.journal import Journal, content_key
from jpo.feedback.judges import CallableJudge
from jpo.feedback.prompts import TASKS, Question, judge_prompt, read_wording
from tests.feedback.server import longest

ROW = {"instruction": "q {mark}", "response_0": "one {response_b}", "response_1": "two"}
JOINT = {"instruction_0": "q", "response_0": "one", "instruction_1": "p", "response_1": "two"}


def candidate(row):
    return candidates([row])[0]


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_wording_of_earlier_journals_stands_byte_for_byte():
    """Digests of the question and its neutral twin, taken from the release before protocols."""
    want = ("cbbb0b8e9b9497e8", "0f7d0253494914fb", "72d91c32ab7b2be5", "fc4429d3304bda16")
    found = [judge_prompt(candidate(row), swapped) for row in (ROW, JOINT) for swapped in (False, True)]
    assert tuple(hashlib.sha256(prompt.encode()).hexdigest()[:16] for prompt in found) == want
    neutrals = [hashlib.sha256(prompt.neutral.encode()).hexdigest()[:16] for prompt in found]
    assert neutrals == 2 * ["3e7d549fc0993f81"] + 2 * ["bbe6cf3ab607d473"]


def test_verdicts_of_earlier_journals_are_those_of_the_protocol_tie(tmp_path):
    book = Journal(tmp_path / "j.sqlite")
    for swapped, verdict in ((False, "A"), (True, "B")):
        key = content_key("callable:x", "1", swapped, judge_prompt(candidate(ROW), swapped))
        book._db.execute(
            "INSERT INTO verdicts (key, judge, swapped, attempts, verdict, reply) VALUES (?, 'callable:x', ?, 1, ?, ?)",
            (key, swapped, verdict, verdict),
        )
    book.close()
    judge = CallableJudge(lambda prompt: 1 / 0, "callable:x")
    options = {"journal": tmp_path / "j.sqlite", "max_attempts": 1}
    assert acquire([ROW], tmp_path / "o.jsonl", judge, **options).asked == 0
    assert read(tmp_path / "o.jsonl")[0]["feedback"] == 0
    assert acquire([ROW], tmp_path / "f.jsonl", judge, question=Question("forced"), **options).asked == 2


def test_forced_asks_for_one_of_two_and_ties_come_from_the_orders(tmp_path):
    asked = []

    def judge(prompt):
        asked.append(prompt)
        return "A" if "even" in prompt else longest(prompt)

    rows = [
        {"instruction": "even", "response_0": "xx", "response_1": "yy"},
        {"instruction": "odd", "response_0": "x", "response_1": "long"},
    ]
    question = Question("forced")
    summary = acquire(rows, tmp_path / "o.jsonl", CallableJudge(judge, "callable:x"), question=question)
    assert [row["feedback"] for row in read(tmp_path / "o.jsonl")] == [2, 1] and summary.feedback["2"] == 1
    assert all(row["protocol"] == "forced" for row in read(tmp_path / "o.jsonl"))
    assert all("tie" not in prompt for prompt in asked) and "You must choose" in asked[0]
    tied = acquire(
        rows[:1], tmp_path / "t.jsonl", CallableJudge(lambda p: "tie", "c:t"), question=question, max_attempts=1
    )
    assert tied.feedback["failed"] == 1
    book = Journal(tmp_path / "o.jsonl.journal.sqlite")
    protocols = {row[0] for row in book._db.execute("SELECT protocol FROM verdicts")}
    book.close()
    assert protocols == {"forced"}


def test_the_judge_reads_a_post_as_the_policy_did():
    prompt = Question(task="tldr").prompt(candidate(ROW), False)
    shown = TASKS["tldr"].replace("{instruction}", ROW["instruction"])
    assert f"\n{shown}\n" in prompt and "summarize it accordingly" in prompt
    assert shown in Template.named("tldr").prompt_text(ROW["instruction"])
    joint = Question(task="tldr").prompt(candidate(JOINT), False)
    assert joint.count("summarize it accordingly") == 2
    assert "Say: q\n" in Question(task="Say: {instruction}").prompt(candidate(JOINT), False)
    with pytest.raises(JpoError, match="task: expected one of plain, tldr"):
        Question(task="tdlr")


def test_wording_of_ones_own(tmp_path):
    single, pair = tmp_path / "single.txt", tmp_path / "pair.txt"
    single.write_text("Which is better for {instruction}?\n(a) {response_a}\n(b) {response_b}\n{mark}\n")
    pair.write_text("{instruction_a}: {response_a} | {instruction_b}: {response_b}")
    question = Question("forced", wording=read_wording([single, pair]))
    prompt = question.prompt(candidate(ROW), True)
    assert "better for q {mark}?\n(a) two\n(b) one {response_b}\n==" in prompt  # texts that look like slots stay texts
    assert "better for N/A?\n(a) N/A\n(b) N/A" in prompt.neutral
    assert question.prompt(candidate(JOINT), False) == "q: one | p: two"
    assert question.version("joint") == "own forced" and Question().version("joint") == "1"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{instruction} {response_a}", r"p.txt: \{response_b\} is missing; a conditional wording holds"),
        ("{instruction} {response_a} {response_b} {criteria}", r"p.txt: unknown slot \{criteria\}"),
        ("{instruction_a} {response_a} {response_b}", r"\{instruction_b\} is missing; a joint wording"),
        ("nothing", r"\{instruction\} is missing"),
    ],
)
def test_wording_is_checked_before_the_first_question(text, message, tmp_path, capsys):
    path, source = tmp_path / "p.txt", tmp_path / "in.jsonl"
    path.write_text(text)
    source.write_text(json.dumps(ROW) + "\n")
    with pytest.raises(JpoError, match=message):
        read_wording([path])
    flags = ["--judge", "tests.feedback.server:longest", "--prompt", str(path)]
    assert main(["feedback", "--input", str(source), "--output", str(tmp_path / "o.jsonl"), *flags]) == 1
    assert "p.txt" in capsys.readouterr().err and not list(tmp_path.glob("o.jsonl*"))


def test_a_reply_that_was_not_understood_when_it_came_is_not_asked_for_again(tmp_path):
    out = tmp_path / "o.jsonl"
    question = Question()
    book = Journal(f"{out}.journal.sqlite")
    for swapped, reply in ((False, "Answer: A"), (True, "Output (b)")):
        key = content_key("callable:x", "1", swapped, question.prompt(candidate(ROW), swapped))
        book._db.execute(
            "INSERT INTO verdicts (key, judge, swapped, attempts, reply, problem, failed) VALUES (?, 'j', ?, 3, ?, 'unparsed', 1)",
            (key, swapped, reply),
        )
    book.close()
    assert acquire([ROW], out, CallableJudge(lambda prompt: 1 / 0, "callable:x")).asked == 0
    assert read(out)[0]["feedback"] == 0 and "failure" not in read(out)[0]


def test_the_flags_of_the_command_line(tmp_path, capsys):
    source, out = tmp_path / "in.jsonl", tmp_path / "o.jsonl"
    source.write_text(json.dumps({**JOINT, "response_1": "three"}) + "\n")
    flags = ["feedback", "--input", str(source), "--output", str(out), "--judge", "tests.feedback.server:longest"]
    assert main([*flags, "--protocol", "forced", "--task", "tldr"]) == 0
    assert read(out)[0]["protocol"] == "forced"
    assert main([*flags, "--protocol", "forced", "--task", "tldr", "--dry-run"]) == 0
    assert "2 questions: 2 known" in capsys.readouterr().out
    assert main([*flags, "--dry-run"]) == 0 and "2 questions: 0 known" in capsys.readouterr().out
    assert main([*flags, "--protocol", "froced"]) == 1 and "expected one of tie, forced" in capsys.readouterr().err
