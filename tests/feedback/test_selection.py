"""Which comparisons to ask next: the strategies against brute force and planted truths, and `jpo pairs --select`."""

import json

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

import jpo
from jpo.cli.commands.pairs import register
from jpo.errors import DataError, JpoError
from jpo.evaluate.sampling import encoder_of
from jpo.feedback import rounds
from jpo.feedback.selection import ask_in_rounds, fit_head, next_batch, probability, scaled


def log_det(x, weights, places, ridge):
    return np.linalg.slogdet(ridge * np.eye(x.shape[1]) + (x[places] * weights[places, None]).T @ x[places])[1]


@pytest.mark.parametrize("answered", [[], [3, 11, 3]])
def test_dopt_is_the_brute_force_greedy_log_det(answered):
    rng = np.random.default_rng(5)
    x, d, ridge = rng.normal(size=(25, 4)), rng.normal(size=25) * 2, 0.3
    p = 1 / (1 + np.exp(-d))
    weights, taken = p * (1 - p), list(answered)
    for _ in range(8):
        free = [at for at in range(25) if at not in taken]
        taken.append(max(free, key=lambda at: log_det(x, weights, [*taken, at], ridge)))
    assert next_batch("dopt", 8, d, x, answered=answered, ridge=ridge) == taken[len(answered) :]


def test_margin_sorts_by_the_size_of_d_and_tells_large_ones_apart():
    d = np.array([3.0, -0.1, 90.0, 0.4, -80.0, 0.0])  # sigmoid of 80 and 90 are both 1
    assert next_batch("margin", 9, d) == [5, 1, 3, 0, 4, 2]
    assert next_batch("margin", 2, d, answered=[5, 3]) == [1, 0]


@pytest.mark.parametrize("strategy", ["random", "margin", "dopt"])
def test_rounds_ask_everything_once_and_depend_on_the_seed_alone(strategy):
    x = np.random.default_rng(0).normal(size=(30, 3))

    def run(seed):
        return ask_in_rounds(strategy, 7, x, lambda places: [x[at, 0] > 0 for at in places], turns=6, seed=seed)

    found = run(1)
    assert [len(asked) for asked, _ in found] == [7, 14, 21, 28, 30, 30]
    assert sorted(found[-1][0]) == list(range(30))
    assert [asked for asked, _ in run(1)] == [asked for asked, _ in found]
    if strategy != "dopt":  # whose first choice is the longest row, whatever the seed
        assert run(2)[0][0] != found[0][0]


def test_equal_choices_are_settled_by_the_seed():
    same = np.ones((40, 2))
    assert next_batch("margin", 5, np.zeros(40), seed=1) != next_batch("margin", 5, np.zeros(40), seed=2)
    firsts = {next_batch("dopt", 1, np.zeros(40), same, seed=seed)[0] for seed in range(6)}
    assert len(firsts) > 2


def test_dopt_needs_fewer_labels_than_chance_where_most_pairs_say_the_same():
    """Nine in ten pairs differ in one direction alone; the others tell about the eleven directions that are asked
    about. Labels until the reward orders four in five of the pairs that it is tested on."""
    labels = {"random": [], "dopt": []}
    for seed in range(5):
        rng = np.random.default_rng(seed)
        truth = rng.normal(size=12)
        x = rng.normal(size=(600, 12))
        x[:540, 1:] *= 0.01
        x, tests = scaled(x), rng.normal(size=(400, 12)) * ([0.0] + [1.0] * 11)

        def ask(places, x=x, truth=truth):
            return (x[places] @ truth > 0).astype(float)

        for strategy, needed in labels.items():
            found = ask_in_rounds(strategy, 10, x, ask, turns=30, seed=seed)
            right = [np.mean((tests @ w > 0) == (tests @ truth > 0)) for _, w in found]
            needed.append(next((10 * at for at, share in enumerate(right, 1) if share >= 0.8), 310))
    assert all(few < many for few, many in zip(labels["dopt"], labels["random"], strict=True)), labels
    assert np.mean(labels["dopt"]) < 0.6 * np.mean(labels["random"]), labels


