"""The pages as a browser meets them: entering, answering, undoing, records; and what a stranger may not do."""

import contextlib
import json
import re
import sqlite3

import pytest
from starlette.testclient import TestClient

from jpo.data.records import feedback_candidates
from jpo.web.annotate import Pages, build
from jpo.web.assignment import Rules
from jpo.web.items import read_items
from jpo.web.listen import elsewhere
from jpo.web.project import Project
from jpo.web.security import BODY_LIMIT, Bucket, cookie_of, session_of
from jpo.web.store import Store

CONDITIONAL = [{"instruction": f"Name {i}.", "response_0": f"zero {i}", "response_1": f"one {i}"} for i in range(4)]
JOINT = [
    {"instruction_0": f"I {i}", "response_0": f"x {i}", "instruction_1": f"J {i}", "response_1": f"y {i}",
     "label_0": "chosen", "label_1": "rejected", "id": i}
    for i in range(3)
]  # fmt: skip


class Site:
    def __init__(self, folder, records, rules=None, in_rounds=False, **options):
        self.store = Store(folder / "s.sqlite")
        self.project = Project(read_items(records), self.store, rules or Rules(), in_rounds=in_rounds)
        self.output = folder / "out.jsonl"
        self.pages = Pages(self.project, output=str(self.output), **options)
        self.app = build(self.pages, ["testserver"])

    def browser(self):
        return TestClient(self.app, follow_redirects=True)


class Person:
    """What the page's script does, without a browser."""

    def __init__(self, site, name="anna", passcode="secret", prefix=""):
        self.http, self.prefix = site.browser(), prefix
        page = self.http.post(f"{prefix}/enter", data={"name": name, "passcode": passcode, "key": site.pages.key or ""})
        assert page.status_code == 200, page.text
        self.read(page.text)
        self.csrf = re.search(r'data-csrf="(\w+)"', page.text)[1]

    def read(self, html):
        found = re.search(r'data-showing="(\d+)"', html)
        self.html, self.showing = html, int(found[1]) if found else None

    def post(self, path, body, **headers):
        return self.http.post(f"{self.prefix}{path}", json=body, headers={"x-csrf-token": self.csrf, **headers})

    def say(self, verdict, **more):
        reply = self.post("/verdict", {"showing": self.showing, "verdict": verdict, "seconds": 2.5, **more})
        assert reply.status_code == 200, reply.text
        self.read(reply.json()["html"])
        return reply.json()["kept"]


@pytest.fixture
def site(tmp_path):
    site = Site(tmp_path, [*CONDITIONAL, *JOINT])
    yield site
    site.store.close()


def test_a_person_annotates_everything_and_the_records_train(site):
    anna = Person(site)
    choices = {}
    while anna.showing is not None:
        left = re.search(r'aria-label="left".*?data-written hidden>([^<]*)', anna.html.replace("\n", " "))
        key, verdict = anna.showing, "left" if anna.showing % 2 else "equal"
        assert anna.say(verdict, rationale="because", tags=["a", "b"])
        choices[key] = (left, verdict)
    assert "That is all for now." in anna.html and len(choices) == 7
    rows = [json.loads(line) for line in site.browser().get("/feedback.jsonl").text.splitlines()]
    found = feedback_candidates(rows)
    assert len(found) == 7 and {row["annotator"] for row in rows} == {"anna"}
    assert all(
        row["annotator_kind"] == "human" and row["rationale"] == "because" and row["seconds"] == 2.5 for row in rows
    )
    for answer in site.project.answers():
        row = next(row for row in rows if row.get("instruction", row.get("instruction_0")) ==
                   answer_instruction(site, answer))  # fmt: skip
        expected = 2 if choices[answer.showing.id][1] == "equal" else int(answer.showing.swapped)
        assert row["feedback"] == expected and row["swapped"] is answer.showing.swapped
    assert sum("label_0" in row for row in rows) == 3, "other keys travel along"


def answer_instruction(site, answer):
    record = site.project.items.by_key[answer.showing.item].record
    return record.get("instruction", record.get("instruction_0"))


