"""Calls of jpo._core that its wrappers never make: each ends in one Python exception, never in a signal.

Before the checks of csrc/bind/arguments.h those of decode's rows, of heads without columns, of compute types, of tiles
and of strides ended in a signal or wrote beside their arrays; others gave SystemError or passed in silence."""

import threading
import time

import numpy as np
import pytest

import jpo
from jpo import _core
from jpo.formats import load_checkpoint
from tests.interrupted import for_seconds

INT = np.int32
REFUSED = (ValueError, TypeError, RuntimeError, MemoryError, OverflowError)
NOTHING = np.zeros(0, dtype=INT)


@pytest.fixture(scope="module")
def checkpoint():
    return load_checkpoint("tiny")


@pytest.fixture
def parts(checkpoint):
    """A configuration and tensors that a test may spoil."""
    return dict(checkpoint.config), {
        name: (tensor.dtype, np.ascontiguousarray(tensor.data)) for name, tensor in checkpoint.tensors.items()
    }


@pytest.fixture
def model(parts):
    return _core.Model(*parts)


def cache(model_config, capacity):
    shape = (
        model_config["num_hidden_layers"],
        capacity,
        model_config["num_key_value_heads"] * model_config["head_dim"],
    )
    return np.zeros(shape, np.float32), np.zeros(shape, np.float32)


def decode(
    model, parts, *, tokens=(1, 2), positions=(0, 1), kv=(0, 1), segments=((0, 2, 0, 1),), ranges=((0, 2),), rows=(1,)
):
    arrays = [np.array(values, dtype=INT) for values in (tokens, positions, kv, segments, ranges, rows)]
    return model.decode(*cache(parts[0], 8), *arrays, True)


# ---- models


def test_decode_takes_what_it_should(model, parts):
    assert np.isfinite(decode(model, parts)).all()


@pytest.mark.parametrize(
    "spoilt",
    [
        {"rows": np.zeros(100_000)},  # wrote past the pass's scratch
        {"tokens": (), "positions": (), "kv": (), "segments": np.zeros((0, 4)), "rows": ()},
        {"segments": ((0, 2, 0, 0),)},
        {"segments": ((0, 2, 0, 2_000_000_000),)},
        {"segments": ((0, 1, 0, 1),)},
        {"ranges": ((0, 1),)},  # fewer keys than the positions reach: attention over nothing
        {"ranges": ((7, 2),)},
        {"ranges": ((-1, 2),)},
        {"kv": (0, 8)},
        {"tokens": (1, -1)},
        {"positions": (0, 1 << 30)},
        {"rows": (2,)},
    ],
    ids=lambda spoilt: ",".join(spoilt),
)
def test_decode_refuses(model, parts, spoilt):
    with pytest.raises(ValueError):
        decode(model, parts, **spoilt)


# Each operand of each bound by itself: without it the call would pass, or another check would answer in other words.
# The parts of a call that are not named are sound.
DECODE_BOUNDS = [
    ("decode needs", {"tokens": (), "positions": (), "kv": (), "segments": np.zeros((0, 4)), "rows": ()}),
    ("at most as many rows", {"rows": (0, 1, 1)}),
    *(("row 0: token", {"tokens": (token, 2)}) for token in (-1, 1 << 30)),
    *(("row 0: token", {"positions": (position, 1)}) for position in (-1, 1 << 30)),
    *(("row 0: token", {"kv": (row, 1)}) for row in (-1, 8)),
    *((r"ranges\[1\] lies outside", {"ranges": ((0, 2), entry)}) for entry in ((-1, 1), (0, -1), (8, 1), (0, 9))),
    *(
        (r"segments\[0\] is out of range", {"segments": ((*segment,), (0, 2, 0, 1)), "ranges": ((0, 4),)})
        for segment in (
            (1, 1, 0, 1),
            (0, 0, 0, 1),
            (0, 3, 0, 1),
            (0, 2, -1, 1),
            (0, 2, 0, 0),
            (0, 2, 0, 2),
            (0, 2, 1, 1),
        )
    ),
    (r"its ranges hold 1 keys, it reaches position 1", {"ranges": ((0, 1),)}),
    *((r"rows\[0\] is out of range", {"rows": (row,)}) for row in (-1, 2)),
    ("segments must cover all rows", {"segments": ((0, 1, 0, 1),)}),
]


