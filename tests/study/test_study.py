"""A very small study end to end: killed and gone on with, the same numbers; settings held to; the report's content."""

import html
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import pytest
import yaml

from jpo.cli.main import main
from jpo.errors import JpoError
from jpo.feedback.interplay import interplay
from jpo.study import Study, load_config, preset_text, run_study
from jpo.study.config import PRESETS, StudyConfig
from jpo.study.figures import NAMES, drawings
from jpo.study.methods import METHODS, amount_of, mixture, swapped

SMALL = {
    "sft_size": 200,
    "conditional_size": 120,
    "candidates_size": 120,
    "joint_size": 60,
    "joint_candidates_size": 60,
    "test_size": 20,
    "max_new_tokens": 14,
    "methods": ["sft", "dpo", "jpo_joint", "jpo_union", "jpo_masked", "kto", "rpo", "iopo"],
    "training_seeds": [0, 1],
    "temperatures": [0.001, 1.0],
    "hidden_size": 32,
    "pretrain": {"texts": 1500, "batch_size": 32, "steps": 120, "learning_rate": 0.005, "save_steps": 30},
    "sft": {"full": True, "batch_size": 32, "epochs": 1, "learning_rate": 0.001, "save_steps": 0},
    "train": {
        "batch_size": 16,
        "epochs": None,
        "steps": 4,
        "learning_rate": 0.002,
        "warmup_steps": 1,
        "save_steps": 2,
        "target_modules": "all-linear",
        "max_length": 64,
        "max_prompt_length": 32,
    },
}
CURVES = {"amounts": [0.5], "scaling_methods": ["dpo"], "mixing": [0.5]}
NO_CURVES = {"amounts": [], "mixing": []}


def config(folder, **changes):
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump({**SMALL, **changes}, file)
        file.flush()
        return load_config(file.name, output=str(folder))


def numbers(folder):
    """results.json without what time and place decide."""
    with open(os.path.join(folder, "results.json"), encoding="utf-8") as file:
        found = json.load(file)
    for key in ("seconds", "stage_seconds"):
        found.pop(key)
    found["settings"].pop("output")
    for run in found["training"].values():
        run.pop("seconds")
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study") / "undisturbed"
    run_study(config(folder, **CURVES), show=False)
    return folder


def test_results_hold_what_is_relied_on(undisturbed):
    found = numbers(undisturbed)
    assert set(found["win_rates"]) == set(METHODS)
    for seeds in found["win_rates"].values():
        assert set(seeds) == {"0", "1"} and all(set(degrees) == {"0.001", "1"} for degrees in seeds.values())
        assert all(0 <= rate <= 1 for degrees in seeds.values() for rate in degrees.values())
    with open(undisturbed / "feedback" / "joint.jsonl", encoding="utf-8") as file:
        assert found["interplay"] == interplay([json.loads(line) for line in file])
    assert 0 <= found["unparsed_share"] <= 1 and found["underpowered"] is True
    assert json.loads((undisturbed / "results.json").read_text())["seconds"] > 0


def test_win_rates_are_those_of_the_verdict_files(undisturbed):
    found = numbers(undisturbed)
    for name, method, seed in (("dpo-seed1", "dpo", "1"), ("sft-seed0", "sft", "0")):
        rows = [json.loads(line) for line in (undisturbed / "verdicts" / f"{name}.jsonl").read_text().splitlines()]
        for degree in ("0.001", "1"):
            scores = [(1, 0, 0.5)[row["feedback"]] for row in rows if f"{row['temperature']:g}" == degree]
            assert len(scores) == 20 and found["win_rates"][method][seed][degree] == pytest.approx(sum(scores) / 20)


def test_labels_travel_and_mixes_are_as_asked(undisturbed):
    rows = [json.loads(line) for line in (undisturbed / "feedback" / "joint.jsonl").read_text().splitlines()]
    kinds = [tuple(sorted((row["label_0"], row["label_1"]))) for row in rows]
    assert len(rows) == 60
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {
        ("chosen", "chosen"): 15,
        ("rejected", "rejected"): 15,
        ("chosen", "rejected"): 30,
    }
    assert all(row["instruction_0"] != row["instruction_1"] for row in rows)


