"""OWASP's ten (2021), as far as other files do not test them. The table in .github/SECURITY.md
names a test of each."""

import ast
import re
from pathlib import Path

import pytest
from starlette.testclient import TestClient
from web.test_fuzz_routes import served  # noqa: F401 (the fixture: jpo serve's application)
from web.test_pages import CONDITIONAL, Person, Site

from jpo.web import openai_forms, openapi
from jpo.web.listen import Listener

ROOT = Path(__file__).parents[2]
WEB = Path(openapi.__file__).parent
SOURCES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in WEB.glob("*.py")}
HEADERS = {
    "content-security-policy": "default-src 'self'", "x-content-type-options": "nosniff", "x-frame-options": "DENY",
    "referrer-policy": "no-referrer", "cross-origin-opener-policy": "same-origin", "cache-control": "",
}  # fmt: skip


@pytest.fixture
def site(tmp_path):
    site = Site(tmp_path, CONDITIONAL)
    yield site
    site.store.close()


def paths_of(client):
    return client.get("/openapi.json").json()["paths"]


def test_every_answer_carries_the_headers(site, served):  # noqa: F811
    for client in (site.browser(), served):
        asked = [(method, path) for path, methods in paths_of(client).items() for method in methods]
        asked += [("get", "/nothing"), ("delete", "/health"), ("get", "/static/pages.css"), ("get", "/static/none")]
        for method, path in asked:
            reply = client.request(method, path.replace("{", "").replace("}", ""), follow_redirects=False)
            assert reply.status_code < 500
            for name, value in HEADERS.items():
                assert value in reply.headers[name], (method, path, name)
            assert "frame-ancestors 'none'" in reply.headers["content-security-policy"]
            assert "unsafe" not in reply.headers["content-security-policy"] and "server" not in reply.headers


def test_a_fault_of_the_server_carries_them_too(site, served, monkeypatch):  # noqa: F811
    """An exception that nobody foresaw, and a host that is refused: answered outside of the routes."""

    def fail(*arguments):
        raise ZeroDivisionError

    monkeypatch.setattr(site.pages, "name_of", fail)
    monkeypatch.setattr(openai_forms, "chat_asked", fail)
    for app, method, path in ((site.app, "get", "/"), (served.app, "post", "/v1/chat/completions")):
        client = TestClient(app, raise_server_exceptions=False)
        for status, host in ((500, "testserver"), (400, "elsewhere.example")):
            reply = client.request(method, path, json={}, headers={"host": host})
            assert reply.status_code == status and "ZeroDivisionError" not in reply.text
            for name, value in HEADERS.items():
                assert value in reply.headers[name], (path, status, name)


@pytest.mark.parametrize(
    "path", ["..%2fannotate.py", "%2e%2e/annotate.py", "..%5cannotate.py", "%2e%2e%2f%2e%2e%2f__init__.py", "/etc/passwd", "%00"]
)  # fmt: skip
def test_static_files_are_those_alone(site, served, path):  # noqa: F811
    for client in (site.browser(), served):
        reply = client.get(f"/static/{path}")
        assert reply.status_code in (400, 404) and "import" not in reply.text and "root:" not in reply.text


def test_names_and_words_are_data_to_the_store_and_the_page(site):
    evil = "x'); DROP TABLE verdicts; --"
    anna = Person(site, evil)
    anna.say("left", rationale=evil, tags=[evil[:40]])
    (row,) = site.project.rows()
    assert row["annotator"] == row["rationale"] == evil
    overview = site.browser().get("/overview").text
    assert "x&#39;); DROP" in overview


def test_a_session_is_its_owners(site, tmp_path):
    """Fixation, another annotator's and another project's session, entering from a foreign page."""
    anna, ben = Person(site), site.browser()
    ben.cookies.set("jpo_session", anna.http.cookies["jpo_session"])  # planted before he enters
    page = ben.post("/enter", data={"name": "ben", "passcode": "secret", "key": ""})
    assert 'data-name="ben"' in page.text
    other = tmp_path / "other"
    other.mkdir()
    elsewhere = Site(other, CONDITIONAL)
    stranger = elsewhere.browser()
    stranger.cookies.set("jpo_session", anna.http.cookies["jpo_session"])
    assert "passcode" in stranger.get("/").text, "a cookie of another project opens nothing"
    elsewhere.store.close()
    form = {"name": "mallory", "passcode": "secret", "key": ""}
    foreign = site.browser().post("/enter", data=form, headers={"sec-fetch-site": "cross-site"})
    assert foreign.status_code == 403 and "mallory" not in site.store.annotators()


def test_leaving_ends_the_session_here(site):
    anna = Person(site)
    assert "passcode" in anna.http.post("/leave", data={"csrf": anna.csrf}).text
    assert anna.http.post("/undo", json={}, headers={"x-csrf-token": anna.csrf}).status_code == 401


def test_keys_are_in_no_log():
    listener = Listener(None, "127.0.0.1", 0)
    assert listener.server.config.access_log is False and listener.server.config.log_level == "warning"
    listener.socket.close()


def called(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")


def imported(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").split(".")[0]


def test_the_servers_ask_nobody_and_run_nothing():
    for path, tree in SOURCES.items():
        clients = {"httpx", "httpx2", "requests", "aiohttp", "http", "subprocess", "pickle", "shelve", "marshal"}
        assert not clients & set(imported(tree)), path
        assert not {"eval", "exec", "urlopen", "system", "popen"} & set(called(tree)) - {"compile"}, path


def test_secrets_are_compared_in_constant_time():
    secret = {"key", "secret", "csrf", "passcode", "signature", "link"}
    for path, tree in SOURCES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Compare) and isinstance(node.ops[0], (ast.Eq, ast.NotEq)):
                sides = [side for side in (node.left, *node.comparators) if not isinstance(side, ast.Constant)]
                names = {getattr(side, "id", getattr(side, "attr", "")) for side in sides}
                assert not (len(sides) == 2 and names & secret), f"{path.name}:{node.lineno}"


def test_the_description_is_the_routes_and_their_fields(site, served):  # noqa: F811
    for client, needed in ((site.browser(), "/verdict"), (served, "/v1/chat/completions")):
        paths = paths_of(client)
        assert needed in paths and "/openapi.json" in paths and "/health" in paths
        for path, methods in paths.items():
            for method, operation in methods.items():
                assert operation["summary"], path
                assert ("requestBody" in operation) is (method == "post"), path
                known = client.request("options", path.replace("{", "").replace("}", "")).headers["allow"]
                assert method.upper() in known, (path, known)

    for path, fields in (
        ("/v1/completions", openai_forms.COMPLETION_FIELDS),
        ("/v1/chat/completions", openai_forms.CHAT_FIELDS),
    ):
        assert set(openapi.BODIES[path]["properties"]) == set(fields)
    assert not ({*openapi.BODIES, *openapi.FORMS} - {*paths_of(site.browser()), *paths_of(served)})


def test_the_table_names_tests_that_exist():
    table = (
        (ROOT / ".github" / "SECURITY.md").read_text(encoding="utf-8").split("## The two servers")[1].split("\n## ")[0]
    )
    named = re.findall(r"`(test_\w+)\.(test_\w+)`", table)
    assert len(named) >= 20 and all(f"A{number:02}" in table for number in range(1, 11))
    for file, test in named:
        assert f"def {test}(" in (ROOT / "tests" / "web" / f"{file}.py").read_text(encoding="utf-8"), (file, test)
