"""Chat templates: the names they may use, and the bounds that end them."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from jpo.errors import JpoError
from jpo.formats import chat, load_checkpoint

USER = [{"role": "user", "content": "Hé 🤗 <&>"}]


def render(template, messages=USER, **variables):
    return chat.render(template, messages, True, variables)


def test_the_model_s_own_template():
    tokenizer = load_checkpoint("tiny").tokenizer
    text = tokenizer.apply_chat_template(USER)
    assert text == "<|im_start|>user\nHé 🤗 <&><|im_end|>\n<|im_start|>assistant\n"
    assert not tokenizer.apply_chat_template(USER, add_generation_prompt=False).endswith("assistant\n")


def test_what_a_template_sees():
    assert render("{{ bos_token }}{{ tools is none }}{{ documents is none }}", bos_token="<s>") == "<s>TrueTrue"
    assert render("{{ messages[0] | tojson }}") == '{"role": "user", "content": "Hé 🤗 <&>"}'
    assert render("{{ {'b': 1, 'a': [2]} | tojson(indent=1, sort_keys=true) }}") == '{\n "a": [\n  2\n ],\n "b": 1\n}'
    assert render("{{ strftime_now('%Y') }}") == time.strftime("%Y")
    assert render("{% generation %}{{ 1 }}{% endgeneration %}") == "1"
    assert render("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}") == "01"
    assert render("  {% if true %}\nx\n  {% endif %}\ny") == "x\ny"  # trim_blocks and lstrip_blocks


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("a\n{% for %}", "line 2: TemplateSyntaxError"),
        ("{{ ''.__class__.__mro__ }}", "SecurityError"),
        ("{{ messages.append(1) }}", "SecurityError"),
        ("{% include '/etc/passwd' %}", "TypeError|no loader"),
        ("{{ nothing.at.all }}", "UndefinedError"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "nested too deeply"),
        ("{% for i in range(100000) %}aaaaaaaaaaaaaaaaaaaa{% endfor %}", "longer than"),
        ("{% for i in range(1000000) %}{% endfor %}", "Range too big|OverflowError"),
        ("{{ 'a' * 10**10 }}", "MB of memory"),
        ("{{ 'a'.ljust(10**10) }}", "MB of memory"),
        (
            "{% set n = namespace(x='aa') %}{% for i in range(40) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
            "MB of memory",
        ),
        ("x" * (chat.SOURCE_LIMIT + 1), "characters are more than"),
    ],
)
def test_faults_and_bounds_are_errors(template, message):
    with pytest.raises(JpoError, match=message):
        render(template)
    assert render("{{ 1 }}") == "1"  # and the next one is unharmed


@pytest.mark.parametrize(
    "template", ["{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "{{ 10**(10**9) }}"]
)
def test_time_ends_a_template(monkeypatch, template):
    monkeypatch.setattr(chat, "SECONDS", 0.5)
    with pytest.raises(JpoError, match=r"took longer than (0\.5 s of processor time|3 s)"):
        render(template)
    monkeypatch.setattr(chat, "SECONDS", 10.0)
    assert render("{{ 1 }}") == "1"


def test_a_busy_machine_is_no_fault_of_a_template(monkeypatch):
    """The process stands still for longer than its limit, as one does that gets no processor; then it answers."""
    render("x")
    monkeypatch.setattr(chat, "SECONDS", 1.0)
    process = chat.worker.process.pid
    os.kill(process, signal.SIGSTOP)
    threading.Timer(1.2, os.kill, (process, signal.SIGCONT)).start()
    assert render("{{ 4 }}") == "4"
    monkeypatch.setattr(chat, "SECONDS", 0.1)
    os.kill(process, signal.SIGSTOP)
    with pytest.raises(chat.Ended, match="took longer than 0.6 s$"):  # by the clock, where it never goes on
        render("{{ 5 }}")


def test_processor_time_counts_from_each_request(monkeypatch):
    monkeypatch.setattr(chat, "SECONDS", 0.4)
    busy = "{% for i in range(99999) %}{% if i < 0 %}x{% endif %}{% endfor %}"

    def seconds():
        with open(f"/proc/{chat.worker.process.pid}/stat") as file:
            fields = file.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    render("x")
    process, began = chat.worker.process.pid, seconds()
    while seconds() < began + 0.6:
        render(busy)
    assert chat.worker.process.pid == process


def test_a_dead_process_is_replaced():
    render("x")
    os.kill(chat.worker.process.pid, signal.SIGKILL)
    chat.worker.process.wait()
    assert render("y") == "y"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_has_its_own_process():
    render("x")
    mine = chat.worker.process.pid
    child = os.fork()
    if child == 0:
        good = render("{{ 2 }}") == "2" and chat.worker.process.pid != mine
        chat.worker.stop()
        os._exit(0 if good else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert render("{{ 3 }}") == "3" and chat.worker.process.pid == mine


def test_the_process_ends_with_its_parent():
    code = "from jpo.formats import chat; chat.render('x', [], True, {}); print(chat.worker.process.pid, flush=True)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    pid = int(subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True, env=environment).stdout)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_messages_are_checked():
    with pytest.raises(JpoError, match=r"messages\[1\]: expected a mapping"):
        render("x", [*USER, "text"])
    with pytest.raises(JpoError, match="only what JSON holds"):
        render("x", [{"role": "user", "content": object()}])
