"""A hostile or stubborn server: nothing that it sends costs another question's verdict, memory, the key or the
prompt."""

import asyncio
import gzip
import json
import os
import subprocess
import sys
import zlib

import pytest

from jpo.cli.main import main
from jpo.errors import JpoError
from jpo.feedback.acquire import acquire
from jpo.feedback.entries import Entry
from jpo.feedback.journal import GroupCommit, Journal
from jpo.feedback.judges import CallableJudge, OpenAIJudge
from jpo.feedback.openai_judge import server_name, without_key
from jpo.feedback.transport import MAX_REPLY_BYTES, Decoded, JudgeFault
from tests.feedback.server import serve
from tests.peak_memory import grown

pytest.importorskip("openai")
KEY = "sk-a-secret-that-must-not-leak"
ROWS = [{"instruction": f"q {n}", "response_0": "x" * (n % 5 + 1), "response_1": "yyy "} for n in range(16)]


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


HOSTILE = {
    "lone surrogate": ("text", "\ud800 neither"),
    "absurd tokens": ("usage", 10**30),
    "tokens beyond SQLite": ("usage", 2**63),
    "nested gzip": ("nested_bomb", 200),
    "nested gzip as error": ("nested_bomb", 500),
    "deflate": ("raw_deflate",),
    "zero bytes": ("text", "\0" * 50),
    "key in pieces": ("echo_pieces",),
    "key behind a verdict": ("echo_verdict",),
    "deep": ("body", b"[" * 100_000),
    "digits": ("body", b'{"choices": ' + b"9" * 100_000 + b"}"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_nothing_that_a_server_sends_costs_another_verdict(name, tmp_path):
    out = tmp_path / "o.jsonl"
    with serve([HOSTILE[name]], delay=0.01) as (url, server):
        summary = acquire(ROWS, out, OpenAIJudge("m", url, 5.0), concurrency=8)
    assert summary.feedback["failed"] == 0 and summary.asked <= 33
    assert len(server.log) in (31, 32) and len(set(server.log)) == len(server.log)
    assert not any(
        part in path.read_bytes() for path in tmp_path.iterdir() for part in (b"sk-a", b"cret", KEY.encode())
    )


def test_an_entry_that_cannot_be_held_is_left_out_alone(tmp_path):
    """As 32 verdicts were lost: they share a commit with one that SQLite refuses."""
    book = Journal(tmp_path / "j.sqlite")

    async def together():
        commits = GroupCommit(book)
        rows = [Entry(f"k{n}", "j", False, 1, "A") for n in range(32)]
        rows[7] = Entry("k7", "j", False, 1, None, "\ud800", None)
        rows[9] = Entry("k9", "j", False, 1, "A", tokens=1 << 70)
        return await asyncio.gather(*(commits.put(row) for row in rows), return_exceptions=True)

    asyncio.run(together())
    assert [n for n in range(32) if book.get(f"k{n}") is None] == [7, 9]
    book.put([Entry("later", "j", False, 1, "B")])  # no transaction was left open
    assert book.get("later").verdict == "B"
    with pytest.raises(JpoError, match="an entry cannot be held: UnicodeEncodeError at key k7"):
        book.put([Entry("k7", "j", False, 1, None, "\ud800", None)])
    book.close()


def test_what_is_decoded_is_bounded():
    bomb = gzip.compress(bytes(1 << 26))
    deflated = zlib.compress(bytes(1 << 26))
    for coding in ("gzip", "deflate"):
        with grown() as growth, pytest.raises(JudgeFault, match="larger than"):
            Decoded(coding).piece(bomb if coding == "gzip" else deflated)
        assert growth.bytes < 32 << 20  # half of what the reply holds
    for coding in ("gzip, gzip", "br", "zstd", "gzip,identity"):
        with pytest.raises(JudgeFault, match="not decoded"):
            Decoded(coding)
    with pytest.raises(JudgeFault, match="malformed"):
        Decoded("gzip").piece(b"no gzip at all")
    assert Decoded("gzip").piece(gzip.compress(b"x" * MAX_REPLY_BYTES)) == b"x" * MAX_REPLY_BYTES


def test_an_ordinary_compressed_reply_is_read(tmp_path):
    with serve([("gzip", "A"), ("gzip", "Output (b)")]) as (url, _):
        acquire(ROWS[:1], tmp_path / "o.jsonl", OpenAIJudge("m", url, 5.0), concurrency=1)
    assert read(tmp_path / "o.jsonl")[0]["feedback"] == 0


@pytest.mark.parametrize(
    "address",
    ["http://user:hidden@localhost:1/v1", "http://localhost:1/v1?api-key=hidden", "http://hidden@localhost/v1", "https://h/v1#hidden"],
)  # fmt: skip
def test_credentials_in_the_address_are_refused_and_not_shown(address, tmp_path, capsys):
    source, out = tmp_path / "in.jsonl", tmp_path / "o.jsonl"
    source.write_text(json.dumps(ROWS[0]) + "\n")
    flags = ["feedback", "--input", str(source), "--output", str(out), "--judge", "openai", "--model", "m"]
    for more in ([], ["--dry-run"]):
        assert main([*flags, "--base-url", address, *more]) == 1
        shown = capsys.readouterr()
        assert "OPENAI_API_KEY" in shown.err and "hidden" not in shown.err + shown.out
    assert list(tmp_path.iterdir()) == [source]
    for wrong in ("localhost:8000", "ftp://host/v1", "http:///v1", "http://h:port/v1"):
        with pytest.raises(JpoError, match="--base-url"):
            server_name(wrong, "m")


def test_a_key_in_pieces_is_not_kept():
    for reply in (
        KEY,
        KEY.upper(),
        KEY[3:20],
        " ".join(KEY),
        "\n".join(KEY[at : at + 3] for at in range(0, 30, 3)),
        KEY[:12],
    ):
        assert KEY[3:9] not in without_key(f"no: {reply}!", KEY).lower() and "not kept" in without_key(reply, KEY)
    assert without_key("Both are fine", KEY) == "Both are fine"
    assert without_key("none of them", "none") == without_key(KEY, KEY) and without_key("fox", "x") == "fox"


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_to_another_host_is_not_followed(status, tmp_path):
    with serve() as (other, stranger), serve([("redirect", status, f"{other}/chat/completions")]) as (url, server):
        summary = acquire(ROWS[:1], tmp_path / "o.jsonl", OpenAIJudge("m", url, 5.0), concurrency=1)
    assert not stranger.bodies and len(server.log) == 2 and summary.asked == 3
    with serve([("redirect", 307, "/v1/elsewhere")]) as (url, server):  # the same host is another matter
        assert acquire(ROWS[:1], tmp_path / "p.jsonl", OpenAIJudge("m", url, 5.0), concurrency=1).asked == 2


def test_redirects_are_named_in_the_record(tmp_path):
    with serve([("redirect", 307, "http://127.0.0.2:9/v1")] * 6) as (url, _):
        acquire(ROWS[:1], tmp_path / "o.jsonl", OpenAIJudge("m", url, 5.0), concurrency=2)
    assert "redirects to another host" in read(tmp_path / "o.jsonl")[0]["failure"]


REFUSALS = {
    "max_tokens": "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.",
    "temperature": "Unsupported value: 'temperature' does not support 0.0 with this model. Only the default (1) value is supported.",
}


def test_what_a_server_refuses_is_met_once_said_and_remembered(tmp_path, capsys):
    out = tmp_path / "o.jsonl"
    with serve(refuses=REFUSALS, delay=0.01) as (url, server):
        summary = acquire(ROWS[:8], out, OpenAIJudge("m", url, 5.0), concurrency=8)
        assert summary.asked == 16 and summary.feedback["failed"] == 0 and len(server.log) == 16
        refused = [body for body in server.bodies if REFUSALS.keys() & body.keys()]
        assert len(refused) == 2 and len(server.bodies) == 18
        assert server.bodies[-1]["max_completion_tokens"] == 16 and "temperature" not in server.bodies[-1]
        shown = capsys.readouterr().err
        assert shown.count("refuses max_tokens: sending max_completion_tokens instead") == 1
        assert shown.count("refuses temperature: leaving it out") == 1
        acquire(ROWS, out, OpenAIJudge("m", url, 5.0), concurrency=8)  # another run, the same journal
        assert len([body for body in server.bodies if REFUSALS.keys() & body.keys()]) == 2
        assert "refuses" not in capsys.readouterr().err


@pytest.mark.parametrize(("status", "remedy"), [(401, "OPENAI_API_KEY"), (404, "end in /v1"), (400, None)])
def test_what_a_user_can_mend_is_named(status, remedy, tmp_path):
    with serve([("status", status)] * 2) as (url, _):
        summary = acquire(ROWS[:1], tmp_path / "o.jsonl", OpenAIJudge("m", url, 5.0), max_attempts=1)
    assert str(summary).endswith(" (--retry-failed asks again)")
    assert (summary.failure == f"HTTP status {status}") if remedy is None else (remedy in summary.failure)


def test_an_address_where_nobody_listens_is_named(tmp_path):
    with serve([]) as (url, _):
        pass  # closed again
    summary = acquire(ROWS[:1], tmp_path / "o.jsonl", OpenAIJudge("m", url, 5.0), max_attempts=1)
    assert summary.failure == f"APIConnectionError at {url}"


def test_refusals_of_other_servers(tmp_path):
    both = {**REFUSALS, "max_completion_tokens": "Extra inputs are not permitted: max_completion_tokens"}
    with serve(refuses=both) as (url, server):
        assert acquire(ROWS[:1], tmp_path / "a.jsonl", OpenAIJudge("m", url, 5.0)).feedback["failed"] == 0
        assert server.bodies[-1].keys() == {"messages", "model"}
    detail = json.dumps({"detail": [{"loc": ["body", "max_tokens"], "msg": "extra fields not permitted"}]})
    for number, body in enumerate((detail, "max_tokens is not supported here")):  # as FastAPI says it; as plain text
        with serve(refusal=(422, body), refuses={"max_tokens": ""}) as (url, server):
            out = tmp_path / f"c{number}.jsonl"
            assert acquire(ROWS[:1], out, OpenAIJudge("m", url, 5.0)).feedback["failed"] == 0
            assert "max_completion_tokens" in server.bodies[-1]
    with serve(refuses={"model": "max context exceeded"}) as (url, server):  # no setting is named: a fault as ever
        assert acquire(ROWS[:1], tmp_path / "b.jsonl", OpenAIJudge("m", url, 5.0)).feedback["failed"] == 1
        assert all(body["temperature"] == 0 and body["max_tokens"] == 16 for body in server.bodies)


def test_what_is_sent_can_be_chosen(tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text(json.dumps(ROWS[0]) + "\n")
    flags = [
        "feedback",
        "--input",
        str(source),
        "--output",
        str(tmp_path / "o.jsonl"),
        "--judge",
        "openai",
        "--model",
        "m",
    ]
    with serve() as (url, server):
        assert main([*flags, "--base-url", url, "--judge-temperature", "-1", "--judge-max-tokens", "0"]) == 0
        assert server.bodies[0].keys() == {"messages", "model"}


def test_chat_templates_see_no_key():
    """The worker's environment, as the system shows it."""
    from jpo.formats import chat

    chat.worker.stop()
    assert chat.render("{{ messages[0].content }}", [{"role": "user", "content": "hi"}], False, {}) == "hi"
    with open(f"/proc/{chat.worker.process.pid}/environ", "rb") as file:
        names = {part.partition(b"=")[0].decode() for part in file.read().split(b"\0")}
    assert "OPENAI_API_KEY" not in names and not {name for name in names if "KEY" in name or "TOKEN" in name}
    chat.worker.stop()


def test_bombs_cost_no_memory(tmp_path):
    """As errors, which the client's library reads to their end: within a limit on the process."""
    script = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))\n"
        "from jpo.feedback.acquire import acquire\nfrom jpo.feedback.judges import OpenAIJudge\n"
        "row = {'instruction': 'q', 'response_0': 'x', 'response_1': 'yy'}\n"
        "print(acquire([row], sys.argv[1], OpenAIJudge('m', sys.argv[2], 20.0), concurrency=1).feedback['1'])\n"
    )
    with serve([("nested_bomb", 500), ("bomb", 500)]) as (url, _):
        command = [sys.executable, "-c", script, str(tmp_path / "o.jsonl"), url]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=60, env={**os.environ, "OPENBLAS_NUM_THREADS": "1"}
        )
    assert done.stdout.strip() == "1", done.stderr[-2000:]


def test_what_a_function_raises_is_kept_as_text_that_every_file_holds(tmp_path):
    def judge(prompt):
        raise ValueError("\ud800 odd")

    acquire(ROWS[:1], tmp_path / "o.jsonl", CallableJudge(judge, "callable:x"), max_attempts=1)
    assert "ud800 odd" in read(tmp_path / "o.jsonl")[0]["failure"]
