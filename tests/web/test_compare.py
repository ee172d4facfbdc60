"""The page that sets two models side by side: what it streams, the margin, the records that train; and in a browser."""

import json
import os
import re
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import httpx2
import numpy as np
import pytest
from reference.models import adapter_of, write_random
from starlette.applications import Starlette
from starlette.testclient import TestClient
from web.servers import Serve
from web.test_browser import MISSING, browser, scrolls_sideways

import jpo
from jpo.data.records import preference_pairs
from jpo.data.templates import Template
from jpo.web.compare import Comparison, Page, Records, Side


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare")
    _, values = write_random(folder / "base", max_position_embeddings=512)
    adapter_of(folder / "after", values, seed=1, base=str(folder / "base"), scale=0.3)
    records = folder / "records.jsonl"
    server = Serve("--adapter", f"after={folder / 'after'}", "--name", "before", "--records", str(records),
                   model=str(folder / "base"))  # fmt: skip
    server.folder, server.records = folder, records
    yield server
    server.stop()


class Visitor:
    """What the page's script does, without a browser."""

    def __init__(self, server, **options):
        self.http = httpx2.Client(base_url=server.url, follow_redirects=True, timeout=60)
        page = self.http.get("/", **options)
        assert page.status_code == 200, page.text
        self.page, self.csrf = page, re.search(r'data-csrf="(\w+)"', page.text)[1]

    def post(self, path, body, **headers):
        return self.http.post(path, json=body, headers={"x-csrf-token": self.csrf, **headers})

    def compare(self, left="Name a colour.", right=None, **more):
        body = {"left": {"model": "before", "instruction": left}, "right": {"model": "after", "instruction": right or left},
                "temperature": 1.0, "seed": 4, "max_tokens": 24, **more}  # fmt: skip
        reply = self.post("/compare", body)
        assert reply.status_code == 200, reply.text
        return [json.loads(line) for line in reply.text.splitlines()]


@pytest.mark.parametrize("second", [None, "Add 2 and 3, then say why."])
def test_both_sides_their_scores_and_the_margin(served, second):
    lines = Visitor(served).compare(right=second)
    lm = jpo.load(str(served.folder / "base"))
    instructions = ["Name a colour.", second or "Name a colour."]
    prompts = [Template().prompt_text(text) for text in instructions]
    wanted = [lm.generate([prompts[0]], temperature=1.0, seed=4, max_new_tokens=24)[0][0]]
    ids = [lm.tokenizer.prompt_ids(prompt) for prompt in prompts]
    lm.load_adapter(served.folder / "after")
    wanted.append(lm.generate([prompts[1]], temperature=1.0, seed=4, max_new_tokens=24)[0][0])
    pairs = [(prompt, completion.token_ids) for prompt, completion in zip(ids, wanted)]
    changes = np.array(lm.sequence_logps_ids(pairs, scope="joint"))
    with lm.disable_adapter():
        changes -= lm.sequence_logps_ids(pairs, scope="joint")
    for place, completion in enumerate(wanted):
        own = [line for line in lines if line.get("side") == place]
        assert "".join(line.get("text", "") for line in own) == completion.text
        assert own[-1]["logp"] == pytest.approx(completion.logp, rel=1e-4)
        assert sum(score[0] for line in own for score in line.get("scores", ())) == pytest.approx(own[-1]["logp"])
    assert lines[-1]["margin"] == pytest.approx(0.1 * (changes[1] - changes[0]), abs=2e-4)


def test_a_click_is_a_record_that_trains(served):
    visitor = Visitor(served)
    for verdict in ("left", "right"):
        name = visitor.compare()[-1]["comparison"]
        for _ in range(2):  # a repeated request writes nothing new
            assert visitor.post("/keep", {"comparison": name, "verdict": verdict}).json() == {"kept": verdict}
    undone = visitor.compare()[-1]["comparison"]
    visitor.post("/keep", {"comparison": undone, "verdict": "left"})
    assert visitor.post("/keep", {"comparison": undone, "verdict": "undo"}).json() == {"kept": ""}
    rows = [json.loads(line) for line in served.records.read_text().splitlines()]
    assert [row["model_chosen"] for row in rows] == ["before", "after"] and rows[0]["r_chosen"] == rows[1]["r_reject"]
    assert len(preference_pairs(rows)) == 2
    lm = jpo.load(str(served.folder / "base"))
    config = jpo.PreferenceConfig(scope="joint", steps=1, batch_size=2, output=str(served.folder / "out"))
    assert len(jpo.PreferenceTrainer(lm, str(served.records), config).train()["loss"]) == 1


class Slow(Records):
    """Takes its time between the look and the writing."""

    def add(self, row):
        time.sleep(0.1)
        super().add(row)


@pytest.fixture
def page(tmp_path):
    page = Page(SimpleNamespace(names=["before", "after"]), str(tmp_path / "records.jsonl"), max_new_tokens=8)
    page.records = Slow(page.records.path)
    return page


def compared(left, right):
    sides = (Side("before", "Say", text=left), Side("after", "Say", text=right))
    return Comparison(sides, 0.1, {"seed": 0})


def test_two_clicks_at_once_write_one_record(page):
    comparison = compared("one", "two")
    with ThreadPoolExecutor(4) as people:
        list(people.map(lambda _: page._keep(comparison, "left"), range(4)))
    with open(page.records.path) as file:
        rows = [json.loads(line) for line in file]
    assert [row["r_chosen"] for row in rows] == ["one"]


