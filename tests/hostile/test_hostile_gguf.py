"""Malformed GGUF files: each form an error that names the file and what is wrong, in no time and no memory."""

import os
import random
import struct

import numpy as np
import pytest
from model_files import (
    ARRAY,
    F32,
    GGML,
    I32,
    STRING,
    U8,
    U32,
    U64,
    gguf_bytes,
    gguf_tensors,
    llama_metadata,
    llama_weights,
    text,
    typed,
    write_gguf,
)

import jpo
from jpo.errors import FormatError
from jpo.formats import load_checkpoint
from jpo.formats.gguf import read_gguf
from tests.peak_memory import grown

BIG = 1 << 62


def refusal(tmp_path, raw, load=load_checkpoint):
    path = tmp_path / "m.gguf"
    path.write_bytes(raw)
    with grown() as growth, pytest.raises(FormatError) as caught:
        load(str(path))
    assert growth.bytes < 64 << 20, f"{growth.bytes} bytes were allocated for a file of {len(raw)}"
    assert str(path) in str(caught.value)
    return str(caught.value)


def whole(metadata=None, tensors=None, **options):
    made = gguf_tensors(llama_weights())[0] if tensors is None else tensors
    return gguf_bytes(llama_metadata() if metadata is None else metadata, made, **options)


def one(name="t", dims=(4,), kind=GGML["F32"], raw=b"\0" * 16):
    return [(name, dims, kind, raw)]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "0 bytes are too few"),
        (b"GGUF", "4 bytes are too few"),
        (gguf_bytes([], [], magic=b"GGML"), "not a GGUF file: begins with b'GGML'"),
        (gguf_bytes([], [], version=1), "version 1 is not supported"),
        (gguf_bytes([], [], version=0), "version 0 is not supported"),
        (gguf_bytes([], [], version=3 << 24), "big-endian"),
        (gguf_bytes([], [], counts=(BIG, 0)), "cannot fit"),
        (gguf_bytes([], [], counts=(0, BIG)), "cannot fit"),
        (gguf_bytes([struct.pack("<QQ", BIG, 0)], []), "metadata key"),
        (gguf_bytes([text("k") + struct.pack("<I", 13)], []), "key k: unknown value type 13"),
        (gguf_bytes([text("k") + struct.pack("<IQ", STRING, BIG)], []), "key k"),
        (gguf_bytes([text("k") + struct.pack("<IQ", STRING, (1 << 64) - 1)], []), "key k"),
        (gguf_bytes([text("k") + struct.pack("<IIQ", ARRAY, U32, BIG)], []), "key k"),
        (gguf_bytes([text("k") + struct.pack("<IIQ", ARRAY, U64, (1 << 64) - 1)], []), "key k"),
        (gguf_bytes([text("k") + struct.pack("<IIQ", ARRAY, STRING, BIG)], []), "key k"),
        (gguf_bytes([text("k") + struct.pack("<IIQQ", ARRAY, STRING, 1, BIG)], []), r"key k[0]"),
        (gguf_bytes([text("k") + struct.pack("<IIQ", ARRAY, ARRAY, 1)], []), "arrays of value type 9"),
        (gguf_bytes([text(b"\xff")], []), "not valid UTF-8"),
        (gguf_bytes([text("k") + struct.pack("<I", STRING) + text(b"\xc3")], []), "key k: not valid UTF-8"),
        (gguf_bytes([("k", (ARRAY, STRING), [b"\xff"])], []), "key k: a string is not valid UTF-8"),
        (gguf_bytes([("k", U32, 1), ("k", U32, 2)], []), "key k stands twice"),
        (gguf_bytes([("general.alignment", U32, 0)], []), "general.alignment"),
        (gguf_bytes([("general.alignment", U32, 24)], []), "general.alignment"),
        (gguf_bytes([("general.alignment", U32, 1 << 30)], []), "general.alignment"),
        (gguf_bytes([("general.alignment", STRING, "32")], []), "general.alignment"),
        (gguf_bytes([], one(dims=())), "tensor t: rank 0"),
        (gguf_bytes([], one(dims=(1, 1, 1, 1, 4))), "tensor t: rank 5"),
        (gguf_bytes([], one(dims=(0,))), "tensor t: dimension 0"),
        (gguf_bytes([], one(dims=((1 << 64) - 1,))), "tensor t: dimension 18446744073709551615"),
        (gguf_bytes([], one(dims=(1 << 40, 1 << 40, 1 << 40, 1 << 40))), "tensor t"),
        (gguf_bytes([], one(dims=(1 << 32, 1 << 32))), "tensor t"),
        (gguf_bytes([], one(dims=(5,))), "tensor t: 20 bytes at data offset 0 pass the end"),
        (gguf_bytes([], one(dims=(48,), kind=GGML["Q8_0"])), "no multiple of Q8_0's block of 32"),
        (gguf_bytes([], one(kind=99)), "tensor t: type 99 is not implemented"),
        (gguf_bytes([], one(), places={"t": 32}), "tensor t: 16 bytes at data offset 32 pass the end"),
        (gguf_bytes([], one(), places={"t": (1 << 64) - 32}), "tensor t"),
        (gguf_bytes([], one(), places={"t": 8}), "no multiple of the alignment"),
        (gguf_bytes([], one() + one()), "tensor t stands twice"),
        (gguf_bytes([], one(name=b"\xff")), "tensor name: not valid UTF-8"),
    ],
)
def test_container(tmp_path, raw, message):
    assert message in refusal(tmp_path, raw, read_gguf)


