"""The refusals of the doors of products with weights: one argument of a sound call is spoilt at a time."""

import numpy as np
import pytest

from jpo import _core

F = np.float32


def ones(*shape, kind=F):
    return np.ones(shape, kind)


def read_only(*shape):
    x = ones(*shape)
    x.flags.writeable = False
    return x


def uneven(rows, columns):
    """Rows whose distance is no multiple of an element."""
    strides = (4 * columns + 2, 4)
    return np.ndarray((rows, columns), F, np.zeros(rows * strides[0], np.uint8), 0, strides)


SOUND = {
    "_linear_product": lambda: [ones(6, 4), ones(6, 8), ones(4, 8), 4, 8, "F32"],
    "_packed_tile": lambda: [
        ones(6, 4), ones(6, 8), ones(4, 8), 4, 8, "F32", "float32", 0, 4, 0, 8, False, False,
    ],
    "_linear_backward_weight": lambda: [ones(4, 8), ones(6, 4), ones(6, 8)],
    "widen_rows": lambda: [ones(2, 8), ones(4, 8), 4, 8, "F32", 0],
    "_sgemm": lambda: [ones(6, 4), ones(6, 8), ones(4, 8), False, True, 1.0, 0.0],
    "quantize_rows": lambda: [ones(2, 64), "Q8_0"],
    "measure_gflops": lambda: ["float32", 32, 32, 4, "F32", "forward", 1],
}  # fmt: skip
DO_NOT_AGREE = "out, in and the tile do not agree"
OF_GRADIENTS = r"expected dw \(N, K\) contiguous, dy \(M, N\), x \(M, K\)"
SHAPES = r"the shapes of c, op\(a\) and op\(b\) do not agree"
SPOILT = [
    *(("_linear_product", {0: x}, "out must be an aligned writable") for x in (
        read_only(6, 4), uneven(6, 4), ones(24), ones(6, 4, kind=np.float64), None)),
    *(("_linear_product", given, r"out and in must be \(M, N\) and \(M, K\)") for given in (
        {0: ones(5, 4)}, {0: ones(6, 5)}, {1: ones(6, 7)})),
    *(("_linear_product", {2: x}, "data must be a contiguous array of the bytes of a F32 weight") for x in (
        None, ones(4, 16)[:, ::2], ones(4, 9), ones(0, 8), ones(4, 8, kind=">f4"))),
    ("_linear_product", {0: ones(6, 0), 3: 0}, "n must lie in 1"),
    ("_linear_product", {1: ones(6, 0), 4: 0}, "k must lie in 1"),
    *(("_packed_tile", given, DO_NOT_AGREE) for given in (
        {0: ones(5, 4)}, {0: ones(6, 5)}, {1: ones(6, 7)}, {9: 1, 10: 7})),
    ("_linear_product", {5: "F31"}, "dtype must be a name"),
    ("_linear_product", {1: ones(6, 33), 2: np.zeros(4 * 34, np.uint8), 4: 33, 5: "Q8_0"},
     "a Q8_0 weight needs rows of a multiple of 32 values, got 33"),
    ("_linear_product", {6: "float31"}, "compute must be one of"),
    ("_packed_tile", {2: None}, "data must be"),
    ("_packed_tile", {0: None}, "out must be"),
    *(("_linear_backward_weight", given, OF_GRADIENTS) for given in (
        {0: ones(4, 16)[:, :8]}, {1: ones(5, 4)}, {1: ones(6, 5)}, {2: ones(6, 7)})),
    *(("_linear_backward_weight", {place: None}, "must be an aligned") for place in range(3)),
    ("_linear_backward_weight", {3: -1}, "compute must lie in"),
    *(("widen_rows", given, r"out must be \(count, 8\) with rows inside 0..4") for given in (
        {0: ones(2, 7)}, {0: ones(2, 16)[:, :8]}, {5: -1}, {5: 3}, {0: ones(5, 8)})),
    ("widen_rows", {0: read_only(2, 8)}, "out must be an aligned writable"),
    *(("_sgemm", given, SHAPES) for given in ({1: ones(5, 8)}, {1: ones(6, 7)}, {2: ones(5, 8)}, {0: ones(6, 5)})),
    *(("_sgemm", {place: None}, "must be an aligned") for place in range(3)),
    *(("quantize_rows", {1: dtype}, f"dtype: {dtype} is not written") for dtype in ("F31", "", "Q2_K")),
    ("quantize_rows", {0: None}, "values must be an aligned"),
    *(("quantize_rows", {0: x}, "values: expected contiguous rows of a multiple of 32 values for Q8_0") for x in (
        ones(2, 128)[:, :64], ones(2, 33))),
    ("_sgemm", {0: ones(0, 4), 1: ones(0, 8)}, "rows of c must lie in 1"),
    ("_sgemm", {0: ones(6, 0), 2: ones(0, 8)}, "columns of c must lie in 1"),
    ("_sgemm", {1: ones(6, 0), 2: ones(4, 0)}, "the common depth must lie in 1"),
    *(("measure_gflops", {place: value}, "must lie in 1") for place in (1, 2, 3, 6) for value in (0, -1)),
    ("measure_gflops", {0: "float31"}, "compute must be one of"),
    ("measure_gflops", {4: "F31"}, "dtype must be a name"),
    ("measure_gflops", {5: "sideways"}, "direction must be"),
    ("measure_gflops", {2: 33, 4: "Q8_0"}, "a Q8_0 weight needs rows of a multiple of 32 values, got 33"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "spoilt", "message"), SPOILT)
