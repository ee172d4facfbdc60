"""A language model over the C engine: load, score, train, adapt.

Knows checkpoints, adapters and forests; never templates, records or losses (the trainers' and the command line's).
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from jpo import _core, profiling
from jpo.data.forest import Forest, Scope, build_forest
from jpo.defaults import MAX_NEW_TOKENS
from jpo.errors import JpoError
from jpo.formats import Checkpoint, load_checkpoint, write_checkpoint
from jpo.formats.peft import LORA, PREFIX, Bias
from jpo.formats.tensors import (
    adaptable,
    engine_offsets,
    engine_tensors,
    head_name,
    modules,
    tensor_shapes,
    transposed_names,
)
from jpo.lora import (
    LoraSettings,
    LoraSize,
    adapted_modules,
    check_tables,
    lora_layout,
    lora_places,
    lora_settings,
    lora_size,
    merge_module,
    targets_of,
    whole_offsets,
)
from jpo.memory import free_bytes, size
from jpo.storage import COMPUTES, Compute, ProductType, Storage, stored_as, stored_bytes
from jpo.trainable import Trainable

if TYPE_CHECKING:
    from jpo.generation import Completion

_ROWS_PER_PASS = 2048  # of scoring without gradients: enough for the products' full speed


@dataclass(frozen=True)
class Scores:
    """What a pass gives for each loss entry (L,): log p (float64); with stats also the entropy, the mean logit, the log
    of sum_v p_v^2 (float64) and whether the target was the most likely token (bool)."""

    logps: np.ndarray[Any, np.dtype[np.float64]]
    entropy: np.ndarray[Any, np.dtype[np.float64]] | None = None
    mean_logit: np.ndarray[Any, np.dtype[np.float64]] | None = None
    log_p2: np.ndarray[Any, np.dtype[np.float64]] | None = None
    hit: np.ndarray[Any, np.dtype[np.bool_]] | None = None


def load(
    name_or_path: str | os.PathLike[str], *, storage: Storage = "auto", compute: Compute = "float32", check: bool = True
) -> LanguageModel:
    """Load a model: "smollm2-135m" or "gemma3-270m" (from installed packages: the error names them), "tiny", a Hugging
    Face directory, a GGUF file, or a repository of the hub ("USER/NAME", also with @REVISION or :FILE.gguf; extra
    hub).

    storage: "auto" or "as-stored" keeps the weights as the file holds them; "float32", "bfloat16" and "q8_0" convert
        once.
    compute: the number type of products with the model's weights: "float32", "int16" (block-scaled), "bfloat16",
        "bfloat16x2" and "bfloat16x3" (in one, two and three products of bfloat16 parts), or "auto", which is replaced
        by the fastest that this processor has with at most bfloat16x2's or int16's error (`jpo doctor` names it);
        adapters and all sums stay float32.
    check: weights with NaN or infinity are refused by tensor name, those of adapters that are loaded later too.
    JpoError names what is missing or malformed and the remedy. Weights are read from the file while the model is in
    use: replace files by renaming; one that became shorter is refused at the next call.
    """
    lm = LanguageModel(load_checkpoint(name_or_path, check=check), storage=storage, compute=compute)
    lm.check = check
    return lm


@dataclass(frozen=True)
class HeldAdapter:
    """An adapter that was taken out of a model and can be put back: several of them may share one base."""

    trainable: Trainable
    lora: LoraSettings


class LanguageModel:
    """A decoder LM on the CPU. Not for several threads at once: one call at a time."""

    def __init__(self, checkpoint: Checkpoint, *, storage: Storage = "auto", compute: Compute = "float32"):
        if compute not in (*COMPUTES, "auto"):
            raise JpoError(f"compute: expected one of {', '.join(COMPUTES)} or auto, got {compute!r}")
        self.config: dict[str, Any] = checkpoint.config
        self.tokenizer = checkpoint.tokenizer
        self.source = checkpoint.source
        self.generation = checkpoint.generation
        self.storage: Storage = storage
        self.compute: ProductType = _core.auto_compute() if compute == "auto" else compute
        self.trainable: Trainable | None = None
        self.lora: LoraSettings | None = None
        self.full = False
        self.check = True  # adapters with NaN or infinity are refused
        self._checkpoint = checkpoint
        self._adapter_on = True
        if storage not in ("auto", "as-stored"):
            self._check_memory(storage)
        own = engine_tensors(self.config, checkpoint.tensors)
        tensors = {name: stored_as(tensor, storage) for name, tensor in own.items()}
        try:
            self._core = _core.Model(self.config, tensors, COMPUTES.index(self.compute))
        except NotImplementedError as error:
            raise JpoError(f"compute={compute!r}: {error}") from None
        if profiling.requested():
            profiling.watch(f"{self.source} ({self.compute})", self._core)

    # sizes, before anything is taken

    def _check_memory(self, storage: Storage) -> None:
        needed, free = self.stored_bytes(storage), free_bytes()
        if needed > free:
            raise JpoError(
                f"model {self.source!r}: storage {storage!r} takes {size(needed)}, and {size(free)} are free; as stored it "
                f"takes {size(self.stored_bytes('auto'))} of its file's own pages (storage='auto')"
            )

    def values(self) -> int:
        """Number of weights."""
        return sum(int(np.prod(tensor.shape)) for tensor in self._checkpoint.tensors.values())

    def stored_bytes(self, storage: Storage, must: bool = True) -> int:
        """Bytes of the weights held as `storage`; must=False: tensors that cannot be held so count as they are
        stored."""
        return sum(stored_bytes(tensor, storage, must) for tensor in self._checkpoint.tensors.values())

    def adapter_size(
        self,
        r: int = LORA.r,
        lora_alpha: float = LORA.lora_alpha,
        lora_dropout: float = LORA.lora_dropout,
        target_modules: Sequence[str] | str = LORA.target_modules,
        use_rslora: bool = LORA.use_rslora,
        **options: Any,
    ) -> LoraSize:
        """What an adapter by these options of add_lora would take; nothing is allocated."""
        settings = lora_settings(self.config, r, lora_alpha, lora_dropout, target_modules, use_rslora, **options)
        return lora_size(self.config, settings)

    def set_recompute(self, on: bool) -> None:
        """Whether passes keep each layer's input alone and repeat its forward in backward (gradient checkpointing)."""
        self._core.set_recompute(on)

    # passes over forests: what the trainers use

    def forward(
        self,
        forest: Forest,
        *,
        adapter: bool = True,
        keep: bool = False,
        stats: bool = False,
        dropout_seed: int | None = None,
    ) -> Scores:
        """log p of each entry of the forest. keep: backward may follow; dropout_seed: train with the adapter's
        dropout."""
        self._checkpoint.check_files()
        seed = 0 if dropout_seed is None else int(dropout_seed) & ((1 << 64) - 1)
        on = adapter and self._adapter_on
        train = dropout_seed is not None
        try:
            logps, rest = self._core.forward(
                forest.tokens, forest.segments, forest.entry_row, forest.entry_target, on, keep, stats, train, seed
            )
        except ValueError as error:  # a text longer than the model's positions, an id outside its vocabulary
            raise JpoError(f"{self.source}: {error}") from None
        return Scores(logps, *rest) if rest is not None else Scores(logps)

    def backward(self, coefficients: np.ndarray[Any, Any]) -> None:
        """Add d loss into trainable.grads; coefficients (L,) = d loss / d log p of the entries of the last
        forward(keep=True), which it consumes."""
        if self.trainable is None:
            raise JpoError("nothing is trained: call add_lora or enable_full before backward")
        self._core.backward(np.ascontiguousarray(coefficients, dtype=np.float64))

    def pass_bytes(self, forest: Forest, keep: bool) -> int:
        """Bytes of buffers that a pass over the forest takes, before anything is allocated."""
        return int(self._core.plan(forest.tokens, forest.segments, forest.entry_row, forest.entry_target, keep))

    def trim(self) -> None:
        """Free the buffers of the last pass."""
        self._core.trim()

    def _passes(self, sequences: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Iterator[tuple[int, int]]:
        """(start, stop) of each pass over (prompt, response) sequences; a prompt that a pass holds already adds no
        rows."""
        start, rows, prompts = 0, 0, set[tuple[int, ...]]()
        for index, (prompt, response) in enumerate(sequences):
            key = tuple(prompt)
            added = len(response) + (0 if key in prompts else len(key))
            if rows and rows + added > _ROWS_PER_PASS:
                yield start, index
                start, rows, added, prompts = index, 0, len(response) + len(key), set()
            rows += added
            prompts.add(key)
        if start < len(sequences):
            yield start, len(sequences)

    def mean_hidden(self, token_id_lists: Sequence[Sequence[int]]) -> np.ndarray[Any, np.dtype[np.float32]]:
        """(N, H) float32: the reference model's (adapter off) final hidden states, averaged over each list's tokens."""
        self._checkpoint.check_files()
        out = np.empty((len(token_id_lists), self.config["hidden_size"]), dtype=np.float32)
        for start, stop in self._passes([((), ids) for ids in token_id_lists]):
            pieces = [np.asarray(ids, dtype=np.int32) for ids in token_id_lists[start:stop]]
            segments = _roots([len(piece) for piece in pieces])
            empty = np.empty(0, dtype=np.int32)
            self._core.forward(np.concatenate(pieces), segments, empty, empty, False, False, False, False, 0)
            for index, (first, length, _, _) in enumerate(segments):
                rows = np.arange(first, first + length, dtype=np.int32)
                out[start + index] = self._core.hidden(rows).mean(axis=0, dtype=np.float64)
        return out

    def logits(self, token_ids: Sequence[int], *, adapter: bool = True) -> np.ndarray[Any, np.dtype[np.float32]]:
        """(T, V) float32 logits of one sequence of T tokens."""
        self._checkpoint.check_files()
        tokens, empty = np.asarray(token_ids, dtype=np.int32), np.empty(0, dtype=np.int32)
        on = adapter and self._adapter_on
        self._core.forward(tokens, _roots([len(tokens)]), empty, empty, on, False, False, False, 0)
        return self._core.logits(np.arange(len(tokens), dtype=np.int32))  # type: ignore[no-any-return]

    # scoring text

    def sequence_logps(
        self, prompts: Sequence[str], responses: Sequence[str], *, scope: Scope = "response", add_eos: bool = True
    ) -> np.ndarray[Any, np.dtype[np.float64]]:
        """(N,) float64 log-likelihoods of the responses (scope "response") or of prompt and response ("joint": every
        token but the first). Plain strings; no template is added, BOS only where the tokenizer adds it. A response's
        tokens are those that follow the prompt's in the joined text (Tokenizer.response_ids)."""
        if isinstance(prompts, str) or isinstance(responses, str):
            raise JpoError("prompts and responses must be two lists of strings, got one string")
        prompts, responses = list(prompts), list(responses)
        if len(prompts) != len(responses):
            raise JpoError(
                f"prompts and responses must be two lists of strings of one length, got {len(prompts)} and {len(responses)}"
            )
        for name, texts in (("prompts", prompts), ("responses", responses)):
            for place, text in enumerate(texts):
                if not isinstance(text, str):
                    raise JpoError(f"{name}[{place}]: expected a str, got {type(text).__name__}")
        eos = [self.tokenizer.eos_token_id] if add_eos and self.tokenizer.eos_token_id is not None else []
        known = {prompt: self.tokenizer.prompt_ids(prompt) for prompt in dict.fromkeys(prompts)}
        pairs = [
            (known[prompt], [*self.tokenizer.response_ids(prompt, response, known[prompt])[0], *eos])
            for prompt, response in zip(prompts, responses, strict=True)
        ]
        return self.sequence_logps_ids(pairs, scope=scope)

    def sequence_logps_ids(
        self,
        sequences: Sequence[tuple[Sequence[int], Sequence[int]]],
        *,
        scope: Scope = "response",
        adapter: bool = True,
    ) -> np.ndarray[Any, np.dtype[np.float64]]:
        """(N,) float64 log-likelihoods of N (prompt_ids, response_ids)."""
        out = np.empty(len(sequences), dtype=np.float64)
        for start, stop in self._passes(sequences):
            forest = build_forest(sequences[start:stop], scope)
            out[start:stop] = forest.sequence_sums(self.forward(forest, adapter=adapter).logps)
        return out

    # adapters

    def add_lora(
        self,
        r: int = LORA.r,
        lora_alpha: float = LORA.lora_alpha,
        lora_dropout: float = LORA.lora_dropout,
        target_modules: Sequence[str] | str = LORA.target_modules,
        use_rslora: bool = LORA.use_rslora,
        *,
        rank_pattern: Mapping[str, int] | None = None,
        alpha_pattern: Mapping[str, float] | None = None,
        exclude_modules: Sequence[str] | str | None = None,
        layers_to_transform: Sequence[int] | int | None = None,
        use_dora: bool = LORA.use_dora,
        bias: Bias = LORA.bias,
        modules_to_save: Sequence[str] | str | None = None,
        seed: int = 0,
    ) -> None:
        """Add a fresh LoRA adapter (arXiv 2106.09685), in place of any other: A uniform in +-1/sqrt(inputs) (PEFT's
        Kaiming start), B zero, so that the model's output does not change. Names and patterns follow PEFT's rules; a
        usual name (q_proj) also means the fused module that holds it. embed_tokens and lm_head have to be named,
        without DoRA; an embedding's A is zero and B normal, as in PEFT, and neither of them sees dropout.

        use_dora: rows of the adapted weights get trained lengths (arXiv 2402.09353), their own at first.
        bias: "all" biases of the model, or those of adapted modules ("lora_only"), are trained too.
        modules_to_save: ends of names of modules that are trained whole (embed_tokens, lm_head, norm): of a tied model
        the embedding and the head part where one of them is trained. The reference (adapter off) keeps the stored."""
        if self.full:
            raise JpoError("the model is in full fine-tuning; load it anew to add an adapter")
        settings = lora_settings(
            self.config,
            r,
            lora_alpha,
            lora_dropout,
            target_modules,
            use_rslora,
            rank_pattern=rank_pattern,
            alpha_pattern=alpha_pattern,
            exclude_modules=exclude_modules,
            layers_to_transform=layers_to_transform,
            use_dora=use_dora,
            bias=bias,
            modules_to_save=modules_to_save,
        )
        trainable = self._install_lora(settings)
        generator = np.random.Generator(np.random.Philox(seed))
        for name in trainable.names:
            if name.endswith(".lora_A.weight"):
                view = trainable.view(name)
                view[...] = (generator.random(view.shape, dtype=np.float32) * 2 - 1) / np.float32(view.shape[1] ** 0.5)
            elif name.endswith(".lora_embedding_B"):  # PEFT's start of an embedding's adapter: A zero, B normal
                view = trainable.view(name)
                view[...] = generator.standard_normal(view.shape, dtype=np.float32)
        for name, stored in lora_layout(self.config, settings).whole.items():
            trainable.view(name)[...] = self._stored(stored)
        if settings.use_dora:
            self._start_magnitudes(trainable, settings)

    def _stored(self, name: str) -> np.ndarray[Any, Any]:
        """A tensor's values as the engine holds them, float32; the head of a tied model is its embedding."""
        tensors = self._checkpoint.tensors
        if name == head_name(self.config) and name not in tensors:
            name = next(iter(tensor_shapes(self.config)))
        dtype, data = stored_as(tensors[name], self.storage)
        return dataclasses.replace(tensors[name], dtype=dtype, data=data).float32()

    def _start_magnitudes(self, trainable: Trainable, settings: LoraSettings) -> None:
        """The rows' own lengths: with B zero the output does not change."""
        for layer, module, *_, start in lora_places(self.config, settings, trainable.offsets):
            norms = self._core.row_norms(layer, module)
            trainable.params[start : start + len(norms)] = norms

    def _install_lora(self, settings: LoraSettings) -> Trainable:
        layout = lora_layout(self.config, settings)
        trainable = Trainable(layout.shapes, layout.transposed)
        self._put_lora(trainable, settings)
        return trainable

    def _put_lora(self, trainable: Trainable, settings: LoraSettings) -> None:
        """The engine reads the adapter from trainable's vector from now on."""
        places = lora_places(self.config, settings, trainable.offsets)
        whole = whole_offsets(self.config, lora_layout(self.config, settings), trainable.offsets)
        self._core.set_lora(trainable.params, trainable.grads, places, whole)
        self.trainable, self.lora = trainable, settings

    def remove_adapter(self) -> None:
        """Forget the adapter; the base model stays."""
        if not self.full:
            self._core.clear()
            self.trainable = self.lora = None

    def take_adapter(self) -> HeldAdapter | None:
        """Takes the adapter out of the model, for use_adapter; None where there is none."""
        if self.lora is None or self.trainable is None:
            return None
        held = HeldAdapter(self.trainable, self.lora)
        self.remove_adapter()
        return held

    def use_adapter(self, held: HeldAdapter) -> None:
        """Puts an adapter that take_adapter gave, of this same model, in place of any other; its values are not
        copied."""
        self._put_lora(held.trainable, held.lora)

    @contextlib.contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """Inside the block every pass runs without the adapter: the reference model."""
        before, self._adapter_on = self._adapter_on, False
        try:
            yield
        finally:
            self._adapter_on = before

    def load_adapter(self, folder: str | os.PathLike[str], *, check: bool | None = None) -> dict[str, Any]:
        """Load a LoRA adapter in PEFT's format, in place of any other; returns jpo's own settings stored beside it.

        check: tensors with NaN or infinity are refused by name; default: as the model was loaded. JpoError where a
        tensor does not fit this model."""
        from jpo.formats.peft import read_adapter

        if self.full:
            raise JpoError(
                f"{os.fspath(folder)}: the model is in full fine-tuning; load it anew before it gets an adapter"
            )
        config, tensors = read_adapter(folder, check=self.check if check is None else check)
        check_tables(f"{os.fspath(folder)}: tensor {PREFIX}", self.config, config.tables, self._stored)
        settings = LoraSettings(
            config.r,
            config.lora_alpha,
            config.lora_dropout,
            self._targets_of(folder, config.modules),
            config.use_rslora,
            config.rank_pattern,
            config.alpha_pattern,
            config.use_dora,
            config.bias,
            config.modules_to_save,
        )
        before = (self.trainable, self.lora)
        self._install_lora(settings)
        assert self.trainable is not None
        wanted = self.trainable.shapes
        for name in [*wanted, *tensors]:
            got = tensors[name].shape if name in tensors else "nothing"
            if wanted.get(name, "nothing") != got:
                self._core.clear()
                self.trainable = self.lora = None
                gone = " The adapter that was loaded before is gone too." if before[0] is not None else ""
                raise JpoError(
                    f"{os.fspath(folder)}: tensor {name}: the model {self.source} takes {wanted.get(name, 'nothing')}, "
                    f"the adapter holds {got}; load it on the model that it was trained for.{gone}"
                )
        for name in self.trainable.names:
            self.trainable.view(name)[...] = tensors[name]
        return config.extra

    def _targets_of(self, folder: str | os.PathLike[str], names: Sequence[str]) -> tuple[str, ...]:
        """target_modules that mean exactly the named modules; JpoError where this model has no such module."""
        own = adaptable(self.config)
        known = {module.name for module in own}
        for name in names:
            if name not in known:
                raise JpoError(
                    f"{os.fspath(folder)}: the model {self.source} has no module {name}; load the adapter on the model "
                    "that it was trained for"
                )
        return targets_of(own, names)

    def save_adapter(self, folder: str | os.PathLike[str], extra: Mapping[str, Any] | None = None) -> None:
        """Write the adapter in PEFT's format; `extra` (jpo's own settings) stands in jpo_config.json beside it."""
        from jpo.formats.peft import AdapterConfig, base_name, write_adapter

        if self.lora is None or self.trainable is None:
            raise JpoError("the model has no adapter to save: call add_lora or load_adapter first")
        own = {"base_model": self.source, "compute": self.compute, **(extra or {})}
        config = AdapterConfig(
            self.lora.r,
            self.lora.lora_alpha,
            self.lora.lora_dropout,
            self.lora.target_modules,
            self.lora.use_rslora,
            base_name(self.source, self.config["hf"]),
            own,
            rank_pattern=dict(self.lora.rank_pattern),
            alpha_pattern=dict(self.lora.alpha_pattern),
            fan_in_fan_out=any(module.transposed for module in modules(self.config)),
            use_dora=self.lora.use_dora,
            bias=self.lora.bias,
            modules_to_save=self.lora.modules_to_save,
        )
        write_adapter(folder, config, self.trainable.state())

    # whole models

    def enable_full(self) -> None:
        """Train every weight (full fine-tuning): weights become float32, gradients stand beside them."""
        if self.full:
            return
        shapes = {name: tensor.shape for name, tensor in self._checkpoint.tensors.items()}
        trainable = Trainable(shapes, transposed_names(self.config))
        for name, tensor in self._checkpoint.tensors.items():
            trainable.view(name)[...] = tensor.float32()
        self._core.clear()
        self._core.set_full(trainable.params, trainable.grads, engine_offsets(self.config, trainable.offsets))
        self.trainable, self.lora, self.full = trainable, None, True

    def state(self) -> dict[str, np.ndarray[Any, Any]]:
        """Hugging Face name -> float32 weights, the adapter merged in: W + scaling B A, its rows given their magnitudes
        where there are some; what is trained whole stands in place of the stored. merged_config tells the model."""
        if self.full and self.trainable is not None:
            return self.trainable.state()
        tensors = {name: tensor.float32() for name, tensor in self._checkpoint.tensors.items()}
        turned = transposed_names(self.config)
        if self.lora is None or self.trainable is None:
            return tensors
        layout = lora_layout(self.config, self.lora)
        head = head_name(self.config)
        if self.config["tie_word_embeddings"] and not self.merged_config()["tie_word_embeddings"]:
            tensors[head] = self._stored(head)
        for module in adapted_modules(adaptable(self.config), self.lora.target_modules):
            weight = tensors[f"{module.name}.weight"]
            turn = module.embedding or f"{module.name}.weight" in turned
            merge_module(weight.T if turn else weight, module, self.lora, self.trainable)
        return tensors | {name: self.trainable.view(own).copy() for own, name in layout.whole.items()}

    def merged_config(self) -> dict[str, Any]:
        """The configuration of `state`: a tied model whose embedding or head was trained alone is no longer tied."""
        layout = None if self.lora is None else lora_layout(self.config, self.lora)
        whole = [*layout.whole.values(), *(f"{name}.weight" for name in layout.adapted)] if layout is not None else ()
        embedding = next(iter(tensor_shapes(self.config)))
        parted = self.config["tie_word_embeddings"] and ({embedding, head_name(self.config)} & set(whole))
        if not parted:
            return self.config
        untied = {"tie_word_embeddings": False}
        return self.config | untied | {"hf": self.config["hf"] | untied}

    def merge(self, folder: str | os.PathLike[str]) -> None:
        """Write the model with its adapter merged in as a Hugging Face directory (float32)."""
        write_checkpoint(folder, self.merged_config(), self.state(), self.tokenizer, self.generation)

    def generate(
        self,
        prompts: Sequence[str],
        *,
        n: int = 1,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        max_new_tokens: int = MAX_NEW_TOKENS,
        seed: int = 0,
        stop: Sequence[str] = (),
        **options: Any,
    ) -> list[list[Completion]]:
        """Sample n completions of each prompt; see jpo.generation.generate for every option."""
        from jpo.generation import generate

        return generate(
            self,
            prompts,
            n=n,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            max_new_tokens=max_new_tokens,
            seed=seed,
            stop=stop,
            **options,
        )

    def __reduce__(self) -> Any:
        raise TypeError(
            f"a LanguageModel is not copied or pickled: load {self.source!r} anew (another process too), and carry its "
            "adapter over by save_adapter and load_adapter"
        )

    def __repr__(self) -> str:
        size = sum(int(np.prod(tensor.shape)) for tensor in self._checkpoint.tensors.values())
        return f"LanguageModel({self.source!r}, {size:,} weights, storage={self.storage!r}, compute={self.compute!r})"


def _roots(lengths: Sequence[int]) -> np.ndarray[Any, np.dtype[np.int32]]:
    """(S, 4) segments without children, one after the other."""
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    zeros = np.zeros(len(lengths))
    return np.stack([starts, lengths, zeros - 1, zeros], axis=1).astype(np.int32)
