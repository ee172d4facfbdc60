"""A study from what a person has: given policy, pairs, test set and evaluation set; sizes that count decided pairs; the
union's steps; what a dry run says. On the embedded tiny model, with functions and a loopback server for judges."""

import json
import random
import re
import subprocess
import sys

import pytest
import yaml

import jpo
from jpo.cli.main import main
from jpo.errors import JpoError
from jpo.study import Study, load_config, run_study
from jpo.study.config import StudyConfig
from jpo.study.results import CLAIMS
from tests.feedback.server import longest, serve
from tests.killed import killed_when

TESTS = [{"instruction": f"Say the word number {i}", "gold_response": "word " * (i % 4 + 1)} for i in range(12)]
PAIRS = [
    {"i_chosen": f"Name {i}", "r_chosen": f"long {i} yes", "i_reject": f"Name {i}", "r_reject": "no"} for i in range(24)
]
JOINT = [PAIRS[i] | {"i_reject": f"Name {i + 24}", "r_reject": "never"} for i in range(20)]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def small(tmp_path):
    """The options of a study of seconds, on given conditional pairs."""
    return {
        "model": "tiny",
        "judge": "tests.feedback.server:longest",
        "test_data": write(tmp_path / "test.jsonl", TESTS),
        "conditional_pairs": write(tmp_path / "pairs.jsonl", PAIRS),
        "joint_size": 10,
        "max_new_tokens": 4,
        "temperatures": [1.0],
        "methods": ["sft", "dpo", "jpo_union"],
        "training_seeds": [0],
        "train": {"steps": 3, "batch_size": 8, "warmup_steps": 0},
        "output": str(tmp_path / "out"),
    }


def config(values, **changes):
    return StudyConfig.from_dict({**values, **changes})


def test_a_study_from_given_pairs(small, tmp_path, capsys):
    found = run_study(config(small))
    shown = capsys.readouterr().err
    assert "conditional pairs are given" in shown and "no candidates, no conditional feedback" in shown
    assert found["sizes"]["conditional"] == 24 and found["feedback"]["conditional"]["0"] == 24
    assert not (tmp_path / "out/feedback/samples.jsonl").exists() and not (tmp_path / "out/policy").exists()
    assert found["sizes"]["joint"] == 10 and {"sft", "dpo", "jpo_union"} == set(found["win_rates"])
    labels = {row["label_0"] for row in read(tmp_path / "out/feedback/joint.jsonl")}
    assert labels == {"chosen", "rejected"}  # of the given pairs
    assert "given and count as decided" in (tmp_path / "out/report.html").read_text(encoding="utf-8")
    names = [stage.name for stage in Study(config(small)).plan()]
    assert "given conditional pairs" in names and "sample candidates" not in names


def test_given_joint_pairs_and_sizes(small, tmp_path):
    joint = write(tmp_path / "joint.jsonl", JOINT)
    values = {**small, "joint_pairs": joint, "joint_size": 7, "conditional_size": 9}
    found = run_study(config(values), show=False)
    assert (found["sizes"]["conditional"], found["sizes"]["joint"]) == (9, 7)
    assert found["interplay"]["verdicts"] == 0 and found["interplay"]["pooled_decisive"]["share"] is None
    assert "the joint pairs were given" in (tmp_path / "out/report.html").read_text(encoding="utf-8")
    for name, path in (("joint_pairs", small["conditional_pairs"]), ("conditional_pairs", joint)):
        with pytest.raises(JpoError, match="pairs are not of"):
            run_study(config({**small, name: path}, output=str(tmp_path / name)), show=False)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """An adapter that moves the tiny model far, with a template of its own."""
    folder = str(tmp_path_factory.mktemp("given") / "adapter")
    lm = jpo.load("tiny")
    options = {
        "steps": 5,
        "learning_rate": 0.05,
        "warmup_ratio": 0.0,
        "batch_size": 8,
        "template": "raw",
        "output": folder,
    }
    jpo.SFTTrainer(lm, [{"instruction": "a", "response": " b"}] * 8, jpo.SFTConfig(**options)).train()
    return folder


def test_a_given_policy_is_the_reference_and_brings_its_template(small, adapter, tmp_path):
    given = {**small, "policy": adapter, "methods": ["sft", "dpo"]}
    run_study(config(given), show=False)
    assert Study(config(given)).stages.template == "raw"
    merged = jpo.load(str(tmp_path / "out/policy"))
    lm = jpo.load("tiny")
    base = lm.sequence_logps(["a"], [" b"])[0]
    lm.load_adapter(adapter)
    want = lm.sequence_logps(["a"], [" b"])[0]
    assert merged.sequence_logps(["a"], [" b"])[0] == pytest.approx(want, abs=1e-3) and abs(want - base) > 0.1
    assert "fine-tune the SFT policy" not in [stage.name for stage in Study(config(given)).plan()]
    whole = {**small, "model": None, "policy": str(tmp_path / "out/policy"), "output": str(tmp_path / "again")}
    study = Study(config(whole))
    assert study.config.model == whole["policy"] and "policy" not in [stage.output for stage in study.plan()]
    assert study.stages.policy.sequence_logps(["a"], [" b"])[0] == pytest.approx(want, abs=1e-3)


