"""The harness's scores of a jpo model beside those of its own hf model, on local tasks of each kind of request."""

import json

import lm_eval
import numpy as np
import pytest
from parity.peers import peer_of
from reference.models import adapter_of, write_random

import jpo
from jpo.errors import JpoError

ITEMS = [
    {"question": "Name a colour.", "choices": ["Blue", "Seven", "A boat of wood"], "answer": 0},
    {"question": "Add 2 and 3.", "choices": ["Four", "Five", "Six times"], "answer": 1},
    {
        "question": "Where do bees live, and why do they live there?",
        "choices": ["In hives", "At sea", "No"],
        "answer": 0,
    },
    {"question": "Say hello.", "choices": ["Hello!", "No.", "Blue"], "answer": 0},
]
HEAD = "dataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {data}\ntest_split: test\n"
TASKS = {
    "jpo_choice": "output_type: multiple_choice\ndoc_to_text: 'Q: {{question}} A:'\ndoc_to_target: answer\n"
    "doc_to_choice: choices\nmetric_list:\n  - metric: acc\n  - metric: acc_norm\n",
    "jpo_rolling": "output_type: loglikelihood_rolling\ndoc_to_text: ''\ndoc_to_target: '{{question}} {{choices[0]}}'\n"
    "metric_list:\n  - metric: word_perplexity\n",
    "jpo_generate": "output_type: generate_until\ndoc_to_text: 'Q: {{question}} A:'\ndoc_to_target: '{{choices[0]}}'\n"
    "generation_kwargs:\n  until: ['.', 'Q']\n  max_gen_toks: 8\nmetric_list:\n  - metric: exact_match\n",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("harness")
    hf, values = write_random(folder / "base", max_position_embeddings=64)
    adapter_of(folder / "adapter", values, base=str(folder / "base"))
    peer_of(hf, values).save_pretrained(folder / "peer")
    (folder / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in ITEMS))
    (folder / "tasks").mkdir()
    for name, body in TASKS.items():
        text = f"task: {name}\n" + HEAD.format(data=folder / "items.jsonl") + body
        (folder / "tasks" / f"{name}.yaml").write_text(text)
    return folder


def evaluated(model, folder):
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(folder / "tasks"), include_defaults=False)
    return lm_eval.simple_evaluate(
        model=model, tasks=list(TASKS), task_manager=manager, log_samples=True, bootstrap_iters=0, device="cpu"
    )


@pytest.mark.parametrize("adapter", [False, True])
def test_scores_equal_the_harness_own(folder, adapter):
    from lm_eval.models.huggingface import HFLM

    from jpo.integrations.lm_eval import JpoLM

    given = {"adapter": str(folder / "adapter")} if adapter else {}
    peer = HFLM(pretrained=str(folder / "base"), dtype="float32", device="cpu", max_length=24,
                **({"peft": str(folder / "adapter")} if adapter else {}))  # fmt: skip
    own = JpoLM(str(folder / "base"), max_length=24, **given)
    theirs, ours = evaluated(peer, folder), evaluated(own, folder)
    for task in TASKS:
        for a, b in zip(ours["samples"][task], theirs["samples"][task], strict=True):
            assert a["doc"] == b["doc"]
            if task == "jpo_generate":
                assert a["resps"] == b["resps"]
            else:
                got = [np.atleast_1d(np.array(r, object))[0] for r in a["filtered_resps"]]
                want = [np.atleast_1d(np.array(r, object))[0] for r in b["filtered_resps"]]
                np.testing.assert_allclose(np.array(got, float), np.array(want, float), rtol=1e-4, err_msg=task)
        for metric, value in theirs["results"][task].items():
            if isinstance(value, float):
                assert ours["results"][task][metric] == pytest.approx(value, rel=1e-4), (task, metric)


def test_greedy_flags_and_shared_contexts(folder, monkeypatch):
    from jpo.integrations import lm_eval as bridge

    lm = bridge.JpoLM(jpo.load(str(folder / "base")))
    context = lm.tok_encode("Q: Name a colour. A:")
    text = lm.model.generate(["Q: Name a colour. A:"], temperature=0.0, max_new_tokens=4)[0][0]
    requests = [(None, context, list(text.token_ids)), (None, context, [5, 6, 7]), (None, context[:3], [9])]
    whole = lm._loglikelihood_tokens(requests, disable_tqdm=True)
    assert whole[0] == (pytest.approx(text.logp, rel=1e-4), True) and not whole[1][1]
    monkeypatch.setattr(bridge, "_ROWS", 4)  # every sequence in a pass of its own
    assert lm._loglikelihood_tokens(requests, disable_tqdm=True) == [(pytest.approx(v, rel=1e-5), g) for v, g in whole]


def test_what_cannot_be_scored_is_named(folder):
    from jpo.integrations.lm_eval import JpoLM

    lm = JpoLM(str(folder / "base"), max_length=8)
    with pytest.raises(JpoError, match="continuation without tokens"):
        lm._loglikelihood_tokens([(None, [3], [])], disable_tqdm=True)
    assert lm._fitting([1, 2, 3], list(range(10, 20))) == ((11,), tuple(range(12, 20)))
    assert lm.chat_template(True) is None or isinstance(lm.chat_template(True), str)