def test_what_somebody_said_before_is_not_said_again(tmp_path):
    before = {"feedback": 1, "annotator": "zoe", "rationale": "old", "tags": ["old"], "failure": "skipped"}
    site = Site(tmp_path, [{**CONDITIONAL[0], **before}])
    Person(site).say("equal")
    (row,) = site.project.rows()
    assert row["feedback"] == 2 and row["annotator"] == "anna"
    assert not {"rationale", "tags", "failure"} & row.keys()
    site.store.close()


def test_reload_undo_and_repeated_requests(site):
    anna = Person(site)
    first = anna.showing
    page = anna.http.get("/")
    assert f'data-showing="{first}"' in page.text, "a reload shows the same item"
    assert anna.say("left", rationale="first thought")
    second = anna.showing
    again = anna.post("/verdict", {"showing": first, "verdict": "right"})
    assert again.json()["kept"] is False and f'data-showing="{second}"' in again.json()["html"]
    undone = anna.post("/undo", {})
    assert undone.json()["kept"] and f'data-showing="{first}"' in undone.json()["html"]
    assert "first thought" in undone.json()["html"], "the words are there to be changed"
    anna.read(undone.json()["html"])
    anna.say("right")
    assert anna.showing == second, "the newer item comes back after it"
    assert [a.verdict for a in site.project.answers()] == ["right"]


def test_two_people_at_once_and_the_overview(tmp_path):
    gold = {"instruction": "Gold", "response_0": "good", "response_1": "bad", "gold": 0}
    site = Site(tmp_path, [*CONDITIONAL, *JOINT, gold], Rules(overlap=2, repeat=1.0, seed=1))
    people = [Person(site, "anna"), Person(site, "ben")]
    for _ in range(40):
        for person in people:
            if person.showing is not None:
                person.say("left")
    quality = {row["annotator"]: row for row in site.project.quality()}
    assert {name: row["verdicts"] for name, row in quality.items()} == {"anna": 8, "ben": 8}
    assert all(row["gold"]["of"] == 1 and row["consistency"]["of"] > 0 for row in quality.values())
    assert all(row["consistency"]["same"] == 0 for row in quality.values()), "always left is never consistent"
    assert all(row["careless"] for row in quality.values())
    rows = list(site.project.rows())
    assert len(rows) == 14 and not any("gold" in row for row in rows), "gold and repetitions are not records"
    overview = site.browser().get("/overview").text
    assert (
        "anna" in overview
        and "ben" in overview
        and "interplay.svg" in overview
        and "<td>4</td>" in overview
        and "<td>3</td>" in overview
    )
    figure = site.browser().get("/interplay.svg")
    assert figure.headers["content-type"] == "image/svg+xml" and b"<svg" in figure.content
    site.store.close()


def test_looking_on_costs_little(site, monkeypatch):
    anna, calls, clock = Person(site), [], [0.0]
    monkeypatch.setattr("jpo.web.project.time.monotonic", lambda: clock[0])

    def slow():
        calls.append(site.project.version)
        clock[0] += 1.0
        return len(calls)

    assert [site.project.view("x", slow) for _ in range(3)] == [1, 1, 1], "nothing has changed"
    site.project.version += 1
    assert site.project.view("x", slow) == 1, "a moment ago is good enough"
    clock[0] += 11
    assert site.project.view("x", slow) == 2 and len(calls) == 2
    monkeypatch.undo()
    assert anna.say("left") and 'http-equiv="refresh"' in site.browser().get("/overview").text


def test_the_output_file_is_written_at_the_end_and_goes_on_after_a_restart(tmp_path):
    site = Site(tmp_path, CONDITIONAL)
    with site.browser():
        anna = Person(site)
        anna.say("left")
    assert len(site.output.read_text().splitlines()) == 1
    site.store.close()
    later = Site(tmp_path, CONDITIONAL[1:])  # an item is gone, the session and the rest stand
    anna = Person(later)
    assert later.project.progress("anna")[1] in (3, 4)
    with pytest.raises(AssertionError, match="its passcode is another one"):
        Person(later, "anna", "wrong!")
    later.store.close()


