"""Merging: the numbers, the types, the whole file, the memory; written whole or not at all."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from export.adapters import family_model, random_adapter, tiny_adapter
from model_files import write_directory
from reference.models import sequences

import jpo
from jpo import export
from jpo.cli.main import main
from jpo.errors import FormatError, JpoError
from jpo.export.directory import shard_bytes
from jpo.export.layout import architecture, gguf_names
from jpo.export.presets import tensor_type
from jpo.formats import load_checkpoint
from jpo.formats.gguf import read_gguf

# cases of reference.families whose mathematics GGUF can say, with the values that its files leave unsaid
GGUF = {
    "llama3": {}, "qwen2": {}, "qwen3": {}, "phi3": {}, "phi3-beyond": {}, "phi3-long": {}, "granite": {},
    "granite-bias": {}, "smollm3": {}, "olmo2": {}, "gpt2": {}, "stablelm": {}, "stablelm-parallel": {},
    "cohere2": {}, "mistral-yarn": {}, "ministral-yarn": {}, "gemma2": {"query_pre_attn_scalar": 10},
    "gemma3": {"query_pre_attn_scalar": 10},
}  # fmt: skip


def scores(path, adapter=None, **options):
    lm = jpo.load(str(path), storage="float32", **options)
    if adapter is not None:
        lm.load_adapter(str(adapter))
    return lm.sequence_logps_ids([(list(prompt), list(response)) for prompt, response in sequences(512)], scope="joint")


@pytest.mark.parametrize("name", GGUF)
def test_every_family_both_ways(tmp_path, name):
    """Merged, a model scores as base and adapter do: as a directory, as GGUF, and as GGUF from GGUF."""
    config = family_model(tmp_path / "base", name, **GGUF[name])
    random_adapter(tmp_path / "adapter", config, use_rslora=True, ranks={"v_proj": 2, "qkv_proj": 2, "c_attn": 2})
    expected = scores(tmp_path / "base", tmp_path / "adapter")
    assert np.abs(expected - scores(tmp_path / "base")).max() > 1e-3
    export.merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "hf")
    np.testing.assert_allclose(scores(tmp_path / "hf"), expected, rtol=2e-5)
    export.merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "m.gguf", format="gguf", type="f32")
    np.testing.assert_allclose(scores(tmp_path / "m.gguf"), expected, rtol=2e-5)
    again = scores(tmp_path / "m.gguf", tmp_path / "adapter")
    export.merge(tmp_path / "m.gguf", tmp_path / "adapter", tmp_path / "2.gguf", format="gguf")
    np.testing.assert_allclose(scores(tmp_path / "2.gguf"), again, rtol=2e-5)


@pytest.mark.parametrize("name", GGUF)
def test_names_are_those_of_the_gguf_package(tmp_path, name):
    """Each tensor of the Hugging Face model has the name that llama.cpp's converter gives it."""
    gguf = pytest.importorskip("gguf")
    config = family_model(tmp_path / "base", name, **GGUF[name])
    number = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == architecture(config))
    known = gguf.get_tensor_name_map(number, config["num_hidden_layers"])
    for ours, theirs in gguf_names(config).items():
        assert theirs == known.get_name(ours, try_suffixes=(".weight", ".bias")), ours