def test_curves_name_their_pairs(undisturbed):
    found = numbers(undisturbed)
    pairs = found["sizes"]
    assert found["scaling"]["dpo"]["0.5"]["pairs"] == round(pairs["conditional"] / 2)
    assert found["scaling"]["dpo"]["1"]["mean"] == found["pooled"]["dpo"]["mean"]
    assert found["mixing"]["equal_pairs"]["0.5"]["pairs"] == min(pairs["conditional"], pairs["joint"])
    steps = [point["steps"] for point in found["mixing"]["equal_epochs"].values()]
    assert len(steps) == 3 and max(steps) == found["training"]["jpo_union-seed0"]["steps"] > 4


def test_the_same_seed_gives_the_same_numbers_and_another_does_not(undisturbed, tmp_path):
    run_study(config(tmp_path / "again", **CURVES), show=False)
    assert numbers(tmp_path / "again") == numbers(undisturbed)
    few = {"methods": ["sft"], "seed": 1, **NO_CURVES}
    run_study(config(tmp_path / "other", **few), show=False)
    assert numbers(tmp_path / "other")["win_rates"]["sft"] != numbers(undisturbed)["win_rates"]["sft"]


CHANGED = {
    "interplay.json": ("{}", "interplay"),
    "runs/dpo-seed0/study.json": ('{"pair": 3}', "train dpo-seed0"),
    "runs/dpo-seed1/study.json": ("{", "train dpo-seed1"),
    "verdicts/kto-seed1.jsonl": ('{"feedback": "x"}\n', "judge kto-seed1"),
    "pairs/joint.jsonl": ("", "preference pairs"),
}


def test_a_file_that_was_changed_is_named_with_its_stage(undisturbed, tmp_path):
    """They ended in KeyError, JSONDecodeError and worse, without a file's name."""
    folder = tmp_path / "changed"
    shutil.copytree(undisturbed, folder)
    for name, (text, stage) in CHANGED.items():
        before = (folder / name).read_bytes()
        (folder / name).write_text(text)
        with pytest.raises(JpoError, match=re.escape(str(folder / name))) as caught:
            run_study(config(folder, **CURVES), show=False)
        assert "no records" in str(caught.value) or f"and the stage '{stage}' runs again" in str(caught.value)
        (folder / name).write_bytes(before)
    run_study(config(folder, **CURVES), show=False)
    assert numbers(folder) == numbers(undisturbed)


def finished_stages(folder):
    try:
        return len((folder / "seconds.jsonl").read_text().splitlines())
    except OSError:
        return 0


def test_killed_at_any_moment_it_ends_with_the_same_numbers(undisturbed, tmp_path):
    folder = tmp_path / "killed"
    settings = tmp_path / "small.yaml"
    settings.write_text(yaml.safe_dump({**SMALL, **CURVES}))
    dice, kills = random.Random(4), 0
    command = [sys.executable, "-m", "jpo", "study", str(settings), "--output", str(folder)]
    stages = len(Study(config(folder, **CURVES)).plan())
    for target in (1, *sorted(dice.sample(range(2, stages - 5), 5))):  # the first falls into the pre-training
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        while process.poll() is None and finished_stages(folder) < target:
            time.sleep(0.01)
        time.sleep(dice.random() * 0.25)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
    assert kills >= 4
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert numbers(folder) == numbers(undisturbed)
    assert not list(folder.glob("**/*.part*")) and not list(folder.glob("**/.*.tmp"))


def test_what_a_killed_writer_left_is_swept(tmp_path):
    study = Study(config(tmp_path))
    left = tmp_path / "verdicts" / ".jpo_joint-seed0.part.jsonl.abc_1234.tmp"
    left.parent.mkdir()
    left.write_text("half a li")
    with study.locked():
        assert not left.exists()