@pytest.mark.parametrize(("message", "spoilt"), DECODE_BOUNDS, ids=lambda value: str(value)[:60])
def test_each_bound_of_decode(model, parts, message, spoilt):
    with pytest.raises(ValueError, match=message):
        decode(model, parts, **spoilt)


FOREST_BOUNDS = [
    ("the forest is empty", {"tokens": (), "segments": ((0, 1, -1, 0),)}),
    ("the forest is empty", {"segments": np.zeros((0, 4))}),
    *((rf"tokens\[1\] = {token}", {"tokens": (1, token)}) for token in (-1, 1 << 30)),
    *(
        (r"segments\[0\]: rows .* do not follow", {"segments": (segment, (0, 2, -1, 0))})
        for segment in ((1, 1, -1, 0), (-1, 1, -1, 0), (0, 0, -1, 0), (0, -1, -1, 0), (0, 3, -1, 0))
    ),
    *((rf"segments\[0\]: parent {parent} must", {"segments": ((0, 2, parent, 0),)}) for parent in (-2, 0, 1)),
    (r"segments\[0\]: first_position must be 0", {"segments": ((0, 2, -1, 1),)}),
    (r"segments\[1\]: first_position must be 1", {"segments": ((0, 1, -1, 0), (1, 1, 0, 0))}),
    ("segments cover 1 of 2 rows", {"segments": ((0, 1, -1, 0),)}),
    *((r"entry_row\[0\]", {"rows": (row,), "targets": (0,)}) for row in (-1, 2)),
    (r"entry_row\[1\] = 0 must ascend", {"rows": (1, 0), "targets": (0, 0)}),
    *((r"entry_target\[0\]", {"rows": (0,), "targets": (target,)}) for target in (-1, 1 << 30)),
]


def forward(model, *, tokens=(1, 2), segments=((0, 2, -1, 0),), rows=(), targets=()):
    arrays = (np.array(part, dtype=INT) for part in (tokens, segments, rows, targets))
    model.forward(*arrays, True, False, False, False, 0)


@pytest.mark.parametrize(("message", "spoilt"), FOREST_BOUNDS, ids=lambda value: str(value)[:60])
def test_each_bound_of_a_forest(model, message, spoilt):
    forward(model)
    with pytest.raises(ValueError, match=message):
        forward(model, **spoilt)


def test_a_forest_beyond_the_last_position(model, parts):
    count = parts[0]["max_position_embeddings"]
    forward(model, tokens=(1,) * count, segments=((0, count, -1, 0),))
    with pytest.raises(ValueError, match=rf"reaches position {count + 1}, but the model knows {count}"):
        forward(model, tokens=(1,) * (count + 1), segments=((0, count + 1, -1, 0),))


@pytest.mark.parametrize("row", [-1, 2, 1 << 30])
def test_rows_that_no_pass_left(model, row):
    forward(model)
    for read in (model.hidden, model.logits):
        assert np.isfinite(read(np.array([1], dtype=INT))).all()
        with pytest.raises(ValueError, match=rf"rows\[0\] = {row}: the last pass left 2 rows"):
            read(np.array([row], dtype=INT))


LORA = {"layer": 0, "module": 0, "r": 4, "scale": 1.0, "dropout": 0.0}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("layer", value) for value in (-1, 1 << 20)),
        *(("module", value) for value in (-1, 1 << 20)),
        *(("r", value) for value in (0, -1, (1 << 20) + 1)),
        *(("scale", value) for value in (float("nan"), float("inf"))),
        *(("dropout", value) for value in (-0.1, 1.0, float("nan"))),
    ],
)
def test_each_bound_of_an_adapter(model, name, value):
    params = np.zeros(512, np.float32)
    model.set_lora(params, params.copy(), [(*LORA.values(), 0, 256)])
    with pytest.raises(ValueError, match="out of range"):
        model.set_lora(params, params.copy(), [(*{**LORA, name: value}.values(), 0, 256)])