def test_a_model_that_gguf_cannot_say_is_refused_by_the_key(tmp_path):
    config = family_model(tmp_path / "base", "qwen2-window")
    random_adapter(tmp_path / "adapter", config)
    with pytest.raises(JpoError, match="layer_window is .0, 7, 7.*--format hf"):
        export.merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "m.gguf", format="gguf")
    assert not (tmp_path / "m.gguf").exists()


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_a_directory_keeps_its_type_and_its_files(tmp_path, dtype):
    meant = write_directory(tmp_path / "base", dtype=dtype, shards=2)
    checkpoint = load_checkpoint(tmp_path / "base")
    tensors = random_adapter(tmp_path / "adapter", checkpoint.config)
    (tmp_path / "base" / "chat_template.jinja").write_text("{{ messages }}")
    (tmp_path / "base" / "model.py").write_text("never copied")
    export.merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged", max_shard_size="20KB")
    merged = load_checkpoint(tmp_path / "merged")
    name = "model.layers.0.mlp.up_proj"
    stem = f"base_model.model.{name}"
    change = np.float32(2) * (tensors[f"{stem}.lora_B.weight"] @ tensors[f"{stem}.lora_A.weight"])
    assert {tensor.dtype for tensor in merged.tensors.values()} == {dtype}
    step = 2.0**-8 if dtype == "BF16" else 2.0**-11  # half a unit in the last place
    expected = meant[f"{name}.weight"] + change
    np.testing.assert_allclose(merged.tensors[f"{name}.weight"].float32(), expected, rtol=step, atol=2.0**-25)
    embedding = "model.embed_tokens.weight"
    np.testing.assert_array_equal(merged.tensors[embedding].data, checkpoint.tensors[embedding].data)
    copied = {"tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"}
    files = set(os.listdir(tmp_path / "merged"))
    for file in copied:
        assert (tmp_path / "merged" / file).read_bytes() == (tmp_path / "base" / file).read_bytes()
    assert "model.py" not in files and "model.safetensors" not in files
    index = json.loads((tmp_path / "merged" / "model.safetensors.index.json").read_text())
    shards = {file for file in files if file.startswith("model-")}
    assert set(index["weight_map"].values()) == shards and len(shards) > 2
    assert index["metadata"]["total_size"] == sum(tensor.data.nbytes for tensor in merged.tensors.values())
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert config["torch_dtype"] == {"BF16": "bfloat16", "F16": "float16"}[dtype] and merged.tokenizer.chat_template


def test_types_of_a_directory(tmp_path):
    tiny_adapter(tmp_path / "adapter")
    for kind, dtype in (("f16", "F16"), ("bf16", "BF16"), ("f32", "F32")):
        export.merge("tiny", tmp_path / "adapter", tmp_path / kind, type=kind)
        assert {tensor.dtype for tensor in load_checkpoint(tmp_path / kind).tensors.values()} == {dtype}
    with pytest.raises(JpoError, match="q8_0 needs --format gguf"):
        export.merge("tiny", tmp_path / "adapter", tmp_path / "q", type="q8_0")


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16", "q8_0", "q4_0", "q4_k_m"])
def test_gguf_by_the_gguf_package(tmp_path, kind):
    """Types, metadata, tokenizer, and the values that the package reads: those of the merged directory, quantized."""
    gguf = pytest.importorskip("gguf")
    config = family_model(tmp_path / "base", "qwen2", hidden_size=256, intermediate_size=320, head_dim=None)
    random_adapter(tmp_path / "adapter", config)
    export.merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "m.gguf", format="gguf", type=kind)
    export.merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "hf")
    merged = load_checkpoint(tmp_path / "hf").tensors
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    number = {"f32": 0, "f16": 1, "bf16": 32, "q8_0": 7, "q4_0": 2, "q4_k_m": 15}[kind]
    assert reader.fields["general.file_type"].contents() == number == gguf.LlamaFileType[_FILE_TYPES[kind]]
    assert reader.fields["tokenizer.ggml.tokens"].contents()[3:5] == ["!", '"']
    assert "im_start" in reader.fields["tokenizer.chat_template"].contents()
    places = {"blk.1.ffn_down": "model.layers.1.mlp.down_proj", "blk.2.attn_q": "model.layers.2.self_attn.q_proj"}
    for name, ours in {
        "token_embd": "model.embed_tokens",
        **places,
        "blk.0.attn_norm": "model.layers.0.input_layernorm",
    }.items():
        tensor = tensors[f"{name}.weight"]
        expected = merged[f"{ours}.weight"].float32()
        own = tensor.tensor_type.name
        assert own == tensor_type(kind, tensor.name, expected.shape, 3, True)
        if not own.endswith("_K"):  # the package cannot quantize those: tests/export/test_quantize.py
            assert tensor.data.tobytes() == gguf.quants.quantize(expected, tensor.tensor_type).tobytes()
        read = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(expected.shape)
        step = {"F32": 0, "F16": 1e-3, "BF16": 8e-3, "Q8_0": 1e-2, "Q6_K": 4e-2}.get(own, 0.2)
        assert np.abs(read - expected).max() <= step * np.abs(expected).max()
    np.testing.assert_allclose(scores(tmp_path / "m.gguf"), scores(tmp_path / "hf"), rtol=0.15 if "4" in kind else 0.02)


