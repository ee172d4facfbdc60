"""What a newcomer gets wrong: one line that names the file, the key and the remedy; and nothing of theirs is lost."""

import json
import os
import re

import pytest

from jpo.cli.main import build_app, main

PAIR = {"prompt": "Name a colour.", "chosen": "Blue.", "rejected": "A boat."}
CANDIDATE = {"instruction": "a", "response_0": "b", "response_1": "c"}
SIDES = {"instruction_0": "a", "response_0": "b", "instruction_1": "c", "response_1": "d"}
JOINT = {**SIDES, "label_0": "chosen", "label_1": "rejected"}
# the command line's names, which design.md binds: a command that vanishes is a fault
COMMANDS = {
    "annotate", "compact", "completion", "demo", "doctor", "evaluate", "export", "feedback", "generate", "inspect",
    "interplay", "join", "merge", "pairs", "push", "reference", "score", "serve", "sft", "study", "train",
}  # fmt: skip


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs a command in a fresh folder: (status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        status = main(list(arguments))
        found = capsys.readouterr()
        return status, found.out, found.err

    return call


def lines(path, *records):
    with open(path, "w") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)
    return path


def test_every_command_is_there():
    assert {command.name for command in build_app().registered_commands} == COMMANDS


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("empty.jsonl", "\n", "empty.jsonl: holds no records"),
        ("array.jsonl", json.dumps([PAIR]), r"array.jsonl, line 1: .* name that ends in .json"),
        ("pretty.jsonl", json.dumps([PAIR], indent=1), r"pretty.jsonl, line 1: .* name that ends in .json"),
        ("semicolons.csv", "prompt;chosen;rejected\na;b;c\n", "line 1: expected cells parted by commas"),
        ("equal.jsonl", json.dumps(PAIR | {"rejected": "Blue."}), r"dropped 1: both sides are equal \(equal.jsonl"),
    ],
)
def test_data_files(run, name, text, message):
    with open(name, "w") as file:
        file.write(text)
    status, _, error = run("train", "--model", "tiny", "--data", name, "--output", "out")
    assert status == 1
    assert re.search(message, error), error
    assert not os.path.exists("out")


def test_one_empty_file_of_several_is_named(run):
    lines("good.jsonl", PAIR)
    lines("empty.jsonl")
    status, _, error = run(
        "train", "--model", "tiny", "--data", "good.jsonl", "--data", "empty.jsonl", "--output", "out"
    )
    assert status == 1 and "empty.jsonl: holds no records" in error


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps: 1\nsteps: 2\n", "key 'steps' stands twice"),
        ("per_device_train_batch_size: 4\n", "here it is batch_size"),
        ("num_train_epochs: 4\n", "here it is epochs"),
        ("learning_rte: 1\n", "did you mean 'learning_rate'"),
        ("model: [tiny]\n", r"model: expected text, got \['tiny'\]"),
        ("data: 5\nmodel: tiny\n", "data: expected a file, or a list of files, got 5"),
        ("max_length: 1\n", "max_length: expected a whole number of at least 2, got 1"),
    ],
)
def test_config_files(run, text, message):
    with open("run.yaml", "w") as file:
        file.write(text)
    status, _, error = run("train", "--config", "run.yaml", "--output", "out")
    assert status == 1 and re.search(message, error), error


def test_judged_records_are_not_written_over_by_their_pairs(run):
    lines("judged.jsonl", {"instruction": "q", "response_0": "a", "response_1": "b", "feedback": 0})
    before = open("judged.jsonl").read()
    status, _, error = run("pairs", "--preferences", "--input", "judged.jsonl", "--output", "./judged.jsonl")
    assert status == 1 and "read and written at once" in error and open("judged.jsonl").read() == before


def test_candidates_are_not_written_over_by_what_is_judged_of_them(run):
    path = lines("c.jsonl", CANDIDATE)
    status, _, err = run("feedback", "--input", path, "--output", path, "--judge", "json:dumps")
    assert status == 1 and "is read and written at once" in err and json.loads(open(path).read()) == CANDIDATE


def test_no_candidates_at_all(run):
    status, _, err = run("feedback", "--input", lines("c.jsonl"), "--output", "o.jsonl", "--judge", "json:dumps")
    assert status == 1 and "c.jsonl: holds no records" in err and not os.path.exists("o.jsonl")


def test_conditional_feedback_alone_has_no_interplay_and_says_so(run):
    status, out, _ = run("interplay", "--input", lines("c.jsonl", {**CANDIDATE, "feedback": 0}))
    assert status == 0 and "no joint records" in out and "n = 0" not in out


def test_generate_takes_nothing_from_a_file_of_something_else(run):
    with open("notes.txt", "w") as file:
        file.write("a line without an end")
    lines("in.jsonl", {"instruction": "q"})
    sample = ("generate", "--model", "tiny", "--max-new-tokens", "2", "--input", "in.jsonl", "--output")
    status, _, error = run(*sample, "notes.txt")
    assert status == 1 and "not a line of jpo generate" in error and open("notes.txt").read() == "a line without an end"
    assert run(*sample, "new/folder/out.jsonl")[0] == 0 and os.path.exists("new/folder/out.jsonl")


