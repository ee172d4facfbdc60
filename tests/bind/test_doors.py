"""The refusals of each door of jpo._core that no wrapper meets, by the words that they are made in."""

from functools import partial

import numpy as np
import pytest

import jpo
from jpo import _core
from jpo.formats import load_checkpoint
from tests.hostile.sweep import Calls

F, D, INT, LONG = np.float32, np.float64, np.int32, np.int64


@pytest.fixture(scope="module")
def sound():
    checkpoint = load_checkpoint("tiny")
    tensors = {name: (part.dtype, np.ascontiguousarray(part.data)) for name, part in checkpoint.tensors.items()}
    return dict(checkpoint.config), tensors


@pytest.fixture
def model(sound):
    return _core.Model(dict(sound[0]), dict(sound[1]))


# ---- kernels over given arrays

LOGITS = {"logits": np.zeros((3, 5), F), "kind": 0, "rows": np.zeros(2, LONG), "targets": np.zeros(2, LONG)}


@pytest.mark.parametrize(
    ("message", "spoilt"),
    [
        ("rows and targets differ in length", {"targets": np.zeros(3, LONG)}),
        *(("row -?[0-9]+ or target 0 is out of range", {"rows": np.array([0, value])}) for value in (-1, 3)),
        *(("row 0 or target -?[0-9]+ is out of range", {"targets": np.array([value, 0])}) for value in (-1, 5)),
        ("type must lie in 0", {"kind": 4}),
        ("type must lie in 0", {"kind": -1}),
        ("logits.*float64", {"kind": 3}),
        ("logits.*uint16", {"kind": 1}),
    ],
)
def test_logits(message, spoilt):
    given = {**LOGITS, **spoilt}
    _core.logits_logps(*LOGITS.values())
    with pytest.raises((ValueError, TypeError), match=message):
        _core.logits_logps(*given.values())


@pytest.mark.parametrize(("out", "coefficients"), [((3, 4), 2), ((2, 5), 2), ((3, 5), 1), ((3, 5), 3)])
def test_gradients_of_logits(out, coefficients):
    arrays = LOGITS["logits"], 0, LOGITS["rows"], LOGITS["targets"]
    _core.logits_grad(np.zeros((3, 5), F), *arrays, np.zeros(2))
    with pytest.raises(ValueError, match="out must have the shape of logits, coefficients the length of rows"):
        _core.logits_grad(np.zeros(out, F), *arrays, np.zeros(coefficients))


HEAD = {
    "hidden": np.zeros((2, 4), F), "weight": np.zeros((6, 4), F), "kind": 0, "targets": np.zeros(2, INT),
    "index": np.arange(2, dtype=INT),
}  # fmt: skip


@pytest.mark.parametrize(
    ("message", "spoilt"),
    [
        *(("do not fit together", {name: np.zeros(3, INT)}) for name in ("targets", "index")),
        ("do not fit together", {"weight": np.zeros((6, 5), F)}),
        *(("a target is out of range", {"targets": np.array([0, value], INT)}) for value in (-1, 6)),
        ("a target is out of range", {"index": np.array([1, 0], INT)}),
        ("type must lie in 0", {"kind": 3}),
    ],
)
def test_heads(message, spoilt):
    given = {**HEAD, **spoilt}
    for call in (_core.head_logps, lambda *parts: _core.head_grad(*parts, np.zeros(2))):
        call(*HEAD.values())
        with pytest.raises((ValueError, TypeError), match=message):
            call(*given.values())
    with pytest.raises(ValueError, match="coefficients have another length"):
        _core.head_grad(*HEAD.values(), np.zeros(3))


def test_instruction_sets_and_names():
    for name in ("sse", "", None, 3):
        with pytest.raises(ValueError, match="no instruction set is called"):
            _core.set_isa(name)
    for dtype in ("F31", ""):
        with pytest.raises(ValueError, match=r"dtype must be a name in jpo._core.DTYPES"):
            _core.widen_rows(np.zeros((1, 32), F), np.zeros(128, np.uint8), 1, 32, dtype, 0)
    with pytest.raises(ValueError, match="compute must be one of float32"):
        _core.measure_gflops("float31", 32, 32, 32, runs=1)


# ---- objectives