def test_texts_are_shown_not_run(tmp_path):
    evil = (
        "<script>alert(1)</script> [x](javascript:alert(2)) <img src=x onerror=alert(3)> ![y](http://elsewhere/z.png)"
    )
    site = Site(tmp_path, [{"instruction": evil, "response_0": evil, "response_1": "**bold** `code`"}])
    anna = Person(site, name='<b>"anna"</b>')
    html = anna.http.get("/").text
    inner = html.split('<main id="work"')[1].split("<dialog")[0]
    assert "<script" not in inner and "<img" not in inner and 'href="javascript' not in html and "<b>" not in html
    assert "&lt;script&gt;" in inner and "<strong>bold</strong>" in inner and "<code>code</code>" in inner
    policy = anna.http.get("/").headers["content-security-policy"]
    assert "default-src 'self'" in policy and "unsafe" not in policy
    site.store.close()


def test_lines_stay_lines_and_a_guideline_is_markdown(tmp_path):
    site = Site(tmp_path, [{"instruction": "A poem.", "response_0": "Roses\nViolets", "response_1": "none"}])
    site.project.guideline = "Weigh\n\n- truth\n- tone <script>"
    inner = Person(site).html.split('<main id="work"')[1]
    assert re.search(r"Roses<br ?/?>\s*Violets", inner), "a line break that the model wrote is seen"
    assert inner.count("<li>truth</li>") == 2, "on the page and in its help"
    assert inner.count("tone &lt;script&gt;") == 2
    site.store.close()


def test_a_wrong_link_is_a_page_for_people_and_a_line_for_programs(tmp_path):
    site = Site(tmp_path, CONDITIONAL, key="k" * 20)
    http, person = site.browser(), {"accept": "text/html,application/xhtml+xml"}
    for path, status, problem in (("/a/wrong", 404, "no annotator has this link"), ("/overview", 403, "needs the key")):
        page = http.get(path, headers=person)
        assert page.status_code == status and problem in page.text and 'name="viewport"' in page.text
        assert "default-src 'self'" in page.headers["content-security-policy"]
        line = http.get(path)
        assert line.status_code == status and problem in line.text and "<" not in line.text
    assert http.get("/nothing", headers=person).text.count("<h1>") == 1
    assert http.put("/undo", headers=person).headers["allow"] == "POST"
    site.store.close()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "127.0.0.1", "10.1.2.3"])
def test_the_address_to_pass_on(host):
    hint = elsewhere(host)
    assert hint == "" or (
        host in ("0.0.0.0", "::") and re.fullmatch(rf"other machines: [0-9a-f.:]+ in the place of {host}", hint)
    )
    assert not any(hint.split()[2:3] == [wild] for wild in ("0.0.0.0", "::"))


def test_nothing_changes_without_session_and_token(site):
    stranger = site.browser()
    assert stranger.post("/verdict", json={"showing": 1, "verdict": "left"}).status_code == 401
    anna, ben = Person(site), Person(site, "ben")
    body = {"showing": anna.showing, "verdict": "left"}
    assert anna.http.post("/verdict", json=body).status_code == 403
    assert anna.http.post("/verdict", json=body, headers={"x-csrf-token": ben.csrf}).status_code == 403
    assert ben.post("/verdict", body).status_code == 400, "another's showing"
    assert anna.http.post("/leave", data={"csrf": "0"}).status_code == 403
    assert site.project.answers() == []
    forged = site.browser()
    forged.cookies.set("jpo_session", cookie_of("another secret", "anna"))
    assert "passcode" in forged.get("/").text
    assert session_of("s", cookie_of("s", "änna")) == "änna" and session_of("s", None) is None
    assert session_of("s", "zz." + "0" * 40) is None
    cookie = anna.http.post("/enter", data={"name": "c", "passcode": "1234"}, follow_redirects=False).headers[
        "set-cookie"
    ]
    assert "HttpOnly" in cookie and "SameSite=strict" in cookie


@pytest.mark.parametrize("body", [
    b"", b"[]", b"{", b"\xff", b"[" * 20000, json.dumps({"showing": True, "verdict": "left"}).encode(),
    json.dumps({"showing": 1, "verdict": "best"}).encode(), json.dumps({"showing": 1, "verdict": "left", "tags": "a"}).encode(),
    json.dumps({"showing": 10**30, "verdict": "left"}).encode(), b'{"showing": 1, "verdict": "left", "seconds": NaN}',
    json.dumps({"showing": 1, "verdict": "left", "rationale": "x" * 5000}).encode(),
    json.dumps({"showing": 1, "verdict": "left", "tags": [1]}).encode(),
])  # fmt: skip
def test_malformed_verdicts_are_400(site, body):
    anna = Person(site)
    reply = anna.http.post("/verdict", content=body, headers={"x-csrf-token": anna.csrf})
    assert reply.status_code == 400 and reply.text and site.project.answers() == []