def test_samples_are_given_up_only_where_new_ones_can_be_drawn(run):
    lines("in.jsonl", {"instruction": "q"})
    with open("out.jsonl", "w") as file:
        file.write("kept\n")
    options = ("--input", "in.jsonl", "--output", "out.jsonl", "--overwrite", "--max-new-tokens", "2")
    assert run("generate", "--model", "none", *options)[0] == 1 and open("out.jsonl").read() == "kept\n"
    assert run("generate", "--model", "tiny", *options)[0] == 0 and "kept" not in open("out.jsonl").read()


def test_conversations_are_answered_and_scored_under_the_chat_template(run):
    turn = [{"role": "user", "content": "hi"}]
    lines("in.jsonl", {"prompt": turn}, {"prompt": [{"role": "system", "content": "Be brief."}, *turn]})
    assert run("generate", "--model", "tiny", "--max-new-tokens", "2", "--input", "in.jsonl")[0] == 0
    sides = {name: [{"role": "assistant", "content": text}] for name, text in (("chosen", "yes"), ("rejected", "no"))}
    lines("pairs.jsonl", {"prompt": turn} | sides)
    chosen = run("score", "pairs.jsonl", "--model", "tiny")
    assert chosen[0] == 0 and chosen == run("score", "pairs.jsonl", "--model", "tiny", "--template", "chat")


def test_scores_and_verdicts_are_not_written_over_what_they_are_of(run):
    """jpo score, annotate and evaluate used to leave their rows in place of the records that they had read."""
    pairs, candidates = lines("pairs.jsonl", PAIR), lines("c.jsonl", CANDIDATE)
    rows = [{"id": 0, "instruction": "a", "output": "b", "model": "m", "temperature": 0, "seed": 0, "sample": 0}]
    rows, gold = lines("g.jsonl", *rows), lines("gold.jsonl", {"id": 0, "instruction": "a", "gold_response": "c"})
    ask = ("evaluate", "--generations", rows)
    judge = ("--gold", gold, "--judge", "local", "--model", "tiny")
    for name, command in (
        (pairs, ("score", pairs, "--model", "tiny", "--output", pairs)),
        (candidates, ("annotate", "--input", candidates, "--output", candidates, "--convert")),
        (rows, (*ask, *judge, "--output", rows)),
        (gold, (*ask, *judge, "--output", gold)),
        (rows, (*ask, "--alpaca-eval-output", rows)),
    ):
        before = open(name).read()
        status, _, error = run(*command)
        assert (status, open(name).read()) == (1, before), command
        assert f"{name}: is read and written at once" in error


def test_scores_make_the_folder_that_they_are_written_into(run):
    """It used to be missed when all was scored, under the name of a temporary file."""
    status, _, error = run("score", lines("pairs.jsonl", PAIR), "--model", "tiny", "--output", "new/one/scores.jsonl")
    assert status == 0 and not error and len(open("new/one/scores.jsonl").readlines()) == 1


def test_figures_make_the_folder_that_they_are_written_into(run):
    with open("j.jsonl", "w") as file:
        file.write(json.dumps({**JOINT, "feedback": 0}) + "\n")
    assert run("interplay", "--input", "j.jsonl", "--json", "new/figures.json", "--plot", "drawn/f.svg")[0] == 0
    assert os.path.exists("drawn/f.svg") and json.load(open("new/figures.json"))["verdicts"] == 1


@pytest.mark.parametrize("text", [b"\xff\xfe{", b"index\n\xe4", None])
def test_a_text_that_cannot_be_read(run, text):
    """Bytes that are no text used to be shown as a traceback."""
    if text is not None:
        with open("text", "wb") as file:
            file.write(text)
    lines("c.jsonl", CANDIDATE)
    with open("a.json", "w") as file:
        json.dump([{"generator_2": "m", "preference": 1.0, "output_1": "a", "output_2": "b", "instruction": "i"}], file)
    for command in (
        ("annotate", "--input", "c.jsonl", "--output", "o.jsonl", "--guideline", "text", "--port", "0"),
        ("evaluate", "--alpaca-eval-annotations", "a.json", "--alpaca-eval-difficulty", "text"),
    ):
        status, _, error = run(*command)
        assert status == 1 and re.match(
            r"jpo: text: is UTF-16|jpo: text, line 2: byte 0 |jpo: text: cannot be read: No such file", error
        )


def test_a_negative_seed(run):
    """It used to end in NumPy's traceback."""
    status, _, error = run("train", "--model", "tiny", "--data", "example", "--seed", "-1", "--output", "out")
    assert (status, error) == (1, "jpo: seed: expected a whole number of at least 0, got -1\n")