def half(prompt):
    """Decides about half of all comparisons: where the two sides' digits differ in parity."""
    sides = [prompt.split(f"Response {letter}:")[1].split("==")[2] for letter in "AB"]
    odd = [sum(map(ord, side)) % 2 for side in sides]
    return "tie" if odd[0] == odd[1] else "AB"[odd[1]]


def test_sizes_count_decided_pairs(small, tmp_path):
    pool = write(tmp_path / "pool.jsonl", [{"instruction": f"Tell me about {i}"} for i in range(200)])
    values = {**small, "conditional_pairs": None, "instructions": pool, "judge": "tests.study.test_given:half"}
    values |= {"conditional_size": 20, "joint_size": 15, "methods": ["sft"]}
    found = run_study(config(values), show=False)
    assert (found["sizes"]["conditional"], found["sizes"]["joint"]) == (20, 15)
    conditional = found["feedback"]["conditional"]
    assert conditional["0"] + conditional["1"] >= 20 and conditional["2"] > 3
    assert sum(conditional.values()) < 100  # no more than it took
    capped = {**values, "candidates_size": 22, "output": str(tmp_path / "capped")}
    found = run_study(config(capped), show=False)
    assert sum(found["feedback"]["conditional"].values()) <= 22 and found["sizes"]["conditional"] < 20


def test_killed_within_its_rounds_it_ends_with_the_same_pairs(small, tmp_path):
    pool = write(tmp_path / "pool.jsonl", [{"instruction": f"Tell me about {i}"} for i in range(200)])
    values = {**small, "conditional_pairs": None, "instructions": pool, "judge": "tests.study.test_given:half"}
    values |= {"conditional_size": 30, "joint_size": 15, "methods": ["sft"], "max_new_tokens": 12}
    run_study(config(values, output=str(tmp_path / "whole")), show=False)
    (tmp_path / "s.yaml").write_text(yaml.safe_dump({**values, "output": str(tmp_path / "cut")}))
    dice, kills = random.Random(2), 0
    command = [sys.executable, "-m", "jpo", "study", str(tmp_path / "s.yaml")]
    waits = ("feedback/samples.part.jsonl", "feedback/samples.jsonl", "feedback/joint.part.jsonl.part", "samples")
    for name in waits:
        kills += killed_when(command, (tmp_path / "cut" / name).exists, dice.random() * 0.1)
    assert kills >= 2
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    for name in (
        "feedback/conditional.jsonl",
        "pairs/conditional.jsonl",
        "pairs/joint.jsonl",
        "verdicts/sft-seed0.jsonl",
    ):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_the_union_trains_for_equal_epochs_or_equal_steps(small, tmp_path):
    joint = write(tmp_path / "joint.jsonl", JOINT)
    values = {**small, "joint_pairs": joint, "joint_size": None}
    steps = {}
    for union in ("epochs", "steps"):
        found = run_study(config(values, union=union, output=str(tmp_path / union)), show=False)
        steps[union] = {name: run["steps"] for name, run in found["training"].items()}
    assert steps["steps"] == {"dpo-seed0": 3, "jpo_union-seed0": 3}
    # three steps of 8 are one epoch of 24 pairs; one of all 44 pairs is 5.5 steps
    assert steps["epochs"]["dpo-seed0"] == 3 and steps["epochs"]["jpo_union-seed0"] in (5, 6)
    with pytest.raises(JpoError, match="union: expected one of epochs, steps"):
        config(values, union="equal")


def test_the_paper_says_one_thing():
    assert [claim[:2] for claim in CLAIMS if claim[3]] == [("jpo_union", "dpo")]


