"""`jpo serve` as clients meet it: OpenAI's own client, streams, scores, several adapters at once, errors in its form,
bounds, disconnects, and the end."""

import asyncio
import json
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import httpx2
import openai
import pytest
from reference.models import adapter_of, write_random
from web.servers import Serve

import jpo
from jpo.data.templates import Template
from jpo.web.listen import Listener
from jpo.web.openai_forms import MOST_STOPS

CHAT = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    tokenizer = jpo.load("tiny").tokenizer
    tokenizer.chat_template = CHAT
    _, values = write_random(folder / "base", max_position_embeddings=512, tokenizer=tokenizer)
    for number in (1, 2):
        adapter_of(folder / f"a{number}", values, seed=number, base=str(folder / "base"), scale=0.5)
    return folder


@pytest.fixture(scope="module")
def server(folder):
    adapters = ["--adapter", f"one={folder / 'a1'}", "--adapter", str(folder / "a2")]
    server = Serve(*adapters, "--name", "base", model=str(folder / "base"))
    yield server
    server.stop()


@pytest.fixture(scope="module")
def client(server):
    return server.client()


@pytest.fixture(scope="module")
def local(folder):
    """The same models in this process: name -> LanguageModel."""
    models = {name: jpo.load(str(folder / "base")) for name in ("base", "one", "a2")}
    models["one"].load_adapter(folder / "a1")
    models["a2"].load_adapter(folder / "a2")
    return models


def test_models(client):
    assert [model.id for model in client.models.list()] == ["base", "one", "a2"]
    assert client.models.retrieve("one").owned_by == "jpo"
    with pytest.raises(openai.NotFoundError, match="there are: base, one, a2"):
        client.models.retrieve("two")


@pytest.mark.parametrize("name", ["base", "one", "a2"])
def test_completions_are_what_the_model_gives(client, local, name):
    for temperature, seed in ((0.0, 0), (1.0, 7)):
        wanted = local[name].generate(["Name a colour."], n=3, temperature=temperature, seed=seed, max_new_tokens=12,
                                      top_p=0.9)[0]  # fmt: skip
        got = client.completions.create(model=name, prompt="Name a colour.", n=3, temperature=temperature, seed=seed,
                                        max_tokens=12, top_p=0.9)  # fmt: skip
        assert [choice.text for choice in got.choices] == [completion.text for completion in wanted]
        assert [choice.finish_reason for choice in got.choices] == [completion.finish_reason for completion in wanted]
        assert got.usage.prompt_tokens == len(local[name].tokenizer.prompt_ids("Name a colour."))
        assert got.usage.completion_tokens == sum(len(completion.token_ids) for completion in wanted)


def test_chat_uses_the_template_of_each_model(client, local):
    talk = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
    ]
    prompt = "[system] Be brief.\n[user] Hi\n[assistant]"
    wanted = local["base"].generate([prompt], temperature=0, max_new_tokens=9)[0][0]
    got = client.chat.completions.create(model="base", messages=talk, temperature=0, max_completion_tokens=9)
    assert got.choices[0].message.content == wanted.text and got.choices[0].message.role == "assistant"
    text = Template().prompt_text("Hi")
    wanted = local["one"].generate([text], temperature=0, max_new_tokens=9)[0][0]
    got = client.chat.completions.create(model="one", messages=[{"role": "user", "content": "Hi"}], temperature=0,
                                         max_tokens=9)  # fmt: skip
    assert got.choices[0].message.content == wanted.text
    with pytest.raises(openai.BadRequestError, match="takes one user message"):
        client.chat.completions.create(model="one", messages=talk)