def test_a_loss_that_lacks_what_it_reads():
    names = [name for name, _ in _core.LOSSES]
    settings = (0.1, 0.0, 0.5, 0.1, 0.05, 0.0, 1.0, 1.0, 0.5, 0.0, 0, True)
    lp, count = np.zeros(2), 0
    for loss, name in enumerate(names):
        try:
            _core.preference(loss, lp, lp, *[None] * 7, *settings)
        except ValueError as error:
            assert str(error) == f"loss {name} lacks an array that it reads"
            count += 1
    assert count == len(names)  # references, lengths, weights or groups: each reads some
    _core.preference(names.index("sigmoid"), lp, lp, lp, lp, *[None] * 5, *settings)
    with pytest.raises(TypeError, match="ref_chosen must hold 2 values, got 3"):
        _core.preference(0, lp, lp, np.zeros(3), lp, *[None] * 5, *settings)


def test_a_loss_that_lacks_one_array():
    """All that it may read are given but one: the loss runs without it, or says that it lacks one."""
    settings = (0.1, 0.1, 0.5, 0.1, 0.05, 0.0, 1.0, 1.0, 0.5, 0.0, 0, True)
    v, groups = np.array([-1.0, -2.0]), np.zeros(2, LONG)
    whole = [v, v, v, v, np.ones(2), np.ones(2), np.full((2, 2), 0.5), groups, groups]
    lacking = set()
    for loss, (name, _) in enumerate(_core.LOSSES):
        for place in range(1, len(whole)):
            given = [*whole[:place], None, *whole[place + 1 :]]
            try:
                assert np.isfinite(_core.preference(loss, *given, *settings)[0]).all()
            except ValueError as error:
                assert str(error) == f"loss {name} lacks an array that it reads"
                lacking.add(place)
    assert lacking == {1, 2, 3, 4, 5, 6, 7}  # all but the ties


@pytest.mark.parametrize("loss", ["aot", "aot_unpaired"])
@pytest.mark.parametrize("place", range(4))
def test_ranks_of_what_has_no_order(loss, place):
    """One NaN makes every rank of the batch unknown, and every loss and gradient with it."""
    given = [np.array([-2.0, -2.5, -4.0]) for _ in range(4)]
    given[place][1] = np.nan
    found = jpo.preference_loss(*given, loss=loss)
    assert np.isnan(found.losses).all() and np.isnan(found.grad_chosen).all() and np.isnan(found.grad_rejected).all()


# ---- models


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("biases", ["no_proj"], "biases: there is no module 'no_proj'"),
        ("biases", [3], "biases: there is no module 3"),
        ("biases", 3, "biases must be a list of names"),
        ("rotary", {}, "rotary must be a list of at most"),
        ("rotary", [{}] * 99, "rotary must be a list of at most"),
        ("rotary", [3], "rotary must be a list of dictionaries"),
        ("layer_window", [0] * 99, "layer_window and layer_rotary need one entry for each of"),
        ("layer_rotary", [0] * 99, "layer_window and layer_rotary need one entry for each of"),
        ("norm_eps", "small", "must be real number"),
        ("norm_eps", -1.0, "norm_eps must be positive, got -1"),
        ("norm", "x", "norm = 'x' is no choice of the engine"),
        ("biases", ("self_attn.o_proj",), r"the model lacks the tensor model.layers.0.self_attn.o_proj.bias"),
    ],
)
def test_configurations(sound, key, value, message):
    config, tensors = sound
    assert key in config
    with pytest.raises((ValueError, TypeError), match=message):
        _core.Model({**config, key: value}, tensors)


def test_long_frequencies_of_another_length(sound):
    config, tensors = sound
    assert _core.Model({**config, "rotary": [{**part, "long_inv_freq": None} for part in config["rotary"]]}, tensors)
    rotary = [{**part, "long_inv_freq": np.ones(len(part["inv_freq"]) + 1), "original": 8} for part in config["rotary"]]
    with pytest.raises(ValueError, match="long_inv_freq must be as long as inv_freq"):
        _core.Model({**config, "rotary": rotary}, tensors)


def test_stored_types(sound):
    config, tensors = sound
    name = next(name for name in tensors if name.endswith("q_proj.weight"))
    with pytest.raises(ValueError, match=r"rows of [0-9]+ values are no whole blocks of Q4_K"):
        _core.Model(config, {**tensors, name: ("Q4_K", tensors[name][1])})
    dtype, data = tensors[name]
    for spoilt in (np.repeat(data, 2, axis=-1)[..., ::2], data.reshape(-1).view(">u4")):
        assert spoilt.nbytes == data.nbytes
        with pytest.raises(ValueError, match=f"tensor {name}: expected {data.nbytes} contiguous bytes"):
            _core.Model(config, {**tensors, name: (dtype, spoilt)})
    norm = "model.norm.weight"
    half = np.ones(config["hidden_size"], np.float16)
    with pytest.raises(ValueError, match=f"tensor {norm} must be widened to F32"):
        _core.Model(config, {**tensors, norm: ("F16", half.view(np.uint8))})


