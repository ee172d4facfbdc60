"""Prompt and response as one text: log-likelihoods against transformers over the joined text, whatever the tokenizer.

Nothing is left out: responses with leading spaces, without them, and with line ends.
"""

import numpy as np
import pytest
import torch
import transformers
from model_files import ARRAY, F32, I32, SHAPE, STRING, U32, llama_metadata, llama_weights, write_gguf
from parity.peers import peer_of, token_logps
from reference.models import write_random
from tokenizer_files import gguf_entries, make_tokenizer

import jpo
from jpo.feedback.judges import LocalJudge
from jpo.feedback.prompts import ANSWERS

PROMPT = "### Instructions: What is the color of the sea?\n\n### Response:"
RESPONSES = [" Blue.", "Blue.", "  Blue,  two spaces", "\nBlue", " It is blue because of the sky.\nSo it is. é 猫"]
TYPES = {
    "model": STRING, "tokens": (ARRAY, STRING), "token_type": (ARRAY, I32), "scores": (ARRAY, F32),
    "bos_token_id": U32, "eos_token_id": U32, "unknown_token_id": U32,
}  # fmt: skip


def directory(folder, kind):
    tokenizer = make_tokenizer(kind)
    hf, values = write_random(
        folder, tokenizer=tokenizer, model_type="mistral", vocab_size=tokenizer.vocab_size, sliding_window=None,
        attention_bias=None, mlp_bias=None,
    )  # fmt: skip
    return jpo.load(folder, storage="float32"), peer_of(hf, values), transformers.AutoTokenizer.from_pretrained(folder)


def gguf_file(folder):
    entries = gguf_entries()
    own = {f"tokenizer__ggml__{key}": (TYPES[key], list(v) if np.ndim(v) else v) for key, v in entries.items()}
    metadata = llama_metadata(**{"tokenizer__ggml__pre": None, "tokenizer__ggml__merges": None, **own})
    weights = llama_weights()
    random = np.random.default_rng(2)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        weights[name] = random.standard_normal((len(entries["tokens"]), SHAPE["hidden"])).astype(np.float32) / 2
    folder.mkdir()
    write_gguf(folder / "m.gguf", weights, metadata=metadata)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file="m.gguf").eval()
    return jpo.load(folder / "m.gguf"), model, transformers.AutoTokenizer.from_pretrained(folder, gguf_file="m.gguf")


@pytest.fixture(scope="module", params=["bytes", "prepend", "metaspace-first", "metaspace-always", "gguf"])
def models(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / request.param
    return (request.param, *(gguf_file(folder) if request.param == "gguf" else directory(folder, request.param)))


@pytest.mark.parametrize("response", RESPONSES)
def test_likelihoods_of_the_joined_text(models, response):
    kind, lm, model, tokenizer = models
    before, whole = tokenizer(PROMPT).input_ids, tokenizer(PROMPT + response).input_ids
    if whole[: len(before)] != before:
        assert kind == "bytes" and response.startswith("\n")  # ":\n" may be one piece of a byte-level vocabulary
        pytest.skip("a merge crosses the boundary: there is no joined text to compare with")
    with torch.no_grad():
        logps = token_logps(model, whole).numpy()
    for scope, expected in (("joint", logps.sum()), ("response", logps[len(before) - 1 :].sum())):
        ours = lm.sequence_logps([PROMPT], [response], scope=scope, add_eos=False)
        np.testing.assert_allclose(ours, expected, rtol=1e-4)


def test_the_local_judge_reads_the_joined_text(models):
    _, lm, model, tokenizer = models
    question = "Which is better, A or B?"
    before = tokenizer(f"{question}\n\nAnswer:").input_ids
    expected = []
    for answer in ANSWERS["tie"]:
        with torch.no_grad():
            logps = token_logps(model, tokenizer(f"{question}\n\nAnswer: {answer}").input_ids).numpy()
        expected.append(logps[len(before) - 1 :].sum())
    np.testing.assert_allclose(LocalJudge(lm).scores(question), expected, rtol=1e-4)


def test_greedy_sampling_continues_the_same_text(models):
    """And its text, put behind the prompt, is the text of all the tokens."""
    _, lm, model, tokenizer = models
    tokens = torch.tensor([tokenizer(PROMPT).input_ids])
    with torch.no_grad():
        whole = model.generate(tokens, do_sample=False, max_new_tokens=12, pad_token_id=0, eos_token_id=2)[0].tolist()
    completion = lm.generate([PROMPT], temperature=0, max_new_tokens=12)[0][0]
    assert completion.token_ids == whole[tokens.shape[1] :]
    assert lm.tokenizer.decode([*lm.tokenizer.prompt_ids(PROMPT), *completion.token_ids]).endswith(
        PROMPT + completion.text
    )


@pytest.mark.parametrize("kind", ["prepend", "metaspace-first"])
def test_encoded_apart_the_likelihoods_are_others(tmp_path, kind):
    """What the rule is for: encoded by itself a response gets a second mark, and these tests see that."""
    lm, model, tokenizer = directory(tmp_path, kind)
    response = " Blue." if kind == "prepend" else "Blue."
    before, whole = tokenizer(PROMPT).input_ids, tokenizer(PROMPT + response).input_ids
    apart = lm.sequence_logps_ids([(lm.tokenizer.prompt_ids(PROMPT), lm.tokenizer.encode(response))])
    with torch.no_grad():
        expected = float(token_logps(model, whole)[len(before) - 1 :].sum())
    assert abs(apart[0] / expected - 1) > 0.01