def test_forced_against_a_server_and_known_verdicts(small, tmp_path, monkeypatch):
    """The whole study by the paper's protocol; then its verdicts again, out of the cache that it gives."""
    pytest.importorskip("openai")
    monkeypatch.setenv("OPENAI_API_KEY", "any")

    def judge(prompt):
        answer = longest(prompt)
        return "Output (a)" if answer in ("A", "tie") else "**B**\n\nA is shorter."

    values = {**small, "judge": "openai", "judge_model": "m", "protocol": "forced", "methods": ["sft", "dpo"]}
    with serve(judge=judge, refuses={"temperature": "'temperature' is not supported"}) as (url, server):
        found = run_study(config(values, base_url=url), show=False)
        assert all("You must choose" in body["messages"][0]["content"] for body in server.bodies)
        asked = len(server.bodies)
        assert sum("temperature" in body for body in server.bodies) == 1
        rows = read(tmp_path / "out/verdicts/dpo-seed0.jsonl")
        assert all(row["protocol"] == "forced" for row in rows) and found["settings"]["protocol"] == "forced"
        flags = [
            "evaluate",
            "--generations",
            str(tmp_path / "out/samples/dpo-seed0.jsonl"),
            "--gold",
            small["test_data"],
        ]
        judged = ["--judge", "openai", "--model", "m", "--base-url", url, "--protocol", "forced"]
        cache = str(tmp_path / "cache.json")
        journal = ["--journal", str(tmp_path / "out/feedback/verdicts.sqlite")]
        assert main([*flags, *judged, *journal, "--verdicts-output", cache, "--output", str(tmp_path / "a.jsonl")]) == 0
        assert len(server.bodies) == asked
        again = config(values, base_url=url, known_verdicts=[cache], output=str(tmp_path / "known"), methods=["dpo"])
        assert run_study(again, show=False)["win_rates"]["dpo"] == found["win_rates"]["dpo"]
        assert not any("Say the word" in body["messages"][0]["content"] for body in server.bodies[asked:])


def test_alpaca_eval_as_a_stage(small, tmp_path):
    rows = [{"instruction": f"Question {i}", "output": "base " * (i % 3 + 1), "generator": "gpt"} for i in range(14)]
    (tmp_path / "set.json").write_text(json.dumps(rows))
    difficulty = "index,instruction_difficulty\n" + "".join(f"{i},{i / 7 - 1}\n" for i in range(14))
    (tmp_path / "d.csv").write_text(difficulty)
    given = {"alpaca_eval": str(tmp_path / "set.json"), "alpaca_eval_difficulty": str(tmp_path / "d.csv")}
    found = run_study(config({**small, **given}), show=False)["alpaca_eval"]
    assert set(found) == {"sft", "dpo", "jpo_union"}
    samples = read(tmp_path / "out/alpaca_eval/dpo-seed0.samples.jsonl")
    assert len(samples) == 14 and {row["temperature"] for row in samples} == {0.7}
    rows = json.loads((tmp_path / "out/alpaca_eval/dpo-seed0.annotations.json").read_text())
    scores = [row["preference"] - 1 for row in rows]
    assert found["dpo"]["win_rate"]["mean"] == pytest.approx(sum(scores) / 14)
    assert found["dpo"]["length_controlled"]["glm"] == "length_controlled_noreg"
    assert (
        main(["evaluate", "--alpaca-eval-annotations", str(tmp_path / "out/alpaca_eval/dpo-seed0.annotations.json")])
        == 0
    )
    assert "AlpacaEval 2" in (tmp_path / "out/report.html").read_text(encoding="utf-8")
    later = config(
        {**small, **given, "methods": ["sft"], "output": str(tmp_path / "gone"), "alpaca_eval": "nowhere.json"}
    )
    with pytest.raises(JpoError, match="alpaca_eval: no such file: nowhere.json"):
        run_study(later, show=False)
    assert not (tmp_path / "gone").exists()


def test_killed_in_any_given_stage_it_ends_with_the_same_numbers(small, adapter, tmp_path):
    """Policy, pairs and evaluation set given; a kill -9 in each of their stages."""
    rows = [{"instruction": f"Question {i}", "output": "base " * (i % 3 + 1), "generator": "gpt"} for i in range(14)]
    (tmp_path / "set.json").write_text(json.dumps(rows))
    values = {**small, "policy": adapter, "alpaca_eval": str(tmp_path / "set.json"), "methods": ["sft", "dpo"]}
    values |= {"joint_pairs": write(tmp_path / "joint.jsonl", JOINT), "max_new_tokens": 12}
    run_study(config(values, output=str(tmp_path / "whole")), show=False)
    (tmp_path / "s.yaml").write_text(yaml.safe_dump({**values, "output": str(tmp_path / "cut")}))
    command = [sys.executable, "-m", "jpo", "study", str(tmp_path / "s.yaml")]
    waits = (
        "data/test.jsonl",
        "policy.part",
        "feedback/joint.jsonl",
        "runs/dpo-seed0.part",
        "alpaca_eval",
        "alpaca_eval/dpo-seed0.samples.jsonl",
    )
    assert sum(killed_when(command, (tmp_path / "cut" / name).exists) for name in waits) >= 3
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found, want = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("cut", "whole"))
    for key in ("win_rates", "alpaca_eval", "sizes", "feedback"):
        assert found[key] == want[key], key
    assert not list((tmp_path / "cut").glob("**/*.part*"))


