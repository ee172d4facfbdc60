"""A jpo model inside EleutherAI's lm-evaluation-harness (extra: pip install 'jpo[lm_eval]').

    import lm_eval
    from jpo.integrations.lm_eval import JpoLM

    results = lm_eval.simple_evaluate(model=JpoLM("smollm2-135m", adapter="out"), tasks=["arc_easy"])

Importing this module also registers the model under the name "jpo" for `model="jpo",
model_args="pretrained=...,adapter=..."`. Requests that share a context are scored in one pass over it; texts become
tokens as in the harness's own hf model.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import jpo
from jpo.data.forest import build_forest
from jpo.errors import JpoError
from jpo.storage import Compute, Storage

try:
    from lm_eval import utils
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs
    from tqdm import tqdm
except ImportError:
    raise JpoError("jpo.integrations.lm_eval needs lm-eval: pip install 'jpo[lm_eval]'") from None

_ROWS = 2048  # tokens of a pass at most, unless one sequence is longer
Ids = Sequence[int]


@register_model("jpo")
class JpoLM(TemplateLM):  # type: ignore[misc]
    """The harness's view of a jpo model.

    pretrained: what `jpo.load` takes, or a loaded LanguageModel; adapter: a PEFT directory; storage, compute: as for
    `jpo.load`; max_length: tokens of context and continuation (default: the model's positions); max_gen_toks: tokens of
    a generated answer where a task does not say; add_bos_token: None is the tokenizer's own rule.
    """

    def __init__(
        self,
        pretrained: Any,
        adapter: str | None = None,
        storage: Storage = "auto",
        compute: Compute = "float32",
        max_length: int | None = None,
        max_gen_toks: int = 256,
        add_bos_token: bool | None = None,
        batch_size: Any = None,
        **ignored: Any,
    ):
        super().__init__()
        loaded = isinstance(pretrained, jpo.LanguageModel)
        self.model: Any = pretrained if loaded else jpo.load(pretrained, storage=storage, compute=compute)
        if adapter is not None:
            self.model.load_adapter(adapter)
        self.tokenizer = self.model.tokenizer
        positions = int(self.model.config["max_position_embeddings"])
        self.max_length = positions if max_length is None else min(int(max_length), positions)
        self.max_gen_toks = int(max_gen_toks)
        self.add_bos_token = self.tokenizer.adds_bos if add_bos_token is None else bool(add_bos_token)

    # what the harness asks about the tokenizer

    @property
    def eot_token_id(self) -> int:
        """The id of the end-of-sequence token."""
        return int(str(self.tokenizer.eos_token_id))

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text without context: BOS, or EOS where there is none."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else bos

    @property
    def tokenizer_name(self) -> str:
        """Names the tokenizer in the harness's cache keys."""
        return str(self.model.source).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids; BOS in front by `add_special_tokens`, by default as add_bos_token says and never twice."""
        ids: list[int] = self.tokenizer.encode(string)
        wanted = self.add_bos_token if add_special_tokens is None else add_special_tokens and self.tokenizer.adds_bos
        twice = add_special_tokens is None and ids[:1] == [self.prefix_token_id]
        return [self.prefix_token_id, *ids] if wanted and not twice else ids

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The conversation as text, by the model's own chat template."""
        return str(self.tokenizer.apply_chat_template(chat_history, add_generation_prompt=add_generation_prompt))

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The model's chat template, where the harness asks for one."""
        return self.tokenizer.chat_template if chat_template else None

    # requests

    def _loglikelihood_tokens(
        self, requests: list[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        """(log-likelihood, whether greedy decoding would give it) of each continuation."""
        sequences = [self._fitting(context, continuation) for _, context, continuation in requests]
        out: list[tuple[float, bool]] = [(0.0, True)] * len(sequences)
        with tqdm(total=len(sequences), disable=disable_tqdm, desc="Running loglikelihood requests") as bar:
            for places in _passes(sequences):
                forest = build_forest([sequences[place] for place in places], "response")
                scores = self.model.forward(forest, stats=True)
                sums = forest.sequence_sums(scores.logps)
                hits = forest.sequence_sums(scores.hit)
                for place, logp, hit, length in zip(places, sums, hits, forest.lengths, strict=True):
                    out[place] = (float(logp), bool(hit == length))
                    self._remember(requests[place][0], out[place])
                bar.update(len(places))
        return out

    def _remember(self, key: Any, answer: tuple[float, bool]) -> None:
        if key is not None:  # rolling windows have no key
            self.cache_hook.add_partial("loglikelihood", key, answer)

    def _fitting(self, context: list[int], continuation: list[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The pair cut from the left to max_length; the continuation is never left without a token before it."""
        if not continuation:
            raise JpoError("lm_eval: a continuation without tokens cannot be scored")
        kept = tuple([*context, *continuation][-(self.max_length + 1) :])
        scored = min(len(continuation), len(kept) - 1)
        return kept[: len(kept) - scored], kept[len(kept) - scored :]

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """The log-likelihood of each whole text, in windows of max_length tokens where it is longer."""
        windows, owner = [], []
        for place, request in enumerate(requests):
            rolling = utils.get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            for context, continuation in map(utils.make_disjoint_window, rolling):
                windows.append((None, list(context), list(continuation)))
                owner.append(place)
        totals = [0.0] * len(requests)
        for place, (logp, _) in zip(owner, self._loglikelihood_tokens(windows, disable_tqdm), strict=True):
            totals[place] += logp
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Each context continued until one of the task's stop strings, the end token or max_gen_toks."""
        groups: dict[str, list[int]] = defaultdict(list)
        for place, request in enumerate(requests):
            groups[repr(request.args[1])].append(place)
        out = [""] * len(requests)
        with tqdm(total=len(requests), disable=disable_tqdm, desc="Running generate_until requests") as bar:
            for places in groups.values():
                options, limit = self._sampling(requests[places[0]].args[1])
                room = self.max_length - limit
                if room < 1:
                    raise JpoError(f"max_gen_toks: {limit} leaves no room in max_length {self.max_length}")
                prompts = [self._left(requests[place].args[0], room) for place in places]
                found = self.model.generate(prompts, max_new_tokens=limit, **options)
                for place, (completion,) in zip(places, found, strict=True):
                    out[place] = completion.text
                    self.cache_hook.add_partial("generate_until", requests[place].args, completion.text)
                bar.update(len(places))
        return out

    def _sampling(self, settings: dict[str, Any]) -> tuple[dict[str, Any], int]:
        kwargs = normalize_gen_kwargs(dict(settings), self.max_gen_toks)
        eos = self.tokenizer.decode([self.eot_token_id])
        stop = handle_stop_sequences(kwargs.get("until"), eos=eos)
        sample = kwargs.get("do_sample", False)
        options = {
            "stop": [text for text in stop if text != eos],
            "temperature": float(kwargs.get("temperature", 1.0)) if sample else 0.0,
            "top_p": float(kwargs.get("top_p", 1.0)) if sample else 1.0,
            "top_k": int(kwargs.get("top_k", 0)) if sample else 0,
        }
        return options, int(kwargs["max_gen_toks"])

    def _left(self, text: str, room: int) -> str:
        """The end of the context that fits `room` tokens."""
        ids = self.tokenizer.prompt_ids(text)
        return text if len(ids) <= room else str(self.tokenizer.decode(ids[-room:]))


def _passes(sequences: list[tuple[tuple[int, ...], tuple[int, ...]]]) -> Iterator[list[int]]:
    """Places of the sequences, pass by pass: those of one context together, its tokens counted once."""
    order = sorted(range(len(sequences)), key=lambda place: (-len(sequences[place][0]), sequences[place][0], place))
    places: list[int] = []
    rows, last = 0, None
    for place in order:
        context, continuation = sequences[place]
        cost = len(continuation) + (0 if context == last else len(context))
        if places and rows + cost > _ROWS:
            yield places
            places, rows = [], 0
            cost = len(continuation) + len(context)
        places.append(place)
        rows, last = rows + cost, context
    if places:
        yield places
