"""Every route of both servers under hypothesis: whatever is sent, no answer is a failure of the server (5xx), every one
carries the policy of the pages, and the next right request is served."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient
from web.test_pages import CONDITIONAL, JOINT, Person, Site

import jpo
from jpo.web import openai_forms
from jpo.web.compare import Page
from jpo.web.models import Models
from jpo.web.serve import Api, build

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
FEW = settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
FIELDS = {
    "/v1/completions": {"model": st.just("tiny"), "prompt": st.just("a"), "max_tokens": st.integers(0, 3)},
    "/v1/chat/completions": {"model": st.just("tiny"), "messages": st.just([{"role": "user", "content": "a"}]),
                             "max_tokens": st.integers(0, 3)},
    "/tokenize": {"prompt": st.text(max_size=20)},
    "/detokenize": {"tokens": st.lists(st.integers(0, 100), max_size=5)},
    "/compare": {"left": st.just({"model": "tiny", "instruction": "a"}), "right": st.just({"model": "tiny", "instruction": "b"}),
                 "max_tokens": st.integers(1, 3)},
    "/keep": {"comparison": st.text(max_size=8), "verdict": st.sampled_from(["left", "undo"])},
    "/verdict": {"showing": st.integers(), "verdict": st.just("left"), "seconds": st.floats()},
    "/undo": {},
}  # fmt: skip
NAMES = sorted(
    {*openai_forms.COMPLETION_FIELDS, *openai_forms.CHAT_FIELDS, "echo", "left", "right", "rationale", "tags"}
)


def bodies(path):
    """Right bodies with some fields spoiled or added, any JSON, and any bytes."""
    spoiled = st.dictionaries(st.sampled_from(NAMES), JSON, max_size=2)
    near = st.tuples(st.fixed_dictionaries(FIELDS[path]), spoiled).map(lambda pair: {**pair[0], **pair[1]})
    return st.one_of(near.map(lambda v: json.dumps(v).encode()), JSON.map(lambda v: json.dumps(v).encode()),
                     st.binary(max_size=50))  # fmt: skip


def check(reply):
    assert reply.status_code < 500, (reply.status_code, reply.text)
    assert "default-src 'self'" in reply.headers["content-security-policy"]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    models = Models(jpo.load("tiny"), "tiny", {})
    page = Page(models, str(tmp_path_factory.mktemp("fuzz") / "r.jsonl"), max_new_tokens=4)
    with TestClient(build(Api(models, max_new_tokens=4), ["testserver"], pages=page.routes())) as client:
        html = client.get("/").text
        client.headers["x-csrf-token"] = html.split('data-csrf="')[1].split('"')[0]
        yield client


@pytest.mark.parametrize(
    "path", ["/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize", "/compare", "/keep"]
)
def test_bodies_of_serve(served, path):
    @FEW
    @given(bodies(path))
    def run(body):
        reply = served.post(path, content=body)
        check(reply)
        if reply.status_code >= 400:
            assert set(reply.json()["error"]) == {"message", "type", "param", "code"}

    run()
    right = {"model": "tiny", "prompt": "a", "max_tokens": 1}
    assert served.post("/v1/completions", json=right).status_code == 200


@FEW
@given(st.sampled_from(["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"]),
       st.sampled_from(["/", "/health", "/metrics", "/v1/models", "/v1/models/", "/tokenizer_info", "/static/", "/static/..%2f", "/nothing"]),
       st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=20))  # fmt: skip
def test_methods_and_addresses_of_serve(served, method, path, query):
    check(served.request(method, path, params={"key": query, query or "a": "b"}, headers={"x-key": query}))


@pytest.fixture
def site(tmp_path):
    site = Site(tmp_path, [*CONDITIONAL, *JOINT])
    yield site
    site.store.close()


@pytest.mark.parametrize("path", ["/verdict", "/undo"])
def test_bodies_of_annotate(site, path):
    anna = Person(site)

    @FEW
    @given(bodies(path))
    def run(body):
        check(anna.http.post(path, content=body, headers={"x-csrf-token": anna.csrf}))

    run()
    anna.read(anna.http.get("/").text)
    assert anna.showing is None or anna.say("left")


def test_methods_forms_and_addresses_of_annotate(site):
    client = site.browser()
    text = st.text(max_size=30)

    @FEW
    @given(st.sampled_from(["GET", "POST", "PUT", "DELETE"]),
           st.sampled_from(["/", "/enter", "/leave", "/overview", "/interplay.svg", "/feedback.jsonl", "/health", "/a/x"]),
           st.dictionaries(st.sampled_from(["name", "passcode", "key", "csrf", "format"]), text, max_size=3))  # fmt: skip
    def run(method, path, form):
        form = {name: value.encode("utf-8", "replace").decode() for name, value in form.items()}
        check(
            client.request(method, path, data=form if method == "POST" else None, params=form, follow_redirects=False)
        )

    run()
    assert Person(site, "ben").say("left")