def test_an_adapter_of_a_module_that_the_model_has_not(parts):
    """A block without a gate; the head of tied embeddings is no tensor of its own either, but may be adapted."""
    config, tensors = parts
    model = _core.Model(
        {**config, "gated": 0}, {name: part for name, part in tensors.items() if "gate_proj" not in name}
    )
    codes = {name: code for code, (name, *_) in enumerate(_core.TENSORS)}
    params = np.zeros(1 << 14, np.float32)
    for name in ("mlp.up_proj", "lm_head"):
        model.set_lora(params, params.copy(), [(*{**LORA, "module": codes[name]}.values(), 0, 1 << 12)])
    with pytest.raises(ValueError, match="this model has no module mlp.gate_proj"):
        model.set_lora(params, params.copy(), [(*{**LORA, "module": codes["mlp.gate_proj"]}.values(), 0, 1 << 12)])


@pytest.mark.parametrize("given", [{"dropout": 0.1}, {"magnitudes": 400}], ids=["dropout", "magnitudes"])
def test_an_adapter_of_the_embedding_has_neither_magnitudes_nor_dropout(model, given):
    (code,) = [code for code, (name, *_) in enumerate(_core.TENSORS) if name == "model.embed_tokens"]
    params = np.zeros(1 << 14, np.float32)
    place = {**LORA, "module": code, "a": 0, "b": 1 << 12, "magnitudes": -1}
    model.set_lora(params, params.copy(), [tuple(place.values())])
    with pytest.raises(ValueError, match="model.embed_tokens has neither magnitudes nor dropout"):
        model.set_lora(params, params.copy(), [tuple({**place, **given}.values())])


@pytest.mark.parametrize(
    ("message", "spoilt"),
    [
        ("do not fit logits", {"logits": np.zeros((2, 0), np.float32)}),
        *(("do not fit logits", {"uniforms": np.zeros(count)}) for count in (1, 3)),
        *((r"uniforms\[1\]", {"uniforms": np.array([0.5, value])}) for value in (-1e-9, 1.0, float("nan"))),
        *(("temperature", {"temperature": value}) for value in (-1.0, float("nan"), float("inf"))),
        ("top_k", {"top_k": -1}),
        *(("top_p", {"top_p": value}) for value in (0.0, -0.5, 1.1, float("nan"))),
    ],
    ids=lambda value: str(value)[:50],
)
def test_each_bound_of_a_draw(message, spoilt):
    sound = {"logits": np.zeros((2, 5), np.float32), "uniforms": np.full(2, 0.5), "temperature": 1.0, "top_k": 0}
    sound["top_p"] = 1.0
    _core.draw(*sound.values())
    with pytest.raises(ValueError, match=message):
        _core.draw(*{**sound, **spoilt}.values())


def test_decode_refuses_arrays_of_another_kind(model, parts):
    k, v = cache(parts[0], 8)
    rest = [np.array(x, dtype=INT) for x in ((1,), (0,), (0,), ((0, 1, 0, 1),), ((0, 1),), (0,))]
    read_only = k.copy()
    read_only.flags.writeable = False
    for bad in (k.astype(">f4"), k.astype(np.float64), k[:, ::2], read_only, None, k.tolist()):
        for name, pair in (("k", (bad, v)), ("v", (k, bad))):
            with pytest.raises(TypeError, match=f"^{name} must be a contiguous writable float32 array"):
                model.decode(*pair, *rest, True)