def test_bounds_of_size_and_rate(site):
    anna = Person(site)
    assert anna.post("/verdict", {"rationale": "x" * (BODY_LIMIT + 1)}).status_code == 413
    bucket = Bucket(rate=1, burst=3, addresses=2)
    assert [bucket.take("a", 0.0) for _ in range(4)] == [True, True, True, False] and bucket.take("a", 1.5)
    assert bucket.take("b", 0) and bucket.take("c", 0) and len(bucket._left) == 2
    tries = [site.browser().post("/enter", data={"name": "anna", "passcode": f"no {i}"}).status_code for i in range(14)]
    assert 429 in tries and tries[0] == 403


def test_a_disk_that_fails_has_kept_nothing(site, monkeypatch):
    anna, ben = Person(site), Person(site, "ben")
    showing, project = anna.showing, site.project
    together = site.store.together

    @contextlib.contextmanager
    def full():  # the outer block fails where its commit would
        outer = site.store._depth == 0
        with together():
            yield
            if outer:
                raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(site.store, "together", full)
        results = project.together([lambda: project.answer("anna", showing, "left"), lambda: project.showing("ben")])
        assert [type(result) for result in results] == [sqlite3.OperationalError] * 2
        reply = anna.post("/verdict", {"showing": showing, "verdict": "left"})
        assert reply.status_code == 503 and "nothing was kept" in reply.text
    assert project.answers() == [] == site.store.answers() and project.showing("anna").id == showing
    assert anna.say("left") and ben.say("left") and len(site.store.answers()) == 2


def test_a_class_behind_one_address_clicks_at_once(site, monkeypatch):
    anna, ben = Person(site), Person(site, "ben")
    monkeypatch.setattr("jpo.web.security.Bucket", lambda rate, burst: Bucket(1e-9, 4))
    site.app.middleware_stack = None  # built anew with that bound
    codes = [person.post("/undo", {}).status_code for _ in range(4) for person in (anna, ben)]
    assert set(codes) == {200}, "each has a bound of his own"
    refused = anna.post("/undo", {})
    assert refused.status_code == 429 == ben.post("/undo", {}).status_code and refused.headers["retry-after"]
    assert site.browser().get("/health").status_code == 200


def test_a_whole_class_enters_from_one_address(site):
    for number in range(25):
        assert Person(site, f"p{number}").showing is not None or number >= 7


def test_links_keys_hosts_and_prefixes(tmp_path):
    site = Site(tmp_path, CONDITIONAL, key="k" * 20, links={"anna": "l" * 20}, prefix="/annotate")
    browser = site.browser()
    assert browser.get("/annotate/overview").status_code == 403 == browser.get("/annotate/feedback.jsonl").status_code
    assert browser.get("/annotate/overview", params={"key": "k" * 20}).status_code == 200
    assert browser.post("/annotate/enter", data={"name": "x", "passcode": "1234", "key": "k" * 20}).status_code == 403
    assert browser.get("/annotate/a/" + "m" * 20).status_code == 404
    page = browser.get("/annotate/a/" + "l" * 20)
    assert 'data-showing="1"' in page.text and "/annotate/static/pages.css" in page.text
    assert browser.get("/annotate/static/annotate.js").status_code == 200
    assert browser.get("/annotate/", headers={"host": "evil.example"}).status_code == 400
    assert browser.get("/annotate/static/../annotate.py").status_code == 404
    site.store.close()
    closed = Site(tmp_path, CONDITIONAL, key="k" * 20)
    reply = closed.browser().post("/enter", data={"name": "x", "passcode": "1234", "key": "wrong"})
    assert reply.status_code == 403 and "not complete" in reply.text
    assert closed.browser().get("/health").json() == {"status": "ok", "items": 4}
    closed.store.close()