def test_a_folder_keeps_to_its_settings_but_may_grow(tmp_path):
    base = {"methods": ["sft"], "training_seeds": [0], **NO_CURVES}
    run_study(config(tmp_path, **base), show=False)
    with pytest.raises(JpoError, match="study.yaml.*test_size was 20, now 21"):
        run_study(config(tmp_path, **base, test_size=21), show=False)
    before = os.path.getmtime(tmp_path / "policy" / "config.json")
    found = run_study(config(tmp_path, **{**base, "methods": ["sft", "dpo"]}), show=False)
    assert set(found["win_rates"]) == {"sft", "dpo"}
    assert os.path.getmtime(tmp_path / "policy" / "config.json") == before


def test_one_process_at_a_time(tmp_path):
    study = Study(config(tmp_path))
    with study.locked(), pytest.raises(JpoError, match="another process"):
        run_study(config(tmp_path), show=False)


def test_the_report_stands_alone_and_says_what_ran(undisturbed):
    text = (undisturbed / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"(src|href)=[\"'](?!#)", re.sub(r"xlink:href=\"#[^\"]*\"", "", text))
    assert "<script" not in text and "@import" not in text and "url(http" not in text
    assert text.count("<svg") == text.count("</svg>") == text.count('role="img" aria-label="') == 5
    for method in METHODS.values():
        assert method.label in text
    assert "underpowered" in text
    found = numbers(undisturbed)
    assert f"{100 * found['table']['dpo']['1']['win_rate']:.1f}<small>" in text
    assert f"{100 * found['unparsed_share']:.2f} %" in text


def test_the_report_begins_with_what_was_done_and_what_came_out(undisturbed):
    """Two sentences, one picture, outputs before and after; which claim is the paper's stands beside it."""
    text = (undisturbed / "report.html").read_text(encoding="utf-8")
    found = numbers(undisturbed)
    first = text[text.index("<main>") : text.index("<h2>")]
    assert first.count("<svg") == 1 and first.count('class="lead"') == 2
    for method in ("dpo", "jpo_joint", "jpo_union"):
        assert f"{METHODS[method].label} {100 * found['pooled'][method]['mean']:.1f} %" in first
    sample = json.loads((undisturbed / "verdicts" / "sft-seed0.jsonl").read_text().splitlines()[0])
    assert sample["instruction"] in first and "before: SFT policy" in first and "after: DPO" in first
    papers = [row["claim"] for row in found["claims"] if row["paper"]]
    assert papers and all(f"{claim}<small>the paper&#39;s claim" in text.replace("'", "&#39;") for claim in papers)
    assert text.count("also compared</small>") == len(found["claims"]) - len(papers)


def test_how_far_each_method_stands_above_the_sft_policy(undisturbed):
    found = numbers(undisturbed)
    assert set(found["above_sft"]) == set(METHODS) - {"sft"}
    for method, cell in found["above_sft"].items():
        expected = found["pooled"][method]["mean"] - found["pooled"]["sft"]["mean"]
        assert cell["items"]["difference"] == pytest.approx(expected) == pytest.approx(cell["seeds"]["mean"])
        assert cell["verdict"] == "undecided"  # two seeds


