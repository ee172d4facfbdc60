"""Preference forms against TRL's own reading of them, and datasets.Dataset as a source of records."""

import datasets
import pytest
import transformers
from trl import data_utils

from jpo.data import Encoder, Template, preference_pairs, read_records
from jpo.errors import DataError
from jpo.formats import load_checkpoint

USER = [{"role": "user", "content": "What color is the sky?"}]
BLUE, GREEN = ([{"role": "assistant", "content": text}] for text in ("It is blue.", "It is green."))


@pytest.mark.parametrize(
    "record",
    [
        {"chosen": "The sky is blue.", "rejected": "The sky is green."},
        {"chosen": "Q: so?\n\nA:Yes", "rejected": "Q: so?\n\nA:No"},
        {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."},
        {"chosen": USER + BLUE, "rejected": USER + GREEN},
        {"prompt": USER, "chosen": BLUE, "rejected": GREEN},
        {"prompt": "What color is the sky?", "chosen": USER + BLUE, "rejected": USER + GREEN},
    ],
)
def test_prompts_are_the_ones_that_trl_takes(record):
    def bare(text):
        return text if isinstance(text, str) else text[0]["content"]

    theirs = data_utils.maybe_extract_prompt(record)
    (pair,) = preference_pairs([record])
    assert (pair.i_chosen, pair.r_chosen, pair.r_reject) == tuple(
        bare(theirs[key]) for key in ("prompt", "chosen", "rejected")
    )
    assert pair.i_reject == pair.i_chosen


def test_datasets_are_read_by_row():
    rows = [{"prompt": USER, "chosen": BLUE, "rejected": GREEN}]
    records = read_records(datasets.Dataset.from_list(rows))
    assert records[0].where == "records[0]"
    assert preference_pairs(records) == preference_pairs(rows)
    with pytest.raises(DataError, match="one mapping of splits"):
        read_records(datasets.DatasetDict({"train": datasets.Dataset.from_list(rows)}))


def test_chat_sequences_are_transformers(tmp_path):
    """Prompt and answer of the chat template as apply_chat_template writes them, up to the end of the turn."""
    tokenizer = load_checkpoint("tiny").tokenizer
    tokenizer.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    encoded = Encoder(tokenizer, Template.named("chat", tokenizer)).encode("What color?", "Blue.")
    prompt = theirs.apply_chat_template(
        [{"role": "user", "content": "What color?"}], add_generation_prompt=True, tokenize=False
    )
    assert list(encoded.prompt_ids) == theirs(prompt, add_special_tokens=False)["input_ids"]
    assert list(encoded.response_ids) == theirs("Blue.<|im_end|>", add_special_tokens=False)["input_ids"]
