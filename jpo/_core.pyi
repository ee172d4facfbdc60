"""The C engine's public functions. The package's modules wrap them; their docstrings say what each takes."""

from typing import Any, Literal, TypedDict

import numpy as np

# the engine's list stands in csrc/base/dtype.h; tests/typing holds this copy to it
Compute = Literal["float32", "int16", "bfloat16", "bfloat16x2", "bfloat16x3"]

class SystemInfo(TypedDict):
    isa: str
    isa_best: str
    features: list[str]
    masked: list[str]
    isa_unavailable: str | None
    avx512_vnni: bool
    avx512_bf16: bool
    blas: str
    blas_kernel: str
    threads: int

def system_info() -> SystemInfo: ...
def get_num_threads() -> int: ...
def set_num_threads(count: int, /) -> None: ...
def auto_compute() -> Compute: ...
def compute_types() -> list[tuple[Compute, str, str | None]]: ...
def product_kernels() -> list[tuple[str, Compute, bool]]: ...
def measure_gflops(
    compute: Compute,
    n: int,
    k: int,
    m: int,
    dtype: str = "F32",
    direction: Literal["forward", "backward"] = "forward",
    runs: int = 11,
) -> float: ...

_Array = np.ndarray[Any, Any]
_F32 = np.ndarray[Any, np.dtype[np.float32]]
_F64 = np.ndarray[Any, np.dtype[np.float64]]

DTYPES: dict[str, tuple[int, int]]  # stored type -> (values per block, bytes per block)

def widen_rows(out: _F32, data: _Array, n: int, k: int, dtype: str, row0: int, /) -> None: ...
def first_nonfinite(data: _Array, dtype: str, /) -> int: ...

QUANTIZED: list[str]  # stored types that quantize_rows writes

def quantize_rows(values: _F32, dtype: str, /) -> bytearray: ...

TENSORS: list[tuple[str, str, Literal["linear", "table", "vector"], bool, None, bool]]

def tensors(
    config: dict[str, Any], /
) -> list[tuple[str, str, Literal["linear", "table", "vector"], bool, tuple[int, ...], bool]]: ...

LOSSES: list[tuple[str, int]]

def grad_norm(grads: _F32, /) -> float: ...
def grad_squares(grads: _F32, /) -> _F64: ...
def adamw_step(
    params: _F32,
    grads: _F32,
    m: _F32,
    v: _F32,
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    step: int,
    scale: float = 1.0,
) -> None: ...
def preference(loss: int, lp_w: _F64, lp_l: _F64, /, *rest: Any) -> tuple[_F64, _F64, _F64]: ...

class Model:
    def __init__(self, config: dict[str, Any], tensors: dict[str, tuple[str, _Array]], compute: int = 0) -> None: ...
    def forward(
        self,
        tokens: _Array,
        segments: _Array,
        entry_row: _Array,
        entry_target: _Array,
        adapter: bool,
        keep: bool,
        statistics: bool,
        train: bool,
        seed: int,
        /,
    ) -> tuple[_F64, tuple[_Array, _Array, _Array, _Array] | None]: ...
    def backward(self, coefficients: _F64, /) -> None: ...
    def plan(self, tokens: _Array, segments: _Array, entry_row: _Array, entry_target: _Array, keep: bool, /) -> int: ...
    def hidden(self, rows: _Array, /) -> _F32: ...
    def logits(self, rows: _Array, /) -> _F32: ...
    def decode(
        self,
        k: _Array,
        v: _Array,
        tokens: _Array,
        positions: _Array,
        kv_rows: _Array,
        segments: _Array,
        ranges: _Array,
        rows: _Array,
        adapter: bool,
        reach: int = 0,
        dtype: str = "F32",
        /,
    ) -> _F32: ...
    def set_lora(
        self,
        params: _F32,
        grads: _F32,
        places: list[tuple[Any, ...]],
        tensors: dict[str, int] = ...,
        /,
    ) -> None: ...
    def row_norms(self, layer: int, module: int, /) -> _F32: ...
    def set_full(self, params: _F32, grads: _F32, offsets: dict[str, int], /) -> None: ...
    def set_recompute(self, on: bool, /) -> None: ...
    def clear(self) -> None: ...
    def trim(self) -> None: ...
    def profile(self, on: bool) -> dict[str, tuple[int, float, float]]: ...

def logits_logps(logits: _Array, kind: int, rows: _Array, targets: _Array, /) -> _F64: ...
def logits_grad(
    out: _Array, logits: _Array, kind: int, rows: _Array, targets: _Array, coefficients: _F64, /
) -> None: ...
def head_logps(hidden: _F32, weight: _Array, kind: int, targets: _Array, index: _Array, /) -> _F64: ...
def head_grad(
    hidden: _F32, weight: _Array, kind: int, targets: _Array, index: _Array, coefficients: _F64, /
) -> tuple[_F32, _F32]: ...
def small_batch_rows() -> int: ...
def draw(
    logits: _F32, uniforms: _F64, temperature: float, top_k: int, top_p: float, /
) -> tuple[np.ndarray[Any, np.dtype[np.int64]], _F64]: ...
def set_isa(name: str, /) -> bool: ...
