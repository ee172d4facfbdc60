"""The paper's pipeline as one resumable study, and the embedded world that it runs on by default."""

from jpo.study.config import StudyConfig, load_config, preset_text
from jpo.study.study import Study, run_study

__all__ = ["Study", "StudyConfig", "load_config", "preset_text", "run_study"]
