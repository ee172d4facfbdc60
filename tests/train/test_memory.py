"""Memory is counted before it is taken: the estimate, what is free under limits, refusals and the settings they
name."""

import json
import os
import re
import subprocess
import sys

import pytest

import jpo
from jpo.cli.main import main
from jpo.errors import JpoError
from jpo.memory import free_bytes, size
from jpo.model import LanguageModel
from jpo.study.decoder import random_decoder
from jpo.train import memory
from jpo.train.config import PreferenceConfig, SFTConfig

LONG = [
    {"i_chosen": "Say it. " * 20, "r_chosen": "Yes. " * (20 + n), "i_reject": "Say it. " * 20, "r_reject": "No. "}
    for n in range(6)
]

# the sanitizers' shadow memory counts as the process's own
UNSANITIZED = pytest.mark.skipif("asan" in os.environ.get("LD_PRELOAD", ""), reason="memory is measured")


def trainer(**changes):
    return jpo.PreferenceTrainer(jpo.load("tiny"), LONG, PreferenceConfig(**({"batch_size": 4} | changes)))


# ---- the estimate ---------------------------------------------------------------------------------------------------


def test_the_estimate_covers_what_the_passes_plan():
    """At least the buffers of the real micro-batches, and not far above them."""
    for options in (
        {},
        {"gradient_checkpointing": True},
        {"target_modules": "all-linear", "r": 32},
        {"token_budget": 4000},
    ):
        made = trainer(**options)
        planned = made.dry_run()["buffers_gb"] * 2**30
        assert planned <= 1.01 * made.memory.activations <= 3 * planned, options


def test_a_micro_batch_may_have_more_rows_than_the_model_has_positions():
    """The embedded world's decoder knows 128 positions; its micro-batches have 2048 rows."""
    lm = LanguageModel(random_decoder(0))
    config = SFTConfig(full=True, batch_size=64, token_budget=2048, template="raw")
    one = memory.estimate(lm, config, memory.settings_of(lm, config, [12] * 10))
    many = memory.estimate(lm, config, memory.settings_of(lm, config, [12] * 64))
    assert 4 * one.activations < many.activations < 8 * one.activations


def test_adapter_and_optimizer_are_counted_before_they_exist():
    for options in ({}, {"r": 3, "target_modules": "q_proj,down_proj"}, {"target_modules": "all-linear"}):
        made = trainer(**options)
        values = made.lm.trainable.params.size
        assert made.memory.trained == 8 * values and made.memory.optimizer == 8 * values and made.memory.held == 0


def test_the_adapter_s_part_of_the_activations_is_counted_before_it_exists():
    config = PreferenceConfig(r=16, target_modules="all-linear")
    lm = jpo.load("tiny")
    for recompute in (False, True):
        chosen = memory.Settings(300, 100, recompute, "auto", False)
        before = memory.estimate(lm, config, chosen).activations
        lm.add_lora(r=16, target_modules="all-linear")
        after = memory.estimate(lm, config, chosen).activations
        lm.remove_adapter()
        assert before == pytest.approx(after, rel=0.01)


