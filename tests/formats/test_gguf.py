"""GGUF files of every stored type become Hugging Face's names, order and values."""

import numpy as np
import pytest
from model_files import (
    ARRAY,
    BOOL,
    F32,
    GGML,
    SHAPE,
    STRING,
    U32,
    gguf_bytes,
    gguf_tensors,
    llama_metadata,
    llama_weights,
    typed,
    write_gguf,
)
from reference.quants import BLOCKS, random_blocks, values_of

from jpo.errors import FormatError
from jpo.formats import load_checkpoint
from jpo.formats.gguf import read_gguf


@pytest.mark.parametrize("dtype", list(BLOCKS))
def test_values_of_quantized_blocks(tmp_path, dtype):
    path, raw = tmp_path / "m.gguf", random_blocks(np.random.default_rng(0), dtype, 5, 512)
    path.write_bytes(gguf_bytes(llama_metadata(), [("token_embd.weight", (512, 5), GGML[dtype], raw.tobytes())]))
    stored = read_gguf(path).tensors["token_embd.weight"]
    assert (stored.dtype, stored.shape, stored.data.size) == (dtype, (5, 512), raw.size)
    values = stored.float32()
    assert np.array_equal(values.view(np.int32), values_of(raw, dtype, 5, 512).view(np.int32))
    short = [("token_embd.weight", (BLOCKS[dtype][0] // 2, 5), GGML[dtype], raw.tobytes())]
    path.write_bytes(gguf_bytes(llama_metadata(), short))
    with pytest.raises(FormatError, match=f"token_embd.weight: rows of .* no multiple of {dtype}'s block"):
        read_gguf(path)


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1"])
@pytest.mark.parametrize("tied", [False, True])
def test_values_and_order(tmp_path, dtype, tied):
    path = tmp_path / "m.gguf"
    meant = write_gguf(path, llama_weights(tied=tied, bias=tied), dtype)
    checkpoint = load_checkpoint(path)
    assert checkpoint.tensors.keys() == meant.keys()
    for name, values in meant.items():
        stored = checkpoint.tensors[name]
        assert stored.dtype == (dtype if values.ndim == 2 else "F32") and stored.shape == values.shape
        assert stored.data.size == stored.row_bytes * (values.size // values.shape[-1])
        np.testing.assert_array_equal(stored.float32(), values, err_msg=name)
    assert checkpoint.config["tie_word_embeddings"] is tied
    assert bool(checkpoint.config["biases"]) is tied


def test_configuration(tmp_path):
    path = tmp_path / "m.gguf"
    write_gguf(path)
    config = load_checkpoint(str(path)).config
    expected = {
        "model_type": "llama", "vocab_size": SHAPE["vocab"], "hidden_size": 64, "intermediate_size": 96,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "activation": "silu", "layer_window": [0, 0], "layer_rotary": [0, 0], "max_position_embeddings": 128,
        "bos_token_id": 1, "eos_token_ids": [0],
    }  # fmt: skip
    assert {key: config[key] for key in expected} == expected
    assert config["norm_eps"] == pytest.approx(1e-5, rel=1e-6)
    np.testing.assert_allclose(config["rotary"][0]["inv_freq"], 10000.0 ** -(np.arange(0, 16, 2) / 16), rtol=1e-7)


def test_tensors_are_views_of_the_file(tmp_path):
    path = tmp_path / "m.gguf"
    write_gguf(path)
    data = read_gguf(path).tensors["blk.0.ffn_up.weight"].data
    assert not data.flags.owndata and not data.flags.writeable and data.ctypes.data % 32 == 0


@pytest.mark.parametrize("alignment", [1, 8, 64, 4096])
def test_alignments(tmp_path, alignment):
    path = tmp_path / "m.gguf"
    meant = write_gguf(path, metadata=llama_metadata(general__alignment=(U32, alignment)), alignment=alignment)
    tensors = load_checkpoint(path).tensors
    for name, values in meant.items():
        np.testing.assert_array_equal(tensors[name].float32(), values)
        assert tensors[name].data.ctypes.data % 4 == 0


def test_sliding_window_makes_it_mistral(tmp_path):
    path = tmp_path / "m.gguf"
    write_gguf(path, metadata=llama_metadata(llama__attention__sliding_window=(U32, 7)))
    config = load_checkpoint(path).config
    assert (config["model_type"], set(config["layer_window"])) == ("mistral", {7})
    assert config["hf"]["architectures"] == ["MistralForCausalLM"]


def test_values_a_layer(tmp_path):
    path = tmp_path / "m.gguf"
    write_gguf(path, metadata=llama_metadata(llama__attention__head_count_kv=((ARRAY, U32), [2, 2])))
    assert load_checkpoint(path).config["num_key_value_heads"] == 2
    write_gguf(path, metadata=llama_metadata(llama__attention__head_count_kv=((ARRAY, U32), [2, 4])))
    with pytest.raises(FormatError, match=r"head_count_kv.*layers that differ"):
        load_checkpoint(path)


def with_factors(factors):
    tensors, _ = gguf_tensors(llama_weights())
    raw = np.asarray(factors, np.float32).tobytes()
    return gguf_bytes(llama_metadata(), [*tensors, ("rope_freqs.weight", (len(factors),), GGML["F32"], raw)])


def test_rope_factors_divide_the_frequencies(tmp_path):
    path = tmp_path / "m.gguf"
    factors = np.linspace(1, 3, 8)
    path.write_bytes(with_factors(factors))
    config = load_checkpoint(path).config
    np.testing.assert_allclose(
        config["rotary"][0]["inv_freq"], 10000.0 ** -(np.arange(0, 16, 2) / 16) / factors, rtol=2e-7
    )
    path.write_bytes(with_factors(np.ones(5)))
    with pytest.raises(FormatError, match=r"rope_freqs.weight: expected 8 factors, got 5"):
        load_checkpoint(path)
    path.write_bytes(with_factors(np.zeros(8)))
    with pytest.raises(FormatError, match=r"rope_freqs.weight: expected finite F32 factors above 0"):
        load_checkpoint(path)


def test_llama3_factors_are_recognized(tmp_path):
    path = tmp_path / "m.gguf"
    base = 10000.0 ** -(np.arange(0, 16, 2) / 16)
    smooth = np.clip((8192 * base / (2 * np.pi) - 1) / 3, 0, 1)
    factors = 1 / ((1 - smooth) / 32 + smooth)
    assert 1 < np.sum(factors > 1) < 8  # all three ranges occur
    path.write_bytes(with_factors(factors))
    config = load_checkpoint(path).config
    assert config["hf"]["rope_scaling"]["rope_type"] == "llama3"
    np.testing.assert_allclose(config["rotary"][0]["inv_freq"], base / factors, rtol=1e-6)


def test_rope_scalings(tmp_path):
    path = tmp_path / "m.gguf"
    base = 10000.0 ** -(np.arange(0, 16, 2) / 16)
    linear = {"llama__rope__scaling__type": (STRING, "linear"), "llama__rope__scaling__factor": (F32, 4.0)}
    write_gguf(path, metadata=llama_metadata(**linear))
    np.testing.assert_allclose(load_checkpoint(path).config["rotary"][0]["inv_freq"], base / 4, rtol=1e-6)
    yarn = {**linear, "llama__rope__scaling__type": (STRING, "yarn")}
    yarn["llama__rope__scaling__original_context_length"] = (U32, 32)
    write_gguf(path, metadata=llama_metadata(**yarn))
    config = load_checkpoint(path).config
    assert config["rotary"][0]["attention_factor"] == pytest.approx(0.1 * np.log(4) + 1)
    np.testing.assert_allclose(config["rotary"][0]["inv_freq"][-1], base[-1] / 4, rtol=1e-6)
    assert config["rotary"][0]["inv_freq"][0] == 1.0
    write_gguf(path, metadata=llama_metadata(**yarn, llama__rope__scaling__attn_factor=(F32, 2.0)))
    assert load_checkpoint(path).config["rotary"][0]["attention_factor"] == pytest.approx(2 * (0.1 * np.log(4) + 1))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"general__architecture": (STRING, "mamba")}, "general.architecture"),
        ({"llama__expert_count": (U32, 8)}, "llama.expert_count"),
        ({"llama__attention__clamp_kqv": (F32, 8.0)}, "llama.attention.clamp_kqv"),
        ({"llama__logit_scale": (F32, 0.5)}, "llama.logit_scale"),
        ({"llama__attention__causal": (BOOL, False), "llama__future_key": (U32, 3)}, "llama.future_key"),
        ({"llama__rope__scaling__type": (STRING, "longrope")}, "llama.rope.scaling.type"),
        ({"llama__attention__value_length": (U32, 32)}, "llama.attention.value_length"),
        ({"llama__rope__dimension_count": (U32, 8)}, "llama.rope.dimension_count"),
        ({"split__count": (U32, 2)}, "split.count"),
        ({"tokenizer__ggml__pre": (STRING, "odd")}, "tokenizer.ggml.pre"),
        ({"tokenizer__ggml__model": (STRING, "bert")}, "tokenizer.ggml.model"),
    ],
)
def test_refused_by_name(tmp_path, change, named):
    path = tmp_path / "m.gguf"
    write_gguf(path, metadata=llama_metadata(**change))
    with pytest.raises(FormatError) as caught:
        load_checkpoint(path)
    assert named in str(caught.value) and str(path) in str(caught.value)


