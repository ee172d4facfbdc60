"""Training: configurations, the loop, the preference and the SFT trainer."""

from jpo.train.callbacks import Best, Callback, Run
from jpo.train.config import PreferenceConfig, SFTConfig
from jpo.train.micro import Evaluation
from jpo.train.preference import PreferenceTrainer
from jpo.train.sft import SFTTrainer

__all__ = ["Best", "Callback", "Evaluation", "Run", "PreferenceConfig", "PreferenceTrainer", "SFTConfig", "SFTTrainer"]
