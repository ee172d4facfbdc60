"""Modelfiles: what Ollama's template writes is what the model's own chat template or the text template writes."""

import copy
import re

import pytest
from export import go_template
from export.adapters import tiny_adapter

import jpo
from jpo import export
from jpo.data.templates import Template
from jpo.export.modelfile import chat_turns, modelfile, text_turns, turns_of
from jpo.formats import chat, load_checkpoint, write_checkpoint

# published chat templates, shortened to what a conversation of user and assistant meets
_ROLES = "{% for m in messages %}"
CHATS = {
    "chatml": f"{_ROLES}{{{{'<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n'}}}}{{% endfor %}}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "smollm2": f"{_ROLES}{{% if loop.first and m.role != 'system' %}}"
    "{{ '<|im_start|>system\nYou are SmolLM.<|im_end|>\n' }}"
    "{% endif %}{{'<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "llama3.1": "{{ '<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n\n' }}"
    "{% if messages[0].role == 'system' %}{{ messages[0].content }}{% set messages = messages[1:] %}{% endif %}"
    f"{{{{ '<|eot_id|>' }}}}{_ROLES}"
    "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
    "gemma": "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    f"{_ROLES}{{% set role = 'model' if m.role == 'assistant' else m.role %}}"
    "{{ '<start_of_turn>' + role + '\n' + m.content | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}",
    "gemma3": "{% set first = '' %}{% if messages[0].role == 'system' %}{% set first = messages[0].content + '\n\n' %}"
    f"{{% set messages = messages[1:] %}}{{% endif %}}{_ROLES}"
    "{% set role = 'model' if m.role == 'assistant' else m.role %}"
    "{{ '<start_of_turn>' + role + '\n' + (first if loop.first else '') + m.content | trim + '<end_of_turn>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}",
    "phi3": f"{_ROLES}{{{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}}}{{% endfor %}}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}",
    "mistral": f"{_ROLES}{{% if m.role == 'user' %}}{{{{ '[INST] ' + m.content + ' [/INST]' }}}}"
    "{% elif m.role == 'assistant' %}{{ m.content + '</s>' }}{% else %}{{ raise_exception('roles') }}{% endif %}"
    "{% endfor %}",
    "braces": f"{_ROLES}{{{{ '{{{{ \"' + m.role + '\" }}}} \"\"\" ' + m.content + '\n' }}}}{{% endfor %}}"
    '{% if add_generation_prompt %}{{ \'{{ "assistant" }} """ \' }}{% endif %}',
}
TALKS = (
    [{"role": "user", "content": "What is {{ 2 + 2 }}?"}],
    [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b\n\nc"}, {"role": "user", "content": "d"}],
    [{"role": role, "content": f"text {i}"} for i, role in enumerate(("user", "assistant") * 2 + ("user",))],
)


def tokenizer(chat=None):
    found = copy.copy(load_checkpoint("tiny").tokenizer)
    if chat is not None:
        found.chat_template = chat
    return found


def parsed(text):
    """(TEMPLATE's text, SYSTEM's text or "") of a Modelfile."""
    blocks = dict(re.findall(r'^(TEMPLATE|SYSTEM) """(.*?)"""$', text, re.DOTALL | re.MULTILINE))
    return blocks["TEMPLATE"], blocks.get("SYSTEM", "")


@pytest.mark.parametrize("name", CHATS)
def test_ollamas_text_is_the_chat_templates(name):
    own = tokenizer(CHATS[name])
    turns = chat_turns(own)
    template, system = parsed(modelfile("./m.gguf", None, turns, own, {}))
    talks = list(TALKS)
    if turns.system is not None:
        talks += [[{"role": "system", "content": "Be brief."}, *talk] for talk in TALKS]
    for talk in talks:
        assert go_template.conversation(template, talk, system) == own.apply_chat_template(talk)
    assert (turns.system is None) == (name in ("gemma", "mistral"))


def test_a_template_without_such_a_form_is_left_out():
    numbered = "{% for m in messages %}{{ loop.index ~ m.content ~ '\n' }}{% endfor %}"
    own = tokenizer(numbered)
    assert chat_turns(own) is None
    text = modelfile("./m.gguf", None, None, own, {})
    assert "# No TEMPLATE" in text and not re.search("^TEMPLATE", text, re.MULTILINE)


def test_a_template_that_takes_too_long_is_left_out_and_said(tmp_path, monkeypatch, capsys):
    tiny_adapter(tmp_path / "adapter")
    endless = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    tiny = load_checkpoint("tiny")
    write_checkpoint(tmp_path / "base", tiny.config, jpo.load("tiny").state(), tokenizer(endless))
    monkeypatch.setattr(chat, "SECONDS", 0.2)
    export.merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "m")
    assert "# No TEMPLATE: chat template: it took longer than" in (tmp_path / "m" / "Modelfile").read_text()
    assert "Modelfile has no TEMPLATE: chat template: it took longer than" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["spaced", "paper", "tldr", "raw", "Q {{x}}: {instruction}\nA:{response}"])
def test_text_templates(name):
    template = Template.named(name)
    go = text_turns(template).go()
    for instruction in ("Why?", "{{ .System }} {instruction}"):
        assert go_template.conversation(go, [{"role": "user", "content": instruction}]) == template.prompt_text(
            instruction
        )
    assert turns_of({"template": template.to_dict()}, tokenizer()) == text_turns(template)


def test_parameters_and_places(tmp_path):
    """Beside each output stands a Modelfile of it; one that a person wrote stays."""
    tiny_adapter(tmp_path / "adapter", extra={"template": Template.named("spaced").to_dict()})
    export.merge("tiny", tmp_path / "adapter", tmp_path / "base.gguf", format="gguf", type="q8_0")
    assert (tmp_path / "Modelfile").read_text().splitlines()[1:] == [
        "FROM ./base.gguf",
        'TEMPLATE """### Instructions: {{ .Prompt }}',
        "",
        '### Response:{{ .Response }}"""',
        'PARAMETER stop "<|im_end|>"',
    ]
    (tmp_path / "lora").mkdir()
    export.export_adapter(tmp_path / "base.gguf", tmp_path / "adapter", tmp_path / "lora" / "a.gguf")
    lines = (tmp_path / "lora" / "Modelfile").read_text().splitlines()
    assert lines[1:3] == [f"FROM {tmp_path / 'base.gguf'}", "ADAPTER ./a.gguf"]
    export.merge("tiny", tmp_path / "adapter", tmp_path / "hf")
    assert (tmp_path / "hf" / "Modelfile").read_text().splitlines()[1] == "FROM ."
    (tmp_path / "Modelfile").write_text("FROM mine\n")
    export.merge("tiny", tmp_path / "adapter", tmp_path / "2.gguf", format="gguf")
    assert (tmp_path / "Modelfile").read_text() == "FROM mine\n"
    text = modelfile(
        "x", None, None, tokenizer(), {"temperature": 0.6, "top_k": 20, "repetition_penalty": 1.1, "do_sample": True}
    )
    assert text.splitlines()[-3:] == ["PARAMETER temperature 0.6", "PARAMETER top_k 20", "PARAMETER repeat_penalty 1.1"]
