"""Uses of the public interface that a type checker must accept; test_typing.py runs mypy over it."""

import numpy as np

import jpo
from jpo import _core, doctor
from jpo.errors import DataError, FormatError, JpoError, MissingExtra
from jpo.formats import load_checkpoint

info: _core.SystemInfo = _core.system_info()
isa: str = info["isa"]
threads: int = _core.get_num_threads()
_core.set_num_threads(threads)
speed: float = _core.measure_gflops("float32", 64, 64, 64, runs=1)
found: dict[str, bool] = doctor.extras()
errors: tuple[type[JpoError], ...] = (DataError, FormatError, MissingExtra)
ids: list[int] = load_checkpoint("tiny").tokenizer.encode("text")

lm: jpo.LanguageModel = jpo.load("tiny")
logps: np.ndarray = lm.sequence_logps(["a"], ["b"], scope="joint")
result = jpo.preference_loss(logps, logps - 1, logps, logps)
loss: float = result.loss
norm: float = _core.grad_norm(np.zeros(3, np.float32))
