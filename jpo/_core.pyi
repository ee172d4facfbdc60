"""The C engine's public functions. The package's modules wrap them; their docstrings say what each takes."""

from typing import Literal, TypedDict

class SystemInfo(TypedDict):
    isa: str
    isa_best: str
    avx512_vnni: bool
    avx512_bf16: bool
    blas: str
    blas_kernel: str
    threads: int

def system_info() -> SystemInfo: ...
def get_num_threads() -> int: ...
def set_num_threads(count: int, /) -> None: ...
def measure_gflops(
    compute: Literal["float32", "int16", "bfloat16"],
    n: int,
    k: int,
    m: int,
    dtype: str = "F32",
    direction: Literal["forward", "backward"] = "forward",
    runs: int = 11,
) -> float: ...
