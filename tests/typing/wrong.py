"""Uses that a type checker must refuse: one error on each line that ends in "# wrong"."""

from jpo import _core
from jpo.formats import load_checkpoint

_core.set_num_threads("two")  # wrong
_core.measure_gflops("float16", 64, 64, 64)  # wrong
name: int = _core.system_info()["isa"]  # wrong
text: str = load_checkpoint("tiny").tokenizer.encode("text")  # wrong
