"""Every training option, declared once: YAML keys, command-line flags and help derive from these classes."""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from jpo.errors import JpoError
from jpo.storage import COMPUTES

T = TypeVar("T", bound="TrainingConfig")
SCHEDULES = ("cosine", "linear", "constant")


def option(default: Any, text: str) -> Any:
    """A config field with its help text."""
    return field(default=default, metadata={"help": text})


@dataclass
class TrainingConfig:
    """What both trainers share; defaults are the preference trainer's."""

    batch_size: int = option(32, "Pairs (SFT: examples) per optimizer step, however the step is cut.")
    steps: int | None = option(None, "Optimizer steps; default: 1000, or what --epochs says.")
    epochs: float | None = option(None, "Passes over the data, instead of --steps.")
    learning_rate: float = option(5e-5, "Peak learning rate of AdamW.")
    lr_scheduler_type: str = option("cosine", "cosine, linear or constant, after the warm-up.")
    warmup_steps: int = option(100, "Steps of linear warm-up.")
    weight_decay: float = option(0.0, "Decoupled weight decay.")
    adam_beta1: float = option(0.9, "AdamW's first moment decay.")
    adam_beta2: float = option(0.999, "AdamW's second moment decay.")
    adam_epsilon: float = option(1e-8, "AdamW's epsilon.")
    max_grad_norm: float = option(1.0, "Gradients are clipped to this norm; 0: never.")
    max_length: int = option(1024, "Tokens of prompt and response at most.")
    max_prompt_length: int = option(512, "Tokens of the prompt at most, template included.")
    truncation: str = option("keep_start", "keep_start, keep_end (of a too long instruction) or drop.")
    template: str | None = option(
        None,
        "Prompt template: spaced, paper, tldr, raw, chat, or a text with {instruction} and {response}; default: chat "
        "for conversational records where the model has a chat template, else spaced.",
    )
    token_budget: int = option(1024, "Rows of a micro-batch at most; bounds the memory.")
    save_steps: int = option(100, "Steps between checkpoints; 0: only at the end.")
    save_total_limit: int | None = option(None, "Finished checkpoints that are kept; default: all.")
    eval_steps: int = option(0, "Steps between evaluations on --eval-data; 0: at the end only.")
    seed: int = option(0, "Seed of data order, adapter and dropout.")
    r: int = option(8, "Rank of the LoRA adapter.")
    lora_alpha: float = option(16.0, "LoRA's alpha; the factor is alpha / r.")
    lora_dropout: float = option(0.0, "Dropout before the adapter.")
    target_modules: str = option("q_proj,k_proj,v_proj", "Adapted modules, comma-separated, or all-linear.")
    use_rslora: bool = option(False, "Scale by alpha / sqrt(r).")
    compute: str | None = option(
        None,
        "Products with the model's weights: float32, int16 or bfloat16; default: float32, or as the model was loaded.",
    )
    gradient_checkpointing: bool = option(
        False, "Keep each layer's input alone and repeat its forward in backward: less memory, a quarter more time."
    )
    output: str | None = option(None, "Directory of adapter, metrics.jsonl and checkpoints.")
    tensorboard: bool = option(False, "Also write TensorBoard events under the output directory.")

    def __post_init__(self) -> None:
        positive = ("batch_size", "max_length", "max_prompt_length", "token_budget", "r")
        for name in positive:
            self._whole(name, 1)
        for name in ("warmup_steps", "save_steps", "eval_steps"):
            self._whole(name, 0)
        if self.steps is not None:
            self._whole("steps", 1)
        if self.steps is not None and self.epochs is not None:
            raise JpoError("steps and epochs: give one of them, got both")
        if self.epochs is not None and not self.epochs > 0:
            raise JpoError(f"epochs: expected a positive number, got {self.epochs!r}")
        if self.save_total_limit is not None:
            self._whole("save_total_limit", 1)
        if not self.learning_rate >= 0:
            raise JpoError(f"learning_rate: expected a number of at least 0, got {self.learning_rate!r}")
        if self.lr_scheduler_type not in SCHEDULES:
            raise JpoError(f"lr_scheduler_type: expected one of {', '.join(SCHEDULES)}, got {self.lr_scheduler_type!r}")
        if self.compute is not None and self.compute not in COMPUTES:
            raise JpoError(f"compute: expected one of {', '.join(COMPUTES)}, got {self.compute!r}")
        if not isinstance(self.target_modules, str):
            self.target_modules = ",".join(self.target_modules)

    def _whole(self, name: str, least: int) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise JpoError(f"{name}: expected a whole number of at least {least}, got {value!r}")

    @property
    def targets(self) -> str | tuple[str, ...]:
        """target_modules as LanguageModel.add_lora takes them."""
        names = tuple(name.strip() for name in self.target_modules.split(",") if name.strip())
        return "all-linear" if names == ("all-linear",) else names

    @classmethod
    def from_dict(cls: type[T], values: Mapping[str, Any], where: str = "config") -> T:
        """Checked against the declared options: an unknown key is refused with the nearest name."""
        known = {item.name: item for item in fields(cls)}
        for key, value in values.items():
            if key not in known:
                near = difflib.get_close_matches(str(key), known, n=1)
                raise JpoError(f"{where}: unknown option {key!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
            _check_type(where, key, value, str(known[key].type))
        converted = {
            key: float(value) if "float" in str(known[key].type) and isinstance(value, int) else value
            for key, value in values.items()
        }
        return cls(**converted)

    def to_dict(self) -> dict[str, Any]:
        """Every option, for YAML and for checkpoints."""
        return dataclasses.asdict(self)


def _check_type(where: str, key: str, value: Any, annotation: str) -> None:
    names = [part.strip() for part in annotation.split("|")]
    if value is None and "None" in names:
        return
    kinds: dict[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "str": (str,), "bool": (bool,)}
    for name in names:
        if isinstance(value, kinds.get(name, ())) and not (isinstance(value, bool) and name != "bool"):
            return
    if key in ("target_modules", "loss", "loss_weights") and isinstance(value, (list, tuple)):
        return
    raise JpoError(f"{where}: {key}: expected {annotation}, got {value!r}")


@dataclass
class PreferenceConfig(TrainingConfig):
    """Options of PreferenceTrainer; names follow TRL's DPOConfig where it has them."""

    scope: str = option("joint", "joint (JPO: every token but the first) or response (DPO).")
    loss: str = option("sigmoid", "A loss, or several separated by commas; see jpo.objectives.LOSSES.")
    loss_weights: str | None = option(None, "Weights of the losses, comma-separated.")
    beta: float = option(0.1, "Strength of the pull to the reference model.")
    label_smoothing: float = option(0.0, "Share of labels taken as flipped.")
    length_normalize: bool | None = option(None, "ipo: divide by lengths (default) or not.")
    gamma: float = option(0.5, "simpo's margin.")
    orpo_lambda: float = option(0.1, "orpo's weight of the odds ratio.")
    discopop_tau: float = option(0.05, "discopop's temperature.")
    desirable_weight: float = option(1.0, "kto's weight of chosen responses.")
    undesirable_weight: float = option(1.0, "kto's weight of rejected responses.")
    f_divergence_type: str = option("reverse_kl", "reverse_kl, forward_kl, js_divergence or alpha_divergence.")
    f_alpha_divergence_coef: float = option(0.5, "alpha of alpha_divergence.")
    use_weighting: bool = option(False, "Weigh each pair by the policy's confidence (WPO).")
    rpo_tau: float = option(0.5, "rpo's temperature over prompt similarities.")
    precompute_ref_log_probs: bool = option(False, "Compute the reference's log-likelihoods once, before training.")
    full_logps: bool = option(
        False, "Score rows whose gradient is known to cancel too, for logps/* of whole sequences."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scope not in ("joint", "response"):
            raise JpoError(f"scope: expected joint or response, got {self.scope!r}")
        if not isinstance(self.loss, str):
            self.loss = ",".join(self.loss)
        if self.loss_weights is not None and not isinstance(self.loss_weights, str):
            self.loss_weights = ",".join(map(str, self.loss_weights))
        from jpo.objectives import LOSSES

        for name in self.losses:
            if name not in LOSSES:
                raise JpoError(f"loss: expected some of {', '.join(LOSSES)}, got {name!r}")
        if not self.beta > 0:
            raise JpoError(f"beta: expected a positive number, got {self.beta!r}")

    @property
    def losses(self) -> list[str]:
        """The losses by name."""
        return [name.strip() for name in self.loss.split(",") if name.strip()]

    @property
    def weights(self) -> list[float] | None:
        """loss_weights as numbers."""
        if self.loss_weights is None:
            return None
        try:
            return [float(part) for part in self.loss_weights.split(",")]
        except ValueError:
            raise JpoError(f"loss_weights: expected numbers separated by commas, got {self.loss_weights!r}") from None


@dataclass
class SFTConfig(TrainingConfig):
    """Options of SFTTrainer: loss on the response only, packed."""

    learning_rate: float = option(1.5e-6, "Peak learning rate of AdamW.")
    adam_beta2: float = option(0.95, "AdamW's second moment decay.")
    warmup_steps: int = option(0, "Steps of linear warm-up; 0: warmup_ratio says.")
    warmup_ratio: float = option(0.05, "Share of the steps that warm up.")
    epochs: float | None = option(None, "Passes over the data; default 3 where --steps is not given.")
    max_length: int = option(2048, "Tokens of prompt and response at most.")
    max_prompt_length: int = option(1024, "Tokens of the prompt at most, template included.")
    full: bool = option(False, "Train every weight instead of an adapter.")


def read_yaml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The mapping of a YAML file; {} for an empty one."""
    import yaml

    try:
        with open(path, encoding="utf-8") as file:
            values = yaml.safe_load(file)
    except OSError as error:
        raise JpoError(f"{path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise JpoError(f"{path}: not valid YAML: {str(error).splitlines()[0]}") from None
    if values is not None and not isinstance(values, dict):
        raise JpoError(f"{path}: expected a mapping of options, got {type(values).__name__}")
    return values or {}
