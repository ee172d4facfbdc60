"""llama.cpp's adapter file: names, shapes, types; alpha / rank B A is what merging adds to the base's tensors."""

import numpy as np
import pytest
from export.adapters import family_model, random_adapter, tiny_adapter
from export.test_merge import GGUF

from jpo import export
from jpo.cli.main import main
from jpo.errors import FormatError, JpoError
from jpo.formats import load_checkpoint
from jpo.formats.gguf import read_gguf

gguf = pytest.importorskip("gguf")


def updates(path):
    """GGUF name -> what llama.cpp adds to the tensor: alpha over B's rank, times B A (llama-adapter.h)."""
    reader = gguf.GGUFReader(path)
    alpha = reader.fields["adapter.lora.alpha"].contents()
    found = {
        tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(tensor.shape[::-1])
        for tensor in reader.tensors
    }
    names = [name.removesuffix(".lora_a") for name in found if name.endswith(".lora_a")]
    assert len(found) == 2 * len(names)
    pairs = {name: (found[f"{name}.lora_a"], found[f"{name}.lora_b"]) for name in names}
    return {name: np.float32(alpha / b.shape[1]) * (b @ a) for name, (a, b) in pairs.items()}


@pytest.mark.parametrize("name", GGUF)
def test_it_adds_what_merging_adds(tmp_path, name):
    config = family_model(tmp_path / "base", name, **GGUF[name])
    ranks, patterns = {"v_proj": 2, "qkv_proj": 6, "c_attn": 3}, {"down_proj": 3.5, "c_fc": 2.0}
    random_adapter(tmp_path / "adapter", config, use_rslora=True, ranks=ranks, alpha_pattern=patterns)
    random_adapter(tmp_path / "zero", config, lora_alpha=1e-6)
    options = {"format": "gguf", "type": "f32"}
    export.merge(tmp_path / "base", tmp_path / "zero", tmp_path / "base.gguf", **options)
    export.merge(tmp_path / "base.gguf", tmp_path / "adapter", tmp_path / "merged.gguf", **options)
    base, merged = read_gguf(tmp_path / "base.gguf").tensors, read_gguf(tmp_path / "merged.gguf").tensors
    changed = {key for key in base if not np.array_equal(base[key].data, merged[key].data)}
    for model in ("base", "base.gguf"):  # from either base the same file
        out = tmp_path / f"{model}-lora.gguf"
        export.export_adapter(tmp_path / model, tmp_path / "adapter", out)
        found = updates(out)
        assert found.keys() == changed and len(changed) >= 4 * config["num_hidden_layers"]
        for key, update in found.items():
            np.testing.assert_allclose(base[key].float32() + update, merged[key].float32(), atol=2e-6)


def test_a_fused_base_takes_separate_modules(tmp_path):
    """A GGUF base with attn_qkv where the family has q, k and v: one pair, of the sum of their ranks."""
    config = family_model(tmp_path / "base", "qwen2")
    random_adapter(tmp_path / "adapter", config, ranks={"q_proj": 3, "v_proj": 5}, use_rslora=True)
    export.merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "apart.gguf", format="gguf", type="f32")
    file = read_gguf(tmp_path / "apart.gguf")
    writer = gguf.GGUFWriter(tmp_path / "fused.gguf", "qwen2")
    _copy_fused(file, writer, config["num_hidden_layers"])
    export.export_adapter(tmp_path / "apart.gguf", tmp_path / "adapter", tmp_path / "1.gguf")
    export.export_adapter(tmp_path / "fused.gguf", tmp_path / "adapter", tmp_path / "2.gguf")
    apart, fused = updates(tmp_path / "1.gguf"), updates(tmp_path / "2.gguf")
    for layer in range(config["num_hidden_layers"]):
        parts = [apart[f"blk.{layer}.attn_{part}.weight"] for part in "qkv"]
        np.testing.assert_allclose(fused[f"blk.{layer}.attn_qkv.weight"], np.concatenate(parts), atol=1e-6)
    export.merge(tmp_path / "fused.gguf", tmp_path / "adapter", tmp_path / "m.gguf", format="gguf")
    export.merge(tmp_path / "apart.gguf", tmp_path / "adapter", tmp_path / "n.gguf", format="gguf")
    one, two = load_checkpoint(tmp_path / "m.gguf").tensors, load_checkpoint(tmp_path / "n.gguf").tensors
    assert all(np.allclose(one[key].float32(), two[key].float32(), atol=1e-6) for key in two)


