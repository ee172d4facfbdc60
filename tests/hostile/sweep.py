"""python -m tests.hostile.sweep [NAME ...]: each allocation under each call of jpo._core fails in turn, in one process.

Python's own allocations, NumPy's objects among them, fail by CPython's _testcapi; the engine's by the shim, where it is
preloaded (tests/hostile/test_allocations.py). A call that lacked memory says so by MemoryError or gives the right
result all the same, and the same call right after gives the right result. One line a call is printed: how many
allocations of each kind failed it.
"""

import ctypes
import sys
from functools import partial

import numpy as np

from jpo import _core
from jpo.formats import load_checkpoint

try:
    import _testcapi
except ImportError:  # some distributions leave it out
    _testcapi = None

F, D, INT, LONG = np.float32, np.float64, np.int32, np.int64
CALM = 12  # so many right results in a row: the call makes no more allocations
MOST = 4000


def shim():
    """The preloaded shim, or None."""
    here = ctypes.CDLL(None)
    return here if hasattr(here, "jpo_fail_from") else None


def forest():
    """tokens, segments, entry_row, entry_target of two sequences that share their first token."""
    cuts = np.array([[0, 1, -1, 0], [1, 2, 0, 1], [3, 2, 0, 1]], INT)
    return np.array([1, 2, 3, 4, 5], INT), cuts, np.array([1, 3], INT), np.array([3, 5], INT)


