"""Templates are filled in without reading the user's braces, stored, loaded and pinned."""

import json

import pytest

from jpo.data.templates import NAMES, Template
from jpo.errors import DataError, JpoError
from jpo.formats import load_checkpoint


@pytest.fixture(scope="module")
def tokenizer():
    return load_checkpoint("tiny").tokenizer


def test_the_default_and_the_papers():
    """The authors join the texts as they are; the default puts a space between them."""
    for name, answer in ((None, " So."), ("spaced", " So."), ("paper", "So.")):
        template = Template.named(name)
        assert template.prompt_text("Why?") + template.response_text("Why?", "So.")[0] == (
            f"### Instructions: Why?\n\n### Response:{answer}"
        )
    tldr = Template.named("tldr").prompt_text("P")
    assert tldr == (
        "### Instructions: You are given a social media post, summarize it accordingly. \nPost: P\n\n### Response:"
    )


@pytest.mark.parametrize(
    "text", ["{instruction}", "{response}", "{0} {} {{x}}", "%s %(a)s", "{instruction!r}", "\\1 $x"]
)
def test_braces_of_the_user_are_ordinary_characters(text):
    template = Template(prompt="{{a}} {instruction} {b}", response="{c}{response}")
    assert template.prompt_text(text) == "{{a}} " + text + " {b}"
    assert template.response_text(text, text) == ("{c}" + text, None)


def test_the_leading_space_is_not_doubled():
    assert Template().response_text("", " x")[0] == " x"
    assert Template().response_text("", "\nx")[0] == " \nx"
    assert Template.named("raw").response_text("", " x")[0] == " x"


@pytest.mark.parametrize("name", [*NAMES, "Q: {instruction}\nA:{response} (end)"])
def test_stored_and_loaded(tokenizer, name):
    template = Template.named(name, tokenizer)
    assert Template.from_dict(json.loads(json.dumps(template.to_dict()))) == template
    assert template.name == name
    template.check(tokenizer)


@pytest.mark.parametrize(
    ("text", "prompt", "response"),
    [
        ("Q: {instruction}\nA:", "Q: I\nA:", "R"),
        ("Q: {instruction}\nA: ", "Q: I\nA:", " R"),
        ("Q: {instruction}\nA:\n{response}\n", "Q: I\nA:\n", "R\n"),
        ("{instruction}  {response}{x}", "I", "  R{x}"),
    ],
)
def test_a_text_with_both_slots(text, prompt, response):
    template = Template.named(text)
    assert (template.prompt_text("I"), template.response_text("I", "R")) == (prompt, (response, None))


def test_a_text_without_its_slots_in_order():
    for text in ("{response} {instruction}", "{instruction}{response}{response}"):
        with pytest.raises(JpoError, match="template: text: expected"):
            Template.named(text)


def test_conversational_records_choose_the_chat_template(tokenizer):
    assert Template.named(None, tokenizer) == Template.named(None) == Template()
    assert Template.named(None, tokenizer, conversational=True).kind == "chat"
    assert Template.named("paper", tokenizer, conversational=True).name == "paper"
    assert Template.named(None, Fake(None), conversational=True).kind == "chat"
    bare = Fake(None)
    bare.chat_template = None
    assert Template.named(None, bare, conversational=True).name == "spaced"


def test_an_adapter_of_the_days_when_paper_put_a_space_keeps_it():
    """Stored settings hold texts, never names: what "paper" meant then is what "spaced" means now."""
    stored = {"kind": "text", "prompt": "### Instructions: {instruction}\n\n### Response:", "response": " {response}"}
    template = Template.from_dict(stored)
    assert template.name == "spaced" and template.response_text("I", "R")[0] == " R"
    assert Template.named("paper").to_dict() == {**stored, "response": "{response}"}


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ({"kind": "jinja"}, "kind: expected 'text' or 'chat', got 'jinja'"),
        ({"prompt": "x"}, "prompt: expected {instruction} exactly once, got it 0 times"),
        ({"prompt": "{instruction}{instruction}"}, "got it 2 times"),
        ({"response": 3}, "response: expected a string, got int"),
        ({"chat_sha256": 3}, "chat_sha256: expected a string"),
        ({"promt": "x"}, "unknown key 'promt'"),
        ([], "expected an object, got list"),
    ],
)
def test_wrong_stored_templates(stored, message):
    with pytest.raises(JpoError, match=message):
        Template.from_dict(stored)
    with pytest.raises(JpoError, match="expected one of spaced, paper, tldr, raw, chat, .* got 'x'"):
        Template.named("x")


def test_chat_template(tokenizer):
    template = Template.named("chat", tokenizer)
    assert template.prompt_text("Hi", tokenizer) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    end = tokenizer.token_to_id("<|im_end|>")
    assert template.response_text("Hi", "Yo", tokenizer) == ("Yo", end)
    more = (
        {"role": "assistant", "content": "a"},
        {"role": "user", "content": "b"},
        {"role": "assistant", "content": "c"},
    )
    text, last = template.response_text("Hi", more, tokenizer)
    assert text == "a<|im_end|>\n<|im_start|>user\nb<|im_end|>\n<|im_start|>assistant\nc" and last == end
    system = ({"role": "system", "content": "s"}, {"role": "user", "content": "u"})
    assert template.prompt_text(system, tokenizer).startswith("<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nu")
    with pytest.raises(DataError, match=r"a conversation \(system, user\) does not fit a text template"):
        Template().prompt_text(system)


class Fake:
    """A tokenizer whose chat template is a Python function."""

    chat_template = "fake"
    adds_bos, bos_token_id = True, 0
    eos_token_ids = (1,)

    def __init__(self, write):
        self.apply_chat_template = write

    def id_to_token(self, index):
        return ("<s>", "</s>")[index]


def test_bos_of_the_chat_template_is_not_spelled_out_where_the_tokenizer_adds_it():
    fake = Fake(lambda turns, add_generation_prompt=True: "<s>" + "|".join(turn["content"] for turn in turns) + "|")
    assert Template(kind="chat").prompt_text("Hi", fake) == "Hi|"
    assert Template(kind="chat").response_text("Hi", "Yo", fake) == ("Yo|", None)
    fake.adds_bos = False
    assert Template(kind="chat").prompt_text("Hi", fake) == "<s>Hi|"


def test_chat_templates_that_rewrite_the_prompt_or_changed(tokenizer):
    fake = Fake(lambda turns, add_generation_prompt=True: str(len(turns)))
    with pytest.raises(JpoError, match="writes a prompt differently once the answer follows"):
        Template(kind="chat").response_text("Hi", "Yo", fake)
    with pytest.raises(JpoError, match="not the one that was stored"):
        Template.named("chat", tokenizer).check(fake)
    fake.chat_template = None
    for wrong in (lambda: Template(kind="chat").check(fake), lambda: Template.named("chat", fake)):
        with pytest.raises(JpoError, match="needs a tokenizer with a chat template"):
            wrong()