def test_a_model_is_made_once(sound, model):
    with pytest.raises(RuntimeError, match="a Model is made once"):
        model.__init__(*sound)


def test_forests_that_do_not_fit(model):
    tokens, none = np.array([1, 2], INT), np.zeros(0, INT)
    for segments, rows, targets in (
        (np.zeros((1, 3), INT), none, none),
        (np.zeros((1, 4), INT), none, np.zeros(1, INT)),
    ):
        for call in (
            lambda *parts: model.forward(*parts, True, False, False, False, 0),
            lambda *parts: model.plan(*parts, True),
        ):
            with pytest.raises(
                ValueError, match=r"segments must be \(S, 4\), entry_row and entry_target of one length"
            ):
                call(tokens, segments, rows, targets)
    with pytest.raises(ValueError, match="backward needs a forward pass with keep=True directly before it"):
        model.backward(np.zeros(0))
    with pytest.raises(ValueError, match="do not follow"):
        model.plan(tokens, np.array([[1, 1, -1, 0]], INT), none, none, True)
    model.forward(
        tokens, np.array([[0, 2, -1, 0]], INT), np.zeros(1, INT), np.zeros(1, INT), True, True, False, False, 0
    )
    with pytest.raises(ValueError, match="coefficients must hold one value for each of the 1 entries"):
        model.backward(np.zeros(2))


def test_what_is_trained(model, sound):
    params = np.zeros(512, F)
    item = [(0, 0, 4, 1.0, 0.0, 0, 256)]
    with pytest.raises(ValueError, match="params and grads must have one length"):
        model.set_lora(params, np.zeros(511, F), item)
    with pytest.raises(ValueError, match="a tensor to be trained is none of the model's"):
        model.set_lora(params, params.copy(), item, {"model.no.weight": 0})
    with pytest.raises(ValueError, match="set_full lacks the tensor"):
        model.set_full(params, params.copy(), {})
    with pytest.raises(ValueError, match="lies outside params"):
        model.set_full(params, params.copy(), {name: 1 << 40 for name in sound[1]})
    with pytest.raises(ValueError, match="lies outside params"):
        model.set_full(params, params.copy(), dict.fromkeys(sound[1], -1))
    with pytest.raises(TypeError):
        model.set_full(params, params.copy(), {name: "0" for name in sound[1]})
    for layer, module in ((0, 0), (-1, 0), (99, 0), (0, -1), (0, 99)):
        with pytest.raises(ValueError, match=f"layer {layer}, module {module} has no magnitudes"):
            model.row_norms(layer, module)
    model.clear()


