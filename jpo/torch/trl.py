"""JPOTrainer: TRL's DPOTrainer over pairs of (instruction, response) pairs, wherever TRL runs (GPU, quantized bases,
FSDP).

The whole difference between JPO and DPO is which tokens are scored: every token of a sequence but the first (scope
"joint"), or the response's alone ("response"). TRL scores what the collator's `completion_mask` marks, and chosen and
rejected may have prompts of their own there; so losses, reference, adapters and logging are TRL's, untouched. Texts
become tokens by jpo's own templates, bounds and boundary rule, so that the ids equal those of jpo's trainers.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import datasets
import tokenizers
import torch
import trl
from trl.trainer.dpo_trainer import DataCollatorForPreference

from jpo.data.encoding import Encoder
from jpo.data.records import preference_pairs
from jpo.data.templates import Template
from jpo.disk import write_json
from jpo.errors import JpoError
from jpo.tokenization import Tokenizer
from jpo.train.common import SETTINGS_VERSION

SCOPES = ("joint", "response")
_COLUMNS = ["prompt_ids", "chosen_ids", "rejected_prompt_ids", "rejected_ids"]


@dataclass
class JPOConfig(trl.DPOConfig):
    """TRL's DPOConfig with jpo's own settings.

    scope: "joint" scores instruction and response (JPO), "response" the response alone (DPO, or the paper's
    prompt-masked arm where the instructions differ). template: a name ("spaced", "paper", "tldr", "raw", "chat") or a
    text with {instruction} and {response}, by default as in jpo's own trainers ("chat" for conversations); truncation:
    "keep_start", "keep_end" or "drop", applied to the instruction, never to the template.
    max_length and max_prompt_length: tokens, template included.
    """

    scope: str = field(default="joint", metadata={"help": "joint (JPO) or response (DPO)"})
    template: str | None = field(default=None, metadata={"help": "a template's name, or a text with {instruction}"})
    max_prompt_length: int = field(default=512, metadata={"help": "tokens of the prompt, template included"})
    truncation: str = field(default="keep_start", metadata={"help": "keep_start, keep_end or drop"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scope not in SCOPES:
            raise JpoError(f"scope: expected one of {', '.join(SCOPES)}, got {self.scope!r}")
        if self.max_length is None:
            raise JpoError("max_length: expected a number of tokens, got None")


@dataclass
class JointCollator(DataCollatorForPreference):
    """Batches of pairs whose two sides have prompts of their own; `joint`: the prompt's tokens are scored as well."""

    joint: bool = True

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """TRL's batch (chosen rows above rejected rows), the mask that of the scope."""
        sides = [
            [self._side(example["prompt_ids"], example["chosen_ids"]) for example in examples],
            [self._side(example["rejected_prompt_ids"], example["rejected_ids"]) for example in examples],
        ]
        rows = [row for side in sides for row in side]
        width = max(len(ids) for ids, _ in rows)
        if self.pad_to_multiple_of:
            width = -(-width // self.pad_to_multiple_of) * self.pad_to_multiple_of
        batch = {
            "input_ids": _padded([ids for ids, _ in rows], width, self.pad_token_id),
            "attention_mask": _padded([[1] * len(ids) for ids, _ in rows], width, 0),
            "completion_mask": _padded([mask for _, mask in rows], width, 0),
        }
        for name in ("ref_chosen_logps", "ref_rejected_logps"):
            if name in examples[0]:
                batch[name] = torch.tensor([example[name] for example in examples])
        return batch

    def _side(self, prompt: list[int], response: list[int]) -> tuple[list[int], list[int]]:
        """(ids, mask): the first token of a sequence is context only."""
        scored = [0] + [int(self.joint)] * (len(prompt) - 1) if prompt else []
        return [*prompt, *response], [*scored, *([1] * len(response))]


def _padded(rows: list[list[int]], width: int, value: int) -> torch.Tensor:
    return torch.tensor([[*row, *([value] * (width - len(row)))] for row in rows])


class JPOTrainer(trl.DPOTrainer):
    """TRL's DPOTrainer, scoring by `args.scope` (arXiv 2404.00530).

    train_dataset, eval_dataset: a datasets.Dataset, or any iterable of records as jpo's own trainers read them:
    {i_chosen, r_chosen, i_reject, r_reject}, TRL's {prompt, chosen, rejected}, conversational forms; conditional and
    joint records may be mixed (the paper's union). processing_class: a fast tokenizer. Everything else as in
    DPOTrainer.
    """

    _tag_names = ["trl", "jpo"]
    _template: Template | None = None
    _signature_columns: Any  # DPOTrainer's

    def __init__(
        self,
        model: Any,
        ref_model: Any = None,
        args: JPOConfig | None = None,
        data_collator: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        **others: Any,
    ):
        args = JPOConfig("jpo_output") if args is None else args
        if not isinstance(args, JPOConfig):
            raise JpoError(f"args: expected a jpo.torch.JPOConfig, got {type(args).__name__}")
        if getattr(processing_class, "backend_tokenizer", None) is None:
            raise JpoError("processing_class: expected a fast tokenizer of transformers (one with a tokenizer.json)")
        if processing_class.pad_token is None:
            processing_class.pad_token = args.pad_token or processing_class.eos_token
        if data_collator is None:
            data_collator = JointCollator(
                pad_token_id=processing_class.pad_token_id,
                pad_to_multiple_of=args.pad_to_multiple_of,
                joint=args.scope == "joint",
            )
        super().__init__(
            model,
            ref_model=ref_model,
            args=args,
            data_collator=data_collator,
            train_dataset=_dataset(train_dataset),
            eval_dataset=_dataset(eval_dataset),
            processing_class=processing_class,
            **others,
        )

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: JPOConfig, dataset_name: str) -> Any:
        """Records to token ids by jpo's templates and rules; what was cut or dropped is printed."""
        columns = set(getattr(dataset, "column_names", None) or ())
        if set(_COLUMNS) <= columns:  # prepared before: evaluate(trainer.train_dataset)
            return dataset.select_columns(_COLUMNS)  # reference log-likelihoods are computed anew
        if columns != {"record"}:
            dataset = _dataset(dataset)
        own = tokenizer_of(processing_class)
        given = preference_pairs([json.loads(row["record"]) for row in dataset])
        if self._template is None:  # the training set's; evaluation sets follow it
            self._template = Template.named(args.template, own, any(pair.conversational for pair in given))
        encoder = Encoder(own, self._template, args.max_length, args.max_prompt_length, args.truncation)
        pairs = encoder.pairs(given)
        print(f"{dataset_name}: {encoder.report()}")
        rows = [
            {
                "prompt_ids": list(chosen.prompt_ids),
                "chosen_ids": list(chosen.response_ids),
                "rejected_prompt_ids": list(rejected.prompt_ids),
                "rejected_ids": list(rejected.response_ids),
            }
            for chosen, rejected in (pair.sequences for pair in pairs)
        ]
        return datasets.Dataset.from_list(rows)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """TRL's files, and jpo_config.json beside them: `jpo generate --adapter` samples with the template of
        training."""
        super().save_model(output_dir, _internal_call)
        if self.args.should_save and self._template is not None:
            bounds = {name: getattr(self.args, name) for name in ("max_length", "max_prompt_length", "truncation")}
            settings = {"version": SETTINGS_VERSION, "template": self._template.to_dict(), **bounds}
            write_json(os.path.join(output_dir or self.args.output_dir, "jpo_config.json"), settings)

    def _set_signature_columns_if_needed(self) -> None:
        if self._signature_columns is None:
            self._signature_columns = [*_COLUMNS, "ref_chosen_logps", "ref_rejected_logps"]


def _dataset(records: Any) -> Any:
    """Any iterable of records as a Dataset of one column of JSON: records of one list may have different keys."""
    if records is None:
        return None
    if isinstance(records, dict):
        return {name: _dataset(part) for name, part in records.items()}
    if not isinstance(records, Iterable) or isinstance(records, str):
        raise JpoError(f"train_dataset: expected records or a datasets.Dataset, got {type(records).__name__}")
    return datasets.Dataset.from_list([{"record": json.dumps(dict(record))} for record in records])


def tokenizer_of(processing_class: Any) -> Tokenizer:
    """jpo's view of a fast tokenizer of transformers: the same ids, special tokens and chat template."""
    names = ("bos_token", "eos_token", "unk_token", "pad_token")
    return Tokenizer(
        tokenizers.Tokenizer.from_str(processing_class.backend_tokenizer.to_str()),
        special={name: getattr(processing_class, name, None) for name in names},
        chat_template=processing_class.chat_template if isinstance(processing_class.chat_template, str) else None,
    )