@pytest.mark.parametrize("spoil", [(0, 0, -1), (0, 0, 1), (-1, 0, 0), (1, 0, 0)])
def test_decode_refuses_caches_of_another_shape(model, parts, spoil):
    """Both of them alike, so that one does not give the other away."""
    shape = [extent + change for extent, change in zip(cache(parts[0], 8)[0].shape, spoil, strict=True)]
    rest = [np.array(x, dtype=INT) for x in ((1,), (0,), (0,), ((0, 1, 0, 1),), ((0, 1),), (0,))]
    with pytest.raises(ValueError, match="k and v must be"):
        model.decode(np.zeros(shape, np.float32), np.zeros(shape, np.float32), *rest, True)


def test_decode_refuses_keys_and_values_of_two_capacities(model, parts):
    rest = [np.array(x, dtype=INT) for x in ((1,), (0,), (0,), ((0, 1, 0, 1),), ((0, 1),), (0,))]
    for capacities in ((8, 9), (9, 8)):
        k, v = (cache(parts[0], capacity)[0] for capacity in capacities)
        with pytest.raises(ValueError, match=r"k and v must be \(layers, capacity"):
            model.decode(k, v, *rest, True)


@pytest.mark.parametrize("compute", [-1, 99, 1 << 30])
def test_compute_out_of_range(parts, compute):
    with pytest.raises(ValueError, match="compute must lie in 0"):
        _core.Model(*parts, compute)


@pytest.mark.parametrize("item", [None, 3, "F32", ["F32", np.zeros(3)], ("F32",), ("F32", 3), ("X", np.zeros(3))])
def test_tensors_of_another_kind(parts, item):
    config, tensors = parts
    tensors["model.norm.weight"] = item
    with pytest.raises((TypeError, ValueError)):
        _core.Model(config, tensors)