def change(**changes):
    return whole(llama_metadata(**changes))


def tensors_but(drop=None, **replace):
    made = [entry for entry in gguf_tensors(llama_weights())[0] if entry[0] != drop]
    return [(name, *replace.get(name.replace(".", "__"), rest)) for name, *rest in made]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (change(general__architecture=None), "general.architecture"),
        (change(general__architecture=(U32, 1)), "general.architecture"),
        (change(llama__embedding_length=None), "embedding_length is missing"),
        (change(llama__embedding_length=(F32, float("nan"))), "embedding_length"),
        (change(llama__embedding_length=(STRING, "64")), "embedding_length"),
        (change(llama__embedding_length=(U32, 0)), "embedding_length"),
        (
            change(llama__embedding_length=(U32, 65)),
            "embed_tokens.weight: the configuration needs shape (272, 65)|rope.dimension_count",
        ),
        (change(llama__embedding_length=(U32, 128)), "dimension_count"),
        (change(llama__block_count=(U32, 3)), "num_hidden_layers = 3 needs 29 tensors or more, got 21"),
        (change(llama__block_count=(U32, 1)), "model.layers.1."),
        (
            change(llama__block_count=(U32, (1 << 31) - 1)),
            "key num_hidden_layers: expected at most 2^14, got 2147483647",
        ),
        (change(llama__block_count=(U64, BIG)), "block_count"),
        (change(llama__block_count=(I32, -1)), "block_count"),
        (change(llama__attention__head_count=(U32, 0)), "head_count"),
        (change(llama__attention__head_count=((ARRAY, U32), [])), "head_count"),
        (change(llama__attention__head_count=((ARRAY, STRING), ["4"])), "head_count"),
        (change(llama__attention__head_count_kv=(U32, 3)), "num_key_value_heads"),
        (change(llama__attention__head_count_kv=(U32, 4)), "k_proj.weight"),
        (change(llama__attention__layer_norm_rms_epsilon=(F32, float("nan"))), "layer_norm_rms_epsilon"),
        (change(llama__attention__layer_norm_rms_epsilon=(F32, -1.0)), "layer_norm_rms_epsilon"),
        (change(llama__rope__freq_base=(F32, float("inf"))), "rope.freq_base"),
        (change(llama__rope__freq_base=(F32, 0.5)), "rope_theta"),
        (change(llama__rope__scaling__type=(STRING, "linear"), llama__rope__scaling__factor=(STRING, "x")), "factor"),
        (
            change(llama__rope__scaling__type=(STRING, "yarn"), llama__rope__scaling__yarn_beta_fast=(STRING, "x")),
            "beta",
        ),
        (change(llama__rope__scaling__type=(U32, 1)), "rope.scaling.type"),
        (change(llama__context_length=(U32, 0)), "context_length"),
        (change(llama__attention__key_length=(U32, 1 << 30)), "head size|head_dim|dimension_count"),
        (whole(tensors=tensors_but(drop="blk.1.ffn_up.weight")), "layers.1.mlp.up_proj.weight is missing"),
        (whole(tensors=tensors_but(drop="token_embd.weight")), "token_embd.weight is missing"),
        (
            whole(tensors=[*tensors_but(), *one("blk.0.attn_q_norm.weight")]),
            "layers.0.self_attn.q_norm.weight is unexpected",
        ),
        (whole(tensors=[*tensors_but(), *one("blk.x.attn_q.weight")]), "blk.x.attn_q.weight: no such tensor"),
        (
            whole(tensors=[*tensors_but(), *one("blk.9.attn_q.weight")]),
            "layers.9.self_attn.q_proj.weight is unexpected",
        ),
        (whole(tensors=[*tensors_but(), *one("blk.0.attn_v.bias")]), "v_proj.bias is unexpected"),
        (whole(tensors=[*tensors_but(), *one("blk.0.attn_q.bias")]), "bias"),
        (
            whole(tensors=tensors_but(blk__0__attn_q__weight=((32, 64), 0, b"\0" * 8192))),
            r"q_proj.weight: the configuration needs shape (64, 64), got (64, 32)",
        ),
        (
            whole(tensors=tensors_but(output_norm__weight=((8, 8), 0, b"\0" * 256))),
            "norm.weight: the configuration needs shape (64,), got (8, 8)",
        ),
    ],
)
def test_architecture(tmp_path, raw, message):
    got = refusal(tmp_path, raw)
    assert any(part in got for part in message.split("|")), got


