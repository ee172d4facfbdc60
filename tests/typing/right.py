"""Twenty uses and more of the public interface that a type checker must accept, each with the type that it promises."""

from pathlib import Path
from typing import Any

import numpy as np
from typing_extensions import assert_type

import jpo
from jpo import _core, doctor
from jpo.errors import DataError, FormatError, JpoError, MissingExtra
from jpo.formats import load_checkpoint
from jpo.objectives import PreferenceLoss
from jpo.train import Best, Callback, Run

info: _core.SystemInfo = _core.system_info()
isa: str = info["isa"]
threads: int = jpo.get_num_threads()
jpo.set_num_threads(threads)
speed: float = _core.measure_gflops("float32", 64, 64, 64, runs=1)
found: dict[str, bool] = doctor.extras()
errors: tuple[type[JpoError], ...] = (DataError, FormatError, MissingExtra)
ids: list[int] = load_checkpoint("tiny").tokenizer.encode("text")
version: str = jpo.__version__

lm = jpo.load("tiny", storage="bfloat16", compute="int16")
assert_type(lm, jpo.LanguageModel)
from_path: jpo.LanguageModel = jpo.load(Path("model"))
lm.add_lora(r=4, lora_alpha=8, target_modules="all-linear")
lm.add_lora(target_modules=("q_proj", "v_proj"), use_rslora=True)
logps: np.ndarray[Any, np.dtype[np.float64]] = lm.sequence_logps(["a"], ["b"], scope="joint")
with lm.disable_adapter():
    reference = lm.sequence_logps(["a"], ["b"], scope="response")
samples = lm.generate(["a"], n=2, temperature=0.5, stop=("###",))
assert_type(samples, list[list[jpo.Completion]])
text: str = samples[0][0].text
settings: dict[str, Any] = lm.load_adapter("adapter")
lm.save_adapter(Path("adapter"))
lm.merge("merged")

result = jpo.preference_loss(logps, logps - 1, logps, logps)
assert_type(result, PreferenceLoss)
assert_type(result.loss, float)
weighted = jpo.preference_loss(logps, logps, logps, logps, loss=["sigmoid", "hinge"], loss_weights=[1.0, 0.5])
diverged = jpo.preference_loss(logps, logps, logps, logps, f_divergence_type="js_divergence")
norm: float = _core.grad_norm(np.zeros(3, np.float32))
sums: np.ndarray[Any, Any] = jpo.sequence_logps(np.zeros((1, 2, 3), np.float32), np.zeros((1, 2), int))

config = jpo.PreferenceConfig(scope="joint", loss="ipo", beta=0.2, batch_size=2, steps=3, output="out")
several = jpo.PreferenceConfig(loss=["sigmoid", "sft"], target_modules=["q_proj"], warmup_steps=None, epochs=0.5)
read: jpo.PreferenceConfig = jpo.PreferenceConfig.from_dict({"beta": 0.2})
rate: float = config.learning_rate
pairs = [{"prompt": "a", "chosen": "b", "rejected": "c"}]


class Watch(Callback):
    """Ends a run by its margin."""

    def on_log(self, run: Run, row: dict[str, Any]) -> None:
        """Stops."""
        run.stop = row["rewards/margins"] > 1


trainer = jpo.PreferenceTrainer(lm, pairs, config, {"held out": pairs})
history: dict[str, list[Any]] = trainer.train(resume=False, callbacks=[Watch(), print, Best("eval_loss", patience=2)])
metrics, gradients = trainer.loss_and_gradients(pairs)
gradient: np.ndarray[Any, Any] = gradients["name"]
sft = jpo.SFTTrainer(lm, [{"instruction": "a", "response": "b"}], jpo.SFTConfig(full=True, truncation="drop"))
losses: dict[str, float] = sft.evaluate()
