"""Every option of a study, declared once: YAML keys, their checks and the command line's help derive from StudyConfig.

Knows names and types; never runs anything.
"""

from __future__ import annotations

import dataclasses
import importlib.resources
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from jpo.data.readers import EXAMPLE
from jpo.declared import converted, hints, nearest, option, parse_yaml, read_yaml
from jpo.defaults import CONCURRENCY, MAX_NEW_TOKENS, MAX_TOKENS, TIMEOUT
from jpo.errors import JpoError
from jpo.feedback.pairs import parse_mix
from jpo.feedback.prompts import PROTOCOLS, Question, read_wording
from jpo.formats.peft import is_adapter
from jpo.hub.names import hub_name
from jpo.storage import Compute
from jpo.study.methods import METHODS
from jpo.train.config import PreferenceConfig, SFTConfig

WORLD = "world"
PRESETS = ("demo", "world", "tldr", "helpful", "alpaca_eval")
# what the study itself decides for each training run
_DECIDED = ("output", "seed", "compute", "template", "scope", "save_total_limit")
# may differ between a run and the run that goes on with it
FREE = (
    "output",
    "methods",
    "training_seeds",
    "amounts",
    "scaling_methods",
    "mixing",
    "concurrency",
    "timeout",
    "judge_max_tokens",
    "known_verdicts",
    "executor",
    "alpaca_eval_difficulty",
    "prompt_price",
    "completion_price",
)
UNIONS = ("epochs", "steps")
_DECIDED_PAIRS = 1200  # of each kind, where none are given and no size is


def _listed(default: Iterable[Any], text: str) -> Any:
    return field(default_factory=lambda: list(default), metadata={"help": text})


def _mapping(text: str) -> Any:
    return field(default_factory=dict, metadata={"help": text})