def test_more_rows_than_the_model_has_positions():
    """A micro-batch holds many texts; it used to be counted as one, beyond the model's positions."""
    lm = jpo.load("tiny")
    rows = 3 * lm.config["max_position_embeddings"] + 7
    chosen = memory.Settings(rows, 100, False, "auto", False)
    one = memory.estimate(lm, PreferenceConfig(), memory.Settings(rows // 3, 100, False, "auto", False)).activations
    assert memory.estimate(lm, PreferenceConfig(), chosen).activations == pytest.approx(3 * one, rel=0.02)


def test_full_fine_tuning_is_counted():
    lm = jpo.load("tiny")
    examples = [{"instruction": "say", "response": "hello there"}] * 4
    made = jpo.SFTTrainer(lm, examples, SFTConfig(full=True, batch_size=4))
    assert made.memory.trained == 8 * lm.values() == 8 * lm.trainable.params.size
    assert made.memory.activations >= made.dry_run()["buffers_gb"] * 2**30


@pytest.mark.parametrize("storage", ["float32", "bfloat16", "q8_0"])
def test_weights_are_counted_as_they_are_held(storage):
    from jpo.storage import stored_as

    lm = jpo.load("tiny")
    made = sum(stored_as(tensor, storage)[1].nbytes for tensor in lm._checkpoint.tensors.values())
    assert lm.stored_bytes(storage) == made


# ---- refusals -------------------------------------------------------------------------------------------------------


def refused(free, config):
    made = trainer()
    lengths = [pair.tokens for pair in made.pairs]
    lm = jpo.load("tiny")
    with pytest.raises(JpoError) as error:
        memory.check(lm, config, lengths, free)
    return lm, lengths, str(error.value)


def test_a_run_that_cannot_fit_is_refused_with_three_settings_that_do():
    config = PreferenceConfig(batch_size=4, token_budget=4000)
    lm = jpo.load("tiny")
    lengths = [pair.tokens for pair in trainer().pairs]
    whole = memory.check(lm, config, lengths)
    free = int(0.6 * whole.total)
    lm, lengths, text = refused(free, config)
    assert f"needs about {size(whole.total)}" in text and f"{size(free)} can be had here" in text
    assert "--no-check-memory" in text and "activations" in text
    lines = text[text.index("what would fit:") :].splitlines()[1:-1]
    assert 1 <= len(lines) <= 3
    flags = {"--gradient-checkpointing": {"gradient_checkpointing": True}, "--storage q8_0": {"storage": "q8_0"}}
    for line in lines:  # each is tried: the run with these flags is let through
        changed = {}
        for flag, value in flags.items():
            changed |= value if flag in line else {}
        budget = re.search(r"--token-budget (\d+)", line)
        changed |= {"token_budget": int(budget[1])} if budget else {}
        if length := re.search(r"--max-length (\d+)", line):
            changed["max_length"] = int(length[1])
        again = jpo.load("tiny", storage=changed.get("storage", "auto"))
        options = {"batch_size": 4, "token_budget": 4000} | changed
        tried = jpo.PreferenceTrainer(again, LONG, PreferenceConfig(**options))
        assert tried.memory.total - tried.memory.held <= free, line


def test_where_nothing_fits_the_smallest_is_named():
    text = refused(1000, PreferenceConfig(batch_size=4))[2]
    assert "none of the settings is small enough; the smallest is" in text and "take a smaller model" in text


def test_the_check_can_be_turned_off(monkeypatch):
    monkeypatch.setattr("jpo.train.memory.free_bytes", lambda: 1000)
    with pytest.raises(JpoError, match="this run needs about"):
        trainer()
    assert trainer(check_memory=False).memory.total > 1000


def large_model(folder):
    """A Llama of 400 GB as a sparse file: only its header takes place on the disk."""
    hidden, width, layers, vocabulary = 8192, 28672, 120, 512
    jpo.load("tiny").merge(folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_size": hidden, "intermediate_size": width, "num_hidden_layers": layers, "num_attention_heads": 64,
               "num_key_value_heads": 8, "head_dim": 128}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    shapes = {"model.embed_tokens.weight": (vocabulary, hidden), "model.norm.weight": (hidden,)}
    rows = {"self_attn.q_proj": (8192, hidden), "self_attn.k_proj": (1024, hidden), "self_attn.v_proj": (1024, hidden),
            "self_attn.o_proj": (hidden, 8192), "mlp.gate_proj": (width, hidden), "mlp.up_proj": (width, hidden),
            "mlp.down_proj": (hidden, width), "input_layernorm": (hidden,), "post_attention_layernorm": (hidden,)}  # fmt: skip
    for layer in range(layers):
        shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in rows.items()}
    header, end = {}, 0
    for name, shape in shapes.items():
        count = 4
        for extent in shape:
            count *= extent
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [end, end + count]}
        end += count
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(folder / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return end


@UNSANITIZED
def test_a_dry_run_of_a_model_far_too_large_answers_without_allocating(tmp_path):
    bytes_of = large_model(tmp_path / "large")
    command = [sys.executable, "-c", "import re, resource, sys; resource.setrlimit(resource.RLIMIT_DATA, (2 << 30, 2 << 30));"
               "from jpo.cli.main import main; status = main(sys.argv[1:]);"
               "print(re.search(r'VmHWM:.*', open('/proc/self/status').read())[0]); sys.exit(status)"]  # fmt: skip
    for more in (["train", "--data", "example"], ["train", "--data", "example", "--storage", "float32"]):
        result = subprocess.run([*command, *more, "--model", str(tmp_path / "large"), "--dry-run"], capture_output=True,
                                text=True, timeout=300)  # fmt: skip
        assert result.returncode == 1, result.stdout
        assert size(bytes_of) in result.stderr and "Traceback" not in result.stderr
        assert int(re.search(r"VmHWM:\s+(\d+) kB", result.stdout)[1]) < 600 * 1024


def test_a_dry_run_prints_the_estimate_as_a_table(capsys):
    assert main(["train", "--model", "tiny", "--data", "example", "--dry-run"]) == 0
    text = capsys.readouterr().out
    for word in ("pairs", "tokens per epoch", "trained values", "activations", "together", "time of a step by compute"):
        assert re.search(rf"│ +{word} +│", text), word


# ---- what is free ---------------------------------------------------------------------------------------------------


def fake_system(folder, available_kb=8 << 20):
    (folder / "meminfo").write_text(f"MemTotal: 99999999 kB\nMemAvailable: {available_kb} kB\n")
    return {"root": str(folder / "cgroup"), "own": str(folder / "self"), "meminfo": str(folder / "meminfo")}


def group(folder, limit, used, stat="", version=2):
    folder.mkdir(parents=True, exist_ok=True)
    names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(stat)


def test_free_memory_without_groups(tmp_path):
    assert free_bytes(**fake_system(tmp_path)) == 8 << 30


def test_the_tightest_group_above_counts_and_file_pages_are_free(tmp_path):
    where = fake_system(tmp_path)
    (tmp_path / "self").write_text("0::/a/b\n")
    group(tmp_path / "cgroup/a/b", "max", 0)
    group(tmp_path / "cgroup/a", 3 << 30, 2 << 30, f"anon 5\ninactive_file {1 << 29}\nactive_file {1 << 28}\n")
    assert free_bytes(**where) == (1 << 30) + (1 << 29) + (1 << 28)


def test_groups_of_version_1(tmp_path):
    where = fake_system(tmp_path)
    (tmp_path / "self").write_text("4:cpu,memory:/docker/x\n1:pids:/\n")
    group(tmp_path / "cgroup/memory", 2 << 30, 1 << 30, "total_inactive_file 0\ntotal_active_file 4096\n", version=1)
    assert free_bytes(**where) == (1 << 30) + 4096  # the path is the host's: only the root is seen here
    group(tmp_path / "cgroup/memory", 9223372036854771712, 1 << 30, version=1)
    assert free_bytes(**where) == 8 << 30


def test_a_real_limit_is_seen():
    assert 0 < free_bytes() <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
