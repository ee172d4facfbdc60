"""Tokenizers, configurations, weights and adapters against transformers, PEFT and the gguf package."""

import os

import gguf
import numpy as np
import peft
import pytest
import torch
import transformers
from model_files import adapter_tensors, hf_config, write_gguf
from reference.quants import BLOCKS, random_blocks

from jpo.formats import load_checkpoint, write_checkpoint
from jpo.formats.config import normalize
from jpo.formats.peft import AdapterConfig, read_adapter, write_adapter
from jpo.formats.tiny import random_tensors

HARD = [
    "",
    " ",
    "  two  spaces   three",
    "\n\n\n\t\t \r\n x \n",
    "trailing spaces   ",
    "12345 1 23 4.5e-6 ٣٤٥ ½ ² Ⅷ 1st 2,000",
    "abc123def  456 7",
    "don't DON'T we'll I'm you've 'tis ’s",
    "日本語のテキスト、漢字とカナ。中文字符 한국어",
    "👩‍👩‍👧‍👦 🤗🏽 🇩🇪 ☕️ 🏴󠁧󠁢󠁥󠁮󠁧󠁿",
    "e\u0301 n\u0303 a\u030a\u0323 Z\u0335\u0327a\u0310lgo \u0e01\u0e33",
    "مرحبا بالعالم שלום עולם हिन्दी ไทย",
    "\u200b\u200d\ufeff\u00a0\u2003\u3000nbsp",
    "<|im_start|>user\nhi<|im_end|> <|endoftext|> <|im_end |> <s></s><unk>",
    "def f(x):\n    return x**2  # ½\n\tif x != 0: {[(<>)]}\\\"'`~^",
    "ÀÉÎÕÜ ß ﬁ ﬂ Ǆ İıſ ẞ",
    "\x00\x01\x7f\x80\x9f \U0010ffff \ufffd",
    "a" * 300 + "1" * 50 + "!" * 40,
    "https://example.org/a?b=c&d=%20 foo@bar.baz #tag @name $5 €6",
]


def both(folder, tokenizer, text):
    reference = transformers.AutoTokenizer.from_pretrained(folder)
    return tokenizer.encode(text), reference.encode(text, add_special_tokens=False)


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory):
    """(our tokenizer, transformers' of the tokenizer written by us)"""
    from jpo.errors import JpoError

    try:
        checkpoint = load_checkpoint("smollm2-135m")
    except JpoError as error:
        if os.environ.get("JPO_REQUIRE_PARITY") == "1":
            raise
        pytest.skip(f"parity: {error}")
    folder = tmp_path_factory.mktemp("smollm2")
    checkpoint.tokenizer.save(folder)
    return checkpoint, transformers.AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("text", HARD)
def test_smollm2_ids(smollm2, text):
    ours, reference = smollm2[0].tokenizer, smollm2[1]
    ids = ours.encode(text)
    assert ids == reference.encode(text, add_special_tokens=False)
    assert ids == reference.encode(text)  # neither adds BOS
    assert ours.decode(ids) == reference.decode(ids, clean_up_tokenization_spaces=False)