@dataclass
class StudyConfig:
    """What a study runs. The defaults are the paper's where it gives one (arXiv 2404.00530)."""

    output: str | None = option(None, "Directory of the study; running again goes on where it was.")
    seed: int = option(0, "Seed of the data, the first weights, the candidates and the pairs.")
    model: str | None = option(
        WORLD, "world (the embedded one), smollm2-135m, a Hugging Face directory or a GGUF file."
    )
    compute: Compute = option("float32", "Products with the model's weights, as jpo train has them.")
    template: str | None = option(
        None, "Prompt template: spaced, paper, tldr, raw, chat, or a text with {instruction} and {response}."
    )
    sft_data: str | None = option(
        None, "{instruction, response} to fine-tune on; none: the model itself is the policy."
    )
    policy: str | None = option(
        None,
        "An SFT policy that stands already, instead of fine-tuning: a model, or an adapter's directory over model.",
    )
    instructions: str | None = option(None, "Records with an instruction, to sample candidates for; default: sft_data.")
    conditional_pairs: str | None = option(
        None, "Preference pairs that stand already, instead of candidates and conditional feedback."
    )
    joint_pairs: str | None = option(
        None, "Preference pairs of different instructions that stand already, instead of joint feedback."
    )
    test_data: str | None = option(None, "{instruction, gold_response, id?} for the win-rates.")
    sft_size: int = option(2000, "Examples of supervised fine-tuning at most.")
    conditional_size: int | None = option(
        None, f"Decided conditional pairs at most; default: all that are given, else {_DECIDED_PAIRS}."
    )
    joint_size: int | None = option(
        None, f"Decided joint pairs at most; default: all that are given, else {_DECIDED_PAIRS}."
    )
    candidates_size: int | None = option(
        None, "Instructions that get two candidates, at most; default: as many as conditional_size takes."
    )
    joint_candidates_size: int | None = option(
        None, "Joint candidates that are judged, at most; default: as many as joint_size takes."
    )
    test_size: int = option(500, "Test instructions at most.")
    alpaca_eval: str | None = option(
        None, "AlpacaEval 2: an evaluation set with the baseline's outputs, [{instruction, output, generator}]."
    )
    alpaca_eval_temperature: float = option(0.7, "Temperature of the samples for alpaca_eval.")
    alpaca_eval_difficulty: str | None = option(
        None, "AlpacaEval's instruction_difficulty.csv or df_gamed.csv, for its own length-controlled win-rate."
    )
    judge: str = option(WORLD, "world (exact), openai, local or module:function.")
    judge_model: str | None = option(None, "openai: the model's name on the server; local: the model to load.")
    base_url: str | None = option(None, "openai: the server, e.g. http://localhost:8000/v1.")
    protocol: str = option("tie", "tie: the judge says A, B or tie; forced, as in the paper: one of two.")
    task: str | None = option(
        None, "What an instruction is to the judge: plain, tldr or a text with {instruction}; default: as the template."
    )
    judge_prompt: list[str] = _listed((), "Files of your own wording, as of jpo feedback --prompt.")
    judge_temperature: float | None = option(0.0, "openai: sent with each request; null: left out.")
    judge_max_tokens: int | None = option(MAX_TOKENS, "openai: tokens of a reply at most; null: no bound is sent.")
    concurrency: int = option(CONCURRENCY, "openai: requests at once.")
    timeout: float = option(TIMEOUT, "openai: seconds for one request.")
    known_verdicts: list[str] = _listed((), "Verdict caches whose comparisons with gold are not asked again.")
    executor: str | None = option(
        None,
        "Workers for sampling, judging and precomputed references, as of jpo generate --executor; the same results.",
    )
    prompt_price: float | None = option(None, "Price of a million prompt tokens, for the dry run's cost.")
    completion_price: float | None = option(None, "Price of a million completion tokens.")
    candidate_temperature: float = option(1.0, "Temperature of the two candidates of an instruction.")
    temperatures: list[float] = _listed((0.001, 0.5, 1.0), "Temperatures of the evaluation's samples.")
    top_k: int = option(0, "Likeliest tokens that sampling keeps; 0: all.")
    max_new_tokens: int = option(MAX_NEW_TOKENS, "Tokens of a sample at most.")
    mix: str = option("CC=1,RR=1,CR=2", "Shares of chosen-chosen, rejected-rejected, chosen-rejected joint candidates.")
    methods: list[str] = _listed(METHODS, f"Rows of the win-rate table: some of {', '.join(METHODS)}.")
    training_seeds: list[int] = _listed((0, 1, 2), "Each method is trained once with each; fewer than 3: underpowered.")
    union: str = option(
        "epochs", "The union trains for as many epochs as DPO's steps are of its own pairs (epochs), or steps (steps)."
    )
    amounts: list[float] = _listed((), "Further shares of the feedback, below 1, for the data-scaling curve.")
    scaling_methods: list[str] = _listed(("dpo", "jpo_joint", "jpo_union"), "Methods of the data-scaling curve.")
    mixing: list[float] = _listed((), "Shares of joint pairs, 0 to 1, for the mixing study at equal pairs.")
    pretrain: dict[str, Any] = _mapping(
        "world only: options of the first training, as of jpo sft; texts: their number."
    )
    hidden_size: int = option(64, "world only: width of the decoder.")
    layers: int = option(2, "world only: layers of the decoder.")
    sft: dict[str, Any] = _mapping("Options of supervised fine-tuning, as of jpo sft.")
    train: dict[str, Any] = _mapping(
        "Options of every preference training, as of jpo train. loss: the losses of every method, where kto, rpo and iopo "
        "have their own in place of the first; so sigmoid,sft gives every method the same term of likelihood."
    )
    overrides: dict[str, Any] = _mapping("Method: its own options of jpo train, over those of train.")

    def __post_init__(self) -> None:
        if self.conditional_size is None and not self.conditional_pairs:
            self.conditional_size = _DECIDED_PAIRS
        if self.joint_size is None and not self.joint_pairs:
            self.joint_size = _DECIDED_PAIRS
        for name, least in (
            ("sft_size", 1),
            ("conditional_size", 2),
            ("joint_size", 1),
            ("candidates_size", 2),
            ("joint_candidates_size", 1),
            ("test_size", 2),
            ("top_k", 0),
            ("judge_max_tokens", 1),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise JpoError(f"{name}: expected a whole number of at least {least}, got {value}")
        if self.policy and self.model in (None, WORLD) and not is_adapter(self.policy):
            self.model = self.policy
        self._lists()
        self._asking()
        parse_mix(self.mix)
        if (self.model == WORLD) != (self.judge == WORLD):
            raise JpoError(
                f"model {self.model!r} and judge {self.judge!r}: the embedded world's judge reads its texts alone; "
                "give both as 'world', or neither"
            )
        wanted = {"model": self.model}
        if self.model != WORLD:
            wanted["test_data"] = self.test_data
            if not self.conditional_pairs:
                wanted["instructions or sft_data"] = self.instructions or self.sft_data
        else:
            given = [name for name in _GIVEN if getattr(self, name)]
            if given:
                raise JpoError(f"{given[0]}: the embedded world makes its own; give a model beside it")
        if self.judge == "openai":
            wanted["judge_model"] = self.judge_model
        missing = [name for name, value in wanted.items() if not value]
        if missing:
            helps = {item.name: item.metadata["help"] for item in fields(self)}
            shown = "".join(f"\n  {name}: {helps[name.split(' ')[0]]}" for name in missing)
            raise JpoError(
                f"missing: {', '.join(missing)}; give each in the YAML file or by --set KEY=VALUE. To be filled in:{shown}"
            )

    def _asking(self) -> None:
        if self.protocol not in PROTOCOLS:
            raise JpoError(f"protocol: expected one of {', '.join(PROTOCOLS)}, got {self.protocol!r}")
        if self.judge == WORLD and (self.protocol != "tie" or self.judge_prompt or self.task not in (None, "plain")):
            raise JpoError(
                "judge 'world': it is exact and says tie; protocol, task and judge_prompt are for other judges"
            )
        if self.union not in UNIONS:
            raise JpoError(f"union: expected one of {', '.join(UNIONS)}, got {self.union!r}")
        for name in ("timeout", "alpaca_eval_temperature", "candidate_temperature"):
            value = getattr(self, name)
            if not 0 <= value < float("inf") or (name == "timeout" and value == 0):
                raise JpoError(f"{name}: expected a positive number, got {value}")

    @property
    def question(self) -> Question:
        """How the judge is asked; JpoError for wording that cannot be."""
        task = self.task or ("tldr" if self.template == "tldr" else "plain")
        return Question(self.protocol, task, read_wording(self.judge_prompt))

    def _lists(self) -> None:
        for name in ("methods", "training_seeds", "temperatures"):
            if not getattr(self, name):
                raise JpoError(f"{name}: expected at least one, got none")
        for name in ("methods", "training_seeds", "temperatures", "amounts", "mixing", "scaling_methods"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise JpoError(f"{name}: expected different ones, got {values}")
        for name, seeds in (("seed", [self.seed]), ("training_seeds", self.training_seeds)):
            if min(seeds) < 0:
                raise JpoError(f"{name}: expected whole numbers of at least 0, got {min(seeds)}")
        for name in (*self.methods, *self.scaling_methods, *self.overrides):
            if name not in METHODS:
                raise JpoError(f"methods: expected some of {', '.join(METHODS)}, got {name!r}{nearest(name, METHODS)}")
        for name in ("amounts", "mixing"):
            for share in getattr(self, name):
                if not 0 <= share <= 1 or (name == "amounts" and not 0 < share < 1):
                    raise JpoError(
                        f"{name}: expected shares {'below' if name == 'amounts' else 'up to'} 1, got {share}"
                    )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str = "study") -> StudyConfig:
        """Checked key by key; JpoError names the place (`where`: the file) and the key, with the nearest known one."""
        known = hints(cls)
        made: dict[str, Any] = {}
        for key, value in values.items():
            if key not in known:
                raise JpoError(f"{where}: unknown option {key!r}{nearest(key, known)}")
            made[key] = converted(value, known[key], f"{where}: {key}")
        try:
            config = cls(**made)
            config.sft_options()
            _ = config.question
            for method in METHODS:
                config.train_options(method)
            if config.model == WORLD:
                config.pretrain_options()
        except JpoError as error:
            raise JpoError(f"{where}: {error}") from None
        return config

    def check_files(self) -> None:
        """JpoError where a given file is not there: before the first stage, not before the one that reads it."""
        names = [name for name in _GIVEN if getattr(self, name)]
        given = [(name, getattr(self, name)) for name in (*names, "alpaca_eval_difficulty") if getattr(self, name)]
        given += [(name, path) for name in ("known_verdicts", "judge_prompt") for path in getattr(self, name)]
        for name, path in given:
            if not os.path.exists(path) and not (name == "policy" or path == EXAMPLE or hub_name(path)):
                raise JpoError(f"{name}: no such file: {path}")

    def to_dict(self) -> dict[str, Any]:
        """Every option, as YAML and JSON hold them."""
        return dataclasses.asdict(self)

    def sft_options(self, **decided: Any) -> SFTConfig:
        """SFTConfig of supervised fine-tuning."""
        return SFTConfig.from_dict({**_checked(self.sft, "sft"), **decided}, "sft")

    def pretrain_options(self, **decided: Any) -> SFTConfig:
        """SFTConfig of the world's first training."""
        own = {key: value for key, value in _checked(self.pretrain, "pretrain").items() if key != "texts"}
        return SFTConfig.from_dict({**own, "full": True, **decided}, "pretrain")

    def train_options(self, method: str, **decided: Any) -> PreferenceConfig:
        """PreferenceConfig of a method: train, its overrides, what makes it this method."""
        own = _checked(self.overrides.get(method) or {}, f"overrides: {method}")
        values = {**_checked(self.train, "train"), **own}
        values |= {**METHODS[method].options, "loss": _losses(method, values.get("loss")), **decided}
        return PreferenceConfig.from_dict(values, "train")


def _losses(method: str, given: Any) -> Any:
    """The given losses, the method's own in place of the first unless it takes any (those with sigmoid do)."""
    own = METHODS[method].options.get("loss", "sigmoid")
    names = given.split(",") if isinstance(given, str) else list(given or [own])
    return ",".join(names if own == "sigmoid" else [own, *names[1:]])


_GIVEN = ("policy", "sft_data", "instructions", "conditional_pairs", "joint_pairs", "test_data", "alpaca_eval")


def _checked(values: Any, where: str) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise JpoError(f"{where}: expected a mapping of options, got {values!r}")
    for key in values:
        if key in _DECIDED:
            raise JpoError(
                f"{where}: {key} is decided by the study itself (seeds, methods and template: its own options)"
            )
    return values


# --- presets and files --------------------------------------------------------------------------------------------


def preset_text(name: str) -> str:
    """A preset's YAML file, comments and all."""
    if name not in PRESETS:
        raise JpoError(f"preset: expected one of {', '.join(PRESETS)}, got {name!r}")
    return importlib.resources.files("jpo.study").joinpath(f"presets/{name}.yaml").read_text(encoding="utf-8")


def load_config(
    path: str | None = None, preset: str | None = None, assignments: Iterable[str] = (), **flags: Any
) -> StudyConfig:
    """A preset's options, under a file's, under KEY=VALUE assignments (dotted keys reach into sections), under flags. A
    file may name its preset itself, by the key `preset`.

    Without a preset, what a file leaves open on the embedded world is as in the preset demo, whose options suit so
    small a model; on any other model it is StudyConfig's default."""
    import yaml

    own = read_yaml(path) if path else {}
    if (
        preset is None
        and "preset" not in own
        and own.get("model", WORLD) == WORLD
        and not any(own.get(name) for name in _GIVEN)
    ):
        preset = "demo"
    values = _preset_values(own.pop("preset", preset) if preset is None else preset)
    own.pop("preset", None)
    _merge(values, own)
    for text in assignments:
        key, equals, shown = text.partition("=")
        try:
            value: Any = parse_yaml(shown)
        except yaml.YAMLError:
            raise JpoError(f"--set {text}: {shown!r} is no YAML value") from None
        if not equals or not key:
            raise JpoError(f"--set {text}: expected KEY=VALUE, such as training_seeds=[0,1,2] or train.beta=0.2")
        for part in reversed(key.split(".")[1:]):
            value = {part: value}
        _merge(values, {key.split(".")[0]: value})
    values.update({key: value for key, value in flags.items() if value is not None})
    return StudyConfig.from_dict(values, path or f"preset {preset}")


def _preset_values(preset: str | None) -> dict[str, Any]:
    """A preset's options, over those of the preset that it names itself."""
    if preset is None:
        return {}
    own = dict(parse_yaml(preset_text(preset)))
    values = _preset_values(own.pop("preset", None))
    _merge(values, own)
    return values


def _merge(values: dict[str, Any], above: Mapping[str, Any]) -> None:
    """Keys of `above` win; mappings are joined."""
    for key, value in above.items():
        if isinstance(value, dict) and isinstance(values.get(key), dict):
            _merge(values[key], value)
        else:
            values[key] = value
