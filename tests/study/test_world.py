"""The embedded world: what is right, how wrong a wrong answer is, what cannot be read, and the judge behind its
prompt."""

import itertools

import pytest

from jpo.data.readers import read_records
from jpo.data.records import candidates
from jpo.errors import JpoError
from jpo.feedback.acquire import acquire
from jpo.feedback.judges import CallableJudge
from jpo.feedback.prompts import judge_prompt
from jpo.study import decoder, world


@pytest.mark.parametrize(
    "instruction, answer",
    [
        ("repeat: owl cat owl", "owl cat owl"),
        ("reverse: owl cat ant", "ant cat owl"),
        ("sort: owl cat ant cat", "ant cat cat owl"),
        ("count: owl cat ant cat", "four"),
        ("ends: owl cat ant", "owl ant"),
    ],
)
def test_the_best_answer_has_quality_one_and_every_fault_less(instruction, answer):
    assert " ".join(world.best_answer(instruction)) == answer
    assert world.quality(instruction, f" {answer}\n") == 1
    for habit in world.HABITS:
        for seed in range(40):
            text = world.respond(instruction, habit, world.Dice(seed))
            value = world.quality(instruction, text)
            assert value is not None and (value == 1) == (text == answer)
            assert habit != "careful" or value == 1


def written(instruction, habit):
    return {world.respond(instruction, habit, world.Dice(seed)) for seed in range(60)}


def test_each_habit_has_faults_of_its_own():
    sort = "sort: owl cat ant"
    assert written(sort, "hasty") == {"ant", "ant cat"}
    assert written(sort, "stammering") == {"ant ant cat owl", "ant cat cat owl", "ant cat owl owl"}
    assert written(sort, "absent-minded") == {"owl cat ant"} == written("ends: owl cat ant", "absent-minded")
    assert written("repeat: owl cat ant", "absent-minded") == {"ant cat owl"}
    count = "count: owl cat ant"
    assert written(count, "hasty") == {"one", "two"} and written(count, "stammering") == {"four", "five"}
    assert written(count, "absent-minded") == {"two"}


def test_quality_falls_with_each_edit():
    qualities = [world.quality("repeat: ant bee cat dog", text) for text in
                 ("ant bee cat dog", "ant bee cat yak", "ant bee yak yak", "ant yak yak yak", "yak yak yak yak")]  # fmt: skip
    assert qualities == [1, 0.75, 0.5, 0.25, 0]
    assert world.quality("repeat: ant bee cat dog", "ant bee cat") == 0.75
    assert world.quality("repeat: ant bee", "ant bee bee bee") == 0.5
    assert [world.quality("count: ant bee cat", n) for n in ("three", "four", "one", "nine")] == [1, 0.75, 0.5, 0]


@pytest.mark.parametrize("text", ["", "  ", "ant lion", "three", "Ant", "ant, bee", "ant <|end|>", "ant " * 13])
def test_what_is_no_list_of_animals_cannot_be_parsed(text):
    assert world.quality("repeat: ant bee", text) is None


@pytest.mark.parametrize("text", ["", "3", "three four", "ant", "eleven"])
def test_what_is_no_number_cannot_be_parsed(text):
    assert world.quality("count: ant bee cat", text) is None


@pytest.mark.parametrize("text", ["sing: ant", "repeat ant", "repeat:", "repeat: lion", "", "count: " + "ant " * 20])
def test_foreign_instructions_are_named(text):
    with pytest.raises(JpoError, match="embedded world"):
        world.parse_instruction(text)


def ask(record, swapped):
    (candidate,) = candidates([record])
    return world.judge(judge_prompt(candidate, swapped))


def test_the_judge_reads_the_question_and_swapping_swaps_its_verdict():
    conditional = {"instruction": "sort: owl cat", "response_0": "cat owl", "response_1": "owl cat"}
    assert (ask(conditional, False), ask(conditional, True)) == ("A", "B")
    joint = {
        "instruction_0": "sort: owl cat",
        "response_0": "owl owl",
        "instruction_1": "count: ant",
        "response_1": "one",
    }
    assert (ask(joint, False), ask(joint, True)) == ("B", "A")
    near = joint | {"response_0": "cat owl"}
    assert (ask(near, False), ask(near, True)) == ("tie", "tie")