def _copy_fused(file, writer, layers):
    """The file again through the gguf package, with q, k and v of each layer in one tensor."""
    for key, value in file.metadata.items():
        short = key.removeprefix("qwen2.")
        if key in ("general.architecture", "general.alignment"):
            continue
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value if isinstance(value, list) else value.tolist())
        assert short
    for name, tensor in file.tensors.items():
        kind = name.split(".")[-1]
        if ".attn_q." in name:
            parts = [file.tensors[name.replace("attn_q", f"attn_{part}")].float32() for part in "qkv"]
            writer.add_tensor(name.replace("attn_q.", "attn_qkv."), np.concatenate(parts))
        elif ".attn_k." not in name and ".attn_v." not in name:
            writer.add_tensor(name, tensor.float32())
        assert kind in ("weight", "bias")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_metadata_and_types(tmp_path):
    tiny_adapter(tmp_path / "adapter", ranks={"q_proj": 32})
    for kind, number in (("f32", 0), ("f16", 1), ("q8_0", 7)):
        export.export_adapter("tiny", tmp_path / "adapter", tmp_path / f"{kind}.gguf", type=kind)
        reader = gguf.GGUFReader(tmp_path / f"{kind}.gguf")
        fields = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
        assert fields == {
            "general.architecture": "llama", "general.type": "adapter", "general.file_type": number,
            "adapter.type": "lora", "adapter.lora.alpha": 8.0, "general.quantization_version": 2,
        }  # fmt: skip
        types = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
        assert types["blk.0.attn_q.weight.lora_b"] == kind.upper()
        assert types["blk.0.attn_k.weight.lora_b"] == ("F16" if kind == "q8_0" else kind.upper())  # rows of 4 values
        shapes = {tensor.name: tuple(tensor.shape.tolist()) for tensor in reader.tensors}
        assert shapes["blk.0.attn_q.weight.lora_a"] == (64, 32) and shapes["blk.0.attn_q.weight.lora_b"] == (32, 64)


def test_a_plain_adapter_is_copied_to_the_bit(tmp_path):
    """alpha / r is llama.cpp's own factor: where nothing else scales, A and B stand as they were trained."""
    tensors = tiny_adapter(tmp_path / "adapter")
    export.export_adapter("tiny", tmp_path / "adapter", tmp_path / "a.gguf")
    file = read_gguf(tmp_path / "a.gguf").tensors
    stem = "base_model.model.model.layers.1.mlp.gate_proj"
    for part in "AB":
        stored = file[f"blk.1.ffn_gate.weight.lora_{part.lower()}"].float32()
        np.testing.assert_array_equal(stored, tensors[f"{stem}.lora_{part}.weight"])


def test_refusals(tmp_path, capsys):
    tiny_adapter(tmp_path / "adapter")
    out = str(tmp_path / "a.gguf")
    arguments = ["export", "--model", "tiny", "--adapter", str(tmp_path / "adapter"), "--output", out]
    assert main([*arguments, "--format", "gguf-lora", "--type", "f16"]) == 0
    assert main(arguments) == 1 and "exists already" in capsys.readouterr().err
    assert main(["generate", "--model", out, "--prompt", "x"]) == 1  # it is no model
    assert "general.type is 'adapter': no model; load the base model" in capsys.readouterr().err
    assert main([*arguments, "--type", "q4_0"]) == 2
    with pytest.raises(JpoError, match="no module model.layers.3"):
        deeper = {"hidden_size": 64, "intermediate_size": 128}
        random_adapter(tmp_path / "deeper", family_model(tmp_path / "base", "smollm3", **deeper))
        export.export_adapter("tiny", tmp_path / "deeper", tmp_path / "b.gguf")
    with pytest.raises(FormatError, match="adapter_config.json"):
        export.export_adapter("tiny", tmp_path / "nothing", tmp_path / "b.gguf")