def test_an_empty_answer_is_not_kept(page):
    """Training drops such a pair: the page would have said that it is written."""
    http = TestClient(Starlette(routes=page.routes()))
    csrf = re.search(r'data-csrf="(\w+)"', http.get("/").text)[1]
    comparison = compared("one", " \n")
    page.known[comparison.name] = comparison
    body = {"comparison": comparison.name, "verdict": "left"}
    reply = http.post("/keep", json=body, headers={"x-csrf-token": csrf})
    assert reply.status_code == 409 and "empty answer" in reply.text and not os.path.exists(page.records.path)


def test_one_model_beside_itself_has_no_margin(served):
    visitor = Visitor(served)
    side = {"model": "before", "instruction": "Say"}
    reply = visitor.post("/compare", {"left": side, "right": side, "temperature": 1, "seed": 1, "max_tokens": 12})
    lines = [json.loads(line) for line in reply.text.splitlines()]
    texts = ["".join(line.get("text", "") for line in lines if line.get("side") == place) for place in (0, 1)]
    assert texts[0] != texts[1] and lines[-1]["margin"] is None, "the right side draws by the next seed"


def test_what_does_not_come_from_the_page_is_refused(served):
    visitor = Visitor(served)
    body = {"left": {"model": "before", "instruction": "a"}, "right": {"model": "after", "instruction": "a"}}
    assert httpx2.post(f"{served.url}/compare", json=body).status_code == 403
    assert visitor.http.post("/compare", json=body, headers={"x-csrf-token": "0" * 40}).status_code == 403
    assert visitor.post("/compare", body, origin="http://evil.example").status_code == 403
    assert visitor.http.post("/keep", json={"comparison": "x", "verdict": "left"}).status_code == 403
    for wrong, status in [
        ({"left": "a"}, 400), ({"left": {"model": "before", "instruction": " "}}, 400), ({"temperature": -1}, 400),
        ({"left": {"model": "x", "instruction": "a"}}, 404), ({"colour": 1}, 400), ({"max_tokens": "a"}, 400),
        ({"left": {"model": "before", "instruction": "a " * 2000}}, 400),
    ]:  # fmt: skip
        reply = visitor.post("/compare", {**body, **wrong})
        assert reply.status_code == status and reply.json()["error"]["message"], wrong
    assert visitor.post("/keep", {"comparison": "x", "verdict": "left"}).status_code == 404
    assert visitor.post("/keep", {"comparison": [], "verdict": "best"}).status_code == 400
    assert "'unsafe" not in visitor.page.headers["content-security-policy"]
    assert " style=" not in visitor.page.text and "<script>" not in visitor.page.text


def test_the_link_carries_the_key(tmp_path):
    server = Serve("--records", str(tmp_path / "r.jsonl"), host="0.0.0.0")
    try:
        assert httpx2.get(f"{server.url}/").status_code == 401
        assert httpx2.get(f"{server.url}/?key=wrong").status_code == 401
        visitor = Visitor(server, params={"key": server.key})
        assert "key=" not in str(visitor.page.url), "the key leaves the address"
        assert visitor.post("/keep", {"comparison": "x", "verdict": "left"}).status_code == 404
    finally:
        server.stop()


@pytest.mark.skipif(
    bool(MISSING) and os.environ.get("JPO_REQUIRE_BROWSER") != "1", reason=f"needs {', '.join(MISSING)}"
)
@pytest.mark.parametrize("look", [{}, {"size": "390,1000", "dark": True}], ids=["wide", "narrow-dark"])
def test_a_person_compares_in_a_browser(served, look, tmp_path):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    before = len(served.records.read_text().splitlines()) if served.records.exists() else 0
    driver = browser(**look)
    try:
        driver.get(served.url)
        wait = WebDriverWait(driver, 30)

        def at(name):
            return driver.find_element(By.ID, name)

        at("left-text").send_keys("Name a <b>colour</b>.")
        at("max_tokens").clear()
        at("max_tokens").send_keys("30")
        at("send").click()
        wait.until(lambda _: "Which side" in at("status").text)
        for side in ("left", "right"):
            pieces = driver.find_elements(By.CSS_SELECTOR, f"#{side}-answer span")
            rows = driver.find_elements(By.CSS_SELECTOR, f"#{side}-numbers tr")
            assert len(pieces) == len(rows) > 3 and all(
                re.fullmatch("c[0-4]", p.get_attribute("class")) for p in pieces
            )
            assert "log-likelihood" in at(f"{side}-sum").text and "%" in pieces[0].get_attribute("title")
        assert re.match(r"[+−]?\d+\.\d\d: the right model", at("margin").text)
        driver.find_element(By.CSS_SELECTOR, "#colour option[value=change]").click()
        assert at("legend-change").is_displayed() and not at("legend-own").is_displayed()
        kind = driver.find_element(By.CSS_SELECTOR, "#left-answer span").get_attribute("class")
        assert re.fullmatch("d[0-4]", kind)
        driver.find_element(By.CSS_SELECTOR, "[data-verdict=right]").click()
        wait.until(lambda _: "Written: the right side" in at("kept").text)
        driver.find_element(By.TAG_NAME, "body").send_keys("u")
        wait.until(lambda _: at("kept").text == "")
        driver.find_element(By.CSS_SELECTOR, "[data-verdict=left]").click()
        wait.until(lambda _: "Written: the left side" in at("kept").text)
        assert not scrolls_sideways(driver)
        assert driver.get_log("browser") == [], "the policy of the page is kept and nothing fails"
        if folder := os.environ.get("JPO_SCREENSHOTS"):
            os.makedirs(folder, exist_ok=True)
            driver.save_screenshot(os.path.join(folder, f"compare-{'narrow' if look else 'wide'}.png"))
    finally:
        driver.quit()
    rows = [json.loads(line) for line in served.records.read_text().splitlines()]
    assert len(rows) == before + 1 and rows[-1]["i_chosen"] == "Name a <b>colour</b>."