_FILE_TYPES = {
    "f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0", "q4_0": "MOSTLY_Q4_0",
    "q4_k_m": "MOSTLY_Q4_K_M",
}  # fmt: skip


def test_presets_are_llama_quantizes():
    """Layers and shapes read off llama.cpp's own choice for a model of 32 layers."""
    six = [i for i in range(32) if tensor_type("q4_k_m", f"blk.{i}.attn_v.weight", (1024, 4096), 32, False) == "Q6_K"]
    assert six == [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]
    assert tensor_type("q4_k_m", "output.weight", (32000, 4096), 32, False) == "Q6_K"
    assert tensor_type("q4_k_m", "token_embd.weight", (32000, 4096), 32, False) == "Q4_K"
    assert tensor_type("q4_k_m", "token_embd.weight", (49152, 576), 30, True) == "Q8_0"  # SmolLM2: 576 is no 256 k
    assert tensor_type("q4_k_m", "blk.5.ffn_up.weight", (1536, 576), 30, True) == "Q5_0"
    assert tensor_type("q4_0", "token_embd.weight", (262144, 640), 18, True) == "Q8_0"
    assert tensor_type("q4_0", "token_embd.weight", (128256, 2048), 16, True) == "Q6_K"
    assert tensor_type("q8_0", "blk.0.attn_q.weight", (40, 40), 2, False) == "F16"
    assert tensor_type("q8_0", "blk.0.attn_norm.weight", (4096,), 2, False) == "F32"


def test_a_gguf_base_keeps_its_metadata_to_the_byte(tmp_path):
    """SmolLM2-like: quantized base, one adapted tensor; the others' bytes and every key but the type stay."""
    config = family_model(tmp_path / "base", "qwen2", hidden_size=64)
    random_adapter(tmp_path / "adapter", config)
    export.merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "q.gguf", format="gguf", type="q8_0")
    export.merge(tmp_path / "q.gguf", tmp_path / "adapter", tmp_path / "2.gguf", format="gguf")
    one, two = read_gguf(tmp_path / "q.gguf"), read_gguf(tmp_path / "2.gguf")
    assert one.entries.keys() == two.entries.keys()
    assert all(bytes(one.entries[key]) == bytes(two.entries[key]) for key in one.entries)
    assert list(one.tensors) == list(two.tensors)
    for name, tensor in one.tensors.items():
        assert two.tensors[name].dtype == tensor.dtype
        same = np.array_equal(two.tensors[name].data, tensor.data)
        assert same == ("norm" in name or "embd" in name or "bias" in name), name


def test_patterns_scale_each_module(tmp_path):
    config = load_checkpoint("tiny").config
    settings = {"ranks": {"layers.1.mlp.up_proj": 3}, "alpha_pattern": {"q_proj": 5.0}, "use_rslora": True}
    random_adapter(tmp_path / "adapter", config, **settings)
    expected = scores("tiny", tmp_path / "adapter")
    export.merge("tiny", tmp_path / "adapter", tmp_path / "merged")
    np.testing.assert_allclose(scores(tmp_path / "merged"), expected, atol=1e-4)


def test_nothing_is_overwritten(tmp_path):
    tiny_adapter(tmp_path / "adapter")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    with pytest.raises(JpoError, match="--overwrite"):
        export.merge("tiny", tmp_path / "adapter", tmp_path / "full")
    export.merge("tiny", tmp_path / "adapter", tmp_path / "full", overwrite=True, max_shard_size="100KB")
    assert (tmp_path / "full" / "mine").read_text() == "mine" and len(load_checkpoint(tmp_path / "full").tensors) == 29
    export.merge("tiny", tmp_path / "adapter", tmp_path / "full", overwrite=True)
    assert not [name for name in os.listdir(tmp_path / "full") if name.startswith("model-") or "index" in name]
    (tmp_path / "m.gguf").write_text("mine")
    with pytest.raises(JpoError, match="--overwrite"):
        export.merge("tiny", tmp_path / "adapter", tmp_path / "m.gguf", format="gguf")
    assert (tmp_path / "m.gguf").read_text() == "mine"