def test_a_head_of_its_own_is_trained_once(sound):
    """Where the embedding is tied, the head is trained with it; elsewhere it needs a place of its own."""
    config, tensors = sound
    tensors = {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"]}
    model = _core.Model({**config, "tie_word_embeddings": 0}, tensors)
    sizes = {name: part[1].nbytes // np.dtype(F).itemsize for name, part in tensors.items()}
    ends = np.cumsum([0, *sizes.values()])
    offsets = dict(zip(sizes, map(int, ends), strict=False))
    params = np.zeros(ends[-1], F)
    model.set_full(params, params.copy(), offsets)
    with pytest.raises(ValueError, match="set_full lacks the tensor lm_head.weight"):
        model.set_full(params, params.copy(), {name: at for name, at in offsets.items() if name != "lm_head.weight"})
    model.clear()


def test_numbers_of_threads():
    before = _core.get_num_threads()
    for count in (-1, 0, 257):
        with pytest.raises(ValueError, match=f"num_threads must lie in 1..256, got {count}"):
            _core.set_num_threads(count)
    assert _core.get_num_threads() == before


def test_profiles_and_switches(model):
    class Torn:
        def __bool__(self):
            raise ArithmeticError("neither")

    with pytest.raises(ArithmeticError):
        model.profile(Torn())
    assert model.profile(True) == {}
    model.forward(
        np.array([1], INT), np.array([[0, 1, -1, 0]], INT), *[np.zeros(0, INT)] * 2, True, False, False, False, 0
    )
    counted = model.profile(False)
    assert counted and all(calls > 0 and seconds >= 0 for calls, seconds, _ in counted.values())
    assert model.profile(False) == {}
    model.trim()


def test_arrays_of_another_rank(model):
    tokens, segments, none = np.array([1, 2], INT), np.array([[0, 2, -1, 0]], INT), np.zeros(0, INT)
    for place, name in enumerate(("tokens", "segments", "entry_row", "entry_target")):
        parts = [tokens, segments, none, none]
        parts[place] = parts[place][None]
        with pytest.raises(ValueError, match=rf"{name} must have {2 if place == 1 else 1} dimension\(s\), got"):
            model.forward(*parts, True, False, False, False, 0)


ADAMW = {
    "params": np.ones(4, F), "grads": np.ones(4, F), "m": np.zeros(4, F), "v": np.zeros(4, F), "lr": 0.1, "beta1": 0.9,
    "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.0, "step": 1,
}  # fmt: skip


@pytest.mark.parametrize(
    ("message", "spoilt"),
    [
        *((r"beta1 and beta2 must lie in \[0, 1\)", {name: value})
          for name in ("beta1", "beta2") for value in (-0.1, 1.0, float("nan"))),
        *(("eps must be positive", {"eps": value}) for value in (0.0, -1.0, float("nan"))),
        *(("step counts from 1", {"step": value}) for value in (0, -1)),
        *((f"{name} must", {name: np.ones(5, F)}) for name in ("grads", "m", "v")),
    ],
    ids=lambda value: str(value)[:50],
)  # fmt: skip
def test_steps_of_adamw(message, spoilt):
    def step(arrays):
        _core.adamw_step(*(arrays[name] for name in ("params", "grads", "m", "v")), **{
            name: value for name, value in arrays.items() if name not in ("params", "grads", "m", "v")
        })  # fmt: skip

    step(dict(ADAMW))
    with pytest.raises((ValueError, TypeError), match=message):
        step({**ADAMW, **spoilt})


# ---- every call, with each of its arguments spoilt

CALLS = Calls()
STRANGE = (
    object(),
    "x",
    1 << 70,
    -(1 << 70),
    [[None]],
    np.zeros((1, 1, 1)),
    np.zeros((2, 3), np.complex64),
    float("nan"),
)


@pytest.mark.parametrize("name", [name for name in CALLS.names if isinstance(CALLS.fresh(name), partial)])
def test_strange_arguments_are_refused_in_each_place(name):
    """By an exception of the contract, never by SystemError or a signal; what they may stand for is taken (flags)."""
    call = CALLS.fresh(name)
    with pytest.raises(TypeError):
        call.func()
    for place in range(len(call.args)):
        refused = 0
        for strange in STRANGE:
            call = CALLS.fresh(name)
            try:
                call.func(*call.args[:place], strange, *call.args[place + 1 :], **call.keywords)
            except (ValueError, TypeError, OverflowError):
                refused += 1
        assert refused or isinstance(call.args[place], (bool, int)), (name, place)


# what only Python reads of a configuration
APART = {"model_type", "bos_token_id", "eos_token_ids", "hf"}


@pytest.mark.parametrize("key", [key for key in CALLS.config if key not in APART])
def test_each_key_of_a_configuration(key):
    _core.tensors(CALLS.config)
    with pytest.raises(ValueError, match=f"config lacks {key}"):
        _core.tensors({name: value for name, value in CALLS.config.items() if name != key})
    with pytest.raises((ValueError, TypeError)):
        _core.tensors({**CALLS.config, key: object()})


@pytest.mark.parametrize("key", ["inv_freq", "pairs", "attention_factor", "original", "long_inv_freq"])
def test_each_key_of_rotary_frequencies(key):
    first = CALLS.config["rotary"][0]
    whole = {**first, "long_inv_freq": np.array(first["inv_freq"], float), "original": 64}
    assert _core.tensors({**CALLS.config, "rotary": [whole]})
    for strange in ("x", object()):
        with pytest.raises((ValueError, TypeError)):
            _core.tensors({**CALLS.config, "rotary": [{**whole, key: strange}]})
    if key != "long_inv_freq":
        with pytest.raises(ValueError, match=f"config lacks {key}"):
            _core.tensors({**CALLS.config, "rotary": [{name: value for name, value in whole.items() if name != key}]})
    else:
        with pytest.raises(ValueError, match="as long as inv_freq"):
            _core.tensors({**CALLS.config, "rotary": [{**whole, key: np.ones(3)}]})