@pytest.mark.parametrize("shape", [(40, 5), (6, 20)])  # more answers than features, and fewer
def test_the_head_is_the_minimum_and_ties_pull_to_zero(shape):
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=shape), rng.choice([0, 0.5, 1], size=shape[0])
    w = fit_head(x, y, 0.2)
    assert np.abs(x.T @ (probability(x @ w) - y) + 0.2 * w).max() < 1e-4
    assert np.abs(fit_head(x, np.full(len(x), 0.5))).max() < 1e-8
    assert not fit_head(np.empty((0, 3)), []).any()


def test_wrong_arguments_are_named():
    x = np.ones((3, 2))
    for match, arguments, options in (
        ("strategy: expected one of random, margin, dopt; got 'best'", ("best", 1, [0.0]), {}),
        ("count: expected a positive integer, got 0", ("random", 0, [0.0]), {}),
        ("margins: .* NaN", ("margin", 1, [0.0, np.nan]), {}),
        ("margins: expected shape", ("margin", 1, [[0.0]]), {}),
        (r"features: expected \(2, H\)", ("dopt", 1, [0.0, 1.0], x), {}),
        ("features: expected finite", ("dopt", 1, [0.0] * 3, x * np.inf), {}),
        ("answered: expected places from 0 to 2, got 3", ("dopt", 1, [0.0] * 3, x), {"answered": [3]}),
        ("ridge: expected a positive", ("dopt", 1, [0.0] * 3, x), {"ridge": 0}),
    ):
        with pytest.raises(JpoError, match=match):
            next_batch(*arguments, **options)
    with pytest.raises(JpoError, match="answers: expected"):
        fit_head(x, [0, 1, 2])


# --- records and the command -----------------------------------------------------------------------------------------

JOINT = [
    {
        "instruction_0": f"name a {a}",
        "response_0": f"{b} it is",
        "instruction_1": f"count {b}",
        "response_1": f"{n} {a}",
    }
    for n, (a, b) in enumerate([(a, b) for a in ("cat", "dog", "bird", "fish") for b in ("red", "blue", "tall")])
]
CONDITIONAL = [{"instruction": f"say {n}", "response_0": f"{n}", "response_1": f"no {n}"} for n in range(4)]


def turned(row):
    flipped = {name: row[name[:-1] + str(1 - int(name[-1]))] for name in row if name[-1] in "01"}
    return {**row, **flipped}


@pytest.fixture
def run(tmp_path):
    app = typer.Typer()
    app.command("other")(lambda: None)
    register(app)

    def call(rows, *options, feedback=None):
        files = {"in": rows, "answers": feedback}
        for name, held in files.items():
            if held is not None:
                (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in held))
        given = ["--feedback", str(tmp_path / "answers.jsonl")] if feedback is not None else []
        output = tmp_path / "next.jsonl"
        paths = ["--input", str(tmp_path / "in.jsonl"), "--output", str(output)]
        result = CliRunner().invoke(app, ["pairs", *paths, *given, *options])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == 0, result.output
        return [json.loads(line) for line in output.read_text().splitlines()], result.output

    return call


@pytest.mark.parametrize("strategy", ["random", "margin", "dopt"])
def test_what_is_answered_is_never_asked_again(run, strategy):
    rows = [{**row, "id": at} for at, row in enumerate([*JOINT, *CONDITIONAL])]
    rows += [turned(rows[5])]  # the same comparison once more, sides exchanged
    answers, model = [], [] if strategy == "random" else ["--model", "tiny"]
    for size in (6, 6, 4):
        made, printed = run(rows, "--select", strategy, "--count", "6", "--seed", "3", *model, feedback=answers or None)
        assert len(made) == size and all(row in rows for row in made)
        assert f"{16 - len(answers)} candidates could be asked, {len(answers)} comparisons are answered" in printed
        assert "dropped 1: stands twice" in printed or f"dropped {len(answers) + 1}: is answered already" in printed
        answers += [{**turned(row), "feedback": at % 3} for at, row in enumerate(made)]
    assert "only 4 are left" in printed
    assert {row["id"] for row in answers} == set(range(16))
    with pytest.raises(JpoError, match="nothing is left to ask; make more"):
        run(rows, "--select", strategy, "--count", "1", *model, feedback=answers)