class Calls:
    """{name: what makes one fresh call}: nothing that an earlier call allocated serves the next."""

    def __init__(self):
        checkpoint = load_checkpoint("tiny")
        self.config = dict(checkpoint.config)
        self.tensors = {n: (t.dtype, np.ascontiguousarray(t.data)) for n, t in checkpoint.tensors.items()}
        self.init = ctypes.PyDLL(_core.__file__).PyInit__core
        self.init.restype = ctypes.py_object
        self.names = [name.removeprefix("make_") for name in dir(self) if name.startswith("make_")]

    def fresh(self, name):
        return getattr(self, f"make_{name}")()

    def model(self, adapted=False, compute=0):
        model = _core.Model(self.config, self.tensors, compute)
        if adapted:
            self.adapt(model)()
        return model

    def adapt(self, model, *more):
        size = 1 << 13
        params = np.full(size, 0.01, F)
        places = [(0, 0, 2, 1.0, 0.1, 0, 1 << 10), (1, 0, 2, 1.0, 0.0, 1 << 11, 3 << 10, 1 << 12)]
        places += [(0, 1, 2, 1.0, 0.0, 6 << 10, 7 << 10)]  # three: a call of two arguments leaves a tuple for them
        return partial(model.set_lora, params, np.zeros(size, F), places, *more)

    def make_module(self):
        return self.init

    def make_system_info(self):
        return _core.system_info

    def make_tensors(self):
        return partial(_core.tensors, self.config)

    def make_tensors_long(self):
        rotary = [
            {**row, "long_inv_freq": np.array(row["inv_freq"], D), "original": 64} for row in self.config["rotary"]
        ]
        biases = [_core.TENSORS[0][0]]
        return partial(_core.tensors, {**self.config, "rotary": rotary, "biases": biases})

    def make_model(self):
        return partial(_core.Model, self.config, self.tensors)

    def make_model_int16(self):
        return partial(_core.Model, self.config, self.tensors, 1)

    def make_forward(self):
        return partial(self.model(True).forward, *forest(), True, True, True, True, 3)

    def make_forward_int16(self):
        return partial(self.model(True, 1).forward, *forest(), True, False, False, False, 0)

    def make_backward(self):
        model = self.model(True)
        model.forward(*forest(), True, True, False, True, 3)
        return partial(model.backward, np.ones(2))

    def make_hidden(self):
        model = self.model()
        model.forward(*forest(), False, False, False, False, 0)
        return partial(model.hidden, np.array([1, 3], INT))

    def make_logits(self):
        model = self.model()
        model.forward(*forest(), False, False, False, False, 0)
        return partial(model.logits, np.array([1, 3], INT))

    def make_plan(self):
        return partial(self.model().plan, *forest(), True)

    def make_profile(self):
        model = self.model()
        model.profile(True)
        model.forward(*forest(), False, False, False, False, 0)
        return lambda: sorted(model.profile(True)) and None

    def make_set_lora(self):
        return self.adapt(self.model())

    def make_set_lora_whole(self):
        return self.adapt(self.model(), {"model.norm.weight": 5 << 10})

    def make_set_full(self):
        sizes = {name: array.nbytes // 4 for name, (_, array) in self.tensors.items()}
        ends = np.cumsum([0, *sizes.values()])
        offsets = {name: int(end) for name, end in zip(sizes, ends[:-1], strict=True)}
        params, grads = np.zeros(ends[-1], F), np.zeros(ends[-1], F)
        return partial(self.model().set_full, params, grads, offsets)

    def make_row_norms(self):
        return partial(self.model(True).row_norms, 1, 0)

    def make_decode(self):
        heads = self.config["num_key_value_heads"] * self.config["head_dim"]
        cache = [np.zeros((self.config["num_hidden_layers"], 8, heads), F) for _ in range(2)]
        rest = ((1, 2), (0, 1), (0, 1), ((0, 2, 0, 1),), ((0, 2),), (1,))
        return partial(self.model(True).decode, *cache, *(np.array(part, INT) for part in rest), True)

    def make_draw(self):
        return partial(_core.draw, np.arange(600, dtype=F).reshape(2, 300) % 7, np.full(2, 0.5), 0.7, 5, 0.9)

    def make_logits_logps(self):
        rows = np.arange(40)
        return partial(_core.logits_logps, np.ones((40, 300), F), 0, rows, rows)

    def make_logits_grad(self):
        rows, z = np.arange(40), np.ones((40, 300), F)
        return partial(_core.logits_grad, np.zeros_like(z), z, 0, rows, rows, np.ones(40))

    def make_head_logps(self):
        rows = np.arange(40, dtype=INT)
        return partial(_core.head_logps, np.ones((40, 64), F), np.ones((300, 64), F), 0, rows, rows)

    def make_head_grad(self):
        rows = np.arange(40, dtype=INT)
        return partial(_core.head_grad, np.ones((40, 64), F), np.ones((300, 64), F), 0, rows, rows, np.ones(40))

    def product(self, compute, way):
        data, shapes = np.zeros(96 * 64 * 4, np.uint8), ((70, 96), (70, 64))
        out, x = (np.ones(shape, F) for shape in (shapes if way == "forward" else shapes[::-1]))
        return partial(_core._linear_product, out, x, data, 96, 64, "F32", compute, way)

    def make_product(self):
        return self.product("float32", "forward")

    def make_product_int16(self):
        return self.product("int16", "backward")

    def make_packed_tile(self):
        out, x = np.zeros((3, 32), F), np.ones((3, 64), F)
        data = np.zeros(96 * 64 * 4, np.uint8)
        return partial(_core._packed_tile, out, x, data, 96, 64, "F32", "float32", 0, 32, 0, 64, False, False)

    def make_backward_weight(self):
        return partial(_core._linear_backward_weight, np.zeros((96, 64), F), np.ones((70, 96), F), np.ones((70, 64), F))

    def make_sgemm(self):
        return partial(_core._sgemm, np.zeros((8, 8), F), np.ones((8, 8), F), np.ones((8, 8), F), 0, 0, 1.0, 0.0)

    def make_measure_gflops(self):
        return lambda: _core.measure_gflops("float32", 32, 32, 8, runs=1) and None

    def make_first_nonfinite(self):
        return partial(_core.first_nonfinite, np.zeros(40, F), "F32")

    def make_product_kernels(self):
        return _core.product_kernels

    def make_compute_types(self):
        return _core.compute_types

    def make_preference(self):
        names = [name for name, _ in _core.LOSSES]
        vectors, scalars = [np.array([-1.0, -2.0, -1.5])] * 6, [0.1, 0.0, 0.0, 1.0, 1.0, 0.0, 1.0, 1.0, 0.5, 2.0]
        rest = np.ones((3, 3)), np.zeros(3, LONG), np.zeros(3, LONG)
        return partial(_core.preference, names.index("aot"), *vectors, *rest, *scalars, 0, False)

    def make_adamw_step(self):
        vectors = [np.ones(4, F) for _ in range(4)]
        given = {"lr": 0.1, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.0, "step": 1, "scale": 0.0}
        return partial(_core.adamw_step, *vectors, **given)

    def make_grad_norm(self):
        return partial(_core.grad_norm, np.ones(4, F))

    def make_quantize_rows(self):
        return partial(_core.quantize_rows, np.ones((2, 64), F), "Q8_0")


def comparable(value):
    """What two results are compared by."""
    if isinstance(value, np.ndarray):
        return value.tobytes()
    if isinstance(value, (tuple, list)):
        return [comparable(part) for part in value]
    return (
        type(value).__name__
        if type(value).__module__ in ("builtins", "jpo._core") and "object at" in repr(value)
        else repr(value)
    )


def kept():
    """Lists, tuples and dictionaries that Python keeps when they are given up: a call gets none without memory."""
    tuples = [[(n,), (n, n), (n, n, n)] for n in range(2000)]
    return [tuples, [[] for _ in range(100)], [{} for _ in range(100)]]


def failed(call, on, off, want, told):
    """Whether the call raised MemoryError while on() .. off(); anything but that or the right result is an error."""
    taken = kept()
    on()
    try:
        result = call()
    except MemoryError:
        return True
    except ImportError as error:  # import_array() turns what it met into this
        assert "numpy" in str(error), told
        return True
    finally:
        off()
        del taken
    assert comparable(result) == want, told
    return False


def swept(calls, name, on, off):
    """The failures of a call while its allocation 0, 1, ... fails, until CALM right results in a row."""
    want = comparable(calls.fresh(name)())
    failures = calm = 0
    for at in range(MOST):
        call = calls.fresh(name)
        if failed(call, partial(on, at), off, want, (name, at)):
            failures, calm = failures + 1, 0
            assert comparable(calls.fresh(name)()) == want, (name, at)
        else:
            calm += 1
        if calm == CALM:
            return failures
    raise AssertionError(f"{name}: no end of allocations")


def main():
    calls, library = Calls(), shim()
    for name in sys.argv[1:] or calls.names:
        told = []
        if _testcapi is not None:
            hooks = (lambda at: _testcapi.set_nomemory(at, at + 1)), _testcapi.remove_mem_hooks
            told.append(f"{swept(calls, name, *hooks)} of Python's")
        if library is not None:
            hooks = (lambda at: library.jpo_fail_from(at + 1, 0)), (lambda: library.jpo_fail_from(0, 0))
            told.append(f"{swept(calls, name, *hooks)} of the engine's")
        print(f"{name}: {', '.join(told)}", flush=True)


if __name__ == "__main__":
    main()
