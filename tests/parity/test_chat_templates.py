"""Chat templates of the families: text and ids equal to transformers' apply_chat_template, through the sandbox.

Templates of our own in each family's style, and llama.cpp's collection of the published ones (JPO_LLAMA_CPP, as in
test_gguf_vocabularies.py).
"""

import re

import jinja2
import pytest
import transformers
from model_files import ARRAY, BOOL, I32, STRING, U32, byte_vocabulary, llama_metadata, write_gguf
from parity.test_gguf_vocabularies import llama_cpp

from jpo.data.encoding import Encoder
from jpo.data.templates import Template
from jpo.errors import JpoError
from jpo.formats import load_checkpoint

CHATML = (
    "{%- for message in messages %}{%- if loop.first and message.role != 'system' %}"
    "{{- '<|im_start|>system\nBe brief.<|end|>\n' }}{%- endif %}"
    "{{- '<|im_start|>' + message.role + '\n' + message.content + '<|end|>' + '\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
TEMPLATES = {
    "qwen": CHATML,
    "gemma": (
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Roles must alternate') }}{% endif %}"
        "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
        "{{ '<turn>' + role + '\n' + message['content'] | trim + '<|end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<turn>model\n' }}{% endif %}"
    ),
    "llama-3": (
        "{%- set ns = namespace(system='') %}{%- if messages[0]['role'] == 'system' %}"
        "{%- set ns.system = messages[0]['content']|trim %}{%- set messages = messages[1:] %}{%- endif %}"
        "{{- bos_token }}{{- 'system\n\nDate: ' ~ strftime_now('%d %b') ~ '\n' ~ ns.system ~ '<|end|>' }}"
        "{%- for m in messages %}{{- '<h>' + m['role'] + '</h>\n\n' + m['content'] | trim + '<|end|>' }}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<h>assistant</h>\n\n' }}{%- endif %}"
    ),
    "phi-3": (
        "{% for message in messages %}{% if message['role'] == 'system' and message['content'] %}"
        "{{'<system>\n' + message['content'] + '<|end|>\n'}}{% elif message['role'] == 'user' %}"
        "{{'<user>\n' + message['content'] + '<|end|>\n'}}{% elif message['role'] == 'assistant' %}"
        "{{'<assistant>\n' + message['content'] + '<|end|>\n'}}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<assistant>\n' }}{% else %}{{ eos_token }}{% endif %}"
    ),
    "mistral": (
        "{%- if messages[0].role == 'system' %}{%- set system = messages[0].content %}{%- set loop_messages = messages[1:] %}"
        "{%- else %}{%- set loop_messages = messages %}{%- endif %}{{- bos_token }}"
        "{%- for m in loop_messages %}{%- if m.role == 'user' %}{%- if loop.last and system is defined %}"
        "{{- '[INST] ' + system + '\n\n' + m.content + '[/INST]' }}{%- else %}{{- '[INST] ' + m.content + '[/INST]' }}"
        "{%- endif %}{%- elif m.role == 'assistant' %}{{- ' ' + m.content|trim + eos_token }}{%- else %}"
        "{{- raise_exception('Only user and assistant roles are supported') }}{%- endif %}{%- endfor %}"
    ),
    "granite": (
        "{%- if messages[0]['role'] != 'system' %}{{- '<r>system</r>Today is ' ~ strftime_now('%B %d, %Y') ~ '.<|end|>\n' }}"
        "{%- endif %}{%- for message in messages %}"
        "{{- '<r>' + message['role'] + '</r>' + message['content'] + '<|end|>\n' }}"
        "{%- if loop.last and add_generation_prompt %}{{- '<r>assistant</r>' }}{%- endif %}{%- endfor %}"
    ),
    "command-r": (
        "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
        "{{ '<S><U>' + message['content'].strip() + '<|end|>' }}{% elif message['role'] == 'assistant' %}"
        "{{ '<S><C>' + message['content'].strip() + '<|end|>' }}{% else %}{{ '<S>' + message['content'] + '<|end|>' }}"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<S><C>' }}{% endif %}"
    ),
    "smollm3": (
        "{% for message in messages %}{% if message.role == 'assistant' %}{% generation %}"
        "{{ '<|im_start|>assistant\n' + message.content.lstrip('\n') + '<|end|>\n' }}{% endgeneration %}"
        "{% elif message.role != 'system' or message.content %}"
        "{{ '<|im_start|>' + message.role + '\n' + message.content + '<|end|>\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
}
TALK = [
    {"role": "user", "content": " Hello wor 12\n🤗 "},
    {"role": "assistant", "content": 'he said: "hé" <b>&amp;</b>  '},
    {"role": "user", "content": "and?"},
    {"role": "assistant", "content": "\nnothing"},
]
CONVERSATIONS = [TALK[:1], TALK[:2], TALK[:3], TALK, [{"role": "system", "content": "Be kind. "}, *TALK[:3]]]


def pair(folder, template):
    """(our tokenizer, transformers') of one small byte-level vocabulary with this chat template."""
    tokens, types, merges = byte_vocabulary()
    changes = {
        "tokenizer__chat_template": (STRING, template),
        "tokenizer__ggml__tokens": ((ARRAY, STRING), tokens),
        "tokenizer__ggml__token_type": ((ARRAY, I32), types),
        "tokenizer__ggml__merges": ((ARRAY, STRING), merges),
        "tokenizer__ggml__eos_token_id": (U32, 0),
        "tokenizer__ggml__add_bos_token": (BOOL, "bos_token" in template),
    }
    write_gguf(folder / "m.gguf", metadata=llama_metadata(**changes))
    ours = load_checkpoint(folder / "m.gguf").tokenizer
    ours.save(folder)
    return ours, transformers.AutoTokenizer.from_pretrained(folder)


def rendered(call):
    """The text, or the fact that the template refused the conversation."""
    try:
        return call()
    except (JpoError, jinja2.TemplateError, TypeError) as error:
        return "refused", str(error) and "refused"


@pytest.mark.parametrize("family", TEMPLATES)
def test_texts_and_ids_of_the_families_styles(tmp_path, family):
    ours, theirs = pair(tmp_path, TEMPLATES[family])
    texts = set()
    for messages in CONVERSATIONS:
        for prompt in (True, False):
            expected = rendered(
                lambda m=messages, p=prompt: theirs.apply_chat_template(m, tokenize=False, add_generation_prompt=p)
            )
            got = rendered(lambda m=messages, p=prompt: ours.apply_chat_template(m, add_generation_prompt=p))
            assert got == expected
            texts.add(got)
            if isinstance(got, str):
                ids = theirs.apply_chat_template(messages, add_generation_prompt=prompt, return_dict=False)
                assert ours.encode(got) == ids
    assert len(texts) >= 5


@pytest.mark.parametrize("family", TEMPLATES)
def test_training_sees_the_ids_of_apply_chat_template(tmp_path, family):
    """Prompt, response and end under template="chat": transformers' ids up to the end of the answer."""
    ours, theirs = pair(tmp_path, TEMPLATES[family])
    encoder = Encoder(ours, Template.named("chat", ours))
    for end in (2, 4):
        turns = TALK[:end]
        got = encoder.encode(turns[:-1], turns[-1:])
        prompt = theirs.apply_chat_template(turns[:-1], add_generation_prompt=True, return_dict=False)
        whole = theirs.apply_chat_template(turns, return_dict=False)
        assert list(got.prompt_ids) == prompt
        both = list(got.prompt_ids + got.response_ids)
        assert both == whole[: len(both)] and both[-1] == ours.eos_token_id
        assert not theirs.decode(whole[len(both) :]).replace("<|end|>", "").strip()  # nothing but the turn's line end


def published():
    return sorted(path.stem for path in (llama_cpp() / "models" / "templates").glob("*.jinja"))


FAMILIES = re.compile(r"Qwen2\.5|Qwen3-0|gemma-2|granite-3|Llama-3|Phi-3|SmolLM3|r7b|Nemo-Instruct|Ministral")


def test_published_templates_render_as_in_transformers(tmp_path):
    """Every template of the collection whose family jpo reads, and those beside them that take plain conversations."""
    folder = llama_cpp() / "models" / "templates"
    compared, seen = 0, set()
    ours, theirs = pair(tmp_path, "x")
    for name in published():
        template = (folder / f"{name}.jinja").read_text(encoding="utf-8")
        ours.chat_template = theirs.chat_template = template
        for messages in CONVERSATIONS:
            for prompt in (True, False):
                expected = rendered(
                    lambda m=messages, p=prompt: theirs.apply_chat_template(m, tokenize=False, add_generation_prompt=p)
                )
                assert rendered(lambda m=messages, p=prompt: ours.apply_chat_template(m, p)) == expected, name
                if isinstance(expected, str):
                    compared += 1
                    seen.update(FAMILIES.findall(name))
    assert compared > 300 and len(seen) >= 10, (compared, seen)