def test_truncated_anywhere(tmp_path):
    """Cut at every byte of header and infos, and through the data: always this error, never another."""
    tokens = [chr(97 + i) for i in range(4)]
    small = [("general.architecture", STRING, "llama"), ("t", (ARRAY, STRING), tokens), ("n", (ARRAY, I32), [1, 2])]
    raw = gguf_bytes(small, one("blk.0.attn_q.weight", (8, 8), raw=b"\1" * 256))
    read = tmp_path / "whole.gguf"
    read.write_bytes(raw)
    assert len(read_gguf(read).tensors) == 1
    for end in range(len(raw)):
        refusal(tmp_path, raw[:end], read_gguf)


def test_a_missing_file_and_a_folder(tmp_path):
    with pytest.raises(FormatError, match="cannot be read"):
        read_gguf(tmp_path / "none.gguf")
    with pytest.raises(FormatError, match="cannot be read"):
        read_gguf(tmp_path)


@pytest.mark.parametrize("seed", range(8))
def test_random_changes_never_crash(tmp_path, seed):
    """Bytes of a valid file changed at random, mostly in its header: it loads, or says FormatError."""
    made = random.Random(seed)
    raw = whole()
    head = raw.index(b"token_embd.weight") + 4000
    path = tmp_path / "m.gguf"
    loaded = 0
    for _ in range(60):
        changed = bytearray(raw)
        for _ in range(made.choice((1, 1, 2, 8))):
            place = made.randrange(head if made.random() < 0.9 else len(raw))
            changed[place] = made.choice((0, 1, 0x7F, 0x80, 0xFF, made.randrange(256)))
        path.write_bytes(changed)
        try:
            load_checkpoint(path)
            loaded += 1
        except FormatError as error:
            assert str(path) in str(error)
    assert loaded < 60  # some change must have been noticed