def test_each_argument_of_a_product(name, spoilt, message):
    given = dict(enumerate(SOUND[name]()))
    getattr(_core, name)(*given.values())
    given |= spoilt
    with pytest.raises((ValueError, TypeError), match=message):
        getattr(_core, name)(*(given[place] for place in range(len(given))))


@pytest.mark.parametrize("name", SOUND)
def test_a_product_without_arguments(name):
    with pytest.raises(TypeError):
        getattr(_core, name)()


def test_tiles_begin_where_a_block_does():
    """Rows of a stored block are whole; of single values, a tile may begin at any."""
    data = np.zeros(4 * 64 // 32 * 34, np.uint8)

    def tile(column, columns):
        x = ones(6, columns)
        return _core._packed_tile(ones(6, 4), x, data, 4, 64, "Q8_0", "float32", 0, 4, column, columns, False, False)

    assert tile(32, 32) is None
    with pytest.raises(ValueError, match=DO_NOT_AGREE):
        tile(1, 32)


@pytest.mark.parametrize("dtype", _core.DTYPES)
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_measured_products_of_each_stored_type(dtype, direction):
    assert 0 < _core.measure_gflops("float32", 256, 256, 4, dtype, direction, 1) < np.inf


def test_single_columns():
    """Their stride says nothing."""
    out, data = np.zeros((6, 4), F), np.arange(4, dtype=F)
    _core._linear_product(out, ones(6, 3)[:, :1], data, 4, 1, "F32")
    assert np.array_equal(out, np.tile(data, (6, 1)))


def test_types_that_the_processor_lacks_say_what(set_isa):
    set_isa("generic")
    lacking = {name: lacks for name, _, lacks in _core.compute_types()}
    assert lacking.pop("float32") is None and all(lacking.values())
    with pytest.raises(NotImplementedError, match="int16"):
        _core._linear_product(ones(6, 4), ones(6, 32), ones(4, 32), 4, 32, "F32", "int16")


def test_a_gradient_of_nothing_is_nothing():
    assert _core._linear_backward_weight(ones(0, 8), ones(6, 0), ones(6, 8)) is None
    assert _core._linear_backward_weight(ones(4, 0), ones(6, 4), ones(6, 0)) is None


def test_no_rows_are_no_bytes():
    assert _core.quantize_rows(ones(0, 32), "Q8_0") == _core.quantize_rows(ones(3, 0), "Q8_0") == b""


def test_choices_of_kernels():
    class Torn:
        def __bool__(self):
            raise ArithmeticError("neither")

    with pytest.raises(ValueError, match='no product kernel is called "abacus"'):
        _core._linear_force("abacus")
    with pytest.raises(TypeError):
        _core._linear_force(3)
    for switch in (_core._linear_portable, _core._linear_openblas):
        switch(False)
        with pytest.raises(ArithmeticError):
            switch(Torn())