@pytest.mark.parametrize("format", ["hf", "gguf"])
def test_a_fault_leaves_nothing(tmp_path, format):
    """The last tensor holds NaN: what was written by then is gone, and the message names the tensor."""
    meant = {name: value for name, value in write_directory(tmp_path / "base").items()}
    meant["model.layers.1.mlp.down_proj.weight"][3, 5] = np.nan
    write_directory(tmp_path / "base", meant)
    random_adapter(tmp_path / "adapter", load_checkpoint(tmp_path / "base", check=False).config)
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(FormatError, match="down_proj|ffn_down"):
        export.merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "out", format=format)
    assert sorted(os.listdir(tmp_path)) == before


def test_what_a_type_cannot_hold_is_named(tmp_path):
    meant = write_directory(tmp_path / "base")
    meant["model.norm.weight"][:] = 1e6
    write_directory(tmp_path / "base", meant)
    random_adapter(tmp_path / "adapter", load_checkpoint(tmp_path / "base").config)
    with pytest.raises(FormatError, match="model.norm.weight.*F16.*bf16"):
        export.merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "out", type="f16")


@pytest.mark.parametrize(
    ("size", "count"), [("5GB", 5 * 10**9), ("300MB", 3 * 10**8), ("1GiB", 1 << 30), ("1.5KB", 1500), ("77", 77)]
)
def test_shard_sizes(size, count):
    assert shard_bytes(size) == count


@pytest.mark.parametrize("size", ["", "GB", "-1GB", "5XB", "0", "nan"])
def test_bad_shard_sizes(size):
    with pytest.raises(JpoError, match="max-shard-size"):
        shard_bytes(size)


def test_an_adapter_of_another_model_is_refused(tmp_path):
    random_adapter(tmp_path / "adapter", family_model(tmp_path / "base", "qwen2"))
    with pytest.raises(JpoError, match=r"lora_A.weight: the model's module has \d+, the adapter \d+"):
        export.merge("tiny", tmp_path / "adapter", tmp_path / "out")


_PEAK = """
import sys
from jpo import export
def memory(key):
    return int(open("/proc/self/status").read().split(key + ":")[1].split()[0]) << 10
base, adapter, output, format, kind = sys.argv[1:]
export.merge("tiny", sys.argv[2] + "-tiny", output + ".warm", format=format, type=kind)
open("/proc/self/clear_refs", "w").write("5")
before = memory("VmRSS")
export.merge(base, adapter, output, format=format, type=kind)
print(memory("VmHWM") - before)
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A model of 240 MB whose largest tensors have 34 MB, and an adapter."""
    folder = tmp_path_factory.mktemp("large")
    sizes = {"hidden_size": 1024, "intermediate_size": 8192, "num_attention_heads": 8, "num_key_value_heads": 4}
    config = family_model(folder / "base", "llama3", head_dim=128, num_hidden_layers=2, **sizes)
    random_adapter(folder / "adapter", config)
    tiny_adapter(folder / "adapter-tiny")
    return folder


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="needs Linux's /proc")
@pytest.mark.parametrize(("format", "kind"), [("hf", "bf16"), ("gguf", "q8_0")])
def test_memory_stays_below_two_tensors(large, format, kind):
    """The peak above the memory that a small merge leaves is below two tensors of float32."""
    arguments = [str(large / name) for name in ("base", "adapter", f"out-{format}")]
    done = subprocess.run([sys.executable, "-c", _PEAK, *arguments, format, kind], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 2 * 4 * 1024 * 8192, f"{int(done.stdout) / 1e6:.0f} MB"


def test_on_the_command_line(tmp_path, capsys):
    tiny_adapter(tmp_path / "adapter")
    arguments = ["--model", "tiny", "--adapter", str(tmp_path / "adapter")]
    assert main(["merge", *arguments, "--output", str(tmp_path / "hf")]) == 0
    out = str(tmp_path / "m.gguf")
    assert main(["merge", *arguments, "--format", "gguf", "--type", "q8_0", "--output", out]) == 0
    assert main(["merge", *arguments, "--format", "gguf", "--output", out]) == 1
    assert "exists already" in capsys.readouterr().err
    assert main(["merge", *arguments, "--format", "gguf", "--output", out, "--overwrite"]) == 0
