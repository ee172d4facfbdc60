"""A person in a real browser (Debian's chromium with chromium-driver): thirty items by keyboard, a reload, a lost
connection, undo; two people at once. Skipped by name where there is no browser; JPO_REQUIRE_BROWSER=1 (CI) forbids
that."""

import json
import os
import shutil
import signal
import time

import pytest
from web.servers import Annotate

MISSING = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
if os.environ.get("JPO_REQUIRE_BROWSER") != "1":
    pytestmark = pytest.mark.skipif(
        bool(MISSING), reason=f"needs {', '.join(MISSING)} (apt-get install chromium-driver)"
    )


def browser(size="1200,900", dark=False):
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        f"--window-size={size}",
    ):
        options.add_argument(argument)
    if dark:
        options.add_argument("--force-dark-mode")
    options.binary_location = shutil.which("chromium")
    # a sanitizer's runtime, preloaded for the engine under test, ends a foreign browser at its start
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    service = webdriver.ChromeService(shutil.which("chromedriver"), env=environment)
    driver = webdriver.Chrome(options=options, service=service)
    width, height = map(int, size.split(","))
    if width < 500:  # narrower than a window can be: as a phone shows it
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": True}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    driver.asked_width = width
    return driver


def scrolls_sideways(driver):
    """Whether the page is wider than its window (a phone's page then shrinks, and its window's width grows)."""
    return driver.execute_script("return document.documentElement.scrollWidth") > driver.asked_width


class Person:
    def __init__(self, url, name, **look):
        self.driver = browser(**look)
        self.driver.get(url)
        self.find("[name=name]").send_keys(name)
        self.find("[name=passcode]").send_keys("secret")
        self.find("button.primary").click()
        self.wait(lambda: self.find("#work"))

    def find(self, selector):
        return self.driver.find_element("css selector", selector)

    def wait(self, condition, seconds=20):
        end = time.monotonic() + seconds
        while True:
            try:
                if found := condition():
                    return found
            except Exception:
                if time.monotonic() > end:
                    raise
            assert time.monotonic() < end, self.driver.page_source
            time.sleep(0.02)

    def showing(self):
        return int(self.find("#answer").get_attribute("data-showing"))

    def done(self):
        return int(self.find(".progress progress").get_attribute("value"))

    def press(self, key):
        self.find("body").send_keys(key)

    def choose(self, key):
        before = self.done()
        self.press(key)
        self.wait(lambda: self.done() == before + 1)


@pytest.fixture
def folder(tmp_path):
    records = [
        {"instruction_0": f"I {i}: <b>bold?</b>", "response_0": f"left **{i}**", "instruction_1": f"J {i}", "response_1": f"right {i}"}
        if i % 2
        else {"instruction": f"Which is nicer, {i}?", "response_0": f"one {i}", "response_1": "long " * (2000 if i == 0 else 3)}
        for i in range(32)
    ]  # fmt: skip
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return tmp_path


def test_a_person_annotates_thirty_items(folder):
    from selenium.webdriver.common.keys import Keys

    server = Annotate(folder)
    anna = Person(server.url, "anna")
    try:
        keys = [Keys.ARROW_LEFT, Keys.ARROW_RIGHT, Keys.ARROW_UP, "1", "2", "3"]
        for number in range(10):
            anna.choose(keys[number % len(keys)])
        assert anna.driver.switch_to.active_element.get_attribute("id") == "answer", "a screen reader goes on there"
        # words with a draft that survives a reload
        anna.press("r")
        anna.find("[name=rationale]").send_keys("a draft u 1")
        anna.driver.refresh()
        anna.wait(lambda: anna.find("[name=rationale]").get_attribute("value") == "a draft u 1")
        assert anna.done() == 10, "typing in the field chose nothing"
        anna.choose(Keys.ARROW_LEFT)
        # undo: the same item stands again, with its words
        second = anna.showing()
        anna.press("u")
        anna.wait(lambda: anna.done() == 10)
        assert anna.find("[name=rationale]").get_attribute("value") == "a draft u 1"
        anna.choose(Keys.ARROW_RIGHT)
        assert anna.showing() == second
        # the connection is lost: the choice waits in the browser until the server is back
        server.stop(signal.SIGKILL)
        before = anna.done()
        anna.press("1")
        anna.wait(lambda: "No connection" in anna.find("#status").text)
        server = Annotate(folder, port=server.port)
        anna.wait(lambda: anna.done() == before + 1, 40)
        for number in range(anna.done(), 31):
            anna.choose(keys[number % len(keys)])
        anna.choose("4")
        assert "That is all for now." in anna.find("#work").text
    finally:
        anna.driver.quit()
        server.stop(signal.SIGINT)
    rows = [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]
    assert len(rows) == 32 and sum(row["feedback"] is None for row in rows) == 1
    assert sum(row.get("rationale") == "a draft u 1" for row in rows) == 1
    assert len({json.dumps([row.get("instruction"), row.get("instruction_0")]) for row in rows}) == 32


def test_two_people_and_a_narrow_screen(folder):
    server = Annotate(folder)
    anna, ben = Person(server.url, "anna"), Person(server.url, "ben", size="390,900", dark=True)
    try:
        for _ in range(3):
            anna.choose("1")
            ben.choose("2")
        assert anna.showing() != ben.showing()
        lengthen = "document.querySelector('.side > .text').innerHTML = '<p>one more</p>'.repeat(50)"
        for person in (anna, ben):
            person.driver.execute_script(lengthen)
            places = person.driver.execute_script(
                "return [...document.querySelectorAll('.choice')].map(b => b.getBoundingClientRect().bottom)"
            )
            assert len(places) == 4 and max(places) <= person.driver.execute_script("return innerHeight"), (
                "however long the texts are, every choice is in reach"
            )
        heading = "document.querySelector('.side > .text').innerHTML = '<h2>Title</h2>'; return getComputedStyle("
        assert anna.driver.execute_script(f"{heading}document.querySelector('.text h2')).textTransform") == "none"
        before = anna.done()
        anna.find("[name=tags]").send_keys("one, two\n")
        time.sleep(0.2)
        assert anna.done() == before, "Enter behind the tags chooses nothing"
        anna.find(".choice[value=equal]").click()
        anna.wait(lambda: anna.done() == before + 1)
        for person in (anna, ben):
            assert not scrolls_sideways(person.driver)
        assert ben.driver.get_log("browser") == [], "the policy of the page is kept and nothing fails"
        anna.driver.get(f"{server.url}overview")
        assert "anna" in anna.driver.page_source and "ben" in anna.driver.page_source
        if os.environ.get("JPO_SCREENSHOTS"):
            os.makedirs(os.environ["JPO_SCREENSHOTS"], exist_ok=True)
            anna.driver.save_screenshot(os.path.join(os.environ["JPO_SCREENSHOTS"], "overview.png"))
            anna.driver.get(server.url)
            anna.driver.save_screenshot(os.path.join(os.environ["JPO_SCREENSHOTS"], "wide.png"))
            ben.driver.save_screenshot(os.path.join(os.environ["JPO_SCREENSHOTS"], "narrow.png"))
    finally:
        anna.driver.quit()
        ben.driver.quit()
        server.stop(signal.SIGINT)
    rows = [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]
    assert len(rows) == 7 and [row["tags"] for row in rows if row.get("tags")] == [["one", "two"]]