def test_figures_stand_beside_the_report(undisturbed):
    for name in NAMES:
        assert (undisturbed / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (undisturbed / "figures" / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    drawn = drawings(json.loads((undisturbed / "results.json").read_text()))
    assert tuple(drawn) == NAMES
    for drawing in drawn.values():
        svg = drawing.svg()
        assert svg == drawing.svg() and "currentColor" in svg and "#1b1b1f" not in svg
        assert f'aria-label="{html.escape(drawing.alt)}"' in svg


def test_a_model_of_ones_own_data_and_judge(tmp_path, monkeypatch):
    rows = [{"instruction": f"Say the word number {i}", "gold_response": f"word {i}"} for i in range(60)]
    for name, part in (("sft", rows[:40]), ("test", rows[40:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    (tmp_path / "longest.py").write_text(
        "def judge(prompt):\n"
        "    mark = prompt.split('Response A:\\n')[1].split('\\n')[0]\n"
        "    sides = [prompt.split(f'Response {x}:\\n{mark}\\n')[1].split(f'\\n{mark}')[0] for x in 'AB']\n"
        "    return 'tie' if len(sides[0]) == len(sides[1]) else 'AB'[len(sides[1]) > len(sides[0])]\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    values = {
        "model": "tiny",
        "judge": "longest:judge",
        "sft_data": str(tmp_path / "sft.jsonl"),
        "test_data": str(tmp_path / "test.jsonl"),
        "test_size": 12,
        "max_new_tokens": 6,
        "temperatures": [1.0],
        "methods": ["sft", "dpo"],
        "training_seeds": [0],
        "sft": {"epochs": 1, "batch_size": 8},
        "train": {"steps": 2, "batch_size": 8, "warmup_steps": 0},
        "output": str(tmp_path / "out"),
    }
    found = run_study(StudyConfig.from_dict(values), show=False)
    assert found["sizes"]["test"] == 12 and found["sizes"]["sft"] == found["sizes"]["instructions"] == 40
    rows = [json.loads(line) for line in (tmp_path / "out/verdicts/dpo-seed0.jsonl").read_text().splitlines()]
    for row in rows:
        a, b = len(row["response_0"]), len(row["response_1"])
        assert row["feedback"] == (2 if a == b else int(b > a))


def test_a_judge_that_fails_leaves_a_report_without_win_rates(undisturbed, tmp_path):
    """Shares of exactly 0 and cells without a single verdict are drawn and written too."""
    from jpo.study import report

    found = json.loads((undisturbed / "results.json").read_text())
    cell = found["table"]["dpo"]["1"]
    cell.update(win_rate=None, low=None, high=None, longer_than_gold=None)
    cell["length_controlled"].update(mean=None)
    found["interplay"]["rejected_over_chosen"].update(share=0.0, low=1e-17, high=0.1)
    found["pooled"]["dpo"].update(mean=None, low=None, high=None)
    study = Study(config(undisturbed, **CURVES))
    report.write_report(study.stages, study.runs, found, str(tmp_path / "report.html"))
    assert "–<small>–</small>" in (tmp_path / "report.html").read_text(encoding="utf-8")


# --- options and commands -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, message",
    [
        ("tranining_seeds: [1]", "unknown option 'tranining_seeds'; did you mean 'training_seeds'"),
        ("training_seeds: 3", "training_seeds: expected a list, got 3"),
        ("methods: [dpo, jpo_uniom]", "got 'jpo_uniom'; did you mean 'jpo_union'"),
        ("train: {bta: 0.1}", "unknown option 'bta'; did you mean 'beta'"),
        ("train: {seed: 3}", "seed is decided by the study"),
        ("overrides: {kto: {learning_rat: 1}}", "unknown option 'learning_rat'"),
        ("overrides: {ktoo: {}}", "got 'ktoo'; did you mean 'kto'"),
        ("sft: {steps: x}", "steps: expected a whole number or null, got 'x'"),
        ("amounts: [2]", "amounts: expected shares below 1, got 2"),
        ("temperatures: []", "temperatures: expected at least one"),
        ("training_seeds: [1, 1]", "training_seeds: expected different ones"),
        ("training_seeds: [0, -1]", "training_seeds: expected whole numbers of at least 0, got -1"),
        ("seed: -2", "seed: expected whole numbers of at least 0, got -2"),
        ("test_size: true", "test_size: expected a whole number, got True"),
        ("model: tiny", "model 'tiny' and judge 'world'"),
        ("{model: tiny, judge: local}", "missing: test_data, instructions or sft_data"),
        ("{model: null, judge: openai}", "missing: model, test_data, instructions or sft_data, judge_model"),
        ("mix: CC=1,XX=1", "mix: expected shares"),
        ("- 1", "expected a mapping"),
    ],
)
def test_bad_options_name_the_file_and_the_key(text, message, tmp_path, capsys):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    assert main(["study", str(path), "--output", str(tmp_path / "out")]) == 1
    shown = capsys.readouterr().err
    assert "bad.yaml" in shown and message in shown and not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_whole(name, tmp_path):
    asked = ["model=tiny", "test_data=t.jsonl", "sft_data=s.jsonl", "judge_model=m"]
    if name == "alpaca_eval":
        asked.append("alpaca_eval=a.jsonl")
    given = [] if name in ("demo", "world") else asked
    assert load_config(preset=name, assignments=given).train_options("dpo").beta > 0
    assert main(["study", "--preset", name, "--write-preset", str(tmp_path / "p.yaml")]) == 0
    assert (tmp_path / "p.yaml").read_text() == preset_text(name)


def test_the_papers_settings():
    given = ["model=tiny", "test_data=t.jsonl", "sft_data=s.jsonl", "judge_model=m"]
    for name, sizes in (("tldr", (12100, 7000, 7500)), ("helpful", (14700, 9400, 9000))):
        c = load_config(preset=name, assignments=given)
        assert (c.sft_size, c.conditional_size, c.joint_size) == sizes and c.test_size == 500
        assert (c.temperatures, c.top_k, c.max_new_tokens) == ([0.001, 0.5, 1.0], 50, 400)
        sft, train = c.sft_options(), c.train_options("jpo_union")
        assert (sft.learning_rate, sft.epochs, sft.max_length, sft.adam_beta2) == (1.5e-6, 3, 2048, 0.95)
        assert (train.learning_rate, train.steps, train.batch_size, train.warmup_steps) == (5e-5, 1000, 32, 100)


def test_flags_and_assignments_win(tmp_path):
    (tmp_path / "a.yaml").write_text("{test_size: 50, train: {beta: 0.3}}")
    c = load_config(str(tmp_path / "a.yaml"), "demo", ["train.beta=0.4", "training_seeds=[7]"], seed=5, output="o")
    assert (c.test_size, c.train["beta"], c.training_seeds, c.seed, c.output) == (50, 0.4, [7], 5, "o")
    assert c.train["batch_size"] == 32


def test_losses_are_given_to_every_method_beside_its_own():
    c = load_config(preset="demo", assignments=["train.loss=sigmoid,sft", "train.loss_weights=[1,0.5]"])
    found = {name: c.train_options(name).loss for name in METHODS if name != "sft"}
    own = {"kto": "kto", "rpo": "rpo", "iopo": "iopo"}
    assert found == {name: f"{own.get(name, 'sigmoid')},sft" for name in found}
    assert c.train_options("kto").weights == [1, 0.5]
    other = load_config(preset="demo", assignments=["train.loss=ipo", "train.loss_weights=null"])
    assert (other.train_options("jpo_joint").loss, other.train_options("rpo").loss) == ("ipo", "rpo")


def test_a_dry_run_lists_the_stages_and_writes_nothing(tmp_path, capsys, undisturbed):
    assert main(["demo", "--output", str(tmp_path / "d"), "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "to do  pre-train the decoder" in shown and "0 done" in shown and not (tmp_path / "d").exists()
    assert Study(config(undisturbed, **CURVES)).describe().count("done  ") == len(Study(config("x", **CURVES)).plan())


# --- datasets -----------------------------------------------------------------------------------------------------


def pair(i):
    return {"i_chosen": f"i{i}", "r_chosen": f"c{i}", "i_reject": f"i{i}", "r_reject": f"r{i}"}


def test_iopo_swaps_two_chosen_responses():
    found = swapped([pair(i) for i in range(7)], seed=0)
    assert len(found) == 6
    for one, other in zip(found[::2], found[1::2]):
        assert one["i_chosen"] == other["i_reject"] and one["i_reject"] == other["i_chosen"]
        assert one["r_chosen"] == one["r_reject"] == "c" + one["i_chosen"][1:]


def test_amounts_are_nested_and_mixtures_of_one_size():
    rows = [pair(i) for i in range(40)]
    quarter, half = (amount_of(rows, share, 0) for share in (0.25, 0.5))
    assert len(quarter) == 10 and half[:10] == quarter and amount_of(rows, 1, 0) == rows
    joint = [pair(i) for i in range(100, 130)]
    for share in (0, 0.25, 0.5, 1):
        found = mixture(rows, joint, share, 0)
        assert len(found) == 30 and sum(row in joint for row in found) == round(share * 30)