def test_other_types_are_refused_by_tensor(tmp_path):
    path = tmp_path / "m.gguf"
    tensors, _ = gguf_tensors(llama_weights())
    tensors[3] = (tensors[3][0], tensors[3][1], 16, tensors[3][3])
    path.write_bytes(gguf_bytes(llama_metadata(), tensors))
    with pytest.raises(FormatError, match=rf"{tensors[3][0]}: type IQ2_XXS is not implemented"):
        load_checkpoint(path)


def test_zero_and_unused_keys_are_accepted(tmp_path):
    path = tmp_path / "m.gguf"
    extra = [b"".join([len(b"llama.expert_count").to_bytes(8, "little"), b"llama.expert_count", typed(U32, 0)])]
    write_gguf(path, metadata=[*llama_metadata(general__name=(STRING, "x")), *extra])
    assert load_checkpoint(path).config["num_hidden_layers"] == 2


def test_vectors_of_blocks_are_cut_by_values():
    """A norm or bias may be quantized too: whole it stays, a part of it is widened, for blocks hold many values."""
    from jpo.formats.stored import StoredTensor

    values = np.arange(64, dtype=np.float32)
    blocks = b"".join(np.float16(1).tobytes() + np.int8(values[start : start + 32]).tobytes() for start in (0, 32))
    vector = StoredTensor("b", "Q8_0", (64,), np.frombuffer(blocks, np.uint8))
    assert vector.rows("b", 0, 64).dtype == "Q8_0" and vector.rows("b", 0, 64).data is vector.data
    part = vector.rows("q", 3, 5)
    assert (part.name, part.dtype, part.shape) == ("q", "F32", (5,))
    np.testing.assert_array_equal(part.float32(), values[3:8])
    np.testing.assert_array_equal(vector.by_rows().float32(), values)