def test_the_threshold_of_a_tie_and_the_worth_of_unreadable_text():
    six = "repeat: ant bee cat dog elk fox"
    assert world.compare((six, "ant bee cat dog elk fox"), (six, "ant bee cat dog elk ant")) == "A"  # 1 to 5/6
    longer = "repeat: ant bee cat dog elk fox hen ant"
    assert world.compare((longer, longer[8:]), (longer, longer[8:-4])) == "tie"  # 1 to 7/8
    assert world.compare((six, "?"), (six, "ant")) == "B"  # 0 to 1/6
    assert world.compare((six, "?"), (six, "yak")) == "tie"


def test_the_judge_refuses_a_question_without_texts():
    with pytest.raises(JpoError, match="A"):
        world.judge("Which is better?")


def test_the_judge_serves_the_feedback_command(tmp_path):
    rows = [{"instruction": "sort: owl cat", "response_0": a, "response_1": b} for a, b in
            itertools.permutations(("cat owl", "owl cat", "nonsense"), 2)]  # fmt: skip
    acquire(rows, tmp_path / "f.jsonl", CallableJudge.named("jpo.study.world:judge"))
    found = {(row["response_0"], row["response_1"]): row["feedback"] for row in read_records(str(tmp_path / "f.jsonl"))}
    assert found["cat owl", "owl cat"] == found["cat owl", "nonsense"] == 0
    assert found["owl cat", "cat owl"] == 1


def test_texts_are_a_function_of_the_seed_and_never_repeat():
    one, again, other = (world.instructions(500, seed, 1) for seed in (0, 0, 1))
    assert one == again != other and len(set(one)) == 500
    assert not set(world.instructions(100, 0, 2, without=one)) & set(one)
    families = [text.split(":")[0] for text in one]
    assert all(95 <= families.count(family) <= 105 for family in world.FAMILIES)
    assert world.responses(one, 0, 1) == world.responses(one, 0, 1) != world.responses(one, 1, 1)


def test_an_exhausted_world_says_so(monkeypatch):
    monkeypatch.setattr(world, "LENGTHS", (1,))
    with pytest.raises(JpoError, match="fewer"):
        world.instructions(200, 0, 1)


def test_the_longer_an_instruction_the_fewer_write_with_care():
    texts = world.instructions(4000, 3, 1)
    right: dict[int, list[bool]] = {}
    for text, answer in zip(texts, world.responses(texts, 3, 1)):
        right.setdefault(len(text.split()) - 1, []).append(world.quality(text, answer) == 1)
    for count, share in world.CAREFUL.items():  # by chance some of the others are right too
        assert share - 0.05 < sum(right[count]) / len(right[count]) < share + 0.2


def test_the_words_of_an_instruction_differ():
    assert all(len(set(text.split())) == len(text.split()) for text in world.instructions(500, 0, 1))


def test_one_text_in_four_teaches_its_instruction_too():
    texts = ["sort: owl cat", "ends: ant bee cat", "count: ant bee", "repeat: ant bee", "sort: cat bee"]
    found = world.reading(texts, ["cat owl", "ant cat", "two", "ant bee", "bee cat"])
    assert [row["instruction"] + row["response"] for row in found] == [
        f"{text} = {answer}" for text, answer in zip(texts, ["cat owl", "ant cat", "two", "ant bee", "bee cat"])
    ]
    assert [row["instruction"] for row in found] == ["sort", "ends: ant bee cat =", "count: ant bee =",
                                                     "repeat: ant bee =", "sort"]  # fmt: skip


def test_every_word_is_one_token_and_any_text_survives():
    tokenizer = decoder.world_tokenizer()
    assert len(tokenizer.encode("sort: owl cat = cat owl")) == 7
    for text in ("sort: owl cat = cat owl", "Grüße\n\t☃", "antbee  ant"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    first, second = (decoder.random_decoder(seed).tensors for seed in (0, 1))
    name = "model.layers.0.mlp.up_proj.weight"
    assert (first[name].data == decoder.random_decoder(0).tensors[name].data).all()
    assert (first[name].data != second[name].data).any()
