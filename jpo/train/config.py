"""Every training option, declared once: YAML keys, command-line flags and help derive from these classes."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, cast, get_args

from jpo.data.forest import Scope
from jpo.declared import choices_of, converted, explained, hints, members, nearest, option, optional, plain
from jpo.errors import JpoError
from jpo.formats.peft import LORA, Bias
from jpo.objectives import LOSSES, Divergence, LossName
from jpo.storage import COMPUTES, Compute, Storage

T = TypeVar("T", bound="TrainingConfig")
Schedule = Literal["cosine", "linear", "constant"]
Truncation = Literal["keep_start", "keep_end", "drop"]
Against = Literal["reference", "chosen"]
Reporter = Literal["none", "tensorboard", "wandb", "mlflow", "trackio"]
REPORTER_NAMES: tuple[Reporter, ...] = get_args(Reporter)
DEFAULT_STEPS = 1000  # at most, where neither steps nor epochs are given
DEFAULT_EPOCHS = 3  # of supervised fine-tuning
DEFAULT_WARMUP = 100  # at most, and at most a tenth of the run, where warmup_steps is not given


@dataclass
class TrainingConfig:
    """What both trainers share; defaults are the preference trainer's."""

    batch_size: int = option(32, "Pairs (SFT: examples) per optimizer step, however the step is cut.", first=True)
    steps: int | None = option(None, "Optimizer steps; default: one epoch or 1000, whichever is less.")
    epochs: float | None = option(None, "Passes over the data, instead of --steps.", first=True)
    learning_rate: float = option(5e-5, "Peak learning rate of AdamW.", first=True)
    lr_scheduler_type: Schedule = option("cosine", "cosine, linear or constant, after the warm-up.")
    warmup_steps: int | None = option(
        None, "Steps of linear warm-up; default: 100, or a tenth of the run where that is less."
    )
    weight_decay: float = option(0.0, "Decoupled weight decay.")
    adam_beta1: float = option(0.9, "AdamW's first moment decay.")
    adam_beta2: float = option(0.999, "AdamW's second moment decay.")
    adam_epsilon: float = option(1e-8, "AdamW's epsilon.")
    max_grad_norm: float = option(1.0, "Gradients are clipped to this norm; 0: never.")
    max_length: int = option(1024, "Tokens of prompt and response at most.", "data")
    max_prompt_length: int = option(512, "Tokens of the prompt at most, template included.", "data")
    truncation: Truncation = option("keep_start", "keep_start, keep_end (of a too long instruction) or drop.", "data")
    template: str | None = option(
        None,
        "Prompt template: spaced, paper, tldr, raw, chat, or a text with {instruction} and {response}; default: chat "
        "for conversational records where the model has a chat template, else spaced.",
        "data",
    )
    cache_dir: str | None = option(
        None,
        "Encode the records once, into this folder, and read them from there, so that they need not fit into memory; "
        "default: in memory, files of more than 256 MB in OUTPUT/cache.",
        "data",
    )
    token_budget: int = option(1024, "Rows of a micro-batch at most; bounds the memory.")
    save_steps: int = option(100, "Steps between checkpoints; 0: only at the end.", "output")
    save_total_limit: int | None = option(None, "Finished checkpoints that are kept; default: all.", "output")
    eval_steps: int = option(0, "Steps between evaluations on --eval-data; 0: at the end only.", "output")
    metric_for_best_model: str | None = option(
        None, "Keep the adapter of the best evaluation by this metric in OUTPUT/best, e.g. eval_loss.", "output"
    )
    early_stopping_patience: int | None = option(
        None, "Stop after this many evaluations without a better metric_for_best_model (default: eval_loss).", "output"
    )
    eval_samples: int = option(
        0,
        "Instructions of --eval-data that are answered at each evaluation, into OUTPUT/samples.jsonl; 0: none.",
        "output",
    )
    eval_temperature: float = option(0.0, "Temperature of these answers; 0: greedy.", "output")
    eval_max_new_tokens: int = option(128, "Tokens of such an answer at most.", "output")
    eval_judge: str | None = option(
        None,
        "Judge of these answers, for eval_win_rate: openai (key in OPENAI_API_KEY), local or module:function.",
        "output",
    )
    eval_judge_model: str | None = option(None, "The judge's model: its name on the server, or one to load.", "output")
    eval_judge_base_url: str | None = option(None, "The judge's server, e.g. http://localhost:8000/v1.", "output")
    eval_against: Against = option(
        "reference",
        "What the judge compares answers with: the reference model's, or the data's chosen responses.",
        "output",
    )
    seed: int = option(0, "Seed of data order, adapter and dropout.")
    r: int = option(LORA.r, "Rank of the LoRA adapter.", "adapter")
    lora_alpha: float = option(LORA.lora_alpha, "LoRA's alpha; the factor is alpha / r.", "adapter")
    lora_dropout: float = option(LORA.lora_dropout, "Dropout before the adapter.", "adapter")
    target_modules: str | Sequence[str] = option(
        ",".join(LORA.target_modules),
        "Adapted modules, comma-separated (embed_tokens and lm_head too), or all-linear.",
        "adapter",
    )
    use_rslora: bool = option(False, "Scale by alpha / sqrt(r).", "adapter")
    use_dora: bool = option(LORA.use_dora, "Train the lengths of the adapted weights' rows too (DoRA).", "adapter")
    bias: Bias = option(LORA.bias, "Biases trained beside the adapter: none, all or lora_only.", "adapter")
    modules_to_save: str | Sequence[str] | None = option(
        None, "Modules trained whole, comma-separated ends of names: embed_tokens, lm_head, norm, ...", "adapter"
    )
    exclude_modules: str | Sequence[str] | None = option(
        None, "Modules that target_modules does not mean, comma-separated.", "adapter"
    )
    layers_to_transform: str | int | Sequence[int] | None = option(
        None, "Layers that are adapted, from 0, comma-separated; default: all.", "adapter"
    )
    rank_pattern: str | Mapping[str, int] | None = option(
        None, "Other ranks of some modules: q_proj=16,layers.0.mlp.up_proj=4 (PEFT's expressions).", "adapter"
    )
    alpha_pattern: str | Mapping[str, float] | None = option(
        None, "Other alphas of some modules: q_proj=32,...", "adapter"
    )
    storage: Storage | None = option(
        None, "How weights are held: auto, as-stored, float32, bfloat16, q8_0; default: as the model was loaded."
    )
    compute: Compute | None = option(
        None,
        f"Products with the model's weights: {', '.join(COMPUTES)} or auto, the fastest here of at most bfloat16x2's or int16's "
        "error; default: auto on the command line, otherwise as the model was loaded.",
    )
    slots: int | None = option(
        None,
        "Parts of a step, a power of two, which ranks share: the same result for any number of them; default: 1, over "
        "ranks 8.",
    )
    gradient_checkpointing: bool = option(
        False, "Keep each layer's input alone and repeat its forward in backward: less memory, a quarter more time."
    )
    check_memory: bool = option(True, "Refuse a run whose estimated memory exceeds what is free.")
    output: str | None = option(None, "Directory of adapter, metrics.jsonl and checkpoints.", "output", first=True)
    report_to: Reporter | Sequence[Reporter] = option(
        "none", f"Where else metrics go: {', '.join(REPORTER_NAMES)}; several separated by commas.", "output"
    )
    tensorboard: bool = option(False, "The same as tensorboard among --report-to.", "output")

    def __post_init__(self) -> None:
        self._plain_values()
        for name in ("batch_size", "max_prompt_length", "token_budget", "r"):
            self._whole(name, 1)
        self._whole("max_length", 2)  # one token of a prompt, and one to score
        for name in ("steps", "save_total_limit", "early_stopping_patience"):
            if getattr(self, name) is not None:
                self._whole(name, 1)
        for name in ("save_steps", "eval_steps", "eval_samples", "seed"):
            self._whole(name, 0)
        self._whole("eval_max_new_tokens", 1)
        if not 0 <= self.eval_temperature < float("inf"):
            raise JpoError(f"eval_temperature: expected a number of at least 0, got {self.eval_temperature!r}")
        if self.eval_judge is not None and not self.eval_samples:
            raise JpoError("eval_judge: judges the answers of --eval-samples N; give N, such as 16")
        if self.warmup_steps is not None:
            self._whole("warmup_steps", 0)
        if self.slots is not None:
            self._whole("slots", 1)
            if self.slots & (self.slots - 1):
                raise JpoError(f"slots: expected a power of two, got {self.slots}")
        if self.steps is not None and self.epochs is not None:
            raise JpoError("steps and epochs: give one of them, got both")
        if self.epochs is not None and not self.epochs > 0:
            raise JpoError(f"epochs: expected a positive number, got {self.epochs!r}")
        for name in ("learning_rate", "weight_decay", "max_grad_norm"):
            if not getattr(self, name) >= 0:
                raise JpoError(f"{name}: expected a number of at least 0, got {getattr(self, name)!r}")
        for name, choices in choices_of(type(self)).items():
            value = getattr(self, name)
            if value not in choices and not (value is None and optional(type(self), name)):
                raise JpoError(f"{name}: expected one of {', '.join(choices)}, got {value!r}")
        self.target_modules = _joined(self.target_modules) or ""
        for name in ("exclude_modules", "modules_to_save", "layers_to_transform"):
            setattr(self, name, _joined(getattr(self, name)))
        for name, kind in (("rank_pattern", int), ("alpha_pattern", float)):
            setattr(self, name, _pattern(name, getattr(self, name), kind))
        self._layers()
        if not isinstance(self.report_to, str):
            self.report_to = cast(Reporter, ",".join(self.report_to))
        for name in _names(self.report_to):
            if name not in REPORTER_NAMES:
                raise JpoError(f"report_to: expected some of {', '.join(REPORTER_NAMES)}, got {name!r}")

    def _plain_values(self) -> None:
        """Numbers and paths of other libraries become Python's own, which files hold; JpoError for numbers, texts and
        switches of another type. Whole numbers and choices are checked where their bounds are."""
        chosen = choices_of(type(self))
        for name, hint in hints(type(self)).items():
            value, kinds = plain(getattr(self, name)), members(hint)
            elsewhere = name in chosen or (int in kinds and float not in kinds)
            if not elsewhere and (value is None or all(kind in (float, str, bool, type(None)) for kind in kinds)):
                value = converted(value, hint, name)
            setattr(self, name, value)

    def _whole(self, name: str, least: int) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise JpoError(f"{name}: expected a whole number of at least {least}, got {value!r}")

    @property
    def reporters(self) -> list[str]:
        """The reporters by name, each once."""
        assert isinstance(self.report_to, str)  # __post_init__ joined a sequence
        asked = [*_names(self.report_to), *(["tensorboard"] if self.tensorboard else [])]
        return [name for name in dict.fromkeys(asked) if name != "none"]

    @property
    def targets(self) -> str | tuple[str, ...]:
        """target_modules as LanguageModel.add_lora takes them."""
        assert isinstance(self.target_modules, str)  # __post_init__ joined a sequence
        names = tuple(_names(self.target_modules))
        return "all-linear" if names == ("all-linear",) else names

    def _layers(self) -> list[int] | None:
        if self.layers_to_transform is None:
            return None
        try:
            return [int(part) for part in _names(str(self.layers_to_transform))]
        except ValueError:
            raise JpoError(
                f"layers_to_transform: expected numbers separated by commas, got {self.layers_to_transform!r}"
            ) from None

    def adapter_options(self) -> dict[str, Any]:
        """What LanguageModel.add_lora takes."""
        own = {
            name: getattr(self, name) for name in ("r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "bias")
        }
        lists = {name: _names(getattr(self, name) or "") or None for name in ("exclude_modules", "modules_to_save")}
        patterns = {name: getattr(self, name) for name in ("rank_pattern", "alpha_pattern")}
        return own | lists | patterns | {"target_modules": self.targets, "layers_to_transform": self._layers()}

    def dropout_seed(self, step: int) -> int:
        """Seed of the dropout masks of optimizer step `step`, from 0, of all its small batches: within it a row's mask
        follows from its own text and position (csrc/model/forest.c), so that no cut of the step changes it."""
        return (self.seed << 32) + step

    @classmethod
    def from_dict(cls: type[T], values: Mapping[str, Any], where: str = "config") -> T:
        """Checked against the declared options: an unknown key is refused with the nearest name."""
        known = hints(cls)
        for key in values:
            if key not in known:
                raise JpoError(f"{where}: unknown option {key!r}{_meant(str(key), known)}")
        return cls(**{key: converted(value, known[key], f"{where}: {key}") for key, value in values.items()})

    def to_dict(self) -> dict[str, Any]:
        """Every option, for YAML and for checkpoints."""
        return dataclasses.asdict(self)


# what TRL, PEFT and transformers call an option: what says it here
_ELSEWHERE = {
    "model_name_or_path": "model",
    "dataset_name": "data",
    "output_dir": "output",
    "per_device_train_batch_size": "batch_size, the records of a whole step",
    "gradient_accumulation_steps": "batch_size, the records of a whole step, and token_budget, which bounds the memory",
    "num_train_epochs": "epochs",
    "max_steps": "steps",
    "loss_type": "loss",
    "lora_r": "r",
    "lora_target_modules": "target_modules",
    "max_completion_length": "max_length, of prompt and response together",
    "warmup_ratio": "warmup_steps",
    "optim": "nothing: the optimizer is AdamW",
    "bf16": "compute: bfloat16x2",
    "fp16": "compute: bfloat16x2",
    "torch_dtype": "storage",
    "dtype": "storage",
    "load_in_8bit": "storage: q8_0",
    "load_in_4bit": "storage: q8_0, or a GGUF file of 4 bits as the model",
    "logging_steps": "nothing: metrics.jsonl has a line a step",
    "eval_strategy": "eval_steps",
    "save_strategy": "save_steps",
    "use_peft": "nothing: an adapter is the default",
}


def _meant(key: str, known: Collection[str]) -> str:
    """The nearest option, or what says here what another library's option says there."""
    if key in _ELSEWHERE:
        return f"; here it is {_ELSEWHERE[key]}"
    return nearest(key, known)


def _names(text: str) -> list[str]:
    """The names of a comma-separated list."""
    return [name.strip() for name in text.split(",") if name.strip()]


def _joined(value: Any) -> str | None:
    """A list of names or numbers as one text, which flags and checkpoints hold; nothing at all as None."""
    if value is None or isinstance(value, str):
        return value or None
    return ",".join(map(str, value if isinstance(value, Sequence) else [value])) or None


def _pattern(name: str, value: Any, kind: type) -> dict[str, Any] | None:
    """A mapping of expressions to numbers; a text holds them as EXPRESSION=NUMBER, separated by commas."""
    if not isinstance(value, str):
        return dict(value) if value else None
    pattern: dict[str, Any] = {}
    for part in _names(value):
        expression, _, number = part.rpartition("=")
        try:
            pattern[expression.strip()] = kind(number)
        except ValueError:
            expression = ""
        if not expression.strip():
            raise JpoError(f"{name}: expected NAME=NUMBER, separated by commas, got {value!r}")
    return pattern or None


@explained
@dataclass
class PreferenceConfig(TrainingConfig):
    """Options of PreferenceTrainer; names follow TRL's DPOConfig where it has them."""

    scope: Scope = option("joint", "joint (JPO: every token but the first) or response (DPO).", "objective", True)
    loss: LossName | Sequence[LossName] = option(
        "sigmoid", "A loss, or several separated by commas; see jpo.objectives.LOSSES.", "objective", True
    )
    loss_weights: str | Sequence[float] | None = option(None, "Weights of the losses, comma-separated.", "objective")
    beta: float = option(0.1, "Strength of the pull to the reference model.", "objective", first=True)
    label_smoothing: float = option(0.0, "Share of labels taken as flipped.", "objective")
    length_normalize: bool | None = option(None, "ipo: divide by lengths (default) or not.", "objective")
    gamma: float = option(0.5, "simpo's margin.", "objective")
    orpo_lambda: float = option(0.1, "orpo's weight of the odds ratio.", "objective")
    discopop_tau: float = option(0.05, "discopop's temperature.", "objective")
    desirable_weight: float = option(1.0, "kto's weight of chosen responses.", "objective")
    undesirable_weight: float = option(1.0, "kto's weight of rejected responses.", "objective")
    f_divergence_type: Divergence = option(
        "reverse_kl", "reverse_kl, forward_kl, js_divergence or alpha_divergence.", "objective"
    )
    f_alpha_divergence_coef: float = option(0.5, "alpha of alpha_divergence.", "objective")
    use_weighting: bool = option(False, "Weigh each pair by the policy's confidence (WPO).", "objective")
    rpo_tau: float = option(0.5, "rpo's temperature over prompt similarities.", "objective")
    precompute_ref_log_probs: bool = option(
        False, "Compute the reference's log-likelihoods once, before training.", "objective"
    )
    ref_logps: str | None = option(
        None,
        "File that keeps the reference's log-likelihoods and serves later runs of the same model.",
        "objective",
    )
    rpo_embeddings: str | None = option(
        None,
        "rpo's vectors of instructions: a file of {instruction, embedding} or module:function; default: the model's mean "
        "hidden states.",
        "objective",
    )
    nu: float | None = option(
        None, "How readily dpo_rk and dpo_davidson tie; default: 3 and 1, equal rewards tie half the time.", "objective"
    )
    full_logps: bool = option(
        False, "Score rows whose gradient is known to cancel too, for logps/* of whole sequences.", "objective"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.loss, str):
            self.loss = cast(LossName, ",".join(self.loss))
        if self.loss_weights is not None and not isinstance(self.loss_weights, str):
            self.loss_weights = ",".join(map(str, self.loss_weights))
        for name in self.losses:
            if name not in LOSSES:
                raise JpoError(f"loss: expected some of {', '.join(LOSSES)}, got {name!r}")
        if not self.beta > 0:
            raise JpoError(f"beta: expected a positive number, got {self.beta!r}")

    @property
    def losses(self) -> list[str]:
        """The losses by name."""
        assert isinstance(self.loss, str)  # __post_init__ joined a sequence
        return _names(self.loss)

    @property
    def weights(self) -> list[float] | None:
        """loss_weights as numbers."""
        if self.loss_weights is None:
            return None
        assert isinstance(self.loss_weights, str)
        try:
            return [float(part) for part in self.loss_weights.split(",")]
        except ValueError:
            raise JpoError(f"loss_weights: expected numbers separated by commas, got {self.loss_weights!r}") from None


@explained
@dataclass
class SFTConfig(TrainingConfig):
    """Options of SFTTrainer: loss on the response only, packed."""

    learning_rate: float = option(1.5e-6, "Peak learning rate of AdamW.", first=True)
    adam_beta2: float = option(0.95, "AdamW's second moment decay.")
    warmup_steps: int | None = option(None, "Steps of linear warm-up; default: what --warmup-ratio says.")
    warmup_ratio: float = option(0.05, "Share of the steps that warm up.")
    epochs: float | None = option(None, "Passes over the data; default 3 where --steps is not given.", first=True)
    max_length: int = option(2048, "Tokens of prompt and response at most.", "data")
    max_prompt_length: int = option(1024, "Tokens of the prompt at most, template included.", "data")
    full: bool = option(False, "Train every weight instead of an adapter.", "adapter", True)