def test_streams_add_up_to_the_whole(client):
    options = {"model": "one", "prompt": ["Name", "Say"], "n": 2, "temperature": 1.0, "seed": 3, "max_tokens": 16,
               "logprobs": 2, "echo": True}  # fmt: skip
    whole = client.completions.create(**options)
    texts, tokens, ends = [""] * 4, [[] for _ in range(4)], [None] * 4
    offsets = [[] for _ in range(4)]
    for chunk in client.completions.create(**options, stream=True, stream_options={"include_usage": True}):
        usage = chunk.usage
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            tokens[choice.index] += list(zip(choice.logprobs.tokens, choice.logprobs.token_logprobs))
            offsets[choice.index] += choice.logprobs.text_offset
            ends[choice.index] = choice.finish_reason or ends[choice.index]
    assert texts == [choice.text for choice in whole.choices] and usage == whole.usage
    assert ends == [choice.finish_reason for choice in whole.choices]
    for place, choice in enumerate(whole.choices):
        assert tokens[place] == list(zip(choice.logprobs.tokens, choice.logprobs.token_logprobs))
        assert choice.text.startswith(("Name", "Say")[place // 2]) and offsets[place][0] == 0


def test_chat_streams_with_alternatives(client, local):
    options = {"model": "base", "messages": [{"role": "user", "content": "Hi"}], "temperature": 0, "max_tokens": 8,
               "logprobs": True, "top_logprobs": 3}  # fmt: skip
    whole = client.chat.completions.create(**options)
    content = whole.choices[0].logprobs.content
    assert len(content) == whole.usage.completion_tokens and all(len(t.top_logprobs) == 3 for t in content)
    assert all(t.token == t.top_logprobs[0].token and t.logprob == t.top_logprobs[0].logprob for t in content)
    prompt = "[user] Hi\n[assistant]"
    wanted = local["base"].generate([prompt], temperature=0, max_new_tokens=8)[0][0]
    assert sum(t.logprob for t in content) == pytest.approx(wanted.logp, rel=1e-4)
    chunks = list(client.chat.completions.create(**options, stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == whole.choices[0].message.content
    streamed = [t for c in chunks if c.choices[0].logprobs for t in c.choices[0].logprobs.content]
    assert streamed == content and chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason


def test_echo_scores_the_prompt(client, local):
    prompt = "Name a colour. Blue is one."
    ids = local["a2"].tokenizer.prompt_ids(prompt)
    for given in (prompt, ids):
        for limit in (0, 1):
            got = client.completions.create(model="a2", prompt=given, max_tokens=limit, echo=True, logprobs=1,
                                            temperature=0).choices[0]  # fmt: skip
            scores = got.logprobs.token_logprobs
            assert len(scores) == len(ids) + limit and scores[0] is None and got.logprobs.top_logprobs[0] is None
            (wanted,) = local["a2"].sequence_logps_ids([(ids[:1], ids[1:])])
            assert sum(scores[1 : len(ids)]) == pytest.approx(wanted, rel=1e-4)
            assert got.text.startswith(prompt) and "".join(got.logprobs.tokens) == got.text


def test_stop_strings(client):
    plain = client.completions.create(model="base", prompt="a", temperature=0, max_tokens=20).choices[0]
    stop = plain.text[5:7]
    got = client.completions.create(model="base", prompt="a", temperature=0, max_tokens=20, stop=[stop, "zzzz"])
    assert got.choices[0].text == plain.text[: plain.text.index(stop)] and got.choices[0].finish_reason == "stop"


WRONG = [
    ({"model": "nobody"}, 404, "model"), ({"temperature": -1}, 400, "temperature"), ({"top_p": 0}, 400, "top_p"),
    ({"n": 0}, 400, "n"), ({"n": 100}, 400, "n"), ({"max_tokens": -1}, 400, "max_tokens"), ({"logprobs": 21}, 400, "logprobs"),
    ({"stop": [1]}, 400, "stop"), ({"stop": ["a"] * (MOST_STOPS + 1)}, 400, "stop"), ({"seed": 0.5}, 400, "seed"),
    ({"prompt": []}, 400, "prompt"), ({"prompt": None}, 400, "prompt"), ({"prompt": [[10**9]]}, 400, "prompt"),
    ({"prompt": [True]}, 400, "prompt"), ({"prompt": [[]]}, 400, "prompt"), ({"prompt": "a " * 3000}, 400, None),
    ({"prompt": "a" * 10**6}, 400, None), ({"prompt": "\ud800"}, 400, "text"), ({"best_of": 3}, 400, "best_of"),
    ({"logit_bias": {"5": 1}}, 400, "logit_bias"), ({"frequency_penalty": 0.5}, 400, "frequency_penalty"),
    ({"colour": "blue"}, 400, "colour"), ({"stream": 1}, 400, "stream"), ({"temperature": float("nan")}, 400, "temperature"),
    ({"top_k": -1}, 400, "top_k"), ({"echo": "yes"}, 400, "echo"),
]  # fmt: skip


@pytest.mark.parametrize("change, status, param", WRONG, ids=lambda value: str(value)[:40])
def test_errors_have_openais_form(server, change, status, param):
    body = json.dumps({"model": "base", "prompt": "a", "max_tokens": 2, **change})
    reply = httpx2.post(f"{server.url}/v1/completions", content=body)
    error = reply.json()["error"]
    assert reply.status_code == status and error["param"] == param and error["message"]
    assert set(error) == {"message", "type", "param", "code"} and error["type"] == "invalid_request_error"


@pytest.mark.parametrize("messages", [
    None, [], [{}], [{"role": "tool", "content": "a"}], [{"role": "user"}], [{"role": "user", "content": [{"type": "image_url"}]}],
    ["a"], [{"role": ["user"], "content": "a"}],
])  # fmt: skip
def test_wrong_messages_are_named(server, messages):
    reply = httpx2.post(f"{server.url}/v1/chat/completions", json={"model": "base", "messages": messages})
    assert reply.status_code == 400 and reply.json()["error"]["param"].startswith("messages")


def test_other_ways_to_ask_wrongly(server):
    url = f"{server.url}/v1/completions"
    for content in (b"", b"[]", b"{", b"\xff", b"[" * 20000):
        reply = httpx2.post(url, content=content)
        assert reply.status_code == 400 and "JSON" in reply.json()["error"]["message"]
    assert httpx2.post(url, content=b" " * (9 << 20)).status_code == 413
    assert httpx2.get(url).status_code == 405 and httpx2.get(f"{server.url}/nothing").json()["error"]
    assert httpx2.get(f"{server.url}/health", headers={"host": "evil.example"}).status_code == 400
    body = {"model": "base", "prompt": "a"}
    elsewhere = {"origin": "http://evil.example"}
    assert httpx2.post(url, json=body, headers=elsewhere).status_code == 403
    assert httpx2.post(url, json=body, headers={"sec-fetch-site": "cross-site"}).status_code == 403
    assert httpx2.post(url, json=body, headers={"origin": server.url}).status_code == 200
    behind_a_proxy = {"origin": "https://models.example", "sec-fetch-site": "same-origin"}
    assert httpx2.post(url, json=body, headers=behind_a_proxy).status_code == 200
    reply = httpx2.get(f"{server.url}/health")
    assert reply.json() == {"status": "ok"} and "default-src 'self'" in reply.headers["content-security-policy"]


def test_the_harness_finds_a_tokenizer(server, local):
    tokenizer = local["base"].tokenizer
    ids = httpx2.post(f"{server.url}/tokenize", json={"prompt": "Hi, you", "add_special_tokens": False}).json()[
        "tokens"
    ]
    assert ids == tokenizer.encode("Hi, you")
    assert httpx2.post(f"{server.url}/detokenize", json={"tokens": ids}).json()["prompt"] == "Hi, you"
    info = httpx2.get(f"{server.url}/tokenizer_info").json()
    assert info["eos_token"] == tokenizer.special["eos_token"] and info["chat_template"] == CHAT
    assert httpx2.post(f"{server.url}/tokenize", json={"prompt": 5}).status_code == 400
    assert httpx2.post(f"{server.url}/detokenize", json={"tokens": [-1]}).status_code == 400


def test_sixteen_clients_at_once_get_what_each_gets_alone(client, local):
    def ask(number):
        name, prompt = ("base", "one", "a2")[number % 3], f"Name {number} colours."
        got = client.completions.create(model=name, prompt=prompt, temperature=number % 2, seed=number, max_tokens=10)
        return name, prompt, got.choices[0].text

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(ask, range(32)))
    for number, (name, prompt, text) in enumerate(answers):
        (wanted,) = local[name].generate([prompt], temperature=number % 2, seed=number, max_new_tokens=10)[0]
        assert text == wanted.text, (number, name)


def metric(server, name):
    for line in httpx2.get(f"{server.url}/metrics").text.splitlines():
        if line.startswith(f"{name} "):
            return float(line.split()[1])
    raise AssertionError(name)


def until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_clients_that_leave_free_their_streams(server, client):
    def leave(body):
        where = urlsplit(server.url)
        with socket.create_connection((where.hostname, where.port)) as connection:
            text = json.dumps(body).encode()
            head = f"POST /v1/completions HTTP/1.1\r\nHost: {where.netloc}\r\nContent-Length: {len(text)}\r\n\r\n"
            connection.sendall(head.encode() + text)
            until(lambda: metric(server, "jpo_streams") > 0)

    before = metric(server, "jpo_cancelled_total")
    for stream in (False, True):
        leave({"model": "base", "prompt": "a", "n": 16, "max_tokens": 480, "stream": stream})
        until(lambda: metric(server, "jpo_streams") == 0)
    assert metric(server, "jpo_cancelled_total") == before + 2 and metric(server, "jpo_cache_pages_used") == 0


def test_metrics_are_what_prometheus_reads(server, client):
    client.completions.create(model="base", prompt="a", max_tokens=2)
    lines = httpx2.get(f"{server.url}/metrics").text.splitlines()
    kinds = {line.split()[2]: line.split()[3] for line in lines if line.startswith("# TYPE")}
    assert kinds["jpo_requests_total"] == "counter" and kinds["jpo_first_token_seconds"] == "histogram"
    for line in lines:
        if not line.startswith("#"):
            name, value = line.rsplit(" ", 1)
            float(value)
            assert any(name.startswith(kind) for kind in kinds)
    buckets = [int(line.split()[-1]) for line in lines if line.startswith("jpo_request_seconds_bucket")]
    assert buckets == sorted(buckets) and buckets[-1] > 0
    assert any('route="/v1/completions",status="200"' in line for line in lines)


def test_a_full_queue_is_429_and_says_when_to_come_again(folder):
    server = Serve("--streams", "1", "--queue", "1", "--name", "base", model=str(folder / "base"))
    try:
        body = {"model": "base", "prompt": "a", "max_tokens": 200}
        with httpx2.Client(timeout=60) as http, ThreadPoolExecutor(8) as pool:
            url = f"{server.url}/v1/completions"
            replies = list(pool.map(lambda _: http.post(url, json=body), range(8)))
        refused = [reply for reply in replies if reply.status_code == 429]
        assert refused and len(refused) < 8
        for reply in refused:
            assert 1 <= int(reply.headers["retry-after"]) <= 60
            assert reply.json()["error"]["type"] == "rate_limit_error"
        assert server.client().completions.create(model="base", prompt="a", max_tokens=1).choices
    finally:
        server.stop()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_an_answer_on_its_way_ends_before_the_server_does(folder, how):
    server = Serve("--name", "base", model=str(folder / "base"))
    client, texts = server.client(), []
    stream = client.completions.create(model="base", prompt="a", max_tokens=24, temperature=0, stream=True)
    texts.append(next(stream).choices[0].text)
    done = threading.Thread(target=lambda: texts.extend(chunk.choices[0].text for chunk in stream))
    done.start()
    status = server.stop(how)
    done.join(20)
    assert status == 128 + how
    alone = jpo.load(str(folder / "base")).generate(["a"], temperature=0, max_new_tokens=24)[0][0]
    assert "".join(texts) == alone.text


def test_a_key_is_asked_for_where_others_can_reach(folder, capfd):
    server = Serve(host="0.0.0.0")
    try:
        assert server.key and "warning: everybody who reaches 0.0.0.0" in capfd.readouterr().err
        assert httpx2.get(f"{server.url}/health").status_code == 200
        for path in ("/v1/models", "/metrics", "/tokenizer_info"):
            reply = httpx2.get(f"{server.url}{path}")
            assert reply.status_code == 401 and reply.headers["www-authenticate"] == "Bearer"
        assert httpx2.post(f"{server.url}/v1/completions", json={"model": "tiny", "prompt": "a"}).status_code == 401
        assert [model.id for model in server.client().models.list()] == ["tiny"]
        wrong = openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong", max_retries=0)
        with pytest.raises(openai.AuthenticationError):
            wrong.models.list()
    finally:
        server.stop()


def test_the_async_client_and_a_path_prefix(folder):
    server = Serve("--prefix", "/jpo")
    try:
        client = openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)

        async def ask():
            one = client.completions.create(model="tiny", prompt="Say", max_tokens=3, temperature=0)
            return await asyncio.gather(*[one, client.completions.create(model="tiny", prompt="a", max_tokens=2)])

        assert len(asyncio.run(ask())) == 2
    finally:
        server.stop()


def test_the_address_answers_from_the_moment_that_it_is_said():
    listener = Listener(None, "127.0.0.1", 0)
    where = urlsplit(listener.url)
    socket.create_connection((where.hostname, where.port), 5).close()
    listener.socket.close()


@pytest.mark.parametrize("options, message", [
    (["--adapter", "x="], "NAME=PATH"), (["--adapter", "tiny=somewhere"], "a name of its own"),
    (["--prefix", "jpo/"], "--prefix"), (["--max-new-tokens", "0"], "--max-new-tokens"), (["--streams", "0"], "streams"),
    (["--cache-tokens", "5"], "cache_tokens"), (["--template", "nobody"], "template"), (["--port", "70000"], "--port 70000"),
    (["--cache-dtype", "int4"], "cache_dtype: expected one of"), (["--cache-dtype", "q8_0"], "q8_0 stores blocks of 32"),
])  # fmt: skip
def test_wrong_options_are_named(options, message, capsys):
    from jpo.cli.main import main

    assert main(["serve", "--model", "tiny", *options]) == 1
    assert message in capsys.readouterr().err


def test_a_dry_run_loads_nothing(capsys):
    from jpo.cli.main import main

    assert main(["serve", "--model", "not-there", "--adapter", "a=b", "--dry-run"]) == 0
    assert "models: not-there, a" in capsys.readouterr().out