def test_smollm2_pieces_are_those_of_its_published_tokenizer(smollm2):
    """SmolLM2's tokenizer.json splits digits one by one and then as GPT-2 does: built here from that description."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    from jpo.formats.installed import installed_model

    reader = gguf.GGUFReader(installed_model("smollm2-135m"))
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    merges = [tuple(merge.split(" ")) for merge in reader.fields["tokenizer.ggml.merges"].contents()]
    reference = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    reference.add_special_tokens(tokens[:17])
    reference.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    reference.decoder = decoders.ByteLevel()
    for text in HARD:
        assert smollm2[0].tokenizer.encode(text) == reference.encode(text).ids


def test_smollm2_special_tokens_and_chat_template(smollm2):
    ours, reference = smollm2[0].tokenizer, smollm2[1]
    assert (ours.bos_token_id, ours.eos_token_id) == (reference.bos_token_id, reference.eos_token_id) == (1, 2)
    talk = [
        {"role": "user", "content": "Hé\n🤗"},
        {"role": "assistant", "content": "x"},
        {"role": "user", "content": ""},
    ]
    for messages in (talk[:1], talk, [{"role": "system", "content": "s"}, *talk]):
        for prompt in (True, False):
            expected = reference.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
            assert ours.apply_chat_template(messages, add_generation_prompt=prompt) == expected


def test_smollm2_values_are_those_of_the_gguf_package(smollm2):
    from jpo.formats.installed import installed_model

    reader = {tensor.name: tensor for tensor in gguf.GGUFReader(installed_model("smollm2-135m")).tensors}
    for theirs, name in {
        "token_embd.weight": "model.embed_tokens.weight",
        "blk.7.ffn_down.weight": "model.layers.7.mlp.down_proj.weight",
        "blk.29.attn_v.weight": "model.layers.29.self_attn.v_proj.weight",
        "output_norm.weight": "model.norm.weight",
    }.items():
        expected = gguf.quants.dequantize(reader[theirs].data, reader[theirs].tensor_type)
        np.testing.assert_array_equal(smollm2[0].tensors[name].float32(), expected)
    matrix = reader["blk.3.attn_k.weight"]
    expected = (
        gguf.quants.dequantize(matrix.data, matrix.tensor_type).reshape(3, 32, 2, 576).swapaxes(1, 2).reshape(-1, 576)
    )
    np.testing.assert_array_equal(smollm2[0].tensors["model.layers.3.self_attn.k_proj.weight"].float32(), expected)


@pytest.mark.parametrize("kind", ["F16", "BF16", *BLOCKS])
def test_quantized_types_against_the_gguf_package(tmp_path, kind):
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    number = getattr(gguf.GGMLQuantizationType, kind)
    if kind in BLOCKS:  # any bytes are blocks of these; the package cannot quantize them all
        raw = random_blocks(rng, kind, 272, 256).reshape(272, -1)
    else:
        raw = gguf.quants.quantize(rng.standard_normal((272, 256)).astype(np.float32), number)
    writer.add_tensor("token_embd.weight", raw, raw_dtype=number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    from jpo.formats.gguf import read_gguf

    tensor = read_gguf(tmp_path / "m.gguf").tensors["token_embd.weight"]
    assert tensor.shape == (272, 256) and tensor.dtype == kind
    expected = gguf.quants.dequantize(raw, number)
    assert np.array_equal(tensor.float32().view(np.int32), expected.view(np.int32))  # signs of zero too


@pytest.mark.parametrize("text", HARD)
def test_tiny_ids(tmp_path, text):
    tokenizer = load_checkpoint("tiny").tokenizer
    tokenizer.save(tmp_path)
    ours, theirs = both(tmp_path, tokenizer, text)
    assert ours == theirs and tokenizer.decode(ours) == text


def test_gguf_read_by_transformers_gives_the_same_model(tmp_path):
    meant = write_gguf(tmp_path / "m.gguf")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf")
    ours = load_checkpoint(tmp_path / "m.gguf")
    state = model.state_dict()
    for name in meant:
        np.testing.assert_allclose(ours.tensors[name].float32(), state[name].numpy(), rtol=1e-6, err_msg=name)
    assert model.config.rms_norm_eps == pytest.approx(ours.config["norm_eps"])
    frequencies = model.model.rotary_emb.inv_freq.numpy()
    np.testing.assert_allclose(ours.config["rotary"][0]["inv_freq"], frequencies, rtol=3e-7)


SPM_TEXT = ["the cat sat on the mat", "thethe at-mat, saté 猫 12", "a  b   the\n\nmat", "cat"]


def test_sentencepiece_in_gguf_against_transformers(tmp_path):
    """Merges recovered from scores. By themselves, texts that begin with spaces differ: transformers' class then
    prepends no mark, SentencePiece and llama.cpp always one. Behind another text all three agree, and that is what is
    scored."""
    random = np.random.default_rng(1)
    words = {"".join(random.choice(list("thecasmon\u2581"), size)) for size in (2, 2, 2, 3, 3, 4, 5) for _ in range(60)}
    letters = sorted(set("".join(SPM_TEXT).replace(" ", "\u2581")) - {"\u732b"})
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters]
    tokens += sorted(words - set(tokens))
    from model_files import ARRAY, F32, I32, SHAPE, STRING, U32, llama_metadata, llama_weights

    scores = -random.integers(0, 100, len(tokens)).astype(float)  # ties too
    metadata = llama_metadata(
        general__name=(STRING, "spm"),
        tokenizer__ggml__model=(STRING, "llama"),
        tokenizer__ggml__pre=None,
        tokenizer__ggml__merges=None,
        tokenizer__ggml__tokens=((ARRAY, STRING), tokens),
        tokenizer__ggml__token_type=((ARRAY, I32), [2, 3, 3] + [6] * 256 + [1] * (len(tokens) - 259)),
        tokenizer__ggml__scores=((ARRAY, F32), scores.tolist()),
        tokenizer__ggml__eos_token_id=(U32, 2),
        tokenizer__ggml__unknown_token_id=(U32, 0),
    )
    weights = llama_weights()
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        weights[name] = np.zeros((len(tokens), SHAPE["hidden"]), np.float32)
    write_gguf(tmp_path / "m.gguf", weights, metadata=metadata)
    ours = load_checkpoint(tmp_path / "m.gguf").tokenizer
    reference = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file="m.gguf")
    for text in SPM_TEXT:
        assert ours.encode(text) == reference.encode(text, add_special_tokens=False), text
        assert ours.decode(ours.encode(text)) == text
        for response in (text, f" {text}", f"  {text}", " "):
            joined = reference.encode(f"mat{response}", add_special_tokens=False)
            ids, crossed = ours.response_ids("mat", response)
            assert [*ours.encode("mat"), *ids] == joined or crossed
            assert ours.encode(f"mat{response}") == joined
    assert ours.adds_bos and reference.encode("cat")[0] == 1


def rope(kind, **parameters):
    return {"rope_type": kind, **parameters}


LLAMA3 = rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64)
YARN = rope("yarn", factor=4.0, original_max_position_embeddings=32)


@pytest.mark.parametrize("model_type", ["llama", "mistral"])
@pytest.mark.parametrize("spelling", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize(
    "scaling",
    [
        rope("default"),
        rope("linear", factor=2.5),
        LLAMA3,
        {**LLAMA3, "original_max_position_embeddings": 2048},
        YARN,
        {**YARN, "beta_fast": 16, "beta_slow": 2, "truncate": False},
        {**YARN, "attention_factor": 1.25},
        {**YARN, "mscale": 0.7, "mscale_all_dim": 0.3},
        rope("yarn", factor=2.0),
    ],
)
def test_rope_as_transformers_computes_it(model_type, spelling, scaling):
    base = {"model_type": model_type, "hidden_size": 256, "head_dim": 64, "max_position_embeddings": 4096}
    if spelling == "rope_scaling":
        hf = hf_config(**base, rope_scaling=scaling, rope_theta=50000.0)
    else:
        hf = hf_config(**base, rope_parameters={**scaling, "rope_theta": 50000.0}, rope_theta=None)
    hf["architectures"] = ["LlamaForCausalLM" if model_type == "llama" else "MistralForCausalLM"]
    kind = transformers.LlamaConfig if model_type == "llama" else transformers.MistralConfig
    config = kind(**{key: value for key, value in hf.items() if key not in ("model_type", "architectures")})
    if model_type == "llama":
        from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding as Rotary
    else:
        from transformers.models.mistral.modeling_mistral import MistralRotaryEmbedding as Rotary
    embedding = Rotary(config)
    ours = normalize("c", hf)
    np.testing.assert_allclose(ours["rotary"][0]["inv_freq"], embedding.inv_freq.numpy(), rtol=1e-6)
    assert ours["rotary"][0]["attention_factor"] == pytest.approx(embedding.attention_scaling, rel=1e-9)


@pytest.mark.parametrize("model_type", ["llama", "mistral"])
def test_directories_of_transformers_load_here(tmp_path, model_type):
    kind = "Llama" if model_type == "llama" else "Mistral"
    biases = {"attention_bias": True, "mlp_bias": True} if model_type == "llama" else {"sliding_window": 9}
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=512, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=1, head_dim=16, eos_token_id=[1, 2], tie_word_embeddings=model_type == "llama", **biases,
    )  # fmt: skip
    model = getattr(transformers, f"{kind}ForCausalLM")(config)
    frequencies = model.model.rotary_emb.inv_freq.numpy().copy()
    model.to(torch.bfloat16).save_pretrained(tmp_path, max_shard_size="20KB")
    load_checkpoint("tiny").tokenizer.save(tmp_path)
    assert (tmp_path / "model.safetensors.index.json").exists()
    ours = load_checkpoint(tmp_path)
    for name, value in model.state_dict().items():
        if name != "lm_head.weight" or not config.tie_word_embeddings:
            np.testing.assert_array_equal(ours.tensors[name].float32(), value.float().numpy())
    assert set(ours.config["layer_window"]) == ({0} if model_type == "llama" else {9})
    assert set(ours.config["eos_token_ids"]) == {1, 2}
    np.testing.assert_allclose(ours.config["rotary"][0]["inv_freq"], frequencies, rtol=1e-6)


@pytest.mark.parametrize("tied", [True, False])
def test_transformers_loads_what_is_written_here(tmp_path, tied):
    source = load_checkpoint("tiny")
    hf = {**source.config["hf"], "tie_word_embeddings": tied, "rope_scaling": LLAMA3}
    config = normalize("tiny", hf)
    values = random_tensors(config, seed=3)
    write_checkpoint(tmp_path, config, values, source.tokenizer, {"temperature": 0.5, "do_sample": True})
    model, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    for name, value in values.items():
        np.testing.assert_array_equal(model.state_dict()[name].numpy(), value)
    assert model.config.tie_word_embeddings is tied and model.dtype == torch.float32
    np.testing.assert_allclose(model.model.rotary_emb.inv_freq.numpy(), config["rotary"][0]["inv_freq"], rtol=1e-6)
    assert model.generation_config.eos_token_id == [2] and model.generation_config.temperature == 0.5
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.eos_token_id == 2 and tokenizer.chat_template == source.tokenizer.chat_template


def test_bos_is_added_where_transformers_adds_it(tmp_path):
    from tokenizers import processors

    tokenizer = load_checkpoint("tiny").tokenizer
    tokenizer.backend.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A", pair="<|im_start|> $A <|im_start|> $B", special_tokens=[("<|im_start|>", 1)]
    )
    tokenizer.save(tmp_path)
    from jpo.formats.huggingface import load_tokenizer

    ours = load_tokenizer(str(tmp_path))
    reference = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert ours.adds_bos and reference.encode("x")[0] == 1
    assert ours.encode("x") == reference.encode("x")[1:]


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "v_proj"], r".*\.(up|down)_proj"])
@pytest.mark.parametrize("rslora", [False, True])
def test_adapters_of_peft_load_here_and_back(tmp_path, targets, rslora):
    config = normalize("tiny", load_checkpoint("tiny").config["hf"])
    source = load_checkpoint("tiny")
    write_checkpoint(tmp_path / "base", config, random_tensors(config), source.tokenizer)
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    lora = peft.LoraConfig(r=4, lora_alpha=6, target_modules=targets, use_rslora=rslora, task_type="CAUSAL_LM")
    model = peft.get_peft_model(base, lora)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_B" in name:
                value.normal_()
    model.save_pretrained(tmp_path / "theirs")
    read, tensors = read_adapter(tmp_path / "theirs")
    layer = model.base_model.model.model.layers[0]
    wrapped = layer.mlp.up_proj if isinstance(targets, str) else layer.self_attn.q_proj
    assert read.scaling == pytest.approx(wrapped.scaling["default"])
    write_adapter(tmp_path / "ours", read, tensors)
    ids = torch.arange(3, 40)[None]
    before = model(ids).logits
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    again = peft.PeftModel.from_pretrained(base, tmp_path / "ours").eval()
    assert torch.equal(again(ids).logits, model.eval()(ids).logits) and before.isfinite().all()
    assert not torch.equal(
        again(ids).logits, transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")(ids).logits
    )


def test_written_configuration_is_peft_s(tmp_path):
    config = AdapterConfig(4, 8, 0.1, ("q_proj", "v_proj"), False, "some/base", {"scope": "joint"})
    write_adapter(tmp_path, config, adapter_tensors())
    read = peft.PeftConfig.from_pretrained(tmp_path)
    assert isinstance(read, peft.LoraConfig)
    assert (read.r, read.lora_alpha, read.lora_dropout, read.bias) == (4, 8, 0.1, "none")
    assert set(read.target_modules) == {"q_proj", "v_proj"} and read.base_model_name_or_path == "some/base"