def test_a_dry_run_counts_questions_tokens_hours_and_cost(small, tmp_path, capsys):
    (tmp_path / "s.yaml").write_text(yaml.safe_dump({**small, "judge": "openai", "judge_model": "m"}))
    flags = ["study", str(tmp_path / "s.yaml"), "--dry-run"]
    assert main(flags) == 0
    shown = capsys.readouterr().out
    # 10 joint pairs of which 2 in 3 are decided, both orders; 12 tests, both orders, three policies
    assert "questions to the judge: about 102 (joint feedback 30, evaluation 72)" in shown
    assert re.search(
        r"tokens of the judge: about [\d,]+ of questions and 204 of replies; for their cost give prompt_price", shown
    )
    assert "time here: about" in shown and "conditional pairs are given" in shown and not (tmp_path / "out").exists()
    assert main([*flags, "--set", "prompt_price=1000000", "--set", "completion_price=0"]) == 0
    tokens = re.search(
        r"about ([\d,]+) of questions and 204 of replies; cost about ([\d,]+).00", capsys.readouterr().out
    )
    assert tokens[1] == tokens[2] and 10_000 < int(tokens[1].replace(",", "")) < 40_000
    run_study(config(small), show=False)
    study = Study(config(small))
    assert "about 0 (none left)" in study.describe() and "0 sampled, 0 trained on" in study.describe()


def test_what_is_still_to_be_filled_in(tmp_path, capsys):
    assert main(["study", "--preset", "helpful", "--output", str(tmp_path / "o"), "--dry-run"]) == 1
    shown = capsys.readouterr().err
    for name in ("model", "test_data", "instructions or sft_data", "judge_model"):
        assert f"\n  {name}: " in shown
    for name in ("helpful", "tldr", "alpaca_eval"):
        assert main(["study", "--preset", name, "--write-preset", str(tmp_path / "p.yaml")]) == 0
        text = (tmp_path / "p.yaml").read_text()
        assert {line.split(":")[0] for line in text.splitlines() if "FILL IN" in line} >= {
            "model",
            "test_data",
            "judge_model",
        }
        with pytest.raises(JpoError, match="p.yaml: missing: model, test_data"):
            load_config(str(tmp_path / "p.yaml"))
        filled = text.replace("model: null", "model: tiny", 1).replace("test_data: null", "test_data: t.jsonl")
        filled = filled.replace("judge_model: null", "judge_model: m").replace("sft_data: null", "sft_data: s.jsonl")
        (tmp_path / "p.yaml").write_text(filled)
        c = load_config(str(tmp_path / "p.yaml"))
        assert (c.protocol, c.union, c.train["lora_dropout"]) == ("forced", "epochs", 0.05)
        assert c.question.task == ("tldr" if name == "tldr" else "plain")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"protocol": "froced"}, "protocol: expected one of tie, forced"),
        ({"task": "tdlr"}, "task: expected one of plain, tldr"),
        ({"judge_prompt": ["nowhere.txt"]}, "nowhere.txt: cannot be read as the judge's wording"),
        ({"model": "world", "judge": "world"}, "conditional_pairs: the embedded world makes its own"),
        ({"conditional_pairs": None}, "missing: instructions or sft_data"),
        ({"candidates_size": 0}, "candidates_size: expected a whole number of at least 2"),
    ],
)
def test_options_that_cannot_be(changes, message, small):
    with pytest.raises(JpoError, match=message):
        config(small, **changes)


def test_a_damaged_journal_of_a_study_is_salvaged(small, tmp_path, capsys):
    (tmp_path / "s.yaml").write_text(yaml.safe_dump({**small, "methods": ["sft"]}))
    flags = ["study", str(tmp_path / "s.yaml")]
    assert main(flags) == 0
    verdicts, journal = tmp_path / "out/verdicts/sft-seed0.jsonl", tmp_path / "out/feedback/verdicts.sqlite"
    before = verdicts.read_bytes()
    verdicts.unlink()
    data = bytearray(journal.read_bytes())
    data[4096 : 2 * 4096] = bytes(4096)
    journal.write_bytes(data)
    assert main(flags) == 1 and "--salvage" in capsys.readouterr().err
    assert main([*flags, "--salvage"]) == 0 and "salvaged" in capsys.readouterr().err
    assert verdicts.read_bytes() == before


def test_an_older_study_goes_on_under_the_later_options(small, tmp_path):
    values = {**small, "methods": ["sft"]}
    run_study(config(values), show=False)
    path = tmp_path / "out/study.yaml"
    stored = yaml.safe_load(path.read_text())
    for name in ("protocol", "union", "task", "judge_prompt", "alpaca_eval", "policy", "judge_max_tokens"):
        del stored[name]
    path.write_text(yaml.safe_dump(stored))
    run_study(config(values), show=False)
    with pytest.raises(JpoError, match="protocol was 'tie', now 'forced'"):
        run_study(config(values, protocol="forced"), show=False)