@pytest.mark.parametrize("key", ["vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "head_dim"])
@pytest.mark.parametrize("value", [0, -1, 1 << 27, 1 << 40, 1 << 62, None, "8"])
def test_sizes_out_of_range(parts, key, value):
    config, tensors = parts
    config[key] = value
    with pytest.raises(REFUSED):
        _core.Model(config, tensors)


def test_a_model_of_a_compute_type_that_the_chosen_instructions_lack(parts, set_isa):
    set_isa("generic")
    with pytest.raises(NotImplementedError, match="int16"):
        _core.Model(*parts, 1)


def test_a_compute_type_that_the_chosen_instructions_lack(parts, set_isa):
    """Found by the fuzz target `core`: a model prepared for int16, then an instruction set without it: a null table."""
    try:
        model = _core.Model(*parts, 1)
    except NotImplementedError:
        pytest.skip("this machine has no int16 products")
    set_isa("generic")
    tokens = np.arange(1, 200, dtype=INT)
    roots, last = np.array([[0, len(tokens), -1, 0]], dtype=INT), np.array([len(tokens) - 1], dtype=INT)
    with pytest.raises(NotImplementedError, match="int16"):
        model.forward(tokens, roots, last, np.array([1], dtype=INT), True, False, False, False, 0)


def test_a_model_that_was_never_made(parts):
    empty = _core.Model.__new__(_core.Model)
    one = np.array([0], dtype=INT)
    for call in (
        lambda: empty.forward(one, np.array([[0, 1, -1, 0]], INT), NOTHING, NOTHING, True, False, False, False, 0),
        lambda: empty.hidden(one),
        lambda: empty.clear(),
        lambda: empty.trim(),
        lambda: decode(empty, parts),
        lambda: empty.set_lora(np.zeros(4, np.float32), np.zeros(4, np.float32), []),
        lambda: empty.set_full(np.zeros(4, np.float32), np.zeros(4, np.float32), {}),
        lambda: empty.backward(np.zeros(0)),
        lambda: empty.logits(one),
        lambda: empty.plan(one, np.array([[0, 1, -1, 0]], INT), NOTHING, NOTHING, True),
        lambda: empty.profile(True),
        lambda: empty.set_recompute(True),
        lambda: empty.row_norms(0, 0),
    ):
        with pytest.raises(RuntimeError, match="never made whole"):
            call()
    with pytest.raises(RuntimeError, match="made once"):
        _core.Model(*parts).__init__(*parts)


# ---- kernels


def test_a_head_without_columns_or_rows():
    one = np.zeros(1, dtype=INT)
    for hidden, weight in (((1, 0), (4, 0)), ((1, 4), (0, 4)), ((0, 4), (4, 4))):
        arrays = np.zeros(hidden, np.float32), np.zeros(weight, np.float32)
        index = one[: hidden[0]]
        with pytest.raises(ValueError):
            _core.head_logps(arrays[0], arrays[1], 0, index, index)
        with pytest.raises(ValueError):
            _core.head_grad(arrays[0], arrays[1], 0, index, index, np.zeros(hidden[0]))


@pytest.mark.parametrize("kind", [-1, 3, 4, 1 << 30])
def test_a_number_type_out_of_range(kind):
    z, rows = np.zeros((2, 4), np.float32), np.zeros(1, np.int64)
    if kind != 3:
        with pytest.raises(ValueError):
            _core.logits_logps(z, kind, rows, rows)
    with pytest.raises((ValueError, TypeError)):
        _core.logits_grad(z, z, kind, rows, rows, np.zeros(1))
    with pytest.raises(ValueError):
        _core.head_logps(z, z, kind, np.zeros(2, INT), np.arange(2, dtype=INT))


def test_logits_of_another_kind():
    z, rows = np.zeros((4, 6), np.float32), np.zeros(1, np.int64)
    for bad in (
        z.astype(np.float64),
        z.astype(np.float16),
        z[None],
        z[0],
        z[:, ::2],
        z.T,
        z.astype(">f4"),
        z.tolist(),
        None,
    ):
        with pytest.raises(REFUSED):
            _core.logits_logps(bad, 0, rows, rows)


@pytest.mark.parametrize("spoil", ["big-endian", "strided rows", "negative rows", "overlapping rows", "misaligned"])
def test_matrices_that_kernels_cannot_read(spoil):
    x = np.ones((6, 8), dtype=np.float32)
    x = {
        "big-endian": lambda: x.astype(">f4"),
        "strided rows": lambda: np.ones((6, 16), np.float32)[:, ::2],
        "negative rows": lambda: x[::-1],
        "overlapping rows": lambda: np.lib.stride_tricks.as_strided(x, (6, 8), (4, 4)),
        "misaligned": lambda: np.zeros(6 * 8 * 4 + 1, np.uint8)[1:].view(np.float32).reshape(6, 8),
    }[spoil]()
    w, out = np.ones((4, 8), np.float32), np.zeros((6, 4), np.float32)
    with pytest.raises(TypeError):
        _core._linear_product(out, x, w, 4, 8, "F32")
    with pytest.raises(TypeError):
        _core._sgemm(out, x, w, False, True, 1.0, 0.0)
    with pytest.raises(TypeError):
        _core._linear_backward_weight(np.zeros((4, 8), np.float32), out, x)


@pytest.mark.parametrize(
    "tile",
    [
        (-1, 4, 0, 8),
        (0, 5, 0, 8),
        (1 << 62, 4, 0, 8),
        (0, 4, -32, 8),
        (0, 4, 1 << 62, 8),
        (0, 4, 0, 1 << 62),
        (4, 0, 0, 8),
    ],
)
def test_tiles_outside_the_weight(tile):
    x, w, out = np.ones((6, 8), np.float32), np.ones((4, 8), np.float32), np.zeros((6, 4), np.float32)
    with pytest.raises(ValueError):
        _core._packed_tile(out, x, w, 4, 8, "F32", "float32", *tile, False, False)


@pytest.mark.parametrize(("n", "k"), [(0, 8), (-1, 8), (4, 0), (1 << 62, 8), (1 << 31, 1 << 31)])
def test_weights_of_impossible_sizes(n, k):
    x, w, out = np.ones((6, 8), np.float32), np.ones((4, 8), np.float32), np.zeros((6, 4), np.float32)
    with pytest.raises(ValueError):
        _core._linear_product(out, x, w, n, k, "F32")
    with pytest.raises(ValueError):
        _core.widen_rows(np.zeros((1, 8), np.float32), w, n, k, "F32", 0)
    with pytest.raises(ValueError):
        _core.measure_gflops("float32", n, k, 4)


def test_a_direction_that_does_not_exist():
    x, w, out = np.ones((6, 8), np.float32), np.ones((4, 8), np.float32), np.zeros((6, 4), np.float32)
    with pytest.raises(ValueError, match='direction must be "forward" or "backward", got "sideways"'):
        _core._linear_product(out, x, w, 4, 8, "F32", "float32", "sideways")


# ---- objectives


@pytest.mark.parametrize(("loss", "divergence"), [(-1, 0), (1 << 20, 0), (0, -1), (0, 4)])
def test_losses_and_divergences_out_of_range(loss, divergence):
    v = np.zeros(2)
    with pytest.raises(ValueError, match="must lie in"):
        _core.preference(loss, v, v, v, v, v, v, None, None, None, *[0.1] * 10, divergence, 1)


def test_vectors_of_another_kind():
    v = np.zeros(2)
    for bad in (np.zeros(3), np.zeros(2, np.float32), v.astype(">f8"), np.zeros(4)[::2], [0.0, 0.0], 3):
        for place in range(1, 7):
            given = [v] * 6
            given[place - 1] = bad
            with pytest.raises(TypeError):
                _core.preference(0, *given, None, None, None, *[0.1] * 10, 0, 1)


# ---- what runs while something is read


def test_an_index_that_calls_the_model_back(model):
    class Layer:
        def __index__(self):
            model.clear()
            return 0

    params = np.zeros(1 << 16, np.float32)
    with pytest.raises(RuntimeError, match="at work"):
        model.set_lora(params, params.copy(), [(0, 0, 4, 1.0, 0.0, 0, 1 << 12), (Layer(), 1, 4, 1.0, 0.0, 0, 1 << 12)])
    model.clear()


def test_a_list_that_shrinks_while_it_is_read(model):
    items = []

    class Layer:
        def __index__(self):
            items.clear()
            return 0

    params = np.zeros(1 << 16, np.float32)
    items += [(Layer(), 0, 4, 1.0, 0.0, 0, 1 << 12), (0, 1, 4, 1.0, 0.0, 0, 1 << 12)]
    model.set_lora(params, params.copy(), items)


def test_items_that_are_no_tuples(model):
    params = np.zeros(64, np.float32)
    for item in (
        None,
        3,
        [0, 0, 4, 1.0, 0.0, 0, 0],
        (0, 0),
        (0, 0, 4, float("nan"), 0.0, 0, 0),
        (0, 0, 4, 1.0, 1.0, 0, 0),
    ):
        with pytest.raises((TypeError, ValueError)):
            model.set_lora(params, params.copy(), [item])


def test_an_adapter_that_reaches_beyond_its_vector(model):
    """A of (4, 64) and B of (64, 4) fit into 512 values; one further on, either leaves the vector."""
    params = np.zeros(512, np.float32)
    model.set_lora(params, params.copy(), [(0, 0, 4, 1.0, 0.0, 0, 256)])
    for places in ((257, 0), (0, 257), (512, 0), (0, 1 << 40), (-1, 256), (0, -256), (0, 256, 449), (0, 256, -2)):
        with pytest.raises(ValueError, match="adapter of layer 0, module 0 lies outside params"):
            model.set_lora(params, params.copy(), [(0, 0, 4, 1.0, 0.0, *places)])
    model.clear()


def test_a_switch_that_is_neither_true_nor_false(model):
    class Torn:
        def __bool__(self):
            raise ArithmeticError("neither")

    with pytest.raises(ArithmeticError, match="neither"):
        model.set_recompute(Torn())
    with pytest.raises(ArithmeticError, match="neither"):
        model.profile(Torn())


def kernels_changed(name):
    """There and back again; what stands afterwards is what stood before."""
    if name == "isa":
        before = _core.system_info()["isa"]
        _core.set_isa("generic")
        _core.set_isa(before)
    elif name == "force":
        _core._linear_force("")
    else:
        {"portable": _core._linear_portable, "openblas": _core._linear_openblas}[name](False)


@pytest.mark.parametrize("name", ["isa", "force", "portable", "openblas"])
def test_kernels_change_only_while_nothing_computes(name):
    """Scratch is laid out for one of them; the change is refused while another thread computes."""
    before = _core.system_info()["isa"]
    stop, refused = threading.Event(), 0
    x = np.ones((512, 512), dtype=np.float32)
    out = np.empty_like(x)

    def compute():
        while not stop.is_set():
            _core._linear_product(out, x, x, 512, 512, "F32")

    worker = threading.Thread(target=compute)
    worker.start()
    try:
        for _ in for_seconds(1, lambda: refused):  # noqa: B023 - as it stands in each round
            try:
                kernels_changed(name)
                time.sleep(0.001)
            except RuntimeError as error:
                assert "another thread computes" in str(error)
                refused += 1
    finally:
        stop.set()
        worker.join()
        _core.set_isa(before)
    assert refused and np.array_equal(out, np.full_like(out, 512))


def test_a_model_keeps_working_after_every_refusal():
    lm = jpo.load("tiny")
    want = lm.sequence_logps(["Name a colour."], [" Blue."])
    with pytest.raises(ValueError):
        lm._core.hidden(np.array([1 << 20], dtype=INT))
    with pytest.raises(TypeError):
        lm._core.set_lora(None, None, [])
    assert np.array_equal(lm.sequence_logps(["Name a colour."], [" Blue."]), want)


def test_decode_over_caches_of_other_stored_types(model, parts):
    """Their bytes take a width of their own; one whose blocks are no part of a head is refused."""
    layers, capacity, width = cache(parts[0], 8)[0].shape
    rest = [np.array(x, dtype=INT) for x in ((1,), (0,), (0,), ((0, 1, 0, 1),), ((0, 1),), (0,))]

    def call(columns, dtype, *spoilt):
        k, v = (np.zeros((layers, capacity, columns), np.uint8) for _ in range(2))
        return model.decode(k, v, *(spoilt or rest), True, 0, dtype)

    assert np.isfinite(call(2 * width, "BF16")).all()
    with pytest.raises(ValueError, match=rf"k and v must be \(layers, capacity, {2 * width}\) of uint8"):
        call(2 * width + 1, "BF16")
    with pytest.raises(TypeError, match="^k must be a contiguous writable uint8 array of 3 dimension"):
        model.decode(*cache(parts[0], capacity), *rest, True, 0, "BF16")
    for dtype in ("F31", "Q6_K"):
        with pytest.raises(ValueError, match=f"are not stored as {dtype}"):
            call(2 * width, dtype)
    for place, wrong in (
        (1, np.zeros(2, INT)),
        (2, np.zeros(2, INT)),
        (3, np.zeros((1, 3), INT)),
        (4, np.zeros((1, 3), INT)),
    ):
        with pytest.raises(ValueError, match="positions and kv_rows must be as long as tokens"):
            call(2 * width, "BF16", *rest[:place], wrong, *rest[place + 1 :])


def test_a_key_whose_comparison_fails(parts):
    """What a dictionary's own keys raise is what the call raises."""

    class Torn(str):
        __hash__ = str.__hash__

        def __eq__(self, other):
            raise ArithmeticError("no comparison")

    config, tensors = parts
    for name in ("hidden_size", "rotary"):
        with pytest.raises(ArithmeticError):
            _core.Model({Torn(name): 1, **{key: value for key, value in config.items() if key != name}}, tensors)
    name = next(iter(tensors))
    with pytest.raises(ArithmeticError):
        _core.Model(config, {Torn(name): tensors.pop(name), **tensors})
