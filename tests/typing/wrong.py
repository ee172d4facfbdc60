"""Uses that type checkers must refuse: an error on each line that ends in "# wrong", and on no other."""

import jpo
from jpo import _core
from jpo.formats import load_checkpoint
from jpo.train import Callback

_core.set_num_threads("two")  # wrong
_core.measure_gflops("float16", 64, 64, 64)  # wrong
name: int = _core.system_info()["isa"]  # wrong
text: str = load_checkpoint("tiny").tokenizer.encode("text")  # wrong
jpo.lode("tiny")  # wrong
jpo.load()  # wrong
jpo.load("tiny", storage="float16")  # wrong
lm = jpo.load("tiny", compute="int8")  # wrong
lm = jpo.load("tiny")
lm.add_lora(r="8")  # wrong
lm.add_lora(target_modules=8)  # wrong
lm.sequence_logps(["a"], ["b"], scope="jont")  # wrong
number: int = lm.generate(["a"])  # wrong
lm.generate(["a"], temperature="cold")  # wrong
shown = lm.generate(["a"])[0][0].txt  # wrong
jpo.PreferenceConfig(scope="jont")  # wrong
jpo.PreferenceConfig(batch_size="2")  # wrong
jpo.PreferenceConfig(foo=3)  # wrong
jpo.PreferenceConfig(loss="sigmod")  # wrong
jpo.PreferenceConfig(loss=["sigmoid", "dpo"])  # wrong
jpo.PreferenceConfig(lr_scheduler_type="step")  # wrong
jpo.PreferenceConfig(f_divergence_type="kl")  # wrong
jpo.SFTConfig(truncation="cut")  # wrong
jpo.SFTConfig(beta=0.1)  # wrong
jpo.preference_loss([0.0], [0.0], los="sigmoid")  # wrong
jpo.preference_loss([0.0], [0.0], loss="dpo")  # wrong
trainer = jpo.PreferenceTrainer(lm, [], jpo.SFTConfig())  # wrong
trainer = jpo.PreferenceTrainer("tiny", [])  # wrong
trainer = jpo.PreferenceTrainer(lm, [])
trainer.train(resume="yes")  # wrong
trainer.train(callbacks=[3])  # wrong
history: list[float] = trainer.train()  # wrong


class Watch(Callback):
    """A method with another signature."""

    def on_log(self, row: int) -> None:  # wrong
        """Never called so."""