def test_values_of_every_type_where_another_is_expected(tmp_path):
    """Each metadata entry in turn as another type: loads or FormatError."""
    base = llama_metadata()
    others = [(U8, 3), (F32, float("nan")), (STRING, ""), ((ARRAY, U8), [1]), ((ARRAY, STRING), []), (7, True)]
    path = tmp_path / "m.gguf"
    tensors = gguf_tensors(llama_weights())[0]
    for index, (key, *_) in enumerate(base):
        for other in others:
            changed = [*base[:index], (key, *other), *base[index + 1 :]]
            path.write_bytes(gguf_bytes(changed, tensors))
            try:
                load_checkpoint(path)
            except FormatError as error:
                assert str(path) in str(error)
    assert typed(U8, 3)


def test_overlapping_tensors_take_no_memory(tmp_path):
    """2.5 MB of file that stand for 4 GB of tensors."""
    raw = b"\0" * (1 << 20)
    many = [(f"blk.{i}.ffn_up.weight", (1 << 18, 1), GGML["F32"], b"") for i in range(4000)]
    made = [("token_embd.weight", (1 << 18, 1), GGML["F32"], raw), *many]
    changed = gguf_bytes([], made, places=dict.fromkeys((name for name, *_ in many), 0))
    assert "overlap those of tensor" in refusal(tmp_path, changed, read_gguf)


@pytest.mark.parametrize("offset", [0, 32, 64, 96])
def test_one_byte_of_overlap(tmp_path, offset):
    """Two tensors of 36 bytes: apart from 64 on."""
    both = [("a", (9,), GGML["F32"], b"\0" * 36), ("b", (9,), GGML["F32"], b"\0" * 200)]
    raw = gguf_bytes([], both, places={"b": offset})
    if offset >= 64:
        (tmp_path / "m.gguf").write_bytes(raw)
        assert len(read_gguf(tmp_path / "m.gguf").tensors) == 2
    else:
        assert "tensor b: its bytes from offset" in refusal(tmp_path, raw, read_gguf)


def test_a_fifo_is_refused_at_once(tmp_path):
    path = tmp_path / "m.gguf"
    os.mkfifo(path)
    for load in (read_gguf, load_checkpoint):
        with pytest.raises(FormatError, match="not a regular file"):
            load(str(path))


@pytest.mark.parametrize(("dtype", "where"), [("F32", 5), ("F16", 2 * 64 + 6), ("Q8_0", 34), ("Q4_1", 2)])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path, dtype, where):
    """A value, or a factor or offset of a block, of one tensor in the middle."""
    path, name = tmp_path / "m.gguf", "blk.1.ffn_down.weight"
    tensors = []
    for entry, dims, kind, raw in gguf_tensors(llama_weights(), dtype)[0]:
        changed = bytearray(raw)
        if entry == name:
            changed[where : where + 2] = b"\xff\x7f" if dtype != "F32" else changed[where : where + 2]
            if dtype == "F32":
                changed[20:24] = struct.pack("<f", float("-inf"))
        tensors.append((entry, dims, kind, bytes(changed)))
    path.write_bytes(gguf_bytes(llama_metadata(), tensors))
    with pytest.raises(
        FormatError, match=r"model.layers.1.mlp.down_proj.weight: the .* is NaN or infinite.*--no-check"
    ):
        jpo.load(path)
    lm = jpo.load(path, check=False)
    assert not np.isfinite(lm.sequence_logps(["he"], [" wor"])).all()


def test_a_file_cut_after_it_was_loaded(tmp_path):
    """Refused at the next call, where reading on would end the process."""
    path = tmp_path / "m.gguf"
    write_gguf(path)
    lm = jpo.load(path)
    assert np.isfinite(lm.sequence_logps(["he"], [" wor"])).all()
    os.truncate(path, os.path.getsize(path) - 4096)
    for call in (
        lambda: lm.sequence_logps(["he"], [" wor"]),
        lambda: lm.generate(["he"], max_new_tokens=2),
        lambda: lm.logits([5, 6]),
        lambda: lm.mean_hidden([[5, 6]]),
    ):
        with pytest.raises(FormatError, match="when it was loaded and now has"):
            call()