def test_the_inputs_own_answers_skips_and_failed_verdicts(run):
    rows = [
        {**CONDITIONAL[0], "feedback": 1},
        {**CONDITIONAL[1], "feedback": None, "failure": "skipped"},
        {**CONDITIONAL[2], "feedback": None, "failure": "no verdict"},
        CONDITIONAL[3],
    ]
    made, _ = run(rows, "--select", "random", "--count", "9")
    assert sorted(made, key=lambda row: row["instruction"]) == CONDITIONAL[2:]


def test_the_command_is_deterministic(run):
    options = ("--select", "dopt", "--count", "5", "--model", "tiny", "--seed", "4")
    answers = [{**JOINT[0], "feedback": 1}, {**JOINT[4], "feedback": 0}]
    assert run(JOINT, *options, feedback=answers)[0] == run(JOINT, *options, feedback=answers)[0]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    lm = jpo.load("tiny")
    pairs = [{"i_chosen": "a", "r_chosen": "cat", "i_reject": "b", "r_reject": "dog red"}] * 4
    options = {"r": 4, "learning_rate": 0.01, "batch_size": 4, "steps": 5, "beta": 0.7, "token_budget": 512}
    trainer = jpo.PreferenceTrainer(lm, pairs, jpo.PreferenceConfig(**options))
    folder = str(tmp_path_factory.mktemp("adapter") / "a")
    trainer.train()
    lm.save_adapter(folder, {"training": {"beta": 0.7, "scope": "joint"}, "template": trainer.template.to_dict()})
    return folder


def test_an_adapters_margins_are_the_trainers(run, trained):
    lm = jpo.load("tiny")
    own = lm.load_adapter(trained)
    pool = rounds.pool_of(JOINT)
    scored = rounds.score(lm, pool, encoder_of(lm, own), own)
    as_pairs = [
        {"i_chosen": r["instruction_0"], "r_chosen": r["response_0"], "i_reject": r["instruction_1"],
         "r_reject": r["response_1"]} for r in JOINT
    ]  # fmt: skip
    trainer = jpo.PreferenceTrainer(lm, as_pairs, jpo.PreferenceConfig(beta=0.7, max_length=512))
    margins = [trainer._run([pair], 0, train=False)["rewards/margins"] for pair in trainer.pairs]
    assert np.abs(scored.margins).max() > 1e-3
    np.testing.assert_allclose(scored.margins, margins, rtol=1e-3, atol=1e-5)
    order = np.argsort(np.abs(margins))
    made, _ = run(JOINT, "--select", "margin", "--count", "4", "--model", "tiny", "--adapter", trained,
                  "--compute", "float32")  # fmt: skip
    assert made == [JOINT[at] for at in order[:4]]


def test_without_an_adapter_the_answers_make_the_margins():
    lm = jpo.load("tiny")
    answers = [{**row, "feedback": at % 2} for at, row in enumerate(JOINT[:6])]
    pool = rounds.pool_of(JOINT, answers)
    margins = rounds.score(lm, pool, encoder_of(lm)).margins
    wanted = [answer["feedback"] == 0 for answer in answers]
    assert sum((margins[6:] > 0) == wanted) >= 5  # six answers over items that they share, under a prior
    contrary = rounds.pool_of(JOINT, [{**answer, "feedback": 1 - answer["feedback"]} for answer in answers])
    np.testing.assert_allclose(rounds.score(lm, contrary, encoder_of(lm)).margins, -margins, rtol=1e-5, atol=1e-7)
    assert not rounds.score(lm, rounds.pool_of(JOINT), encoder_of(lm)).margins.any()


def test_refusals(run, tmp_path):
    for match, options in (
        ("say how many candidates to ask next: --count N", ["--select", "random"]),
        ("--select margin: a model is needed; give --model", ["--select", "margin", "--count", "2"]),
        ("expected at most one of them", ["--select", "random", "--weak"]),
        ("only --select knows them", ["--weak", "--model", "tiny"]),
        ("--select knows none of", ["--select", "random", "--count", "2", "--majority"]),
    ):
        with pytest.raises(JpoError, match=match):
            run(JOINT, *options)
    with pytest.raises(DataError, match=r"answers.jsonl, line 1: the key feedback is missing"):
        run(JOINT, "--select", "random", "--count", "2", feedback=JOINT)
    with pytest.raises(DataError, match=r"in.jsonl, line 1: no candidate"):
        run([{"prompt": "a", "chosen": "b", "rejected": "c"}], "--select", "random", "--count", "2")
